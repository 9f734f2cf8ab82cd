"""The statements that look whether a job's invariants hold. ``pipeline.db.invariants`` runs them.

Each statement gives one row per place where something is wrong: ``place`` and ``what``. What a transaction may leave
half done (nothing) holds at any moment; what holds at the end only is asked of ended jobs only. Whole sets are
compared, no rows are fetched to be looked at here.

What cannot be said in SQL is not said here: whether a policy would decide the same again is for ``specthink replay``.
"""

from __future__ import annotations

import datetime as dt
from typing import NamedTuple

from pipeline.jobs.config import FINAL_JOB_STATES, JOB_TRANSITIONS
from pipeline.problems.columns import USUAL_COLUMNS
from pipeline.results.invariants import Invariant
from pipeline.samples import FINAL_STATES, RUNNABLE_STATE, TRANSITIONS, WRITING_STATE

MIN_ANSWER_CHARS = 8
"""Shorter answers are found everywhere by chance: "2" is in every date."""

MIN_HIDDEN_CHARS = 40
"""Shorter texts of a hidden column may be in a question by chance."""
TELLING_COLUMNS = "answer|solution|rationale|explanation|cot|canonical|test|gold|target|truth|proof|correct"
"""A pattern: lower-case names of columns that tell the answer or how to find it."""

CANCELLING = dt.timedelta(minutes=5)
"""A cancelled job's samples follow it in batches, a million in a minute or two; after so long none may be open."""


class Check(NamedTuple):
    """One statement. It selects place, what and, to list the same ones first each time, position."""

    invariant: Invariant
    statement: str


PARAMETERS: dict[str, object] = {
    "final_jobs": [state.value for state in FINAL_JOB_STATES],
    "final": [state.value for state in FINAL_STATES],
    "writing": [state.value for state in WRITING_STATE.values()],
    "runnable": [state.value for state in RUNNABLE_STATE.values()],
    "legal": [f"{start}>{end}" for start, end in TRANSITIONS],
    "legal_of_jobs": [f"{start}>{end}" for start, end in JOB_TRANSITIONS],
    "cancelling": CANCELLING,
    "answer_columns": list(USUAL_COLUMNS["answer"]),
    "min_answer_chars": MIN_ANSWER_CHARS,
    "min_hidden_chars": MIN_HIDDEN_CHARS,
    "telling_columns": TELLING_COLUMNS,
}
"""What the statements name beside ``job``, the job's id."""

# -- rows: problems x samples, once each -----------------------------------------------------------------------------

_SAMPLES_OF_EACH_PROBLEM = """
    SELECT p.position, 'problem ' || p.external_id AS place,
           format('has %s samples, numbered %s to %s, instead of 0 to %s once each',
                  coalesce(c.n, 0), coalesce(c.lowest::text, '-'), coalesce(c.highest::text, '-'), j.num_samples - 1)
           AS what
    FROM jobs j JOIN problems p ON p.problem_set_id = j.problem_set_id AND p.position < j.num_problems
    LEFT JOIN (
        SELECT problem_id, count(*) AS n, count(DISTINCT sample_index) AS numbers, min(sample_index) AS lowest,
               max(sample_index) AS highest
        FROM samples WHERE job_id = :job GROUP BY problem_id
    ) c ON c.problem_id = p.id
    WHERE j.id = :job
      AND (c.n, c.numbers, c.lowest, c.highest) IS DISTINCT FROM (j.num_samples, j.num_samples, 0, j.num_samples - 1)
"""
_PROBLEMS_OF_THE_JOB = """
    SELECT 0 AS position, format('job %s', j.id) AS place,
           format('asks %s problems, its set has %s of them', j.num_problems, count(p.id)) AS what
    FROM jobs j LEFT JOIN problems p ON p.problem_set_id = j.problem_set_id AND p.position < j.num_problems
    WHERE j.id = :job GROUP BY j.id, j.num_problems HAVING count(p.id) <> j.num_problems
"""
_STRAY_SAMPLES = """
    SELECT s.id AS position, format('sample %s', s.id) AS place,
           format('is of problem %s, which its job does not ask', s.problem_id) AS what
    FROM samples s JOIN jobs j ON j.id = s.job_id JOIN problems p ON p.id = s.problem_id
    WHERE s.job_id = :job AND (p.problem_set_id <> j.problem_set_id OR p.position >= j.num_problems)
"""
_STATE_OF_THE_JOB = """
    SELECT 0 AS position, format('job %s', j.id) AS place,
           format('is %s with %s open, %s graded, %s failed and %s cancelled samples',
                  j.state, c.open, c.graded, c.failed, c.cancelled) AS what
    FROM jobs j CROSS JOIN (
        SELECT count(*) FILTER (WHERE state <> ALL(:final)) AS open,
               count(*) FILTER (WHERE state = 'graded') AS graded,
               count(*) FILTER (WHERE state = 'failed') AS failed,
               count(*) FILTER (WHERE state = 'cancelled') AS cancelled
        FROM samples WHERE job_id = :job
    ) c
    WHERE j.id = :job AND (
        (j.state = ANY(:final_jobs) AND c.open > 0
         AND NOT (j.state = 'cancelled' AND j.finished_at > clock_timestamp() - CAST(:cancelling AS interval)))
        OR (j.state <> 'cancelled' AND c.cancelled > 0)
        OR (j.state = 'completed' AND c.failed > 0) OR (j.state = 'completed_with_errors' AND c.failed = 0
            AND j.config->>'grader' = 'none')
    )
"""
_GRADE_OF_EACH_GRADED = """
    SELECT s.id AS position, format('sample %s', s.id) AS place, 'is graded, but no grading of it has ended' AS what
    FROM samples s WHERE s.job_id = :job AND s.state = 'graded'
      AND NOT EXISTS (SELECT FROM grades g WHERE g.sample_id = s.id AND g.status <> 'running')
"""

# -- segments and asides: 0 to n-1, ids and text ---------------------------------------------------------------------

_SEGMENTS_OF_EACH_SAMPLE = """
    SELECT s.id AS position, format('sample %s', s.id) AS place, CASE
               WHEN (c.n, c.first, c.last) IS DISTINCT FROM (s.num_segments::bigint, 0, s.num_segments - 1)
               THEN format('counts %s segments and has %s, numbered %s to %s', s.num_segments, coalesce(c.n, 0),
                           coalesce(c.first::text, '-'), coalesce(c.last::text, '-'))
               ELSE format('counts %s tokens and has %s ids', s.tokens_small + s.tokens_large + s.tokens_inserted,
                           c.kept) END AS what
    FROM samples s LEFT JOIN (
        SELECT g.sample_id, count(*) AS n, min(g.segment_index) AS first, max(g.segment_index) AS last,
               sum(cardinality(g.token_ids)) AS kept
        FROM segments g JOIN samples s ON s.id = g.sample_id WHERE s.job_id = :job GROUP BY g.sample_id
    ) c ON c.sample_id = s.id
    WHERE s.job_id = :job AND CASE WHEN s.num_segments = 0 AND c.n IS NULL
        THEN s.tokens_small + s.tokens_large + s.tokens_inserted <> 0
        ELSE (c.n, c.first, c.last) IS DISTINCT FROM (s.num_segments::bigint, 0, s.num_segments - 1)
             OR c.kept <> s.tokens_small + s.tokens_large + s.tokens_inserted END
"""
_TEXT_OF_EACH_SEGMENT = """
    SELECT g.sample_id AS position, format('sample %s, segment %s', g.sample_id, g.segment_index) AS place,
           format('%s kept and %s discarded ids, %s lengths of %s and %s characters, texts of %s and %s',
                  cardinality(g.token_ids), cardinality(g.discarded_ids), cardinality(g.token_lengths),
                  n.kept, n.discarded, length(g.text), length(g.discarded_text)) AS what
    FROM segments g JOIN samples s ON s.id = g.sample_id
    CROSS JOIN LATERAL (
        SELECT coalesce((SELECT sum(l) FROM unnest(g.token_lengths[1 : cardinality(g.token_ids)]) AS u(l)), 0) AS kept,
               coalesce((SELECT sum(l) FROM unnest(g.token_lengths[cardinality(g.token_ids) + 1 :]) AS u(l)), 0)
               AS discarded
    ) n
    WHERE s.job_id = :job AND (
        cardinality(g.token_lengths) <> cardinality(g.token_ids) + cardinality(g.discarded_ids)
        OR n.kept <> length(g.text) OR n.discarded <> length(g.discarded_text)
    )
"""
_ASIDES_OF_EACH_SAMPLE = """
    SELECT s.id AS position, format('sample %s', s.id) AS place,
           format('counts %s asides and has %s, numbered %s to %s', s.num_asides, coalesce(c.n, 0),
                  coalesce(c.first::text, '-'), coalesce(c.last::text, '-')) AS what
    FROM samples s LEFT JOIN (
        SELECT a.sample_id, count(*) AS n, min(a.aside_index) AS first, max(a.aside_index) AS last
        FROM asides a JOIN samples s ON s.id = a.sample_id WHERE s.job_id = :job GROUP BY a.sample_id
    ) c ON c.sample_id = s.id
    WHERE s.job_id = :job AND CASE WHEN s.num_asides = 0 THEN c.n IS NOT NULL
        ELSE (c.n, c.first, c.last) IS DISTINCT FROM (s.num_asides::bigint, 0, s.num_asides - 1) END
"""
_TEXT_OF_EACH_ASIDE = """
    SELECT a.sample_id AS position, format('sample %s, aside %s', a.sample_id, a.aside_index) AS place,
           format('%s ids, %s lengths of %s characters, a text of %s, after segment %s of %s',
                  cardinality(a.token_ids), cardinality(a.token_lengths), n.characters, length(a.text),
                  a.after_segment, s.num_segments) AS what
    FROM asides a JOIN samples s ON s.id = a.sample_id
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(l), 0) AS characters FROM unnest(a.token_lengths) AS u(l)
    ) n
    WHERE s.job_id = :job AND (
        cardinality(a.token_lengths) <> cardinality(a.token_ids) OR n.characters <> length(a.text)
        OR a.after_segment < 0 OR a.after_segment > s.num_segments
    )
"""
_HEADS_OF_ASIDES = """
    SELECT g.sample_id AS position, format('sample %s, segment %s', g.sample_id, g.segment_index) AS place,
           CASE WHEN a.sample_id IS NULL THEN format('is taken from aside %s, which there is not', g.taken_from)
                ELSE format('is not the head of aside %s, which %s wrote', g.taken_from, a.author) END AS what
    FROM segments g JOIN samples s ON s.id = g.sample_id
    LEFT JOIN asides a ON a.sample_id = g.sample_id AND a.aside_index = g.taken_from
    WHERE s.job_id = :job AND g.taken_from IS NOT NULL
      AND (a.author, a.engine_id, a.token_ids[1 : cardinality(g.token_ids)], 0)
          IS DISTINCT FROM (g.author, g.engine_id, g.token_ids, cardinality(g.discarded_ids))
"""
_SIGNALS_OF_EACH_PIECE = """
    SELECT r.sample_id AS position, format('sample %s, %s %s, signal %s', r.sample_id, r.kind, r.index, r.name)
           AS place, CASE WHEN p.n IS NULL THEN 'is of no such piece'
           ELSE format('%s values at %s places of a piece of %s tokens', cardinality(r.values),
                       coalesce(cardinality(r.places)::text, 'all'), p.n) END AS what
    FROM signals r JOIN samples s ON s.id = r.sample_id
    LEFT JOIN LATERAL (
        SELECT cardinality(g.token_ids) + cardinality(g.discarded_ids) AS n FROM segments g
        WHERE r.kind = 'segment' AND g.sample_id = r.sample_id AND g.segment_index = r.index
        UNION ALL
        SELECT cardinality(a.token_ids) FROM asides a
        WHERE r.kind = 'aside' AND a.sample_id = r.sample_id AND a.aside_index = r.index
    ) p ON true
    WHERE s.job_id = :job AND (
        p.n IS NULL OR cardinality(r.values) <> coalesce(cardinality(r.places), p.n)
        OR EXISTS (SELECT FROM unnest(r.places) AS u(place) WHERE u.place < 0 OR u.place >= p.n)
    )
"""
_STEPS_OF_EACH_SAMPLE = """
    WITH output AS (
        SELECT g.sample_id, string_agg(g.text, '' ORDER BY g.segment_index) AS text
        FROM segments g JOIN samples s ON s.id = g.sample_id
        WHERE s.job_id = :job AND s.state IN ('finished', 'graded') GROUP BY g.sample_id
    ), told AS (
        SELECT t.sample_id, string_agg(t.text, '' ORDER BY t.step_index) AS text, count(*) AS n,
               min(t.step_index) AS first, max(t.step_index) AS last, sum(t.tokens_small) AS tokens_small,
               sum(t.tokens_large) AS tokens_large, sum(t.tokens_inserted) AS tokens_inserted
        FROM steps t JOIN samples s ON s.id = t.sample_id WHERE s.job_id = :job GROUP BY t.sample_id
    )
    SELECT s.id AS position, format('sample %s', s.id) AS place, CASE
               WHEN s.state NOT IN ('finished', 'graded', 'cancelled', 'failed') THEN 'has steps before it is complete'
               WHEN (t.first, t.last) <> (0, t.n - 1)
               THEN format('has %s steps, numbered %s to %s', t.n, t.first, t.last)
               WHEN coalesce(t.text, '') <> coalesce(o.text, '') THEN 'its steps joined are not its segments joined'
               ELSE format('has %s, %s and %s tokens (small, large, inserted), its steps have %s, %s and %s',
                           s.tokens_small, s.tokens_large, s.tokens_inserted,
                           t.tokens_small, t.tokens_large, t.tokens_inserted) END AS what
    FROM samples s LEFT JOIN output o ON o.sample_id = s.id LEFT JOIN told t ON t.sample_id = s.id
    WHERE s.job_id = :job AND CASE
        WHEN s.state IN ('finished', 'graded')
        THEN coalesce(t.text, '') <> coalesce(o.text, '') OR (t.first, t.last) <> (0, t.n - 1)
             OR (t.tokens_small, t.tokens_large, t.tokens_inserted)
                <> (s.tokens_small, s.tokens_large, s.tokens_inserted)
        ELSE s.state NOT IN ('cancelled', 'failed') AND t.n > 0 END
"""

# -- claims: nobody wrote who had lost the epoch ---------------------------------------------------------------------

_CLAIM_OF_EACH_PIECE = """
    WITH moves AS (
        SELECT e.sample_id, e.from_state, e.to_state, e.epoch, e.worker_id, lead(e.epoch) OVER w AS next_epoch
        FROM events e WHERE e.job_id = :job AND e.sample_id IS NOT NULL
        WINDOW w AS (PARTITION BY e.sample_id ORDER BY e.id)
    ), claims AS (
        SELECT m.sample_id, m.epoch, count(*) AS n, min(m.worker_id) AS worker_id,
               min(CASE m.to_state WHEN 'drafting' THEN 'small' ELSE 'large' END) AS role,
               -- a commit keeps the epoch; whatever takes a sample away raises it
               bool_and(coalesce(m.next_epoch = m.epoch, false)) AS committed
        FROM moves m WHERE m.from_state = ANY(:runnable) AND m.to_state = ANY(:writing)
        GROUP BY m.sample_id, m.epoch
    ), pieces AS (
        -- Whoever holds the claim tokenises what is inserted, and takes heads of anybody's asides.
        SELECT g.sample_id, format('segment %s', g.segment_index) AS name, g.epoch, g.worker_id,
               CASE WHEN g.author <> 'inserted' AND g.taken_from IS NULL THEN g.author END AS role
        FROM segments g JOIN samples s ON s.id = g.sample_id WHERE s.job_id = :job
        UNION ALL
        SELECT a.sample_id, format('aside %s', a.aside_index), a.epoch, a.worker_id, a.author
        FROM asides a JOIN samples s ON s.id = a.sample_id WHERE s.job_id = :job
    )
    SELECT g.sample_id AS position, format('sample %s, %s', g.sample_id, g.name) AS place,
           format('written by worker %s at epoch %s, ', g.worker_id, g.epoch) || CASE
               WHEN c.n IS NULL THEN 'which nobody claimed'
               WHEN c.n > 1 THEN format('which was claimed %s times', c.n)
               WHEN c.worker_id IS DISTINCT FROM g.worker_id THEN format('which worker %s claimed', c.worker_id)
               WHEN g.role <> c.role THEN format('claimed for the %s model', c.role)
               ELSE 'whose claim ended without a commit' END AS what
    FROM pieces g LEFT JOIN claims c ON c.sample_id = g.sample_id AND c.epoch = g.epoch
    WHERE c.n IS DISTINCT FROM 1 OR c.worker_id IS DISTINCT FROM g.worker_id OR g.role <> c.role OR NOT c.committed
"""
# Asides of one after_segment come before that segment.
_EPOCHS_OF_PIECES = """
    SELECT c.sample_id AS position, format('sample %s, %s', c.sample_id, c.name) AS place,
           format('written at epoch %s, what is before it at %s', c.epoch, c.before) AS what
    FROM (
        SELECT p.sample_id, p.name, p.epoch,
               lag(p.epoch) OVER (PARTITION BY p.sample_id ORDER BY p.segment, p.aside NULLS LAST) AS before
        FROM (
            SELECT g.sample_id, format('segment %s', g.segment_index) AS name, g.epoch, g.segment_index AS segment,
                   NULL AS aside
            FROM segments g JOIN samples s ON s.id = g.sample_id WHERE s.job_id = :job
            UNION ALL
            SELECT a.sample_id, format('aside %s', a.aside_index), a.epoch, a.after_segment, a.aside_index
            FROM asides a JOIN samples s ON s.id = a.sample_id WHERE s.job_id = :job
        ) p
    ) c WHERE c.epoch < c.before
"""
_HOLDERS = """
    SELECT s.id AS position, format('sample %s', s.id) AS place,
           CASE WHEN w.settled_at IS NOT NULL
                THEN format('is held by worker %s, which ended and was settled', s.holder_id)
                ELSE format('is %s, held by worker %s, a %s worker', s.state, s.holder_id, w.kind) END AS what
    FROM samples s LEFT JOIN workers w ON w.id = s.holder_id
    WHERE s.job_id = :job AND s.state = ANY(:writing)
      AND (w.settled_at IS NOT NULL
           OR w.kind IS DISTINCT FROM CASE s.state WHEN 'drafting' THEN 'small' ELSE 'large' END)
"""

# -- books: tokens add up --------------------------------------------------------------------------------------------

_TOKENS_OF_EACH_SEGMENT = """
    SELECT g.sample_id AS position, format('sample %s, segment %s', g.sample_id, g.segment_index) AS place,
           format('%s tokens generated by %s; %s kept, %s discarded, ended by %s', g.tokens_generated, g.author,
                  cardinality(g.token_ids), cardinality(g.discarded_ids), coalesce(g.finish, 'nothing')) AS what
    FROM segments g JOIN samples s ON s.id = g.sample_id
    WHERE s.job_id = :job AND g.tokens_generated <> CASE WHEN g.author = 'inserted' OR g.taken_from IS NOT NULL THEN 0
        ELSE cardinality(g.token_ids) + cardinality(g.discarded_ids) + coalesce((g.finish = 'eos')::integer, 0) END
"""
_TOKENS_OF_EACH_ASIDE = """
    SELECT a.sample_id AS position, format('sample %s, aside %s', a.sample_id, a.aside_index) AS place,
           format('%s tokens generated by %s; %s ids, ended by %s', a.tokens_generated, a.author,
                  cardinality(a.token_ids), a.finish) AS what
    FROM asides a JOIN samples s ON s.id = a.sample_id
    WHERE s.job_id = :job AND a.tokens_generated <> cardinality(a.token_ids) + (a.finish = 'eos')::integer
"""
_TAKEOVERS_OF_EACH_SAMPLE = """
    SELECT s.id AS position, format('sample %s', s.id) AS place, CASE
               WHEN c.by_others > 0 THEN format('has %s takeovers by another than the large model', c.by_others)
               ELSE format('counts %s takeovers and has %s', s.num_takeovers, coalesce(c.n, 0)) END AS what
    FROM samples s LEFT JOIN (
        SELECT g.sample_id, count(*) AS n, count(*) FILTER (WHERE g.author <> 'large') AS by_others
        FROM segments g JOIN samples s ON s.id = g.sample_id WHERE s.job_id = :job AND g.takes_over
        GROUP BY g.sample_id
    ) c ON c.sample_id = s.id
    WHERE s.job_id = :job AND (s.num_takeovers <> coalesce(c.n, 0) OR c.by_others > 0)
"""
_TOKENS_OF_EACH_SAMPLE = """
    SELECT s.id AS position, format('sample %s', s.id) AS place,
           format('counts %s, %s, %s tokens (small, large, inserted), %s, %s discarded and %s, %s taken from asides; '
                  'its segments have %s, %s, %s, %s, %s and %s, %s', s.tokens_small, s.tokens_large, s.tokens_inserted,
                  s.discarded_small, s.discarded_large, s.taken_small, s.taken_large, coalesce(c.small, 0),
                  coalesce(c.large, 0), coalesce(c.inserted, 0), coalesce(c.discarded_small, 0),
                  coalesce(c.discarded_large, 0), coalesce(c.taken_small, 0), coalesce(c.taken_large, 0)) AS what
    FROM samples s LEFT JOIN (
        SELECT g.sample_id, sum(cardinality(g.token_ids)) FILTER (WHERE g.author = 'small') AS small,
               sum(cardinality(g.token_ids)) FILTER (WHERE g.author = 'large') AS large,
               sum(cardinality(g.token_ids)) FILTER (WHERE g.author = 'inserted') AS inserted,
               sum(cardinality(g.discarded_ids)) FILTER (WHERE g.author = 'small') AS discarded_small,
               sum(cardinality(g.discarded_ids)) FILTER (WHERE g.author = 'large') AS discarded_large,
               sum(cardinality(g.token_ids)) FILTER (WHERE g.author = 'small' AND g.taken_from IS NOT NULL)
               AS taken_small,
               sum(cardinality(g.token_ids)) FILTER (WHERE g.author = 'large' AND g.taken_from IS NOT NULL)
               AS taken_large
        FROM segments g JOIN samples s ON s.id = g.sample_id WHERE s.job_id = :job GROUP BY g.sample_id
    ) c ON c.sample_id = s.id
    WHERE s.job_id = :job
      AND (s.tokens_small, s.tokens_large, s.tokens_inserted, s.discarded_small, s.discarded_large, s.taken_small,
           s.taken_large)
       <> (coalesce(c.small, 0), coalesce(c.large, 0), coalesce(c.inserted, 0), coalesce(c.discarded_small, 0),
           coalesce(c.discarded_large, 0), coalesce(c.taken_small, 0), coalesce(c.taken_large, 0))
"""
_ASIDE_TOKENS_OF_EACH_SAMPLE = """
    SELECT s.id AS position, format('sample %s', s.id) AS place,
           format('counts %s, %s tokens in asides (small, large), its asides have %s, %s', s.aside_small,
                  s.aside_large, coalesce(c.small, 0), coalesce(c.large, 0)) AS what
    FROM samples s LEFT JOIN (
        SELECT a.sample_id, sum(cardinality(a.token_ids)) FILTER (WHERE a.author = 'small') AS small,
               sum(cardinality(a.token_ids)) FILTER (WHERE a.author = 'large') AS large
        FROM asides a JOIN samples s ON s.id = a.sample_id WHERE s.job_id = :job GROUP BY a.sample_id
    ) c ON c.sample_id = s.id
    WHERE s.job_id = :job AND (s.aside_small, s.aside_large) <> (coalesce(c.small, 0), coalesce(c.large, 0))
"""
_TOTALS_OF_THE_JOB = """
    SELECT 0 AS position, format('job %s, %s', j.job_id, c.name) AS place,
           format('its summary says %s, its samples %s', c.summary, c.samples) AS what
    FROM job_summary j
    CROSS JOIN (
        SELECT count(*) AS total, count(*) FILTER (WHERE state = 'finished') AS finished,
               count(*) FILTER (WHERE state = 'graded') AS graded, count(*) FILTER (WHERE state = 'failed') AS failed,
               count(*) FILTER (WHERE state = 'cancelled') AS cancelled,
               count(*) FILTER (WHERE state <> ALL(:final)) AS open,
               count(score) FILTER (WHERE state = 'graded') AS scored, coalesce(sum(num_takeovers), 0) AS takeovers,
               coalesce(sum(tokens_small), 0) AS tokens_small, coalesce(sum(tokens_large), 0) AS tokens_large,
               coalesce(sum(tokens_inserted), 0) AS tokens_inserted,
               coalesce(sum(discarded_small), 0) AS discarded_small,
               coalesce(sum(discarded_large), 0) AS discarded_large,
               coalesce(sum(aside_small), 0) AS aside_small, coalesce(sum(aside_large), 0) AS aside_large,
               coalesce(sum(taken_small), 0) AS taken_small, coalesce(sum(taken_large), 0) AS taken_large
        FROM samples WHERE job_id = :job
    ) s
    CROSS JOIN LATERAL (VALUES
        ('samples_total', j.samples_total, s.total), ('samples_finished', j.samples_finished, s.finished),
        ('samples_graded', j.samples_graded, s.graded), ('samples_failed', j.samples_failed, s.failed),
        ('samples_cancelled', j.samples_cancelled, s.cancelled), ('samples_open', j.samples_open, s.open),
        ('num_scored', j.num_scored, s.scored), ('takeovers', j.takeovers, s.takeovers),
        ('tokens_small', j.tokens_small, s.tokens_small), ('tokens_large', j.tokens_large, s.tokens_large),
        ('tokens_inserted', j.tokens_inserted, s.tokens_inserted),
        ('discarded_small', j.discarded_small, s.discarded_small),
        ('discarded_large', j.discarded_large, s.discarded_large),
        ('aside_small', j.aside_small, s.aside_small), ('aside_large', j.aside_large, s.aside_large),
        ('taken_small', j.taken_small, s.taken_small), ('taken_large', j.taken_large, s.taken_large)
    ) AS c(name, summary, samples)
    WHERE j.job_id = :job AND c.summary IS DISTINCT FROM c.samples
"""
# A worker books what it committed with each heartbeat, after the commit: its row may lag behind its segments and never
# run ahead of them. One that said goodbye has booked its end, so that both are equal. A worker of two jobs has its
# segments in both: those of all jobs that ran while it lived are counted.
_TOKENS_OF_EACH_WORKER = """
    WITH mine AS (
        SELECT w.id, w.started_at, coalesce(w.ended_at, clock_timestamp()) AS until, w.end_reason, w.tokens_generated,
               w.tokens_committed, w.tokens_dropped, w.tokens_withdrawn
        FROM workers w WHERE w.id IN (
            SELECT g.worker_id FROM segments g JOIN samples s ON s.id = g.sample_id WHERE s.job_id = :job
            UNION SELECT a.worker_id FROM asides a JOIN samples s ON s.id = a.sample_id WHERE s.job_id = :job
        )
    ), nearby AS (
        SELECT j.id FROM jobs j WHERE EXISTS (
            SELECT FROM mine w WHERE j.first_claimed_at <= w.until
            AND coalesce(j.finished_at, 'infinity') >= w.started_at)
    ), written AS (
        SELECT p.worker_id, sum(p.tokens_generated) AS tokens
        FROM (
            SELECT g.worker_id, g.tokens_generated
            FROM nearby j JOIN samples s ON s.job_id = j.id JOIN segments g ON g.sample_id = s.id
            UNION ALL
            SELECT a.worker_id, a.tokens_generated
            FROM nearby j JOIN samples s ON s.job_id = j.id JOIN asides a ON a.sample_id = s.id
        ) p
        WHERE p.worker_id IN (SELECT id FROM mine) GROUP BY p.worker_id
    )
    SELECT w.id AS position, format('worker %s', w.id) AS place,
           format('%s; booked %s generated, %s committed (%s of them withdrawn), %s dropped; its segments and asides '
                  'have %s', coalesce(w.end_reason, 'alive'), w.tokens_generated, w.tokens_committed,
                  w.tokens_withdrawn, w.tokens_dropped, c.tokens) AS what
    FROM mine w JOIN written c ON c.worker_id = w.id
    WHERE CASE WHEN w.end_reason = 'stopped'
               THEN c.tokens <> w.tokens_committed - w.tokens_withdrawn
                    OR w.tokens_generated <> w.tokens_committed + w.tokens_dropped
               ELSE c.tokens < w.tokens_committed - w.tokens_withdrawn END
"""

# -- events: every change of state, legal and logged -----------------------------------------------------------------

_MOVES_OF_SAMPLES = """
    SELECT m.id AS position, format('sample %s, event %s', m.sample_id, m.id) AS place,
           format('%s → %s at epoch %s', m.from_state, m.to_state, coalesce(m.epoch::text, 'none')) || CASE
               WHEN m.from_state || '>' || m.to_state <> ALL(:legal) THEN ' is no legal move'
               WHEN m.from_state <> m.state_before THEN format(' follows a move to %s', m.state_before)
               WHEN m.epoch IS NULL OR m.epoch < m.epoch_before THEN format(' follows epoch %s', m.epoch_before)
               WHEN m.worker_id IS NULL THEN ' is a claim of nobody'
               ELSE format(' is a claim that did not raise epoch %s', m.epoch_before) END AS what
    FROM (
        SELECT e.id, e.sample_id, e.from_state, e.to_state, e.epoch, e.worker_id,
               lag(e.to_state, 1, 'pending') OVER w AS state_before, lag(e.epoch, 1, 0) OVER w AS epoch_before,
               e.from_state = ANY(:runnable) AND e.to_state = ANY(:writing) AS is_claim
        FROM events e WHERE e.job_id = :job AND e.sample_id IS NOT NULL
        WINDOW w AS (PARTITION BY e.sample_id ORDER BY e.id)
    ) m
    WHERE m.from_state || '>' || m.to_state <> ALL(:legal) OR m.from_state <> m.state_before
       OR m.epoch IS NULL OR m.epoch < m.epoch_before
       OR (m.is_claim AND (m.worker_id IS NULL OR m.epoch <= m.epoch_before))
"""
_LAST_MOVE_OF_EACH_SAMPLE = """
    SELECT s.id AS position, format('sample %s', s.id) AS place,
           format('is %s at epoch %s, held by %s; the event log ends with %s at epoch %s by %s', s.state, s.epoch,
                  coalesce(s.holder_id::text, 'nobody'), coalesce(e.to_state, 'no event'),
                  coalesce(e.epoch::text, 'none'), coalesce(e.worker_id::text, 'nobody')) AS what
    FROM samples s LEFT JOIN (
        SELECT DISTINCT ON (sample_id) sample_id, to_state, epoch, worker_id
        FROM events WHERE job_id = :job AND sample_id IS NOT NULL ORDER BY sample_id, id DESC
    ) e ON e.sample_id = s.id
    WHERE s.job_id = :job AND (
        coalesce(e.to_state, 'pending') <> s.state OR coalesce(e.epoch, 0) > s.epoch
        OR (s.holder_id IS NOT NULL AND (e.epoch, e.worker_id) IS DISTINCT FROM (s.epoch, s.holder_id))
    )
"""
_MOVES_OF_STRANGERS = """
    SELECT e.id AS position, format('event %s', e.id) AS place,
           format('is of sample %s, which is not of this job', e.sample_id) AS what
    FROM events e LEFT JOIN samples s ON s.id = e.sample_id
    WHERE e.job_id = :job AND e.sample_id IS NOT NULL AND s.job_id IS DISTINCT FROM e.job_id
"""
_MOVES_OF_THE_JOB = """
    SELECT m.id AS position, format('job %s, event %s', m.job_id, m.id) AS place,
           format('%s → %s', m.from_state, m.to_state) || CASE
               WHEN m.from_state || '>' || m.to_state <> ALL(:legal_of_jobs) THEN ' is no legal move'
               ELSE format(' follows a move to %s', m.state_before) END AS what
    FROM (
        SELECT e.id, e.job_id, e.from_state, e.to_state, lag(e.to_state, 1, 'running') OVER (ORDER BY e.id)
               AS state_before
        FROM events e WHERE e.job_id = :job AND e.sample_id IS NULL
    ) m
    WHERE m.from_state || '>' || m.to_state <> ALL(:legal_of_jobs) OR m.from_state <> m.state_before
    UNION ALL
    SELECT j.id, format('job %s', j.id), format('is %s; the event log ends with %s', j.state, c.state)
    FROM jobs j CROSS JOIN (
        SELECT coalesce((SELECT e.to_state FROM events e WHERE e.job_id = :job AND e.sample_id IS NULL
                         ORDER BY e.id DESC LIMIT 1), 'running') AS state
    ) c
    WHERE j.id = :job AND j.state <> c.state
"""

# -- answers: nowhere but in their table -----------------------------------------------------------------------------

# One equal value is chance (a column of options holds the right one in some rows); a column that gives the answer,
# alone or boxed at the end of a worked solution, for most of the problems that have it is the answers again.
_ANSWERS_IN_OTHER_COLUMNS = r"""
    SELECT 0 AS position, format('problems.shown, column %s', c.name) AS place,
           format('gives the reference answer of %s problems out of %s that have it', c.given, c.n) AS what
    FROM (
        SELECT x.name, count(*) AS n, count(*) FILTER (WHERE x.is_given) AS given,
               count(DISTINCT x.answer) FILTER (WHERE x.is_given) AS answers, max(length(x.answer)) AS longest
        FROM (
            SELECT e.key AS name, r.answer,
                   lower(btrim(e.value)) = lower(btrim(r.answer))
                   OR strpos(e.value, format('\boxed{%s}', r.answer)) > 0 AS is_given
            FROM jobs j JOIN problems p ON p.problem_set_id = j.problem_set_id AND p.position < j.num_problems
            JOIN reference_answers r ON r.problem_id = p.id
            CROSS JOIN LATERAL jsonb_each_text(CASE jsonb_typeof(p.shown) WHEN 'object' THEN p.shown END)
                AS e(key, value)
            WHERE j.id = :job AND e.value <> ''
        ) x GROUP BY x.name
    ) c
    WHERE c.given > 0 AND (
        (2 * c.given > c.n AND (c.answers > 1 OR (c.n = 1 AND c.longest >= 4)))
        OR (lower(c.name) = ANY(:answer_columns) AND c.given = c.n)
    )
"""
_HIDDEN_AND_SHOWN = """
    SELECT p.position, 'problem ' || p.external_id AS place, format('shows its hidden column %s', c.name) AS what
    FROM jobs j JOIN problems p ON p.problem_set_id = j.problem_set_id AND p.position < j.num_problems
    JOIN hidden_columns h ON h.problem_id = p.id
    CROSS JOIN LATERAL jsonb_object_keys(CASE jsonb_typeof(h.columns) WHEN 'object' THEN h.columns END) AS c(name)
    WHERE j.id = :job AND p.shown ? c.name
"""
# A context or a second wording may be part of a prompt; a worked solution, a rationale or a test may not.
_HIDDEN_TEXT_IN_PROMPTS = """
    SELECT p.position, 'problem ' || p.external_id AS place,
           format('has the text of its hidden column %s where generating workers read', c.key) AS what
    FROM jobs j JOIN problems p ON p.problem_set_id = j.problem_set_id AND p.position < j.num_problems
    JOIN hidden_columns h ON h.problem_id = p.id
    CROSS JOIN LATERAL jsonb_each_text(CASE jsonb_typeof(h.columns) WHEN 'object' THEN h.columns END) AS c(key, value)
    WHERE j.id = :job AND length(c.value) >= :min_hidden_chars AND lower(c.key) ~ :telling_columns
      AND (strpos(p.prompt, c.value) > 0 OR EXISTS (
          SELECT FROM jsonb_path_query(p.shown, 'strict $.**') AS v(value)
          WHERE jsonb_typeof(v.value) = 'string' AND strpos(v.value #>> '{}', c.value) > 0))
"""
# Only answers that nobody writes by chance: long enough, and with a digit or a sign ("reflection" is a trigger's name).
# States in the event log are not searched: those that are no state are illegal moves.
_ANSWERS_IN_OTHER_TABLES = r"""
    WITH hands AS MATERIALIZED (
        SELECT DISTINCT e.worker_id AS id FROM events e WHERE e.job_id = :job AND e.worker_id IS NOT NULL
    ), hay AS MATERIALIZED (
        SELECT format('job %s', j.id) AS place, concat_ws(E'\n', j.config, j.versions, j.name, j.policy, j.think_end)
               AS written
        FROM jobs j WHERE j.id = :job
        UNION ALL
        SELECT format('worker %s', w.id), concat_ws(E'\n', w.model, w.host, w.queue)
        FROM hands JOIN workers w ON w.id = hands.id
        UNION ALL
        SELECT format('engine %s', n.id), concat_ws(E'\n', n.kind, n.version, n.model, n.settings)
        FROM engines n WHERE n.id IN (SELECT w.engine_id FROM hands JOIN workers w ON w.id = hands.id)
    ), needles AS MATERIALIZED (
        SELECT DISTINCT r.answer, trim('"' FROM to_json(r.answer)::text) AS as_json
        FROM jobs j JOIN problems p ON p.problem_set_id = j.problem_set_id AND p.position < j.num_problems
        JOIN reference_answers r ON r.problem_id = p.id
        WHERE j.id = :job AND length(r.answer) >= :min_answer_chars AND r.answer ~ '[0-9\\{}^_=/+]'
    )
    SELECT 0 AS position, h.place, 'has the reference answer of a problem in it' AS what
    FROM hay h WHERE EXISTS (
        SELECT FROM needles n WHERE strpos(h.written, n.answer) > 0 OR strpos(h.written, n.as_json) > 0
    )
"""

CHECKS: tuple[Check, ...] = (
    Check(Invariant.ROWS, _PROBLEMS_OF_THE_JOB),
    Check(Invariant.ROWS, _SAMPLES_OF_EACH_PROBLEM),
    Check(Invariant.ROWS, _STRAY_SAMPLES),
    Check(Invariant.ROWS, _STATE_OF_THE_JOB),
    Check(Invariant.ROWS, _GRADE_OF_EACH_GRADED),
    Check(Invariant.SEGMENTS, _SEGMENTS_OF_EACH_SAMPLE),
    Check(Invariant.SEGMENTS, _TEXT_OF_EACH_SEGMENT),
    Check(Invariant.SEGMENTS, _ASIDES_OF_EACH_SAMPLE),
    Check(Invariant.SEGMENTS, _TEXT_OF_EACH_ASIDE),
    Check(Invariant.SEGMENTS, _HEADS_OF_ASIDES),
    Check(Invariant.SEGMENTS, _SIGNALS_OF_EACH_PIECE),
    Check(Invariant.SEGMENTS, _STEPS_OF_EACH_SAMPLE),
    Check(Invariant.CLAIMS, _CLAIM_OF_EACH_PIECE),
    Check(Invariant.CLAIMS, _EPOCHS_OF_PIECES),
    Check(Invariant.CLAIMS, _HOLDERS),
    Check(Invariant.BOOKS, _TOKENS_OF_EACH_SEGMENT),
    Check(Invariant.BOOKS, _TOKENS_OF_EACH_ASIDE),
    Check(Invariant.BOOKS, _TAKEOVERS_OF_EACH_SAMPLE),
    Check(Invariant.BOOKS, _TOKENS_OF_EACH_SAMPLE),
    Check(Invariant.BOOKS, _ASIDE_TOKENS_OF_EACH_SAMPLE),
    Check(Invariant.BOOKS, _TOTALS_OF_THE_JOB),
    Check(Invariant.BOOKS, _TOKENS_OF_EACH_WORKER),
    Check(Invariant.EVENTS, _MOVES_OF_SAMPLES),
    Check(Invariant.EVENTS, _LAST_MOVE_OF_EACH_SAMPLE),
    Check(Invariant.EVENTS, _MOVES_OF_STRANGERS),
    Check(Invariant.EVENTS, _MOVES_OF_THE_JOB),
    Check(Invariant.ANSWERS, _ANSWERS_IN_OTHER_COLUMNS),
    Check(Invariant.ANSWERS, _HIDDEN_AND_SHOWN),
    Check(Invariant.ANSWERS, _HIDDEN_TEXT_IN_PROMPTS),
    Check(Invariant.ANSWERS, _ANSWERS_IN_OTHER_TABLES),
)
