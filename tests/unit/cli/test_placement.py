"""`up` and `worker` with devices and engine arguments, as far as nothing is started."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cli import main

Run = Callable[..., int]
MODELS = Path(__file__).parents[3] / "examples" / "models"
SMALL, LARGE = str(MODELS / "demo-small"), str(MODELS / "demo-large")
URL = "http://host:8000/v1"
FILE = f"""
[[pool]]
role = "small"
model = "{SMALL}"

[[pool]]
role = "large"
model = "org/large-32b"
revision = "abc"
tp = 2
share = 0.8
max_model_len = 4096

[pool.engine_args]
enforce_eager = true

[pool.environment]
HF_HUB_OFFLINE = "1"
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs the command in this process and returns its exit code; a command that becomes another process ends."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SPECTHINK_")}
    monkeypatch.setattr(os, "environ", {**kept, "SPECTHINK_STATE_DIR": str(tmp_path / "state")})

    def execv(path: str, argv: list[str]) -> None:
        print("became", *argv[3:])
        sys.exit(0)

    monkeypatch.setattr(os, "execv", execv)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["specthink", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return run


@pytest.fixture
def machine(tmp_path: Path) -> str:
    file = tmp_path / "machine.json"
    file.write_text(json.dumps({"cores": 8, "memory_gib": 64, "gpus": [{"count": 4, "memory_gib": 24}]}))
    return str(file)


def test_dry_run_prints_the_plan_for_another_machine_and_starts_nothing(
    run: Run, machine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("up", "--small", SMALL, "--large", f"{LARGE}@2,3", "--dry-run", "--machine", machine) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "demo-" in line]
    assert [(line[0], line[2], line[4]) for line in lines] == [
        *[("small", str(index), "0.900") for index in (0, 1)],
        *[("large", str(index), "0.900") for index in (2, 3)],
    ]
    assert not (tmp_path / "state").exists()


def test_dry_run_without_a_machine_is_for_this_one(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("up", "--small", f"{SMALL}@cpu:workers=2", "--dry-run") == 0
    assert capsys.readouterr().out.count("demo-small") == 2


def test_plan_that_cannot_be_starts_nothing(
    run: Run, machine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("up", "--small", f"{SMALL}@7", "--dry-run", "--machine", machine) == 2
    assert "there is no GPU 7 (there are: 0, 1, 2, 3)" in capsys.readouterr().err
    assert run("up", "--small", f"{SMALL}@7") == 2
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--machine", "m.json"], "it is for --dry-run"),
        (["--engine-arg", "seed=1", "--small", SMALL], "engine argument seed is not to be given"),
        (["--small-engine-arg", "nothing", "--small", SMALL], "write NAME=VALUE"),
        (["--engine-arg", "enforce_eager=true"], "give models too"),
        (["--large-accelerate", "ngram", "--small", SMALL], "there is no large engine to start"),
        (["--draft-tokens", "4", "--small", SMALL], "nothing makes drafts"),
        (["--large-accelerate", "medusa", "--large", LARGE], "write ngram, suffix, eagle3:MODEL or draft:MODEL"),
        (["--file", "nowhere.toml"], "nowhere.toml cannot be read"),
        (["small", "--dry-run"], "not both"),
        (["small", "--no-flower"], "not both: leave out --flower"),
        (["--small", SMALL, "--judge-engine-arg", "enforce_eager=true"], "there is no judge engine to start"),
        (
            ["--small", SMALL, "--large", "org/a", "--large-server", URL, "--large-engine-arg", "enforce_eager=true"],
            "there is no large engine to start: a server has its model",
        ),
        (["--large", "org/a", "--large-server", URL, "--engine-arg", "enforce_eager=true"], "servers have all models"),
        (["--dry-run"], "there are no workers to plan"),
        (["--listen", ""], "it is ADDRESS or ADDRESS:PORT"),
    ],
)
def test_up_refuses_what_does_not_go(
    run: Run, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert run("up", *options) == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_worker_takes_its_pool_of_the_file(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "specthink.toml"
    file.write_text(FILE)
    given = ["--engine-arg", "max_num_batched_tokens=4096", "--device-share", "0.5"]
    assert run("worker", "large", "--file", str(file), *given) == 0
    assert capsys.readouterr().out.strip() == "became large --model org/large-32b --revision abc"
    assert json.loads(os.environ["SPECTHINK_ENGINE__VLLM__ARGUMENTS"]) == {
        "enforce_eager": "true",
        "max_num_batched_tokens": "4096",
    }
    assert os.environ["SPECTHINK_ENGINE__VLLM__TENSOR_PARALLEL_SIZE"] == "2"
    assert os.environ["SPECTHINK_ENGINE__VLLM__GPU_MEMORY_UTILIZATION"] == "0.5"
    assert os.environ["SPECTHINK_ENGINE__MAX_MODEL_LEN"] == "4096"
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_worker_is_told_its_accelerator(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("worker", "large", "--model", LARGE, "--accelerate", f"draft:{SMALL}", "--draft-tokens", "6") == 0
    assert capsys.readouterr().out.strip() == f"became large --model {LARGE}"
    assert os.environ["SPECTHINK_ENGINE__VLLM__ACCELERATE"] == f"draft:{SMALL}"
    assert os.environ["SPECTHINK_ENGINE__VLLM__DRAFT_TOKENS"] == "6"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "org/a", "--accelerate", "draft"], "draft needs the model that makes the drafts"),
        (["--model", "org/a", "--draft-tokens", "6"], "draft tokens go with an accelerator"),
        ([], "give --model, or a --file that says it"),
        (["--model", ""], "--model is empty"),
        (["--model", "org/a", "--server", ""], "--server is empty"),
        (["--model", "org/a", "--revision", ""], "--revision is empty"),
        (["--model", "org/a", "--name-served", ""], "--name-served is empty"),
        (["--file", "specthink.toml", "--model", "org/another"], "0 entries for a small pool of org/another"),
        (["--model", "org/a", "--engine-arg", "enable_lora=true"], "merge it into its base model"),
    ],
)
def test_worker_refuses_what_does_not_go(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
) -> None:
    (tmp_path / "specthink.toml").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    assert run("worker", "small", *options) == 2
    assert said in capsys.readouterr().err


def test_up_takes_a_server_for_a_role(run: Run, machine: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--small", SMALL, "--large", "org/large-70b", "--large-server", URL, "--dry-run", "--machine", machine]
    assert run("up", *given) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "demo-" in line or "70b" in line]
    assert [line[2] for line in lines] == ["0", "1", "2", "3", "server"]


def test_server_without_its_model_is_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("up", "--large-server", URL, "--dry-run") == 2
    assert "--large-server needs the model that it has: give --large MODEL too" in capsys.readouterr().err


def test_worker_of_a_server_is_told_where_it_is(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("worker", "large", "--model", "org/large-70b", "--server", URL, "--server-model", "mine") == 0
    assert capsys.readouterr().out.strip() == "became large --model org/large-70b"
    assert os.environ["SPECTHINK_ENGINE__KIND"] == "server"
    assert os.environ["SPECTHINK_ENGINE__SERVER__URL"] == URL
    assert os.environ["SPECTHINK_ENGINE__SERVER__MODEL"] == "mine"


def test_file_may_say_that_a_server_has_the_model(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "specthink.toml"
    file.write_text(f'[[pool]]\nrole = "large"\nmodel = "org/large-70b"\nserver = "{URL}"\nserver_model = "mine"\n')
    assert run("worker", "large", "--file", str(file)) == 0
    assert os.environ["SPECTHINK_ENGINE__SERVER__URL"] == URL
    assert run("up", "--file", str(file), "--dry-run") == 0
    assert "server" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--server", "host:8000"], "the server's address must be http://host:port/v1"),
        (["--server", URL, "--device-share", "0.5"], "are the business of the server at"),
        (["--server", URL, "--engine-arg", "enforce_eager=true"], "are the business of the server at"),
        (["--server", URL, "--accelerate", "ngram"], "are the business of the server at"),
        (["--server", URL, "--engine-process", "inline"], "--engine-process says where an engine of this machine runs"),
    ],
)
def test_worker_refuses_what_only_the_server_can_be_told(
    run: Run, given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("worker", "large", "--model", "org/large-70b", *given) == 2
    assert said in capsys.readouterr().err
