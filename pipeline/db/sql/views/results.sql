-- Read by: people.

CREATE VIEW results AS
SELECT s.job_id, s.id AS sample_id, p.external_id AS problem, p.subject, p.level, s.sample_index, s.state, j.policy,
       j.small_model, j.large_model, j.judge_model, CASE WHEN j.config->>'seed' ~ '^[0-9]{1,18}$' THEN (j.config->>'seed')::bigint END AS seed, p.prompt, o.output, s.predicted_answer,
       s.score, s.finish_reason, s.tokens_small + s.tokens_large + s.tokens_inserted AS output_tokens,
       s.tokens_small, s.tokens_large, s.tokens_inserted, s.num_takeovers, s.error_class, s.error, s.finished_at,
       CASE WHEN has_table_privilege('reference_answers', 'SELECT') THEN d.detail END AS grade_detail
FROM samples s JOIN jobs j ON j.id = s.job_id JOIN problems p ON p.id = s.problem_id
CROSS JOIN LATERAL (
    SELECT coalesce(string_agg(g.text, '' ORDER BY g.segment_index), '') AS output
    FROM segments g WHERE g.sample_id = s.id
) o
LEFT JOIN LATERAL (
    SELECT g.detail FROM grades g WHERE g.sample_id = s.id AND g.status <> 'running'
    ORDER BY g.graded_at DESC, g.grader DESC, g.grader_version DESC LIMIT 1
) d ON true;

COMMENT ON VIEW results IS
    'One row per sample with its text. Who may read reference answers finds them in reference_answers, by problem; '
    'specthink results has them beside each text.';
COMMENT ON COLUMN results.job_id IS 'the job';
COMMENT ON COLUMN results.sample_id IS 'the sample';
COMMENT ON COLUMN results.problem IS 'the problem''s id in the submitted file';
COMMENT ON COLUMN results.subject IS 'as in the file';
COMMENT ON COLUMN results.level IS 'as in the file';
COMMENT ON COLUMN results.sample_index IS '0-based among the samples of the problem';
COMMENT ON COLUMN results.state IS 'of the sample';
COMMENT ON COLUMN results.policy IS 'NAME or NAME:PRESET';
COMMENT ON COLUMN results.small_model IS 'the small model, null where the policy needs none';
COMMENT ON COLUMN results.large_model IS 'the large model, null where the policy needs none';
COMMENT ON COLUMN results.judge_model IS 'the judge, null where the policy needs none';
COMMENT ON COLUMN results.seed IS 'the job''s';
COMMENT ON COLUMN results.prompt IS 'the question''s text, before any template';
COMMENT ON COLUMN results.output IS 'the kept text so far, complete in the states finished and graded';
COMMENT ON COLUMN results.predicted_answer IS 'what the grader read out of it, null where it found none';
COMMENT ON COLUMN results.score IS 'null: unscored, which is not wrong';
COMMENT ON COLUMN results.finish_reason IS 'what ended the text: eos, length, context, repetition or stop';
COMMENT ON COLUMN results.output_tokens IS 'kept tokens, all authors';
COMMENT ON COLUMN results.tokens_small IS 'of these, written by the small model';
COMMENT ON COLUMN results.tokens_large IS 'written by the large model';
COMMENT ON COLUMN results.tokens_inserted IS 'put in by the policy';
COMMENT ON COLUMN results.num_takeovers IS 'times the large model was called in';
COMMENT ON COLUMN results.error_class IS 'the kind of error of a failed sample';
COMMENT ON COLUMN results.error IS 'its message';
COMMENT ON COLUMN results.finished_at IS 'when its text was complete';
COMMENT ON COLUMN results.grade_detail IS
    'why the newest grade is what it is, e.g. that a cut text has no answer; null to logins that may not read reference '
    'answers, since a grader may quote one here';
