"""Loading samples for replay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from sqlalchemy import Connection, text

from pipeline.errors import NotFound
from pipeline.jobs.config import JobConfig
from pipeline.results.replay import StoredSample, StoredSegment, StoredStep
from pipeline.samples import Author, FinishReason, SampleState, SegmentFinish

_BATCH = 100


def _columns(of: type[Any], table: str) -> str:
    return ", ".join(f"{table}.{field.name}" for field in fields(of))


_SELECT = text("""
    SELECT s.id AS sample_id, s.job_id, j.config, j.think_end, p.external_id AS problem, s.sample_index, s.state,
           s.policy_state, s.next_max_tokens, s.next_trigger, s.next_cue, s.num_segments, s.num_takeovers,
           s.tokens_small, s.tokens_large, s.tokens_inserted, s.discarded_small, s.discarded_large, s.finish_reason,
           s.max_tokens
    FROM samples s JOIN jobs j ON j.id = s.job_id JOIN problems p ON p.id = s.problem_id
    WHERE s.id = ANY(:ids) ORDER BY s.id
""")
_SELECT_SEGMENTS = text(f"""
    SELECT g.sample_id, {_columns(StoredSegment, "g")} FROM segments g
    WHERE g.sample_id = ANY(:ids) ORDER BY g.sample_id, g.segment_index
""")
_SELECT_STEPS = text(f"""
    SELECT t.sample_id, {_columns(StoredStep, "t")} FROM steps t
    WHERE t.sample_id = ANY(:ids) ORDER BY t.sample_id, t.step_index
""")
_SELECT_COMPLETE = text("SELECT id FROM samples WHERE job_id = :job AND state IN ('finished', 'graded') ORDER BY id")


def get_stored_sample(connection: Connection, sample_id: int) -> StoredSample:
    """Raises NotFound."""
    found = _load(connection, [sample_id])
    if not found:
        raise NotFound(f"there is no sample {sample_id}; specthink results JOB lists those of a job")
    return found[0]


def stream_complete_samples(connection: Connection, job_id: int) -> Iterator[StoredSample]:
    """A job's complete samples, one batch at a time in memory. Raises NotFound."""
    if connection.execute(text("SELECT FROM jobs WHERE id = :job"), {"job": job_id}).first() is None:
        raise NotFound.job(job_id)
    ids = connection.execute(_SELECT_COMPLETE, {"job": job_id}).scalars().all()
    for start in range(0, len(ids), _BATCH):
        yield from _load(connection, list(ids[start : start + _BATCH]))


def _load(connection: Connection, sample_ids: list[int]) -> list[StoredSample]:
    segments: dict[int, list[StoredSegment]] = {}
    steps: dict[int, list[StoredStep]] = {}
    for row in connection.execute(_SELECT_SEGMENTS, {"ids": sample_ids}).mappings():
        values = dict(row)
        values |= {
            "author": Author(row["author"]),
            "finish": SegmentFinish(row["finish"]) if row["finish"] else None,
        }
        segments.setdefault(values.pop("sample_id"), []).append(StoredSegment(**values))
    for row in connection.execute(_SELECT_STEPS, {"ids": sample_ids}).mappings():
        values = {**row, "author": Author(row["author"])}
        steps.setdefault(values.pop("sample_id"), []).append(StoredStep(**values))
    return [
        StoredSample(
            **{
                **row,
                "config": JobConfig.model_validate(row["config"]),
                "state": SampleState(row["state"]),
                "finish_reason": FinishReason(row["finish_reason"]) if row["finish_reason"] else None,
            },
            segments=tuple(segments.get(row["sample_id"], ())),
            steps=tuple(steps.get(row["sample_id"], ())),
        )
        for row in connection.execute(_SELECT, {"ids": sample_ids}).mappings()
    ]
