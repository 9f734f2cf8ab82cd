-- Read by: specthink stats, Client.stats.

CREATE VIEW token_lengths AS
SELECT j.id AS job_id, l.*
FROM jobs j
CROSS JOIN LATERAL (
    WITH cells AS (
        SELECT t.author, coalesce(t.finish_reason, 'all') AS finish_reason, coalesce(t.verdict, 'all') AS verdict,
               t.tokens, sum(t.n)::float8 AS n
        FROM job_lengths(j.id) t GROUP BY t.author, t.tokens, CUBE (t.finish_reason, t.verdict) HAVING sum(t.n) > 0
    ),
    placed AS (
        SELECT c.*, sum(c.n) OVER (PARTITION BY c.author, c.finish_reason, c.verdict ORDER BY c.tokens) AS upto,
               sum(c.n) OVER (PARTITION BY c.author, c.finish_reason, c.verdict) AS total
        FROM cells c
    )
    SELECT author, finish_reason, verdict, sum(n)::bigint AS n, sum(n * tokens) / sum(n) AS mean,
           sqrt(greatest(0, sum(n * tokens * tokens) - sum(n * tokens) ^ 2 / sum(n)) / nullif(sum(n) - 1, 0)) AS sd,
           min(tokens) AS min,
           interpolated(min(tokens) FILTER (WHERE upto > floor(0.5 * (total - 1))),
                        min(tokens) FILTER (WHERE upto > ceil(0.5 * (total - 1))), 0.5 * (max(total) - 1)) AS p50,
           interpolated(min(tokens) FILTER (WHERE upto > floor(0.9 * (total - 1))),
                        min(tokens) FILTER (WHERE upto > ceil(0.9 * (total - 1))), 0.9 * (max(total) - 1)) AS p90,
           interpolated(min(tokens) FILTER (WHERE upto > floor(0.95 * (total - 1))),
                        min(tokens) FILTER (WHERE upto > ceil(0.95 * (total - 1))), 0.95 * (max(total) - 1)) AS p95,
           interpolated(min(tokens) FILTER (WHERE upto > floor(0.99 * (total - 1))),
                        min(tokens) FILTER (WHERE upto > ceil(0.99 * (total - 1))), 0.99 * (max(total) - 1)) AS p99,
           max(tokens) AS max, sum(n * tokens)::bigint AS total
    FROM placed GROUP BY author, finish_reason, verdict
) l;

COMMENT ON VIEW token_lengths IS
    'Lengths of the complete samples of a job in kept tokens: per author, per finish reason, right or wrong, and '
    'each of these together (''all''). All samples of a job: author = ''all'' AND finish_reason = ''all'' AND '
    'verdict = ''all''.';
COMMENT ON COLUMN token_lengths.job_id IS 'the job';
COMMENT ON COLUMN token_lengths.author IS 'whose tokens are counted in each sample: all, small, large or inserted';
COMMENT ON COLUMN token_lengths.finish_reason IS 'all, eos, length, context, repetition or stop';
COMMENT ON COLUMN token_lengths.verdict IS 'all, right (score of at least 0.5), wrong or unscored';
COMMENT ON COLUMN token_lengths.n IS 'samples; those where the author wrote nothing count with 0 tokens';
COMMENT ON COLUMN token_lengths.mean IS 'mean tokens';
COMMENT ON COLUMN token_lengths.sd IS 'standard deviation (of a sample of the population), null for n = 1';
COMMENT ON COLUMN token_lengths.min IS 'fewest tokens';
COMMENT ON COLUMN token_lengths.p50 IS 'median';
COMMENT ON COLUMN token_lengths.p90 IS '90th percentile, interpolated';
COMMENT ON COLUMN token_lengths.p95 IS '95th percentile, interpolated';
COMMENT ON COLUMN token_lengths.p99 IS '99th percentile, interpolated';
COMMENT ON COLUMN token_lengths.max IS 'most tokens';
COMMENT ON COLUMN token_lengths.total IS 'sum of the tokens';
