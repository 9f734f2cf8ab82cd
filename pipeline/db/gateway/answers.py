"""The statements that read what was written for the lines of a batch, and for requests that are answered online."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import orjson
from sqlalchemy import Connection, text

from pipeline.db.session import stream_rows
from pipeline.db.states import FINAL
from pipeline.jobs.config import JobConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenSegment:
    """A segment as an answer tells of it. token_lengths: of the kept tokens, where the closing think tag may be."""

    index: int
    author: str
    trigger: str
    cue: str
    takes_over: bool
    text: str
    tokens: int
    tokens_generated: int
    tokens_discarded: int
    prompt_tokens: int
    cached_tokens: int
    engine_id: int
    token_lengths: tuple[int, ...] | None
    discarded_text: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenSample:
    """A sample with its text."""

    id: int
    sample_index: int
    state: str
    finish_reason: str | None
    error_class: str | None
    error: str | None
    score: float | None
    predicted_answer: str | None
    num_takeovers: int
    tokens: Mapping[str, int]
    ended_at: int
    segments: tuple[WrittenSegment, ...]

    @property
    def has_text(self) -> bool:
        """Whether its text is complete."""
        return self.state in ("finished", "graded")

    @property
    def output(self) -> str:
        return "".join(segment.text for segment in self.segments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What was written for one request: its samples in their order."""

    custom_id: str
    samples: tuple[WrittenSample, ...]

    @property
    def is_complete(self) -> bool:
        """Whether it has its answer."""
        return all(sample.state == "graded" for sample in self.samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweringJob:
    """What all answers of a job have in common. model: as its requests call it. engines: by id, sha256 and model."""

    job_id: int
    model: str
    policy: str
    config: JobConfig
    think_start: str
    think_end: str
    is_opened: bool
    engines: Mapping[int, tuple[str, str]]


_SELECT_JOB = text("""
    SELECT id AS job_id, policy, config, coalesce(think_start, '') AS think_start, coalesce(think_end, '') AS think_end,
           coalesce(think_opened, false) AS is_opened
    FROM jobs WHERE id = :job
""")
_SELECT_ENGINES = text("""
    SELECT id, sha256, model FROM engines WHERE model IN (SELECT unnest(ARRAY[small_model, large_model]) FROM jobs
                                                          WHERE id = :job)
""")


def get_answering_job(connection: Connection, job_id: int, model: str) -> AnsweringJob:
    """A job as its answers tell of it. model: as its requests call it."""
    row = connection.execute(_SELECT_JOB, {"job": job_id}).mappings().one()
    engines = connection.execute(_SELECT_ENGINES, {"job": job_id}).all()
    return AnsweringJob(
        **{**row, "config": JobConfig.model_validate(row["config"])},
        model=model,
        engines={engine.id: (engine.sha256, engine.model) for engine in engines},
    )


# Lengths of tokens are read where the closing think tag may begin, and nowhere else: they are long.
_SAMPLES = """
    SELECT p.external_id, s.id, s.sample_index, s.state, s.finish_reason, s.error_class, s.error, s.score,
           s.predicted_answer, s.num_takeovers, s.tokens_small, s.tokens_large, s.tokens_inserted, s.discarded_small,
           s.discarded_large, extract(epoch FROM coalesce(s.finished_at, s.ended_at, s.admitted_at))::bigint, (
               SELECT json_agg(json_build_array(
                   g.segment_index, g.author, g.trigger, g.cue, g.takes_over, g.text, cardinality(g.token_ids),
                   g.tokens_generated, cardinality(g.discarded_ids), g.prompt_tokens, g.cached_tokens, g.engine_id,
                   CASE WHEN j.think_end <> '' AND strpos(g.text, left(j.think_end, 1)) > 0
                        THEN to_json(g.token_lengths[1:cardinality(g.token_ids)]) END,
                   CASE WHEN %(with_discarded)s THEN g.discarded_text END) ORDER BY g.segment_index)::text
               FROM segments g WHERE g.sample_id = s.id)
    FROM samples s JOIN jobs j ON j.id = s.job_id JOIN problems p ON p.id = s.problem_id
    WHERE s.job_id = %(job)s {condition}
    ORDER BY s.problem_id, s.sample_index
"""
_ALL = _SAMPLES.format(condition="")
_ENDED = _SAMPLES.format(condition=f"AND s.state IN {FINAL}")
_OF_PROBLEMS = _SAMPLES.format(condition="AND p.external_id = ANY(%(ids)s)")


def stream_lines(
    connection: Connection, job: AnsweringJob, *, only_ended: bool = False, with_discarded: bool = False
) -> Iterator[Line]:
    """The lines of a job in the order of the input, as of one moment; one sample at a time is in memory.

    only_ended: leave out lines with a sample that is still at work. Index: the unique one on samples gives the order.
    """
    values = {"job": job.job_id, "with_discarded": with_discarded}
    rows = stream_rows(connection, _ENDED if only_ended else _ALL, values)
    for custom_id, group in groupby(rows, key=lambda row: str(row[0])):
        samples = tuple(_sample(row) for row in group)
        if not only_ended or len(samples) == job.config.num_samples:
            yield Line(custom_id=custom_id, samples=samples)


def select_lines(
    connection: Connection, job_id: int, ids: Sequence[str], *, with_discarded: bool = False
) -> list[Line]:
    """Some lines of a job as they are now."""
    values = {"job": job_id, "with_discarded": with_discarded, "ids": list(ids)}
    rows = list(stream_rows(connection, _OF_PROBLEMS, values))
    return [
        Line(custom_id=custom_id, samples=tuple(_sample(row) for row in group))
        for custom_id, group in groupby(rows, key=lambda row: str(row[0]))
    ]


def _sample(row: tuple[Any, ...]) -> WrittenSample:
    written = orjson.loads(row[16]) if row[16] else []
    return WrittenSample(
        id=row[1],
        sample_index=row[2],
        state=row[3],
        finish_reason=row[4],
        error_class=row[5],
        error=row[6],
        score=row[7],
        predicted_answer=row[8],
        num_takeovers=row[9],
        tokens={
            "small": row[10], "large": row[11], "inserted": row[12], "discarded_small": row[13],
            "discarded_large": row[14],
        },
        ended_at=row[15] or 0,
        segments=tuple(_segment(segment) for segment in written),
    )  # fmt: skip


def _segment(values: list[Any]) -> WrittenSegment:
    names = tuple(WrittenSegment.__dataclass_fields__)
    lengths = values[12]
    return WrittenSegment(**dict(zip(names, values, strict=True)) | {"token_lengths": lengths and tuple(lengths)})
