"""What a dry run says of a submission, without a database."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest

from pipeline.jobs.dry_run import DryRun, dry_run
from pipeline.jobs.readiness import make_ready
from pipeline.jobs.submission import Submission
from pipeline.samples import ModelRole
from pipeline.workforce import WorkerReport

MODELS = Path(__file__).parents[3] / "examples" / "models"
SMALL, LARGE = MODELS / "demo-small", MODELS / "demo-large"


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def worker(kind: str, model: str | None = None, **columns: Any) -> WorkerReport:
    usual: dict[str, Any] = {
        "id": 3, "kind": kind, "model": model, "host": "there", "pid": 1, "max_in_flight": 8, "num_in_flight": 0,
        "tokens_generated": 0, "started_at": dt.datetime.now(dt.UTC), "renewed_seconds_ago": 1.0,
    }  # fmt: skip
    return WorkerReport(**(usual | columns))


def look(tmp_path: Path, *workers: WorkerReport, is_reached: bool = True, **options: Any) -> DryRun:
    file = tmp_path / "set.csv"
    file.write_text("question,answer,topic,why\n1+1?,2,sums,easy\n1+2?,,sums,\n1+3?,4,sums,easy\n")
    given = {"problems": file, "small": SMALL, "large": LARGE, "max_tokens": 100, "seed": 7, "num_samples": 4} | options
    return dry_run(make_ready(Submission.parse(**given)), list(workers) if is_reached else None)


def test_what_was_found_in_the_file_is_said(tmp_path: Path) -> None:
    found = look(tmp_path, limit=2)
    problems = found.problems
    assert (problems.size, problems.used, problems.num_references, problems.grader) == (3, 2, 1, "math")
    assert problems.columns == {
        "problem": "question", "answer": "answer", "id": None, "subject": None, "level": None, "choices": None
    }  # fmt: skip
    assert problems.hidden == ("topic", "why")
    assert (found.samples_total, found.max_tokens, found.seed) == (8, 100, 7)
    assert "1 of 2 problems have no reference answer: their samples stay unscored" in found.warnings


def test_each_model_shows_its_own_first_prompt(tmp_path: Path) -> None:
    small, large = look(tmp_path, small_asking={"system": "Be brief."}).models
    assert (small.role, large.role) == (ModelRole.SMALL, ModelRole.LARGE)
    assert small.prompt.startswith("<|system|>Be brief.<|end|><|user|>1+1?\n\nPlease reason")
    assert large.prompt.startswith("<|user|>1+1?\n\nPlease reason")
    assert small.prompt.endswith("<|assistant|><think>\n")
    assert (small.num_tokens or 0) > (large.num_tokens or 0) > 0
    assert "the prompt opens it" in small.think_phase


def test_a_model_whose_files_are_not_here_shows_the_users_message(tmp_path: Path) -> None:
    (asked,) = look(tmp_path, large="org/nobody-has-it", policy="large-only").models
    assert asked.prompt.startswith("1+1?\n\nPlease reason")
    assert (asked.num_tokens, asked.context, asked.think_phase) == (None, None, "known to workers")


def test_every_number_of_the_policy_is_shown(tmp_path: Path) -> None:
    found = look(tmp_path, policy_values={"n1": "30"}, exit={"thinking_tokens": 50})
    assert found.policy_values["policy"]["n1"] == 30
    assert found.policy_values["exit"]["thinking_tokens"] == 50
    assert "guard" not in found.policy_values


def test_without_a_database_nothing_is_said_of_workers(tmp_path: Path) -> None:
    found = look(tmp_path, is_reached=False)
    assert [asked.workers for asked in found.models] == [None, None]
    assert found.warnings[-1] == "no database was reached: who serves the models is not known"
    assert not any("serves demo-small" in warning for warning in found.warnings)


def test_a_model_that_nobody_serves_is_told_with_the_command(tmp_path: Path) -> None:
    found = look(tmp_path, worker("small", "demo-small"), worker("large", "demo-small"), worker("upkeep"))
    told = "no live large worker serves demo-large: specthink worker large --model demo-large starts one"
    assert told in found.warnings
    assert not any("small worker serves" in warning for warning in found.warnings)
    assert "no live worker grades: specthink worker grade starts one" in found.warnings
    assert not any("admits" in warning for warning in found.warnings)


def test_a_context_that_is_too_short_for_the_budget_is_told(tmp_path: Path) -> None:
    workers = [worker("small", "demo-small", id=1, max_model_len=64), worker("small", "demo-small", id=2)]
    found = look(tmp_path, *workers, policy="small-only")
    (asked,) = found.models
    assert [(one.id, one.max_model_len) for one in asked.workers or ()] == [(1, 64), (2, None)]
    room = 64 - (asked.num_tokens or 0)
    told = f"worker 1 on there takes 64 tokens of prompt and output: room for {room} of --max-tokens 100"
    assert told in found.warnings
    assert not any("worker 2" in warning for warning in found.warnings)


def test_a_budget_beyond_the_models_own_context_is_told_where_nobody_serves_it(tmp_path: Path) -> None:
    found = look(tmp_path, policy="small-only", max_tokens=5000)
    assert any("demo-small takes 2,048 tokens of prompt and output" in warning for warning in found.warnings)


def test_a_worker_with_another_model_of_the_name_serves_nothing(tmp_path: Path) -> None:
    found = look(tmp_path, worker("small", "demo-small", weights_sha256="other"), policy="small-only")
    told = "worker 3 on there: this worker's model has other weights than the job's"
    assert told in found.warnings
    assert any("no live small worker serves demo-small" in warning for warning in found.warnings)
