"""Deploys: a worker that is told to stop drains for its time, hands the rest back and exits 0; restarting every worker
in mid-job loses nothing, and no text differs from that of an undisturbed run."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests.chaos.harness import Harness
from tests.chaos.verdict import judge
from tests.chaos.worker import Order
from tests.chaos.workload import ChaosJob, Scripted

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

ENVIRONMENT = {
    "SPECTHINK_LEASE__DRAIN_S": "6",
    "SPECTHINK_LEASE__TTL_S": "30",  # nobody is to be taken for dead here, however slow the machine
}
HANGS_S = {"small-1": 0.5, "large-1": 9.0}
"""Programs and how long their engines give no token when they are told to stop: one is back in time, one is not."""


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SPECTHINK_STATE_DIR", "")  # put back what the harness takes out of the environment
        harness = Harness.start(tmp_path_factory.mktemp("deploys") / "state", Scripted(ENVIRONMENT))
        yield harness
        harness.close()


@dataclass(frozen=True)
class Life:
    """How a worker that was told to stop ended. handed_back: claims of it that ended without a commit."""

    exit_code: int | None
    end_reason: str
    tokens_dropped: int
    handed_back: int


@dataclass(frozen=True)
class Stopped:
    job: ChaosJob
    lives: dict[str, Life]


@pytest.fixture(scope="module")
def stopped(harness: Harness) -> Stopped:
    """Two workers were told to stop while their engines were in the middle of samples, and started again."""
    job = harness.submit(1)
    for program, seconds in HANGS_S.items():
        harness.order(program, Order(phase="generating", n=5, action="hang", seconds=seconds))
    with ThreadPoolExecutor(len(HANGS_S)) as pool:
        lives = dict(
            zip(HANGS_S, pool.map(lambda program: stop_while_it_writes(harness, program, job), HANGS_S), strict=True)
        )
    for program in HANGS_S:
        harness.start_program(program)
    harness.wait_over(job, timeout_s=120)
    return Stopped(job, lives)


def stop_while_it_writes(harness: Harness, program: str, job: ChaosJob) -> Life:
    fired = harness.wait_fired(program, job, timeout_s=60)
    alive = "SELECT id FROM workers WHERE pid = :pid AND ended_at IS NULL"
    [(worker_id,)] = harness.rows(alive, pid=fired.pid)
    harness.stop_program(program)
    settled = "SELECT id FROM workers WHERE id = :id AND settled_at IS NOT NULL"
    harness.until(lambda: harness.rows(settled, id=worker_id), f"upkeep to settle {program}")
    [(end_reason, tokens_dropped, handed_back)] = harness.rows(
        """
        SELECT w.end_reason, w.tokens_dropped, count(m.epoch)
        FROM workers w LEFT JOIN (
            SELECT e.worker_id, e.epoch, e.to_state, lead(e.epoch) OVER w AS next_epoch
            FROM events e WHERE e.sample_id IS NOT NULL WINDOW w AS (PARTITION BY e.sample_id ORDER BY e.id)
        ) m ON m.worker_id = w.id AND m.to_state IN ('drafting', 'assisting') AND m.next_epoch > m.epoch
        WHERE w.id = :id GROUP BY w.id
        """,
        id=worker_id,
    )
    return Life(harness.exit_code(program), end_reason, tokens_dropped, handed_back)


def assert_nobody_noticed(harness: Harness, job: ChaosJob) -> None:
    """The job has all of its texts, once, its rows keep every invariant, and no sample lost a worker to death."""
    assert judge(harness, job, None).violations == []
    assert harness.rows("SELECT max(num_rescues) FROM samples WHERE job_id = :job", job=job.id) == [(0,)]


def test_worker_told_to_stop_ends_what_it_writes_and_exits_0(stopped: Stopped) -> None:
    assert stopped.lives["small-1"] == Life(exit_code=0, end_reason="stopped", tokens_dropped=0, handed_back=0)


def test_worker_whose_time_to_drain_is_over_hands_back_the_rest_and_exits_0(stopped: Stopped) -> None:
    life = stopped.lives["large-1"]
    assert (life.exit_code, life.end_reason) == (0, "stopped")
    assert life.tokens_dropped > 0
    assert life.handed_back > 0


def test_job_goes_on_from_the_last_committed_segments_of_stopped_workers(harness: Harness, stopped: Stopped) -> None:
    assert_nobody_noticed(harness, stopped.job)


def test_rolling_restart_of_all_workers_in_mid_job_is_noticed_by_nobody(harness: Harness, stopped: Stopped) -> None:
    harness.wait_healthy(timeout_s=120)
    jobs = [harness.submit(2)]
    for names in (["small-1", "large-1"], ["small-2", "large-2"], ["grade", "upkeep"]):
        if harness.is_over(jobs[-1]):
            jobs.append(harness.submit(jobs[-1].seed + 1))
        wait_for_progress(harness, jobs[-1])
        for name in names:
            harness.stop_program(name)
            assert harness.exit_code(name) == 0, name
            harness.start_program(name)
        harness.wait_healthy(timeout_s=120)
    for job in jobs:
        harness.wait_over(job, timeout_s=120)
        assert_nobody_noticed(harness, job)
    lives = harness.rows("SELECT id, kind, end_reason FROM workers ORDER BY id")
    assert {reason for _, _, reason in lives} == {None, "stopped"}, lives
    assert sum(reason is None for _, _, reason in lives) == len(harness.programs), lives


def wait_for_progress(harness: Harness, job: ChaosJob) -> None:
    stored = harness.num_commits(job)
    harness.until(lambda: harness.num_commits(job) > stored or harness.is_over(job), "the job to move on", timeout_s=60)
