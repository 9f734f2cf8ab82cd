"""The statements that read a job with every piece of writing, for logs."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, text

from pipeline.db import report_queries
from pipeline.db.readable import read_choice
from pipeline.results.samples import Result, StepReport
from pipeline.results.written import PieceKind, WrittenJob, WrittenPiece, WrittenSample
from pipeline.samples import Author

_BATCH = 100

_SELECT_JOB = text("""
    SELECT j.think_start, j.think_end, j.think_opened, p.content_sha256, coalesce(p.source, '{}') AS source,
           p.tells_answers_of IS NOT NULL AS prompts_tell_answers,
           ARRAY(SELECT q.external_id FROM problems q
                 WHERE q.problem_set_id = p.id AND q.position < j.num_problems ORDER BY q.position) AS problem_ids
    FROM jobs j JOIN problem_sets p ON p.id = j.problem_set_id WHERE j.id = :job
""")


def get_written_job(connection: Connection, job_id: int) -> WrittenJob:
    """Raises NotFound."""
    job = report_queries.get_job(connection, job_id)
    stats = report_queries.get_stats(connection, job_id)
    row = connection.execute(_SELECT_JOB, {"job": job_id}).mappings().one()
    return WrittenJob(
        job=job,
        summary=stats.summary,
        pass_at_k=stats.pass_at_k,
        problem_scores=report_queries.problem_scores(connection, job_id),
        tells_answers=report_queries.may_read_answers(connection),
        **{**row, "problem_ids": tuple(row["problem_ids"])},
    )


# Asides of one after_segment come before that segment.
_SELECT_PIECES = text("""
    SELECT w.*, e.model FROM (
        SELECT g.sample_id, 'segment' AS kind, g.segment_index AS index, g.author, g.trigger AS reason, g.cue,
               g.takes_over, g.text, g.discarded_text, cardinality(g.token_ids) AS tokens,
               cardinality(g.discarded_ids) AS tokens_discarded, g.taken_from IS NOT NULL AS is_taken, g.prompt_tokens,
               g.cached_tokens, g.finish, g.value, g.threshold, g.outcome, g.seed, g.wait_seconds, g.queue_seconds,
               g.write_seconds AS seconds, g.worker_id, g.engine_id, g.segment_index AS place,
               g.committed_at - make_interval(secs => coalesce(g.held_seconds, 0)) AS ended_at
        FROM segments g WHERE g.sample_id = ANY(:samples)
        UNION ALL
        SELECT a.sample_id, 'aside', a.aside_index, a.author, a.purpose, '', false, a.text, '',
               cardinality(a.token_ids), 0, false, a.prompt_tokens, a.cached_tokens, a.finish, a.value, a.threshold,
               a.outcome, a.seed, a.wait_seconds, a.queue_seconds, a.write_seconds, a.worker_id, a.engine_id,
               a.after_segment, a.committed_at - make_interval(secs => coalesce(a.held_seconds, 0))
        FROM asides a WHERE a.sample_id = ANY(:samples)
    ) w JOIN engines e ON e.id = w.engine_id ORDER BY w.sample_id, w.place, w.kind, w.index
""")
_SELECT_STEPS = text("""
    SELECT sample_id, step_index, author, text, tokens_small, tokens_large, tokens_inserted, sentence_class, trigger
    FROM steps WHERE sample_id = ANY(:samples) ORDER BY sample_id, step_index
""")


def stream_written(
    connection: Connection, job_id: int, *, only_final: bool, with_answers: bool = True
) -> Iterator[WrittenSample]:
    """Every sample of a job in the order of the problems, with its pieces; those of one batch at a time are in memory.

    with_answers: what is right is read too, where this login may read it. In one transaction that repeats its reads,
    all of it is of one moment.
    """
    results = report_queries.stream_results(
        connection, job_id, only_final=only_final, batch=_BATCH, with_answers=with_answers
    )
    while batch := list(itertools.islice(results, _BATCH)):
        yield from _with_pieces(connection, batch)


def _with_pieces(connection: Connection, results: Sequence[Result]) -> Iterator[WrittenSample]:
    samples = {"samples": [result.sample_id for result in results]}
    pieces: defaultdict[int, list[WrittenPiece]] = defaultdict(list)
    for row in connection.execute(_SELECT_PIECES, samples).mappings():
        written = pieces[row["sample_id"]]
        written.append(_piece(dict(row), start_token=sum(p.tokens for p in written if p.kind is PieceKind.SEGMENT)))
    steps: defaultdict[int, list[StepReport]] = defaultdict(list)
    for row in connection.execute(_SELECT_STEPS, samples).mappings():
        values = dict(row)
        sample_id = values.pop("sample_id")
        steps[sample_id].append(StepReport(**values | {"author": read_choice(Author, values["author"])}))
    for result in results:
        yield WrittenSample(result=result, pieces=tuple(pieces[result.sample_id]), steps=tuple(steps[result.sample_id]))


def _piece(values: dict[str, Any], *, start_token: int) -> WrittenPiece:
    for name in ("sample_id", "engine_id", "place"):
        del values[name]
    choices = {"kind": PieceKind(values["kind"]), "author": read_choice(Author, values["author"])}
    return WrittenPiece(**values | choices, start_token=start_token)
