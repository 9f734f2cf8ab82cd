-- Read by: specthink stats, Client.stats.

CREATE VIEW truncation AS
SELECT j.id AS job_id, c.finished + c.graded AS num_complete, c.num_length + c.num_context AS num_truncated,
       (c.num_length + c.num_context) / (c.finished + c.graded)::float8 AS share_truncated,
       c.num_length, c.num_context, c.num_repetition,
       c.scored_truncated AS num_scored_truncated,
       (c.truncated_scores / nullif(c.scored_truncated, 0))::float8 AS accuracy_truncated,
       c.scored_eos AS num_scored_eos, (c.eos_scores / nullif(c.scored_eos, 0))::float8 AS accuracy_eos
FROM jobs j
CROSS JOIN LATERAL count_states(j.id) c
WHERE c.finished + c.graded > 0;

COMMENT ON VIEW truncation IS
    'How many complete samples of a job ended without the model''s own end of text, and what that costs in accuracy.';
COMMENT ON COLUMN truncation.job_id IS 'the job';
COMMENT ON COLUMN truncation.num_complete IS 'complete samples';
COMMENT ON COLUMN truncation.num_truncated IS 'ended by max_tokens or by the model''s context';
COMMENT ON COLUMN truncation.share_truncated IS 'num_truncated over num_complete';
COMMENT ON COLUMN truncation.num_length IS 'ended by the job''s max_tokens';
COMMENT ON COLUMN truncation.num_context IS 'ended by the model''s context';
COMMENT ON COLUMN truncation.num_repetition IS 'ended by the loop guard';
COMMENT ON COLUMN truncation.num_scored_truncated IS 'truncated ones that have a score';
COMMENT ON COLUMN truncation.accuracy_truncated IS 'their mean score';
COMMENT ON COLUMN truncation.num_scored_eos IS 'those with a score that the model ended itself, or a stop string';
COMMENT ON COLUMN truncation.accuracy_eos IS 'their mean score';
