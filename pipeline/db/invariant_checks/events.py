"""Statements on events: every change of state is legal and logged.

Of a job whose samples' events were pruned, only its own can be checked.
"""

from __future__ import annotations

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
        FROM jobs j JOIN events e ON e.job_id = j.id
        WHERE j.id = :job AND j.events_removed_at IS NULL AND e.sample_id IS NOT NULL
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
    FROM jobs j JOIN samples s ON s.job_id = j.id LEFT JOIN (
        SELECT DISTINCT ON (sample_id) sample_id, to_state, epoch, worker_id
        FROM events WHERE job_id = :job AND sample_id IS NOT NULL ORDER BY sample_id, id DESC
    ) e ON e.sample_id = s.id
    WHERE j.id = :job AND j.events_removed_at IS NULL AND (
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

STATEMENTS = (
    _MOVES_OF_SAMPLES,
    _LAST_MOVE_OF_EACH_SAMPLE,
    _MOVES_OF_STRANGERS,
    _MOVES_OF_THE_JOB,
)
