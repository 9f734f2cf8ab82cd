"""Sentences about a job whose numbers are easily misread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:  # the command line reads this before it knows whether it has anything to say
    from pipeline.results.jobs import Job
    from pipeline.results.reports import JobCost, JobProgress, JobSummary

_Marked = TypeVar("_Marked", "JobProgress", "JobSummary")

ENOUGH_SAMPLES = 20
"""Before so many are complete nothing is said of takeovers that do not come."""
FEW_TAKEOVERS = 0.05
"""Per complete sample."""
LITTLE_BY_LARGE = 0.01
"""Of what both wrote: a policy in which large opens each sample needs no takeover."""


def few_takeovers(job: Job, progress: JobProgress) -> str | None:
    """Says that a policy of two models hardly calls the large one in; None where it does, or it is too early to say."""
    num_complete = progress.finished + progress.graded
    if job.small_model is None or job.large_model is None or num_complete < ENOUGH_SAMPLES:
        return None
    share_large = progress.written_large / max(1, progress.written_small + progress.written_large)
    if progress.takeovers >= FEW_TAKEOVERS * num_complete or share_large >= LITTLE_BY_LARGE:
        return None
    return (
        f"job {job.id}: {progress.takeovers} takeovers in {num_complete} complete samples: {job.large_model} hardly "
        f"writes, and the job measures {job.small_model} alone; does that model think aloud, in the language of the "
        "policy's cues? specthink sample ID shows its steps"
    )


def partial_results(jobs: Sequence[JobSummary]) -> list[str]:
    """A sentence for each job whose numbers are of a part of its samples."""
    return [
        f"job {job.job_id} is partial: {job.samples_graded} of {job.samples_total} samples are graded, and short texts "
        "end first; accuracy and lengths favour them"
        for job in jobs
        if job.is_partial
    ]


def with_mark(report: _Marked, job: Job) -> _Marked:
    """The report with what of its job's row cannot be read, besides what of its own cannot."""
    faults = dict.fromkeys(fault for fault in (job.unreadable, report.unreadable) if fault)
    return replace(report, unreadable="; ".join(faults) or None)


def unreadable(jobs: Sequence[JobSummary]) -> list[str]:
    """A sentence for each job of whose row something cannot be read."""
    return [f"job {job.job_id} is unreadable: {job.unreadable}" for job in jobs if job.unreadable]


def shared_time(costs: Sequence[JobCost]) -> list[str]:
    """A sentence for each job whose times and rates are not its own alone."""
    return [
        f"* job {cost.job_id} ran at the same time as {_jobs(cost.overlapping_jobs)}: engine seconds, waits and "
        "tokens/s may be shared with others"
        for cost in costs
        if cost.overlapping_jobs
    ]


def _jobs(ids: Sequence[int], most: int = 5) -> str:
    more = f" and {len(ids) - most} more" if len(ids) > most else ""
    return f"{'job' if len(ids) == 1 else 'jobs'} {', '.join(map(str, ids[:most]))}{more}"
