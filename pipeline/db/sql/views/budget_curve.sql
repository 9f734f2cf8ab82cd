-- Read by: the report's page, Client.stats.

CREATE VIEW budget_curve AS
SELECT j.id AS job_id, l.*
FROM jobs j
CROSS JOIN LATERAL (
    WITH scored AS (
        SELECT t.tokens, sum(t.n)::bigint AS n, sum(t.score)::float8 AS score
        FROM job_lengths(j.id) t WHERE t.author = 'all' AND t.verdict <> 'unscored'
        GROUP BY t.tokens HAVING sum(t.n) > 0
    ),
    m AS (SELECT greatest(1, ceil(max(tokens) / 20.0))::integer AS width, coalesce(sum(n),
    0)::bigint AS n FROM scored),
    h AS (
        SELECT greatest(1, ceil(c.tokens / m.width::float8)) AS bucket, sum(c.n) AS n, sum(c.score) AS score,
               sum(c.tokens * c.n) AS tokens
        FROM scored c CROSS JOIN m GROUP BY 1
    )
    SELECT i * m.width AS budget, m.n AS num_scored, coalesce(sum(h.n) OVER within, 0)::bigint AS num_complete,
           coalesce(sum(h.score) OVER within, 0) / m.n AS accuracy,
           ((coalesce(sum(h.tokens) OVER within, 0)
             + (m.n - coalesce(sum(h.n) OVER within, 0)) * i * m.width) / m.n)::float8 AS mean_output_tokens
    FROM m CROSS JOIN generate_series(1, 20) AS i LEFT JOIN h ON h.bucket = i
    WHERE m.n > 0
    WINDOW within AS (ORDER BY i)
) l;

COMMENT ON VIEW budget_curve IS
    'What accuracy would at least be had every sample been cut at so many tokens, at 20 budgets up to the longest sample: a '
    'sample keeps its score where it was complete by then and counts as wrong otherwise. So it is a lower bound: '
    'text that is cut may hold the answer already. A job submitted with that max_tokens gives the accuracy itself.';
COMMENT ON COLUMN budget_curve.job_id IS 'the job';
COMMENT ON COLUMN budget_curve.budget IS 'tokens at which every sample is cut';
COMMENT ON COLUMN budget_curve.num_scored IS 'graded samples that have a score';
COMMENT ON COLUMN budget_curve.num_complete IS 'of these, complete within the budget';
COMMENT ON COLUMN budget_curve.accuracy IS 'at least this: mean score, cut samples counting as wrong';
COMMENT ON COLUMN budget_curve.mean_output_tokens IS 'mean kept tokens, cut at the budget';
