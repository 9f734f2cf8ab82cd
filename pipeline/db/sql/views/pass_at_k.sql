-- Read by: specthink stats, the report's page, Client.stats.

CREATE VIEW pass_at_k AS
SELECT j.id AS job_id, e.k, sum(e.problems)::bigint AS num_problems,
       sum(e.problems * e.pass) / sum(e.problems)::float8 AS pass_at_k
FROM jobs j
CROSS JOIN LATERAL (
    -- One row per (n, c) and k; the share of draws without a right one is a running product over k.
    SELECT t.problems, i.k, 1 - CASE WHEN t.n - t.c < i.k THEN 0 ELSE
               exp(sum(ln((t.n - t.c - i.k + 1)::float8 / (t.n - i.k + 1)))
                   FILTER (WHERE t.n - t.c >= i.k) OVER (PARTITION BY t.n, t.c ORDER BY i.k)) END AS pass
    FROM (
        SELECT p.n, p.c, sum(p.problems) AS problems FROM job_passes(j.id) p GROUP BY p.n, p.c
    ) t
    CROSS JOIN LATERAL generate_series(1, t.n) AS i (k)
) e
GROUP BY j.id, e.k;

COMMENT ON VIEW pass_at_k IS
    'Probability that at least one of k samples of a problem is right: the unbiased estimate 1 - C(n-c, k) / C(n, k) '
    'for n scored samples of which c are right, averaged over the problems with at least k scored samples.';
COMMENT ON COLUMN pass_at_k.job_id IS 'the job';
COMMENT ON COLUMN pass_at_k.k IS 'samples drawn, from 1 to the most scored samples of a problem';
COMMENT ON COLUMN pass_at_k.num_problems IS 'problems with at least k scored samples';
COMMENT ON COLUMN pass_at_k.pass_at_k IS 'the estimate, 0 to 1';
