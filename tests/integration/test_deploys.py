"""Deploys: a worker that is told to stop drains for its time, hands the rest back and exits 0; restarting every worker
in mid-job loses nothing, and no text differs from that of an undisturbed run."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests.chaos.field import Field
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
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SPECTHINK_STATE_DIR", "")  # put back what the field takes out of the environment
        field = Field.start(tmp_path_factory.mktemp("deploys") / "state", Scripted(ENVIRONMENT))
        yield field
        field.close()


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
def stopped(field: Field) -> Stopped:
    """Two workers were told to stop while their engines were in the middle of samples, and started again."""
    job = field.submit(1)
    for program, seconds in HANGS_S.items():
        field.order(program, Order(phase="generating", n=5, action="hang", seconds=seconds))
    with ThreadPoolExecutor(len(HANGS_S)) as pool:
        lives = dict(
            zip(HANGS_S, pool.map(lambda program: stop_while_it_writes(field, program, job), HANGS_S), strict=True)
        )
    for program in HANGS_S:
        field.start_program(program)
    field.wait_over(job, timeout_s=120)
    return Stopped(job, lives)


def stop_while_it_writes(field: Field, program: str, job: ChaosJob) -> Life:
    fired = field.wait_fired(program, job, timeout_s=60)
    alive = "SELECT id FROM workers WHERE pid = :pid AND ended_at IS NULL"
    [(worker_id,)] = field.rows(alive, pid=fired.pid)
    field.stop_program(program)
    settled = "SELECT id FROM workers WHERE id = :id AND settled_at IS NOT NULL"
    field.until(lambda: field.rows(settled, id=worker_id), f"upkeep to settle {program}")
    [(end_reason, tokens_dropped, handed_back)] = field.rows(
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
    return Life(field.exit_code(program), end_reason, tokens_dropped, handed_back)


def assert_nobody_noticed(field: Field, job: ChaosJob) -> None:
    """The job has all of its texts, once, its rows keep every invariant, and no sample lost a worker to death."""
    assert judge(field, job, None).violations == []
    assert field.rows("SELECT max(num_rescues) FROM samples WHERE job_id = :job", job=job.id) == [(0,)]


def test_worker_told_to_stop_ends_what_it_writes_and_exits_0(stopped: Stopped) -> None:
    assert stopped.lives["small-1"] == Life(exit_code=0, end_reason="stopped", tokens_dropped=0, handed_back=0)


def test_worker_whose_time_to_drain_is_over_hands_back_the_rest_and_exits_0(stopped: Stopped) -> None:
    life = stopped.lives["large-1"]
    assert (life.exit_code, life.end_reason) == (0, "stopped")
    assert life.tokens_dropped > 0
    assert life.handed_back > 0


def test_job_goes_on_from_the_last_committed_segments_of_stopped_workers(field: Field, stopped: Stopped) -> None:
    assert_nobody_noticed(field, stopped.job)


def test_rolling_restart_of_all_workers_in_mid_job_is_noticed_by_nobody(field: Field, stopped: Stopped) -> None:
    field.wait_healthy(timeout_s=120)
    jobs = [field.submit(2)]
    for names in (["small-1", "large-1"], ["small-2", "large-2"], ["grade", "upkeep"]):
        if field.is_over(jobs[-1]):
            jobs.append(field.submit(jobs[-1].seed + 1))
        wait_for_progress(field, jobs[-1])
        for name in names:
            field.stop_program(name)
            assert field.exit_code(name) == 0, name
            field.start_program(name)
        field.wait_healthy(timeout_s=120)
    for job in jobs:
        field.wait_over(job, timeout_s=120)
        assert_nobody_noticed(field, job)
    lives = field.rows("SELECT id, kind, end_reason FROM workers ORDER BY id")
    assert {reason for _, _, reason in lives} == {None, "stopped"}, lives
    assert sum(reason is None for _, _, reason in lives) == len(field.programs), lives


def wait_for_progress(field: Field, job: ChaosJob) -> None:
    stored = field.num_commits(job)
    field.until(lambda: field.num_commits(job) > stored or field.is_over(job), "the job to move on", timeout_s=60)
