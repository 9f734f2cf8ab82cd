"""Statements on claims: who wrote a piece held the sample's epoch until the commit."""

from __future__ import annotations

_CLAIM_OF_EACH_PIECE = """
    WITH moves AS (
        SELECT e.sample_id, e.from_state, e.to_state, e.epoch, e.worker_id, lead(e.epoch) OVER w AS next_epoch
        FROM events e WHERE e.job_id = :job AND e.sample_id IS NOT NULL
        WINDOW w AS (PARTITION BY e.sample_id ORDER BY e.id)
    ), claims AS (
        SELECT m.sample_id, m.epoch, count(*) AS n, min(m.worker_id) AS worker_id,
               min(CASE m.to_state WHEN 'drafting' THEN 'small' WHEN 'assisting' THEN 'large' ELSE 'judge' END) AS role,
               -- a commit keeps the epoch; whatever takes a sample away raises it
               bool_and(coalesce(m.next_epoch = m.epoch, false)) AS committed
        FROM moves m WHERE m.from_state = ANY(:runnable) AND m.to_state = ANY(:writing)
        GROUP BY m.sample_id, m.epoch
    ), pieces AS (
        -- The holder of the claim tokenises what is inserted, and takes heads of any worker's asides.
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
    WHERE EXISTS (SELECT FROM jobs j WHERE j.id = :job AND j.events_removed_at IS NULL) AND (
        c.n IS DISTINCT FROM 1 OR c.worker_id IS DISTINCT FROM g.worker_id OR g.role <> c.role OR NOT c.committed)
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
           OR w.kind IS DISTINCT FROM
              CASE s.state WHEN 'drafting' THEN 'small' WHEN 'assisting' THEN 'large' ELSE 'judge' END)
"""
# The verdict raises the epoch by one.
_VERDICTS = """
    SELECT s.id AS position, format('sample %s', s.id) AS place,
           format('is blamed for the deaths of its workers (%s) and was last alone in an engine at epoch %s of %s',
                  s.error_class, coalesce(s.trial_epoch::text, '-'), s.epoch) AS what
    FROM samples s
    WHERE s.job_id = :job AND s.state = 'failed' AND s.error_class IN ('engine_died', 'timed_out')
      AND s.trial_epoch IS DISTINCT FROM s.epoch - 1
"""

STATEMENTS = (
    _CLAIM_OF_EACH_PIECE,
    _EPOCHS_OF_PIECES,
    _HOLDERS,
    _VERDICTS,
)
