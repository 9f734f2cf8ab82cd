-- Read by: the report's page, Client.stats.

CREATE VIEW length_histogram AS
SELECT j.id AS job_id, l.*
FROM jobs j
CROSS JOIN LATERAL (
    WITH complete AS (
        SELECT t.tokens, t.verdict, sum(t.n)::bigint AS n
        FROM job_lengths(j.id) t WHERE t.author = 'all' GROUP BY t.tokens, t.verdict HAVING sum(t.n) > 0
    ),
    m AS (SELECT (max(tokens) + 20) / 20 AS width FROM complete),
    h AS (
        SELECT width_bucket(c.tokens::float8, 0, 20 * m.width, 20) AS bucket, sum(c.n)::bigint AS n,
               coalesce(sum(c.n) FILTER (WHERE c.verdict = 'right'), 0)::bigint AS num_right,
               coalesce(sum(c.n) FILTER (WHERE c.verdict = 'wrong'), 0)::bigint AS num_wrong,
               coalesce(sum(c.n) FILTER (WHERE c.verdict = 'unscored'), 0)::bigint AS num_unscored
        FROM complete c CROSS JOIN m GROUP BY 1
    )
    SELECT i AS bucket, (i - 1) * m.width AS from_tokens, i * m.width AS to_tokens, coalesce(h.n, 0) AS n,
           coalesce(h.num_right, 0) AS num_right, coalesce(h.num_wrong, 0) AS num_wrong,
           coalesce(h.num_unscored, 0) AS num_unscored
    FROM m CROSS JOIN generate_series(1, 20) AS i LEFT JOIN h ON h.bucket = i
    WHERE m.width IS NOT NULL
) l;

COMMENT ON VIEW length_histogram IS
    'How many complete samples of a job are how long: 20 buckets of equal width from 0 to the longest sample.';
COMMENT ON COLUMN length_histogram.job_id IS 'the job';
COMMENT ON COLUMN length_histogram.bucket IS '1 to 20';
COMMENT ON COLUMN length_histogram.from_tokens IS 'fewest kept tokens of the bucket';
COMMENT ON COLUMN length_histogram.to_tokens IS 'first number of tokens beyond it';
COMMENT ON COLUMN length_histogram.n IS 'complete samples in it';
COMMENT ON COLUMN length_histogram.num_right IS 'of these, with a score of at least 0.5';
COMMENT ON COLUMN length_histogram.num_wrong IS 'with a lower score';
COMMENT ON COLUMN length_histogram.num_unscored IS 'without a score';
