"""A job of a million samples that has run already, made by SQL: what a long run leaves, in about two minutes.

Lengths, takeovers and scores vary by a fixed recipe (sample id times a prime), texts are short: what is counted is the
number of rows, not their width. No event is written, and no foreign key checked, while it is made.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

SEGMENTS = 10
"""Per sample: small and large by turns."""
STEPS = 3
"""Per sample: fewer than a real one has."""
_TOKENS = "1 + ((s.id * 7919 + i * 104729) % 97)::integer"
"""Of segment i of sample s."""

_QUIET = (
    "SET LOCAL session_replication_role = replica"  # no triggers, no foreign keys: the rows are right by their making
)
_WORKERS = text("""
    INSERT INTO workers (kind, model, engine_id, host, pid, queue, max_in_flight, expires_at, ended_at, end_reason,
                         settled_at)
    SELECT kind, model, NULL, 'past', 1, 'past', 64, now(), now(), 'stopped', now()
    FROM (VALUES ('small', :small), ('large', :large)) AS w (kind, model), generate_series(1, 4)
    RETURNING id
""")
_ENGINE = text("""
    INSERT INTO engines (sha256, kind, version, model, model_fingerprint, vocabulary_sha256, settings)
    VALUES ('loaded', 'scripted', '1', 'any', 'any', 'any', '{}')
    ON CONFLICT (sha256) DO UPDATE SET kind = excluded.kind RETURNING id
""")
# Every third sample is wrong, one of 500 failed, one of 50 was cut; each began 10 ms after the one before it.
_FINISH = text(f"""
    INSERT INTO samples (id, job_id, problem_id, sample_index, state, epoch, small_worker_id, large_worker_id,
                         published_at, num_segments, num_takeovers, tokens_small, tokens_large, tokens_inserted,
                         discarded_small, finish_reason, predicted_answer, score, error_class, error, admitted_at,
                         finished_at, ended_at)
    OVERRIDING SYSTEM VALUE
    SELECT s.id, s.job_id, s.problem_id, s.sample_index, CASE WHEN k.failed THEN 'failed' ELSE 'graded' END,
           {SEGMENTS}, :worker, :worker + 4, now(), {SEGMENTS}, {SEGMENTS} / 2, t.small, t.large, 0, {SEGMENTS} / 2,
           CASE WHEN NOT k.failed THEN CASE WHEN s.id % 50 = 1 THEN 'length' ELSE 'eos' END END, s.id % 5,
           CASE WHEN NOT k.failed THEN (s.id % 3 > 0)::integer END, CASE WHEN k.failed THEN 'engine_refused' END,
           CASE WHEN k.failed THEN 'no room' END, b.began, CASE WHEN NOT k.failed THEN b.ended END, b.ended
    FROM old s
    CROSS JOIN LATERAL (SELECT s.id % 500 = 0 AS failed) k
    CROSS JOIN LATERAL (
        SELECT now() - interval '3 h' + s.place * interval '10 ms' AS began,
               now() - interval '3 h' + s.place * interval '10 ms' + (s.id % 991) * interval '100 ms' AS ended
    ) b
    CROSS JOIN LATERAL (
        SELECT sum({_TOKENS}) FILTER (WHERE i % 2 = 0) AS small, sum({_TOKENS}) FILTER (WHERE i % 2 = 1) AS large
        FROM generate_series(0, {SEGMENTS} - 1) AS i
    ) t
""")
_OLD = text("""
    CREATE TEMPORARY TABLE old ON COMMIT DROP AS
    SELECT id, job_id, problem_id, sample_index, row_number() OVER (ORDER BY id) AS place
    FROM samples WHERE job_id = :job ORDER BY id LIMIT :done
""")
_SEGMENTS = text(f"""
    INSERT INTO segments (sample_id, segment_index, author, trigger, cue, takes_over, token_ids, text, discarded_ids,
                          discarded_text, token_lengths, finish, tokens_generated, prompt_tokens, cached_tokens, epoch,
                          worker_id, engine_id, wait_seconds, queue_seconds, first_token_seconds, write_seconds,
                          committed_at)
    SELECT s.id, i, w.author, w.trigger, '', i % 2 = 1, array_fill(7, ARRAY[t.n]), 'so',
           CASE WHEN i % 2 = 0 THEN '{{7}}'::int[]
           ELSE '{{}}' END, '', '{{2}}', 'eos', t.n, 200, 180, 2 * i + 1, :worker + 4 * (i % 2) + s.id % 4, :engine,
           0.01, 0.002, 0.05, t.n * 0.01, now() - interval '3 h' + s.place * interval '10 ms' + i * interval '1 s'
    FROM old s CROSS JOIN generate_series(0, {SEGMENTS} - 1) AS i
    CROSS JOIN LATERAL (SELECT {_TOKENS} AS n) t
    CROSS JOIN LATERAL (
        SELECT CASE i % 2 WHEN 0 THEN 'small' ELSE 'large' END AS author,
               CASE WHEN i % 2 = 0 THEN 'resume' ELSE (ARRAY['affirmation', 'reflection', 'verification'])[1 + i % 3]
               END AS trigger
    ) w
""")
_STEPS = text(f"""
    INSERT INTO steps (sample_id, step_index, text, author, tokens_small, tokens_large, tokens_inserted, start_token,
                       sentence_class)
    SELECT s.id, i, 'so', 'small', {_TOKENS}, 0, 0, 0, (ARRAY['statement', 'reflection'])[1 + i % 2]
    FROM old s CROSS JOIN generate_series(0, {STEPS} - 1) AS i
""")
_GRADES = text("""
    INSERT INTO grades (sample_id, grader, grader_version, status, score, started_at, graded_at)
    SELECT s.id, 'math', '1', CASE WHEN s.id % 5000 = 3 THEN 'timeout' ELSE 'done' END, 1, now(), now() FROM old s
    WHERE s.id % 500 <> 0
""")
_PRIMARY_KEYS = {"segments": "sample_id, segment_index", "steps": "sample_id, step_index"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What was made. worker_id: the first of the eight past ones."""

    done: int
    segments: int
    worker_id: int


def load_finished(connection: Connection, job_id: int, *, done: int, small: str, large: str) -> Loaded:
    """Let the first so many samples of a job be done: graded, but for one in 500, which failed.

    Raises IntegrityError where anything of the job is there already.
    """
    connection.execute(text(_QUIET))
    connection.execute(text("SET LOCAL work_mem = '256MB'"))
    connection.execute(text("SET LOCAL maintenance_work_mem = '512MB'"))
    worker = min(connection.execute(_WORKERS, {"small": small, "large": large}).scalars())
    engine = connection.execute(_ENGINE).scalar_one()
    values = {"job": job_id, "done": done, "worker": worker, "engine": engine}
    connection.execute(_OLD, values)
    for table in _PRIMARY_KEYS:  # made again at the end: sorting is faster than inserting in order
        connection.execute(text(f"ALTER TABLE {table} DROP CONSTRAINT pk_{table}"))
    connection.execute(text("DELETE FROM samples WHERE job_id = :job AND id IN (SELECT id FROM old)"), values)
    for statement in (_FINISH, _SEGMENTS, _STEPS, _GRADES):
        connection.execute(statement, values)
    for table, columns in _PRIMARY_KEYS.items():
        connection.execute(text(f"ALTER TABLE {table} ADD CONSTRAINT pk_{table} PRIMARY KEY ({columns})"))
    connection.execute(text("UPDATE jobs SET first_claimed_at = now() - interval '3 h' WHERE id = :job"), values)
    return Loaded(done=done, segments=done * SEGMENTS, worker_id=worker)
