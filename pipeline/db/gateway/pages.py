"""The statements of the gateway's pages: which jobs and samples a caller may see, in which order.

A job belongs to the key whose batch it is of. One that was submitted otherwise, or that answers chats, which may be of
several keys, is seen by an admin's key, and by whoever is let in without a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, text

from pipeline.batches import Caller

_VISIBLE = """
    CASE WHEN :all THEN true
         WHEN CAST(:owner AS bigint) IS NULL THEN
            NOT EXISTS (SELECT FROM batch_jobs k JOIN batches b ON b.id = k.batch_id
                        WHERE k.job_id = j.id AND b.owner_id IS NOT NULL)
            AND NOT EXISTS (SELECT FROM chat_requests c WHERE c.job_id = j.id AND c.owner_id IS NOT NULL)
         ELSE EXISTS (SELECT FROM batch_jobs k JOIN batches b ON b.id = k.batch_id
                      WHERE k.job_id = j.id AND b.owner_id = :owner)
    END
"""
_PAGE_OF_JOBS = text(f"""
    SELECT j.id FROM jobs j WHERE (CAST(:before AS bigint) IS NULL OR j.id < :before) AND {_VISIBLE}
    ORDER BY j.id DESC LIMIT :limit
""")
_SEEN_JOBS = text(f"SELECT j.id FROM jobs j WHERE j.id = ANY(:jobs) AND {_VISIBLE}")
_JOB_OF_SAMPLE = text("SELECT job_id FROM samples WHERE id = :sample")


def _values(caller: Caller) -> dict[str, Any]:
    return {"all": caller.sees_all, "owner": caller.key_id}


def page_of_jobs(connection: Connection, caller: Caller, *, before: int | None, limit: int) -> list[int]:
    """Ids of the newest jobs that a caller may see, newest first. before: only older ones than this."""
    rows = connection.execute(_PAGE_OF_JOBS, {**_values(caller), "before": before, "limit": limit})
    return list(rows.scalars())


def seen_jobs(connection: Connection, caller: Caller, job_ids: Sequence[int]) -> list[int]:
    """Those of some jobs that there are and that a caller may see, in the order asked for."""
    found = set(connection.execute(_SEEN_JOBS, {**_values(caller), "jobs": [*job_ids]}).scalars())
    return [job_id for job_id in dict.fromkeys(job_ids) if job_id in found]


def find_job_of(connection: Connection, sample_id: int) -> int | None:
    """The job of a sample; None: there is no such sample."""
    found: int | None = connection.execute(_JOB_OF_SAMPLE, {"sample": sample_id}).scalar()
    return found


# Samples of a job

_CHANGED = """s.score IS NOT NULL AND EXISTS (
    SELECT FROM samples o
    WHERE o.job_id = :against AND o.problem_id = s.problem_id AND o.sample_index = s.sample_index
      AND (o.score >= 0.5) <> (s.score >= 0.5)
)"""
"""Unique index on (job_id, problem_id, sample_index)."""


class Which(StrEnum):
    """Samples that somebody looks for."""

    ALL = "all"  # every one
    FAILED = "failed"  # set aside with an error
    CUT = "cut"  # ended by a limit
    WRONG = "wrong"  # scored below one half
    RIGHT = "right"  # scored at least one half
    CHANGED = "changed"  # right in one of two jobs on the same problems, and wrong in the other


_CONDITIONS = {
    Which.ALL: "true",
    Which.FAILED: "s.state = 'failed'",
    Which.CUT: "s.finish_reason IN ('length', 'context', 'repetition')",
    Which.WRONG: "s.score < 0.5",
    Which.RIGHT: "s.score >= 0.5",
    Which.CHANGED: _CHANGED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleLine:
    """A sample in a list."""

    id: int
    problem: str
    sample_index: int
    state: str
    score: float | None
    predicted_answer: str | None
    finish_reason: str | None
    output_tokens: int
    tokens_large: int
    num_takeovers: int
    error_class: str | None
    error: str | None


_SAMPLES = """
    SELECT s.id, p.external_id AS problem, s.sample_index, s.state, s.score, s.predicted_answer, s.finish_reason,
           s.tokens_small + s.tokens_large + s.tokens_inserted AS output_tokens, s.tokens_large, s.num_takeovers,
           s.error_class, s.error
    FROM samples s JOIN problems p ON p.id = s.problem_id
    WHERE s.job_id = :job AND {condition} ORDER BY s.problem_id, s.sample_index LIMIT :limit OFFSET :skip
"""
_BESIDE = """
    SELECT s.id FROM samples s, samples h
    WHERE h.id = :sample AND s.job_id = h.job_id AND {condition}
      AND (s.problem_id, s.sample_index) {sign} (h.problem_id, h.sample_index)
    ORDER BY s.problem_id {order}, s.sample_index {order} LIMIT 1
"""
_LISTS = {which: text(_SAMPLES.format(condition=condition)) for which, condition in _CONDITIONS.items()}
_BEFORE = {
    which: text(_BESIDE.format(condition=condition, sign="<", order="DESC")) for which, condition in _CONDITIONS.items()
}
_AFTER = {
    which: text(_BESIDE.format(condition=condition, sign=">", order="ASC")) for which, condition in _CONDITIONS.items()
}


def page_of_samples(
    connection: Connection, job_id: int, which: Which, *, against: int | None, skip: int, limit: int
) -> list[SampleLine]:
    """Samples of a job in the order of their problems. against: the other job of CHANGED."""
    values = {"job": job_id, "skip": skip, "limit": limit} | _against(which, against)
    return [SampleLine(**row) for row in connection.execute(_LISTS[which], values).mappings()]


def samples_beside(
    connection: Connection, sample_id: int, which: Which, *, against: int | None
) -> tuple[int | None, int | None]:
    """Ids of the samples before and after one in such a list; None: there is none."""
    values = {"sample": sample_id} | _against(which, against)
    before, after = (connection.execute(table[which], values).scalar() for table in (_BEFORE, _AFTER))
    return before, after


def _against(which: Which, against: int | None) -> dict[str, Any]:
    return {"against": against} if which is Which.CHANGED else {}
