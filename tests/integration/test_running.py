"""The whole pipeline as users run it: embedded servers, worker processes, vLLM with the demo pair, Flower."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from pipeline import Client
from pipeline.chat.model import ChatModel
from pipeline.embedded import Connections, stop
from pipeline.jobs.config import JobState
from pipeline.local import LocalStack, start_local
from pipeline.problems import load_problem_set
from pipeline.results.jobs import Job
from pipeline.settings import Settings

pytestmark = pytest.mark.timeout(600)

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL, LARGE = EXAMPLES / "models" / "demo-small", EXAMPLES / "models" / "demo-large"
PROBLEMS = EXAMPLES / "problems.jsonl"
POLICIES = ("small-only", "large-only", "speculative-thinking:improved")
IMPATIENT = {
    "SPECTHINK_LEASE__TTL_S": "6",
    "SPECTHINK_LEASE__RENEW_INTERVAL_S": "0.5",
    "SPECTHINK_UPKEEP__REPUBLISH_AFTER_S": "4",
    "SPECTHINK_ENGINE__MAX_MODEL_LEN": "1024",
    "SPECTHINK_ENGINE__MAX_IN_FLIGHT": "32",
}


class Running:
    """A running pipeline and the questions that the tests ask it."""

    def __init__(self, stack: LocalStack, client: Client) -> None:
        self.stack = stack
        self.client = client

    @property
    def connections(self) -> Connections:
        return self.stack.state.connections

    def submit(self, policy: str = "speculative-thinking:improved", **options: Any) -> Job:
        options = {"limit": 10, "num_samples": 2, "max_tokens": 400, "seed": 7} | options
        return self.client.submit(PROBLEMS, small=SMALL, large=LARGE, policy=policy, **options)

    def wait(self, *jobs: Job) -> None:
        self.client.wait(*jobs, timeout_s=240)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return self.client.sql(query).rows

    def flower(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.stack.flower_url}{path}", timeout=20) as response:
            return json.load(response)

    def flower_page(self, path: str) -> str:
        with urllib.request.urlopen(f"{self.stack.flower_url}{path}", timeout=20) as response:
            return str(response.read().decode())

    def pid(self, program: str) -> int | None:
        return next(state.pid for state in self.stack.state.program_states() if state.name == program)


def wait_for(condition: Callable[[], bool], *, what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    state_dir = tmp_path_factory.mktemp("running") / "state"
    with pytest.MonkeyPatch.context() as environment:
        for name, value in IMPATIENT.items():
            environment.setenv(name, value)
        settings = Settings(state_dir=state_dir)
        stack = start_local(settings, small=str(SMALL), large=str(LARGE), flower=True, die_with_parent=True)
        with Client.connect(settings) as client:
            yield Running(stack, client)
        stop(state_dir)


@pytest.fixture(scope="module")
def three_jobs(running: Running) -> dict[str, Job]:
    jobs = {policy: running.submit(policy, num_samples=4) for policy in POLICIES}
    running.wait(*jobs.values())
    return jobs


def test_every_sample_is_graded_once(running: Running, three_jobs: dict[str, Job]) -> None:
    for job in three_jobs.values():
        assert running.client.job(job.id).state is JobState.COMPLETED
        rows = running.rows(
            f"SELECT state, count(*), count(DISTINCT (problem_id, sample_index)) FROM samples "
            f"WHERE job_id = {job.id} GROUP BY state"
        )
        assert rows == [("graded", 40, 40)]


def test_pair_beats_the_small_model_with_less_than_half_written_by_the_large_one(
    running: Running, three_jobs: dict[str, Job]
) -> None:
    small, large, pair = running.client.summary(*(three_jobs[policy] for policy in POLICIES))
    assert None not in (small.accuracy, large.accuracy, pair.accuracy, pair.share_large)
    assert large.accuracy >= 0.8  # type: ignore[operator]
    assert pair.accuracy > small.accuracy  # type: ignore[operator]
    assert 0 < pair.share_large < 0.5  # type: ignore[operator]
    assert (small.share_large, large.share_large) == (0, 1)


def test_token_counts_agree_from_segment_to_engine(running: Running, three_jobs: dict[str, Job]) -> None:
    wrong = running.rows("""
        SELECT s.id FROM samples s
        JOIN LATERAL (
            SELECT count(*) AS n, max(segment_index) + 1 AS last,
                   sum(cardinality(token_ids)) FILTER (WHERE author = 'small') AS small,
                   sum(cardinality(token_ids)) FILTER (WHERE author = 'large') AS large,
                   sum(cardinality(token_ids)) AS kept,
                   sum(cardinality(discarded_ids)) AS discarded, string_agg(text, '' ORDER BY segment_index) AS text
            FROM segments g WHERE g.sample_id = s.id) g ON true
        JOIN LATERAL (
            SELECT sum(tokens_small) AS small, sum(tokens_large) AS large,
                   string_agg(text, '' ORDER BY step_index) AS text
            FROM steps t WHERE t.sample_id = s.id) t ON true
        WHERE g.n <> s.num_segments OR g.last <> g.n OR coalesce(g.small, 0) <> s.tokens_small
           OR coalesce(g.large, 0) <> s.tokens_large OR g.discarded <> s.discarded_small + s.discarded_large
           OR g.kept <> s.tokens_small + s.tokens_large + s.tokens_inserted
           OR t.small <> s.tokens_small OR t.large <> s.tokens_large OR t.text <> g.text
    """)
    assert wrong == []
    generated = dict(
        running.rows("""
        SELECT w.kind, sum(g.tokens_generated) FROM segments g JOIN workers w ON w.id = g.worker_id GROUP BY w.kind
    """)
    )
    wait_for(
        lambda: (
            dict(
                running.rows("""
            SELECT kind, sum(tokens_generated) FROM workers WHERE kind IN ('small', 'large') GROUP BY kind
        """)
            )
            == generated
        ),
        what="the engines' own counters to agree with the segments",
    )


def test_output_ids_are_the_text_that_was_graded(running: Running, three_jobs: dict[str, Job]) -> None:
    chat = ChatModel.load(SMALL)
    job = three_jobs["speculative-thinking:improved"]
    ids: dict[int, list[int]] = {}
    for sample_id, token_ids in running.rows(f"""
        SELECT g.sample_id, g.token_ids FROM segments g JOIN samples s ON s.id = g.sample_id
        WHERE s.job_id = {job.id} ORDER BY g.sample_id, g.segment_index
    """):
        ids.setdefault(sample_id, []).extend(token_ids)
    for result in running.client.results(job):
        assert chat.tokenizer.decode(ids[result.sample_id], skip_special_tokens=False) == result.output


def test_same_seed_gives_the_same_text(running: Running, three_jobs: dict[str, Job]) -> None:
    before = three_jobs["speculative-thinking:improved"]
    again = running.submit("speculative-thinking:improved", num_samples=4)
    running.wait(again)
    first, second = ([result.output for result in running.client.results(job)] for job in (before, again))
    assert first == second


def test_flower_shows_tasks_that_a_person_can_read(running: Running, three_jobs: dict[str, Job]) -> None:
    job = three_jobs["speculative-thinking:improved"]

    def succeeded(task: str) -> list[str]:
        tasks = running.flower(f"/api/tasks?taskname={task}&limit=10000").values()
        return [t["kwargs"] for t in tasks if t["state"] == "SUCCESS" and t["kwargs"].startswith(f"job {job.id} ")]

    wait_for(lambda: bool(succeeded("draft")) and bool(succeeded("assist")), what="draft and assist tasks in Flower")
    assert all("demo-small" in shown for shown in succeeded("draft"))
    assert all("demo-large" in shown for shown in succeeded("assist"))
    follow = [t for t in running.flower("/api/tasks?taskname=follow").values() if t["kwargs"] == f"job {job.id}"]
    assert [t["state"] for t in follow] == ["SUCCESS"]
    assert "40/40 samples (100 %)" in follow[0]["result"]

    assert "uuid" in re.findall(r'data-column="(\w+)"', running.flower_page("/tasks"))
    page = running.flower_page(f"/task/{follow[0]['uuid']}")
    assert follow[0]["uuid"] in page
    assert f"job {job.id}" in page

    def queues() -> set[str]:
        return {queue["name"] for queue in running.flower("/api/queues/length")["active_queues"]}

    wait_for(lambda: {"small.demo-small", "large.demo-large", "grade", "upkeep"} <= queues(), what="queues in Flower")


def test_nothing_that_was_written_and_no_answer_is_in_redis_or_flower(
    running: Running, three_jobs: dict[str, Job]
) -> None:
    problem = load_problem_set(PROBLEMS).problems[0]
    shown = json.dumps(running.flower("/api/tasks?limit=10000"))
    with redis.Redis.from_url(running.connections.redis_url.get_secret_value()) as client:
        shown += "".join(repr(client.dump(key)) for key in client.scan_iter())
    assert problem.prompt not in shown
    assert "boxed" not in shown


def test_killed_large_worker_costs_nothing(running: Running) -> None:
    job = running.submit(limit=30, num_samples=4)
    in_large = f"SELECT count(*) FROM samples WHERE job_id = {job.id} AND state = 'assisting'"
    wait_for(lambda: running.rows(in_large)[0][0] > 0, what="the large model to write")
    victim = running.pid("large")
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    running.wait(job)
    assert running.client.job(job.id).state is JobState.COMPLETED
    rows = running.rows(
        f"SELECT count(*), count(DISTINCT (problem_id, sample_index)), sum(num_rescues) FROM samples "
        f"WHERE job_id = {job.id} AND state = 'graded'"
    )
    assert rows[0][:2] == (120, 120)
    gaps = running.rows(f"""
        SELECT s.id FROM samples s JOIN segments g ON g.sample_id = s.id WHERE s.job_id = {job.id}
        GROUP BY s.id, s.num_segments HAVING count(*) <> s.num_segments OR max(g.segment_index) + 1 <> s.num_segments
    """)
    assert gaps == []


def test_emptied_redis_costs_a_delay_only(running: Running) -> None:
    job = running.submit(limit=20, num_samples=4)
    wait_for(lambda: running.client.progress(job)[0].drafting > 0, what="the small model to write")
    with redis.Redis.from_url(running.connections.redis_url.get_secret_value()) as client:
        client.flushall()
    running.wait(job)
    assert running.client.job(job.id).state is JobState.COMPLETED
    assert running.client.progress(job)[0].graded == 80


def test_cancelled_job_stops_being_written(running: Running) -> None:
    job = running.submit(limit=100, num_samples=4)
    wait_for(lambda: running.client.progress(job)[0].drafting > 0, what="the small model to write")
    assert running.client.cancel(job).num_samples > 0
    wait_for(
        lambda: running.rows("SELECT sum(num_in_flight) FROM workers WHERE ended_at IS NULL")[0][0] == 0,
        what="the workers to drop the job",
        timeout_s=20,
    )
    assert running.client.job(job.id).state is JobState.CANCELLED
    progress = running.client.progress(job)[0]
    assert progress.samples_done + progress.cancelled == 400
    assert progress.cancelled > 0


def test_worker_whose_model_cannot_be_loaded_says_so_and_ends(running: Running, tmp_path: Path) -> None:
    broken = tmp_path / "no-model"
    broken.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "workers", "small", "--model", str(broken)],
        env=os.environ | {"SPECTHINK_STATE_DIR": str(running.stack.state.state_dir)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert str(broken) in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
