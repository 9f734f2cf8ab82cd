-- Read by: people; specthink compare pairs the rows of problem_scores itself, for jobs on other sets too.

CREATE VIEW job_comparison AS
SELECT a.id AS job_a, b.id AS job_b, c.num_problems, c.accuracy_a, c.accuracy_b, c.difference,
       c.difference - c.half AS difference_low, c.difference + c.half AS difference_high,
       c.num_b_better, c.num_a_better, c.num_equal, c.mean_output_tokens_a, c.mean_output_tokens_b,
       c.mean_output_tokens_b / nullif(c.mean_output_tokens_a, 0) AS token_ratio
FROM jobs a JOIN jobs b ON b.problem_set_id = a.problem_set_id AND b.id <> a.id
CROSS JOIN LATERAL (
    SELECT count(*) AS num_problems, avg(pa.score) AS accuracy_a, avg(pb.score) AS accuracy_b,
           avg(pb.score - pa.score) AS difference,
           1.96 * stddev_samp(pb.score - pa.score) / sqrt(count(*)) AS half,
           count(*) FILTER (WHERE pb.score > pa.score) AS num_b_better,
           count(*) FILTER (WHERE pb.score < pa.score) AS num_a_better,
           count(*) FILTER (WHERE pb.score = pa.score) AS num_equal,
           avg(pa.tokens) AS mean_output_tokens_a, avg(pb.tokens) AS mean_output_tokens_b
    FROM (
        SELECT s.problem_id, avg(s.score) AS score,
               avg(s.tokens_small + s.tokens_large + s.tokens_inserted)::float8 AS tokens
        FROM samples s WHERE s.job_id = a.id AND s.state = 'graded' AND s.score IS NOT NULL GROUP BY s.problem_id
    ) pa
    JOIN (
        SELECT s.problem_id, avg(s.score) AS score,
               avg(s.tokens_small + s.tokens_large + s.tokens_inserted)::float8 AS tokens
        FROM samples s WHERE s.job_id = b.id AND s.state = 'graded' AND s.score IS NOT NULL GROUP BY s.problem_id
    ) pb USING (problem_id)
) c;

COMMENT ON VIEW job_comparison IS
    'Two jobs on the same problem set, paired by problem: over the problems that have a score in both, each problem '
    'counting once with the mean score of its samples. Every pair is there in both orders. Name both jobs in a '
    'query: all pairs of many jobs are many. The interval is the paired one, normal approximation.';
COMMENT ON COLUMN job_comparison.job_a IS 'the job compared with';
COMMENT ON COLUMN job_comparison.job_b IS 'the job compared';
COMMENT ON COLUMN job_comparison.num_problems IS 'problems scored in both';
COMMENT ON COLUMN job_comparison.accuracy_a IS 'mean over these problems in job_a';
COMMENT ON COLUMN job_comparison.accuracy_b IS 'mean over these problems in job_b';
COMMENT ON COLUMN job_comparison.difference IS 'accuracy_b - accuracy_a';
COMMENT ON COLUMN job_comparison.difference_low IS 'lower end of its 95 % interval, null for fewer than two problems';
COMMENT ON COLUMN job_comparison.difference_high IS 'upper end of its 95 % interval';
COMMENT ON COLUMN job_comparison.num_b_better IS 'problems where job_b scores higher';
COMMENT ON COLUMN job_comparison.num_a_better IS 'problems where job_a scores higher';
COMMENT ON COLUMN job_comparison.num_equal IS 'problems where both score the same';
COMMENT ON COLUMN job_comparison.mean_output_tokens_a IS 'mean over these problems in job_a, scored samples';
COMMENT ON COLUMN job_comparison.mean_output_tokens_b IS 'mean over these problems in job_b, scored samples';
COMMENT ON COLUMN job_comparison.token_ratio IS 'mean_output_tokens_b over mean_output_tokens_a';
