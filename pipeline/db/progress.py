"""How far a job is, in one row."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from pipeline.jobs import FINAL_JOB_STATES, JobState


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProgress:
    """Counts over a job's samples, at one moment."""

    state: JobState
    total: int
    done: int
    """In a final state."""
    failed: int
    takeovers: int
    tokens_small: int
    tokens_large: int

    @property
    def is_final(self) -> bool:
        return self.state in FINAL_JOB_STATES

    @property
    def line(self) -> str:
        """For people, in Flower's result column."""
        share = 100 * self.done // self.total if self.total else 100
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.state.value}: {self.done}/{self.total} samples ({share} %){failed}, {self.takeovers} takeovers"


_FOLLOW = text("""
    WITH job AS (UPDATE jobs SET followed_at = clock_timestamp() WHERE id = :job RETURNING id, state)
    SELECT job.state, count(s.id) AS total, count(s.ended_at) AS done,
           count(*) FILTER (WHERE s.state = 'failed') AS failed, coalesce(sum(s.num_takeovers), 0) AS takeovers,
           coalesce(sum(s.tokens_small), 0) AS tokens_small, coalesce(sum(s.tokens_large), 0) AS tokens_large
    FROM job LEFT JOIN samples s ON s.job_id = job.id GROUP BY job.state
""")


def follow_job(connection: Connection, job_id: int) -> JobProgress | None:
    """The job's progress, and the note that somebody follows it; None where there is no such job."""
    row = connection.execute(_FOLLOW, {"job": job_id}).mappings().first()
    return (
        None if row is None else JobProgress(**{**row, "state": JobState(row["state"])})
    )
