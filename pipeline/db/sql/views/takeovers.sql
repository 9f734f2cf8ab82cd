-- Read by: the control's matching (pipeline.jobs.matching), people.

CREATE VIEW takeovers AS
SELECT j.id AS job_id, l.*
FROM jobs j
CROSS JOIN LATERAL (
    SELECT p.sample_id, p.segment_index, p.trigger, p.cue, p.tokens, p.start_token::integer AS start_token,
           p.start_token / nullif(p.output_tokens, 0)::float8 AS position,
           coalesce(lead(p.trigger) OVER w, CASE WHEN p.is_complete THEN 'end' END) AS followed_by,
           (coalesce(lead(p.start_token) OVER w, p.output_tokens) - p.start_token - p.tokens)::integer
               AS tokens_between,
           p.score
    FROM (
        SELECT g.sample_id, g.segment_index, g.takes_over, g.trigger, g.cue, cardinality(g.token_ids) AS tokens,
               sum(cardinality(g.token_ids)) OVER (PARTITION BY g.sample_id ORDER BY g.segment_index)
               - cardinality(g.token_ids) AS start_token,
               s.tokens_small + s.tokens_large + s.tokens_inserted AS output_tokens, s.score,
               s.state IN ('finished', 'graded') AS is_complete
        FROM samples s JOIN segments g ON g.sample_id = s.id WHERE s.job_id = j.id
) p
    WHERE p.takes_over
    WINDOW w AS (PARTITION BY p.sample_id ORDER BY p.segment_index)
) l;

COMMENT ON VIEW takeovers IS
    'Every time the large model was called in in the place of the small one: where in the sample, why, and what came '
    'after it.';
COMMENT ON COLUMN takeovers.job_id IS 'the job';
COMMENT ON COLUMN takeovers.sample_id IS 'the sample';
COMMENT ON COLUMN takeovers.segment_index IS 'the piece''s place among the sample''s segments';
COMMENT ON COLUMN takeovers.trigger IS 'why the large model was called in';
COMMENT ON COLUMN takeovers.cue IS 'the words that pulled the trigger, '''' where none did';
COMMENT ON COLUMN takeovers.tokens IS 'kept tokens of the piece';
COMMENT ON COLUMN takeovers.start_token IS 'output tokens before it';
COMMENT ON COLUMN takeovers.position IS 'the same as a share of the sample''s output so far, 0 to 1';
COMMENT ON COLUMN takeovers.followed_by IS
    'the trigger of the sample''s next takeover; end: none came; null: none yet, the sample goes on';
COMMENT ON COLUMN takeovers.tokens_between IS
    'tokens from its end to the next takeover, or to the end of what there is';
COMMENT ON COLUMN takeovers.score IS 'of the sample, null where it has none';
