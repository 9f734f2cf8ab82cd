-- Read by: people.

CREATE VIEW takeovers AS
SELECT j.id AS job_id, t.*
FROM jobs j CROSS JOIN LATERAL placed_takeovers(j.id, 0, 9223372036854775807) t;

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
