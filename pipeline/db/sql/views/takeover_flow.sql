-- Read by: specthink stats, Client.stats.

CREATE VIEW takeover_flow AS
SELECT j.id AS job_id, t.trigger, t.followed_by, sum(t.num_takeovers)::bigint AS num_takeovers,
       sum(t.position_sum) / nullif(sum(t.positions), 0)::float8 AS mean_position,
       (sum(t.tokens) / sum(t.num_takeovers))::float8 AS mean_tokens,
       (sum(t.tokens_between) / sum(t.num_takeovers))::float8 AS mean_tokens_between,
       sum(t.scored)::bigint AS num_scored,
       sum(t.score_sum) / nullif(sum(t.scored), 0)::float8 AS accuracy
FROM jobs j CROSS JOIN LATERAL job_flow(j.id) t GROUP BY j.id, t.trigger, t.followed_by;

COMMENT ON VIEW takeover_flow IS
    'What followed the takeovers of a job: how often a takeover for one reason was followed by one for another, or '
    'by none (end).';
COMMENT ON COLUMN takeover_flow.job_id IS 'the job';
COMMENT ON COLUMN takeover_flow.trigger IS 'why the large model wrote';
COMMENT ON COLUMN takeover_flow.followed_by IS 'the trigger of the sample''s next takeover, or end';
COMMENT ON COLUMN takeover_flow.num_takeovers IS 'takeovers so followed';
COMMENT ON COLUMN takeover_flow.mean_position IS 'mean share of the sample''s output before them, 0 to 1';
COMMENT ON COLUMN takeover_flow.mean_tokens IS 'mean kept tokens of the large model';
COMMENT ON COLUMN takeover_flow.mean_tokens_between IS 'mean tokens from their end to the next takeover or the end';
COMMENT ON COLUMN takeover_flow.num_scored IS 'of num_takeovers, those in samples with a score';
COMMENT ON COLUMN takeover_flow.accuracy IS
    'mean score of these, each sample counting as often as it has such takeovers';
