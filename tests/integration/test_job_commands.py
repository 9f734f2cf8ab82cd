"""The commands of a job's life on running workers: real processes and queues, scripted models, the usual heartbeat."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from functools import partial

import pytest
from sqlalchemy import text

from pipeline.db.invariants import check_job, snapshot
from pipeline.db.session import transaction
from pipeline.jobs.config import JobState
from pipeline.results.jobs import Job
from pipeline.samples import ModelRole
from tests.chaos.harness import Harness
from tests.chaos.models import MODELS
from tests.chaos.texts import expected_text, problem_set
from tests.chaos.workload import ChaosJob, Scripted

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

USUAL_LEASE = {"SPECTHINK_LEASE__TTL_S": "15", "SPECTHINK_LEASE__RENEW_INTERVAL_S": "1"}
_seeds = itertools.count(7_000_000)


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    harness = Harness.start(tmp_path_factory.mktemp("life") / "state", Scripted(USUAL_LEASE))
    yield harness
    harness.close()


def submit(harness: Harness, *, num_samples: int = 2) -> ChaosJob:
    return harness.submit(next(_seeds), num_samples=num_samples)


def held(harness: Harness, job: ChaosJob) -> int:
    return int(
        harness.rows("SELECT count(*) FROM samples WHERE job_id = :job AND holder_id IS NOT NULL", job=job.id)[0][0]
    )


def in_flight(harness: Harness) -> int:
    """Samples in the engines, by the workers' own count at their last heartbeat."""
    return int(harness.rows("SELECT sum(num_in_flight) FROM workers WHERE ended_at IS NULL")[0][0])


def submit_until_at_work(harness: Harness) -> ChaosJob:
    """A job both of whose models have written, of which something is graded, and of which the engines are full.

    The moment is short: of a job that ended without having been seen so there is a next one.
    """
    for _ in range(10):
        job = submit(harness, num_samples=14)
        if harness.until(partial(_is_at_work_or_over, harness, job), "a job at work") == "at work":
            return job
    raise AssertionError("ten jobs ended without having been seen at work")


def _is_at_work_or_over(harness: Harness, job: ChaosJob) -> str | None:
    [progress] = harness.client.progress(job.id)
    if progress.state is JobState.COMPLETED:
        return "over"
    full = progress.graded > 0 and progress.takeovers > 8 and held(harness, job) > 8 and in_flight(harness) > 8
    return "at work" if full else None


def require_dropped(harness: Harness, job: ChaosJob) -> None:
    """Nothing of a job is held or stored any more, and every engine drops it at its next heartbeat."""
    commits = harness.num_commits(job)
    assert held(harness, job) == 0
    start = time.monotonic()
    harness.until(lambda: in_flight(harness) == 0, "the engines to drop the job", timeout_s=15)
    print(f"all engines say so after {time.monotonic() - start:.1f} s")
    assert harness.num_commits(job) == commits


def texts(harness: Harness, job_id: int) -> dict[tuple[str, int], str]:
    return {(row.problem, row.sample_index): row.output for row in harness.client.results(job_id)}


def expected(job: ChaosJob) -> dict[tuple[str, int], str]:
    problems = [problem.external_id for problem in problem_set(job.seed).problems]
    return {
        (problem, index): expected_text(job.seed, int(problem), index)
        for problem in problems
        for index in range(job.num_samples)
    }


def require_whole(harness: Harness, job: ChaosJob) -> None:
    """The job ended as it would have undisturbed, and its token counts agree."""
    harness.wait_over(job)
    assert harness.client.job(job.id).state is JobState.COMPLETED
    assert texts(harness, job.id) == expected(job)
    harness.until(lambda: violations(harness, job) == [], "the last heartbeats' counts", timeout_s=20, every_s=0.3)
    assert [str(replayed) for replayed in harness.client.replay_job(job.id) if replayed.divergence] == []


def violations(harness: Harness, job: ChaosJob) -> list[str]:
    with snapshot(harness.db_engine) as connection:
        return [str(violation) for violation in check_job(connection, job.id)]


def test_paused_job_is_dropped_by_all_workers_and_ends_undisturbed_after_its_resume(harness: Harness) -> None:
    job = submit_until_at_work(harness)
    assert harness.client.pause(job.id).num_samples > 0
    require_dropped(harness, job)
    [progress] = harness.client.progress(job.id)
    assert (progress.state, progress.waiting_for) == (
        JobState.PAUSED, f"paused: specthink resume {job.id} lets it go on",
    )  # fmt: skip
    assert 0 < progress.samples_done < progress.samples_total
    assert harness.client.summary(job.id)[0].samples_graded == progress.graded
    start = time.monotonic()
    harness.client.resume(job.id)
    harness.until(lambda: held(harness, job) > 0, "a claim", timeout_s=10)
    print(f"claimed {time.monotonic() - start:.1f} s after the resume")
    require_whole(harness, job)


def test_cancelled_job_is_dropped_by_all_workers_and_keeps_what_it_has(harness: Harness) -> None:
    job = submit_until_at_work(harness)
    assert harness.client.cancel(job.id).num_samples > 0
    require_dropped(harness, job)
    whole = expected(job)
    kept = texts(harness, job.id)
    assert kept.keys() == whole.keys()
    assert all(whole[sample].startswith(written) for sample, written in kept.items())
    harness.until(lambda: violations(harness, job) == [], "the last heartbeats' counts", timeout_s=20, every_s=0.3)
    [progress] = harness.client.progress(job.id)
    assert progress.graded + progress.failed + progress.cancelled == progress.samples_total == len(whole)


def test_samples_that_were_cut_are_drawn_again_to_the_same_text_and_on(harness: Harness) -> None:
    seed = next(_seeds)
    submitted = harness.client.submit(
        problem_set(seed),
        small=MODELS[ModelRole.SMALL],
        large=MODELS[ModelRole.LARGE],
        num_samples=2,
        seed=seed,
        max_tokens=30,
    )
    job = ChaosJob(submitted.id, seed)
    harness.wait_over(job)
    cut = texts(harness, job.id)
    whole = expected(job)
    assert all(whole[sample].startswith(written) and whole[sample] != written for sample, written in cut.items())
    change = harness.client.retry(job.id, cut=True, max_tokens=1000)
    assert (change.num_samples, change.state) == (len(whole), JobState.RUNNING)
    require_whole(harness, job)
    assert harness.rows("SELECT sum(tokens_withdrawn) > 0 FROM workers") == [(True,)]


def test_failed_samples_go_on_behind_their_last_segment_when_they_are_tried_again(harness: Harness) -> None:
    job = submit(harness, num_samples=4)
    harness.until(lambda: harness.num_commits(job) > 20, "segments", every_s=0.05)
    with transaction(harness.db_engine) as connection:
        broken = connection.execute(
            text("""
                UPDATE samples SET state = 'failed', epoch = epoch + 1, holder_id = NULL, error = 'by the test',
                    error_class = 'internal', ended_at = clock_timestamp()
                WHERE job_id = :job AND num_segments > 0 AND finish_reason IS NULL RETURNING id
            """),
            {"job": job.id},
        ).scalars().all()  # fmt: skip
    assert broken
    harness.wait_over(job)
    assert harness.client.job(job.id).state is JobState.COMPLETED_WITH_ERRORS
    kept = "SELECT sample_id, segment_index, committed_at FROM segments WHERE sample_id = ANY(:ids) ORDER BY 1, 2"
    before = harness.rows(kept, ids=list(broken))
    assert harness.client.retry(job.id).num_samples == len(broken)
    require_whole(harness, job)
    assert set(before) < set(harness.rows(kept, ids=list(broken)))


def test_clone_with_the_same_seed_gives_the_same_texts(harness: Harness) -> None:
    job = submit(harness)
    clone: Job = harness.client.clone(job.id, {"num_samples": 1, "sampling.max_tokens": 900})
    harness.client.set_priority(clone, 10)
    harness.wait_over(job)
    require_whole(harness, ChaosJob(clone.id, job.seed, num_samples=1))
