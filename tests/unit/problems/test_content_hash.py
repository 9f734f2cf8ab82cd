"""The same problems have the same version in each format; any change of content gives another."""

import csv
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.problems import Problem, ProblemSet, content_sha256, load_problem_set

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
prompts = texts.map(lambda text: "p" + text)
rows = st.lists(
    st.fixed_dictionaries(
        {"problem": prompts, "answer": texts, "subject": texts, "level": texts, "source": texts, "two words": texts}
    ),
    min_size=1,
    max_size=40,
)


def load_in_each_format(folder: Path, table: list[dict[str, str]]) -> list[ProblemSet]:
    jsonl, table_csv, parquet = (folder / f"set.{ending}" for ending in ("jsonl", "csv", "parquet"))
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    with table_csv.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), parquet)
    return [load_problem_set(path) for path in (jsonl, table_csv, parquet)]


@settings(max_examples=8, deadline=None)  # each decodes Parquet in a process of its own
@given(rows)
def test_jsonl_csv_and_parquet_give_the_same_set(table: list[dict[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        from_jsonl, from_csv, from_parquet = load_in_each_format(Path(folder), table)
    assert from_jsonl == from_csv == from_parquet
    assert [problem.prompt for problem in from_jsonl.problems] == [row["problem"] for row in table]
    answers = [row["answer"] if row["answer"].strip() else None for row in table]
    assert [problem.answer for problem in from_jsonl.problems] == answers


def test_numbers_in_json_and_text_in_csv_are_the_same_content(tmp_path: Path) -> None:
    jsonl, table_csv = tmp_path / "a.jsonl", tmp_path / "b.csv"
    jsonl.write_text('{"year": 2024, "level": 3, "problem": "p", "answer": "x", "note": null, "choices": ["x", 2]}\n')
    table_csv.write_text('problem,answer,level,note,year,choices\np,x,3,,2024,"[""x"",  2]"\n')
    assert load_problem_set(jsonl).content_sha256 == load_problem_set(table_csv).content_sha256


BASE = Problem(external_id="1", prompt="p", answer="a", subject="s", level="l", metadata={"k": "v"})


@pytest.mark.parametrize(
    "change",
    [
        {"external_id": "2"},
        {"prompt": "p "},
        {"answer": None},
        {"answer": "b"},
        {"subject": None, "level": "s"},
        {"metadata": {}},
        {"metadata": {"k": "w"}},
        {"metadata": {"kv": ""}},
    ],
)
def test_any_change_changes_the_hash(change: dict[str, Any]) -> None:
    assert content_sha256([replace(BASE, **change)]) != content_sha256([BASE])


def test_order_and_number_of_problems_count() -> None:
    other = replace(BASE, external_id="2")
    assert len({content_sha256(problems) for problems in ([BASE, other], [other, BASE], [BASE], [])}) == 4


def test_hash_does_not_change_between_releases() -> None:
    # Stored sets are found again by it: a change here would store every set a second time.
    assert content_sha256([BASE]) == "60253a2df532b22c8faba2e7bfc04b4adad1392be42aacbe52d0eb08b252f034"
