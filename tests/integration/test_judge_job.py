"""A judge on running workers, by the command line: real processes and queues, scripted models."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.doctor import check_database
from pipeline.db.invariants import check_job, snapshot
from pipeline.jobs.config import JobState
from pipeline.samples import ModelRole
from tests.chaos.harness import Harness
from tests.chaos.models import MODELS
from tests.chaos.texts import NUM_PROBLEMS
from tests.chaos.worker import ENGINE_VARIABLE, MAX_IN_FLIGHT, STEP_S
from tests.chaos.workload import ChaosJob, Scripted
from workers.engine.base import GenerateRequest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

_FENCED = r"\[begin {name} (\w+)\]\n(.*?)\n\[end {name} \1\]"
_seeds = itertools.count(9_000_000)


def judging_engine(role: ModelRole, chat: Any, model: str, phases: Any) -> Any:
    """The harness's engine, which also judges: it compares what is boxed in the answer with the reference, and gives no
    verdict on problem 4. Its thoughts state the other verdict."""
    from tests.chaos.texts import make_script
    from workers.engine.scripted import ScriptedEngine

    writes = make_script(chat, role)

    def script(request: GenerateRequest) -> Iterable[int]:
        prompt = chat.tokenizer.decode(list(request.prompt_ids), skip_special_tokens=False)
        if "[begin answer" not in prompt:
            return writes(request)
        question, answer, reference = (_part(name, prompt) for name in ("question", "answer", "reference"))
        is_right = f"\\boxed{{{reference}}}" in answer
        said, other = ("correct", "incorrect") if is_right else ("incorrect", "correct")
        verdict = "Who knows." if "number 4." in question else f"Verdict: {said}"
        return list(chat.encode_text(f"Perhaps.\n\nVerdict: {other}\n</think>\n\nIt was compared.\n\n{verdict}"))

    return ScriptedEngine(
        script, chat.decode_stream, model=model, max_model_len=chat.max_model_len or 2048,
        max_in_flight=MAX_IN_FLIGHT, step_s=STEP_S,
    )  # fmt: skip


def _part(name: str, prompt: str) -> str:
    found = re.search(_FENCED.format(name=name), prompt, re.DOTALL)
    assert found is not None, prompt
    return found[2]


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    environment = {ENGINE_VARIABLE: f"{__name__}:{judging_engine.__name__}"}
    harness = Harness.start(tmp_path_factory.mktemp("judge") / "state", Scripted(environment))
    yield harness
    harness.close()


@pytest.fixture
def job(harness: Harness) -> ChaosJob:
    """A job that has ended, with two references that its right answers do not meet."""
    submitted = harness.submit(next(_seeds))
    harness.wait_over(submitted)
    harness.rows(
        "UPDATE reference_answers r SET answer = '-1' FROM problems p JOIN jobs j USING (problem_set_id) "
        "WHERE p.id = r.problem_id AND p.position < 2 AND j.id = :job RETURNING 1",
        job=submitted.id,
    )
    return submitted


def specthink(harness: Harness, *words: str, code: int = 0) -> tuple[str, str]:
    """What a command printed, and what it told."""
    command = [str(Path(sys.executable).parent / "specthink"), "--state-dir", str(harness.state.state_dir), *words]
    env = {name: value for name, value in os.environ.items() if not name.startswith("SPECTHINK_")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


def test_model_judges_a_job_by_one_command(harness: Harness, job: ChaosJob) -> None:
    assert {row.score for row in harness.client.results(job.id)} == {1.0}
    model = str(MODELS[ModelRole.LARGE])
    printed, told = specthink(harness, "judge", str(job.id), "--model", model, "--max-tokens", "300", "--wait", code=1)
    judge = int(printed.split()[0])
    assert f"10 samples of job {job.id} are judged by {NUM_PROBLEMS} different prompts" in told
    assert "until the judge's job is removed" in told
    assert f"job {job.id}, judged by job {judge}: 4 correct, 4 incorrect, 2 without a verdict" in told
    scores = {(row.problem, row.sample_index): row.score for row in harness.client.results(job.id)}
    expected = {"0": 0.0, "1": 0.0, "2": 1.0, "3": 1.0, "4": None}
    assert scores == {(problem, index): score for problem, score in expected.items() for index in range(2)}
    assert harness.client.job(judge).state is JobState.COMPLETED
    [error] = harness.client.errors(job.id)
    assert (error.num_samples, error.example) == (2, "the judge's text has no line with a verdict alone")
    harness.until(lambda: harness.client.summary(job.id)[0].accuracy == 0.5, "the totals to be counted anew")
    harness.until(lambda: violations(harness, judge) == [], "the last heartbeats' counts", timeout_s=20)
    assert [found for found in violations(harness, job.id) if "reference answer" not in found] == []
    assert [str(replayed) for replayed in harness.client.replay_job(judge) if replayed.divergence] == []
    again, _ = specthink(harness, "judge", str(job.id), "--apply", str(judge))
    assert "2 without a verdict" in again
    assert "; 0 new grades" in again
    _, refusal = specthink(harness, "judge", str(job.id), "--apply", str(job.id), code=1)
    assert f"it is no judge of job {job.id}" in refusal


def test_verdicts_become_grades_without_anybody_who_waits(harness: Harness, job: ChaosJob) -> None:
    judge = harness.client.judge(job.id, model=MODELS[ModelRole.LARGE], max_tokens=300)
    query = "SELECT verdicts_at FROM jobs WHERE id = :job"
    harness.until(lambda: harness.rows(query, job=judge.id)[0][0], "upkeep to carry them over", timeout_s=60)
    assert sorted(str(row.score) for row in harness.client.results(job.id)) == ["0.0"] * 4 + ["1.0"] * 4 + ["None"] * 2
    found = [finding.found for finding in check_database(harness.connections)]
    assert any(f"stand in the prompts of judges (job {judge.id})" in said for said in found), found
    specthink(harness, "rm", str(judge.id), "--yes")
    assert harness.rows("SELECT count(*) FROM problems WHERE strpos(prompt, '[begin reference') > 0 AND "
                        "problem_set_id = :set", set=judge.problem_set_id) == [(0,)]  # fmt: skip


def violations(harness: Harness, job_id: int) -> list[str]:
    with snapshot(harness.db_engine) as connection:
        return [str(violation) for violation in check_job(connection, job_id)]
