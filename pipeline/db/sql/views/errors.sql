-- Read by: specthink errors, Client.errors.

CREATE VIEW errors AS
SELECT s.job_id, 'generation' AS stage, s.error_class, count(*) AS num_samples, min(s.id) AS example_sample_id,
       (array_agg(s.error ORDER BY s.id))[1] AS example, min(s.ended_at) AS first_at, max(s.ended_at) AS last_at,
       max(s.num_attempts + s.num_rescues) AS most_tries
FROM samples s WHERE s.phase = 'failed' GROUP BY s.job_id, s.error_class
UNION ALL
SELECT s.job_id, 'grading', g.status, count(*), min(s.id),
       (array_agg(g.detail ORDER BY s.id))[1], min(g.graded_at), max(g.graded_at), NULL
FROM samples s JOIN grades g ON g.sample_id = s.id
WHERE g.status IN ('timeout', 'error')
  AND NOT EXISTS (
      SELECT FROM grades n WHERE n.sample_id = g.sample_id AND n.status <> 'running'
        AND (n.graded_at, n.grader, n.grader_version) > (g.graded_at, g.grader, g.grader_version)
  )
GROUP BY s.job_id, g.status;

COMMENT ON VIEW errors IS
    'What went wrong in a job, by kind, with one example each. Each sample counts once: of its grades only the newest, '
    'so that an error of an older grader version is gone once the sample is graded again.';
COMMENT ON COLUMN errors.job_id IS 'the job';
COMMENT ON COLUMN errors.stage IS 'generation: the sample failed; grading: it is complete but stayed unscored';
COMMENT ON COLUMN errors.error_class IS
    'the kind of error: bad_input, budget, engine_refused, engine_died, timed_out or internal; for grading the '
    'status timeout or error';
COMMENT ON COLUMN errors.num_samples IS 'samples with it';
COMMENT ON COLUMN errors.example_sample_id IS 'the first of them';
COMMENT ON COLUMN errors.example IS 'its message';
COMMENT ON COLUMN errors.first_at IS 'when it first happened';
COMMENT ON COLUMN errors.last_at IS 'when it last happened';
COMMENT ON COLUMN errors.most_tries IS
    'most times that one of them was refused by an engine or lost its worker since it was last stored; null for '
    'grading';
