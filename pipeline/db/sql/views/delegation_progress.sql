-- Read by: the report's page, Client.stats.

CREATE VIEW delegation_progress AS
SELECT j.id AS job_id, d.tenth, d.tokens, coalesce(l.tokens_large, 0) AS tokens_large,
       coalesce(l.tokens_large, 0) / d.tokens AS share_large, coalesce(l.num_takeovers, 0) AS num_takeovers
FROM jobs j
CROSS JOIN LATERAL (
    SELECT i AS tenth, n.tokens / 10.0::float8 AS tokens
    FROM (SELECT nullif(t.complete_tokens, 0) AS tokens FROM count_states(j.id) t) n
    CROSS JOIN generate_series(1, 10) AS i WHERE n.tokens > 0
) d
LEFT JOIN LATERAL (
    SELECT t.tenth, sum(t.tokens_large) AS tokens_large, sum(t.num_takeovers)::bigint AS num_takeovers
    FROM job_tenths(j.id) t GROUP BY t.tenth
) l ON l.tenth = d.tenth;

COMMENT ON VIEW delegation_progress IS
    'How much of the text the large model wrote in each tenth of the complete samples of a job.';
COMMENT ON COLUMN delegation_progress.job_id IS 'the job';
COMMENT ON COLUMN delegation_progress.tenth IS '1 to 10: first to last tenth of each sample''s output';
COMMENT ON COLUMN delegation_progress.tokens IS
    'kept tokens in that tenth, all samples; fractions, where a token lies in two';
COMMENT ON COLUMN delegation_progress.tokens_large IS 'of these, written by the large model';
COMMENT ON COLUMN delegation_progress.share_large IS 'tokens_large over tokens';
COMMENT ON COLUMN delegation_progress.num_takeovers IS 'takeovers that begin in it';
