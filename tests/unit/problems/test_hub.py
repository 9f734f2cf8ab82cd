"""Sets of a hub by their names there: from a hub on this machine, from its cache without it, and from a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from pipeline.errors import ProblemSetError
from pipeline.jobs.references import notes_on
from pipeline.jobs.sources import load_source, recipe_for
from pipeline.jobs.submission import Submission
from pipeline.problems import ColumnNames, ProblemSet
from pipeline.problems.fetch_from_hub import _told
from pipeline.problems.hub import HubSet, parse_hub_set
from tests.hub_server import Hub, Repo, running_hub

README = b"""---
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train.jsonl}
  - {split: test, path: main/test.jsonl}
- config_name: socratic
  data_files:
  - {split: test, path: main/test.jsonl}
---
"""


def rows(*texts: str) -> bytes:
    return b"".join(
        json.dumps({"question": text, "answer": f"Because 7f3a.\n#### {len(text)},000", "rationale": "7f3a"}).encode()
        + b"\n"
        for text in texts
    )


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """Has a set like GSM8K, one that is gated, and one that is a script."""
    with running_hub() as hub:
        files = {"README.md": README, "main/train.jsonl": rows("a?", "b?"), "main/test.jsonl": rows("1+1?", "2+2+2?")}
        hub.repos["openai/gsm8k"] = Repo(files=files)
        hub.repos["them/gated"] = Repo(refused="GatedRepo")
        hub.repos["them/script"] = Repo(files={"README.md": b"", "script.py": b"raise SystemExit('it ran')"})
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_CACHE", "HF_HUB_CACHE", "HF_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        yield hub


def load(name: str, *, columns: ColumnNames | None = None) -> ProblemSet:
    submission = Submission.parse(problems=Path(name), columns=columns)
    return load_source(Path(name), recipe_for(submission), columns=columns or ColumnNames())


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("hf:a/b", HubSet(repo="a/b")),
        ("hf:a/b:c@d#e", HubSet(repo="a/b", config="c", revision="d", split="e")),
        ("hf:a/b@refs/convert/parquet", HubSet(repo="a/b", revision="refs/convert/parquet")),
        ("hf:squad#train", HubSet(repo="squad", split="train")),
        ("hf:./dir/of", HubSet(repo="./dir/of")),
        ("hf:/data/set:main", HubSet(repo="/data/set", config="main")),
    ],
)
def test_a_name_has_its_parts(name: str, found: HubSet) -> None:
    assert parse_hub_set(str(Path(name))) == found
    assert str(found) == name


@pytest.mark.parametrize("name", ["hf:", "hf:a/b/c", "hf:a b/c", "hf:a/b:", "hf:a/b#", "hf:://x"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ProblemSetError, match="OWNER/SET"):
        parse_hub_set(name)


def test_a_set_is_read_by_its_recipe_then_from_the_cache_alone(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.repos["openai/gsm8k"].commit
    read = load("hf:openai/gsm8k")
    assert read.name == "gsm8k"
    assert [(problem.prompt, problem.answer) for problem in read.problems] == [("1+1?", "4000"), ("2+2+2?", "6000")]
    assert [problem.metadata for problem in read.problems] == [{}, {}]
    assert all("7f3a" in problem.hidden["rationale"] for problem in read.problems)
    assert read.origin == {"hub": "openai/gsm8k", "config": "main", "revision": commit, "split": "test"}
    assert f"2 problems of hf:openai/gsm8k:main@{commit}#test" in list(notes_on(read))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.repos.clear()
    asked = len(hub.asked)
    again = load(f"hf:openai/gsm8k@{commit}")
    assert (again.content_sha256, again.origin) == (read.content_sha256, read.origin)
    with pytest.raises(ProblemSetError, match=f"the cache has commit {commit}: that this is v2 is not known"):
        load("hf:openai/gsm8k@v2")
    with pytest.raises(ProblemSetError, match=r"hub cannot be reached, and the cache has it not; .*HF_HOME"):
        load("hf:openai/other")
    assert len(hub.asked) == asked


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf:them/gated", "gated dataset on the Hub.*set HF_TOKEN"),
        ("hf:them/none", "doesn't exist on the Hub or cannot be accessed.*HF_TOKEN"),
        ("hf:them/script", "it is a script that makes its rows, and no script of a set is run"),
        ("hf:openai/gsm8k:main#dev", "it has no split 'dev'; it has train, test"),
        ("hf:openai/gsm8k:wrong", "no configuration 'wrong'; it has the configurations main, socratic; say which"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(hub: Hub, name: str, said: str) -> None:
    with pytest.raises(ProblemSetError, match=said) as refused:
        load(name)
    [fault] = refused.value.faults
    assert "\n" not in fault


def test_a_folder_is_read_in_the_layout_of_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All configurations joined: each row says its own, ids may come again, and numbers keep their form."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "aime"
    for part, answers in (("I", ["0.50", "7"]), ("II", ["3", "4"])):
        (folder / part).mkdir(parents=True)
        table = pyarrow.table({"id": [1, 2], "question": [f"{part} 1?", f"{part} 2?"], "answer": answers})
        parquet.write_table(table, folder / part / "rows.parquet")
    configs = "\n".join(f"- config_name: {part}\n  data_files: {part}/rows.parquet" for part in ("I", "II"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}\n---\n")
    with pytest.raises(ProblemSetError, match=r"it has the configurations I, II; say which, as in hf:.*:NAME"):
        load(f"hf:{folder}")
    read = load(f"hf:{folder}:all", columns=ColumnNames(id="config+id", subject="config"))
    assert [(p.external_id, p.answer, p.subject) for p in read.problems] == [
        ("I-1", "0.50", "I"), ("I-2", "7", "I"), ("II-1", "3", "II"), ("II-2", "4", "II"),
    ]  # fmt: skip
    assert read.origin == {"folder": str(folder), "config": "all", "split": "train"}


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "datasets.py").write_text("raise ModuleNotFoundError('none', name='datasets')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ProblemSetError, match=r"datasets is not installed: .* pip install 'specthink\[hub\]'"):
        load("hf:a/b")


def test_a_reader_that_ends_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "datasets.py").write_text("import os, sys; print('it broke', file=sys.stderr, flush=True); os._exit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ProblemSetError, match="its reader ended with status 3: it broke"):
        load("hf:a/b")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "more than 8 GiB"),
        (ConnectionError("Couldn't reach 'a/b' on the Hub (ConnectError)"), "cannot be reached"),
        (ValueError("There are multiple 'a/b' configurations in the cache: x, y\nPlease"), "configurations x, y; say"),
        (
            ValueError("Couldn't find cache for a/b for config 'z'\nAvailable configs in the cache: ['x']"),
            "it has the configurations x; say which",
        ),
        (KeyError("odd\nlines"), "^KeyError: "),
    ],
)
def test_what_the_library_says_becomes_a_line(error: Exception, said: str) -> None:
    assert re.search(said, _told(error, {"repo": "a/b", "config": None}))


def test_recipes_name_sets_that_can_be_asked_for() -> None:
    from pipeline.jobs.recipes import RECIPES

    published = {name: parse_hub_set(recipe.hub) for name, recipe in RECIPES.items() if recipe.hub}
    assert len(published) >= 12
    assert all(there.repo.count("/") == 1 and there.split for there in published.values())
    for name, there in published.items():
        found = recipe_for(Submission.parse(problems=Path(f"hf:{there.repo}")))
        assert found is not None
        assert found.name == name
    named = ColumnNames(problem="question")
    assert recipe_for(Submission.parse(problems=Path("hf:openai/gsm8k"), columns=named)) is None
    assert recipe_for(Submission.parse(problems=Path("hf:openai/gsm8k:socratic"))) is None
