"""Statements on rows: each problem has each of its samples once, and states agree."""

from __future__ import annotations

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
        OR (j.state = 'completed' AND c.failed > 0) OR (
            j.state = 'completed_with_errors' AND c.failed = 0 AND j.config->>'grader' = 'none')
    )
"""
_GRADE_OF_EACH_GRADED = """
    SELECT s.id AS position, format('sample %s', s.id) AS place, 'is graded, but no grading of it has ended' AS what
    FROM samples s WHERE s.job_id = :job AND s.state = 'graded'
      AND NOT EXISTS (SELECT FROM grades g WHERE g.sample_id = s.id AND g.graded_at IS NOT NULL)
"""
# Asked of the judge and of the judged job.
_VERDICTS_ARE_GRADES = """
    SELECT s.id AS position, format('sample %s', s.id) AS place,
           format('was judged by job %s, and has no grade by it', m.job_id) AS what
    FROM jobs j JOIN judged_samples m ON m.job_id = j.id JOIN samples s ON s.id = m.sample_id
    WHERE (j.id = :job OR j.judged_job_id = :job) AND j.verdicts_at IS NOT NULL AND s.epoch = m.epoch
      AND s.state = 'graded'
      AND NOT EXISTS (
          SELECT FROM grades g
          WHERE g.sample_id = s.id AND g.grader = 'judge' AND g.grader_version = judge_version(j.id))
"""
_JUDGED_ELSEWHERE = """
    SELECT m.sample_id AS position, format('sample %s', m.sample_id) AS place,
           format('is not of the job that job %s judges, or judged by no problem of it', m.job_id) AS what
    FROM judged_samples m JOIN jobs j ON j.id = m.job_id JOIN samples s ON s.id = m.sample_id
    LEFT JOIN problems p ON p.id = m.problem_id
    WHERE m.job_id = :job AND (s.job_id <> j.judged_job_id OR p.problem_set_id <> j.problem_set_id)
"""
# Of the batch that the job is of: each line was promised an answer or an error, and just one of them.
_LINES_OF_THE_BATCH = """
    SELECT 0 AS position, b.id AS place,
           format('has ended with %s answered and %s failed lines of %s; its samples make it %s and %s',
                  b.num_completed, b.num_failed, b.num_lines, n.answered, n.failed) AS what
    FROM batch_jobs own JOIN batches b ON b.id = own.batch_id
    CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE l.is_answered) AS answered, count(*) FILTER (WHERE NOT l.is_answered) AS failed,
               bool_or(l.is_open) AS is_open
        FROM (
            SELECT bool_and(s.state = 'graded') AS is_answered, bool_or(s.ended_at IS NULL) AS is_open
            FROM batch_jobs k JOIN samples s ON s.job_id = k.job_id
            WHERE k.batch_id = b.id GROUP BY s.job_id, s.problem_id
        ) l
    ) n
    WHERE own.job_id = :job AND coalesce(b.completed_at, b.expired_at, b.cancelled_at) IS NOT NULL AND NOT n.is_open
      AND (n.answered, n.failed, n.answered + n.failed) IS DISTINCT FROM
          (b.num_completed::bigint, b.num_failed::bigint, b.num_lines::bigint)
      AND NOT EXISTS (SELECT FROM jobs j JOIN batch_jobs k ON k.job_id = j.id  -- retried by its number just now
                      WHERE k.batch_id = b.id AND j.state IN ('running', 'paused'))
"""

STATEMENTS = (
    _PROBLEMS_OF_THE_JOB,
    _SAMPLES_OF_EACH_PROBLEM,
    _STRAY_SAMPLES,
    _STATE_OF_THE_JOB,
    _GRADE_OF_EACH_GRADED,
    _VERDICTS_ARE_GRADES,
    _JUDGED_ELSEWHERE,
    _LINES_OF_THE_BATCH,
)
