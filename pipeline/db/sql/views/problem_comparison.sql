-- Read by: people; job_comparison adds the same up.

CREATE VIEW problem_comparison AS
SELECT a.job_id AS job_a, b.job_id AS job_b, a.problem_id, p.external_id AS problem, p.subject, p.level,
       a.n AS num_scored_a, b.n AS num_scored_b, a.score AS score_a, b.score AS score_b,
       b.score - a.score AS difference, a.tokens AS mean_output_tokens_a, b.tokens AS mean_output_tokens_b
FROM (
    SELECT s.job_id, s.problem_id, count(*) AS n, avg(s.score) AS score,
           avg(s.tokens_small + s.tokens_large + s.tokens_inserted)::float8 AS tokens
    FROM samples s WHERE s.state = 'graded' AND s.score IS NOT NULL GROUP BY s.job_id, s.problem_id
) a
JOIN (
    SELECT s.job_id, s.problem_id, count(*) AS n, avg(s.score) AS score,
           avg(s.tokens_small + s.tokens_large + s.tokens_inserted)::float8 AS tokens
    FROM samples s WHERE s.state = 'graded' AND s.score IS NOT NULL GROUP BY s.job_id, s.problem_id
) b ON b.problem_id = a.problem_id AND b.job_id <> a.job_id
JOIN problems p ON p.id = a.problem_id;

COMMENT ON VIEW problem_comparison IS
    'The same problem in two jobs on one problem set, where it is scored in both. Every pair is there in both orders: '
    'name both jobs in a query. A difference says more where both have the same number of scored samples.';
COMMENT ON COLUMN problem_comparison.job_a IS 'the job compared with';
COMMENT ON COLUMN problem_comparison.job_b IS 'the job compared';
COMMENT ON COLUMN problem_comparison.problem_id IS 'the problem';
COMMENT ON COLUMN problem_comparison.problem IS 'its id in the submitted file';
COMMENT ON COLUMN problem_comparison.subject IS 'as in the file';
COMMENT ON COLUMN problem_comparison.level IS 'as in the file';
COMMENT ON COLUMN problem_comparison.num_scored_a IS 'scored samples in job_a';
COMMENT ON COLUMN problem_comparison.num_scored_b IS 'scored samples in job_b';
COMMENT ON COLUMN problem_comparison.score_a IS 'their mean score in job_a';
COMMENT ON COLUMN problem_comparison.score_b IS 'their mean score in job_b';
COMMENT ON COLUMN problem_comparison.difference IS 'score_b - score_a';
COMMENT ON COLUMN problem_comparison.mean_output_tokens_a IS 'their mean kept tokens in job_a';
COMMENT ON COLUMN problem_comparison.mean_output_tokens_b IS 'their mean kept tokens in job_b';
