-- Read by: people; specthink compare pairs the rows of problem_scores itself, for jobs on other sets too.

CREATE VIEW job_comparison AS
SELECT a.id AS job_a, b.id AS job_b, c.num_problems, c.num_scored_a, c.num_scored_b, c.accuracy_a, c.accuracy_b,
       c.difference, i.low AS difference_low, i.high AS difference_high,
       CASE WHEN c.is_even THEN c.num_b_better END AS num_b_better,
       CASE WHEN c.is_even THEN c.num_a_better END AS num_a_better,
       CASE WHEN c.is_even THEN c.num_equal END AS num_equal, c.mean_output_tokens_a, c.mean_output_tokens_b,
       c.mean_output_tokens_b / nullif(c.mean_output_tokens_a, 0) AS token_ratio
FROM jobs a JOIN jobs b ON b.problem_set_id = a.problem_set_id AND b.id <> a.id
CROSS JOIN LATERAL (
    SELECT count(*) AS num_problems, coalesce(sum(pa.n), 0)::bigint AS num_scored_a,
           coalesce(sum(pb.n), 0)::bigint AS num_scored_b, coalesce(bool_and(pa.n = pb.n), true) AS is_even,
           avg(pa.score) AS accuracy_a, avg(pb.score) AS accuracy_b,
           avg(pb.score - pa.score) AS difference,
           max(pb.score - pa.score) - min(pb.score - pa.score) < 1e-9 AS is_edge,
           student_t(nullif(count(*) - 1, 0)) * stddev_samp(pb.score - pa.score) / sqrt(count(*)) AS half,
           1 - 0.025 ^ (1.0 / nullif(count(*), 0)) AS others,
           count(*) FILTER (WHERE pb.score > pa.score) AS num_b_better,
           count(*) FILTER (WHERE pb.score < pa.score) AS num_a_better,
           count(*) FILTER (WHERE pb.score = pa.score) AS num_equal,
           avg(pa.tokens) AS mean_output_tokens_a, avg(pb.tokens) AS mean_output_tokens_b
    FROM (
        SELECT s.problem_id, count(*) AS n, avg(s.score) AS score,
               avg(s.tokens_small + s.tokens_large + s.tokens_inserted)::float8 AS tokens
        FROM samples s WHERE s.job_id = a.id AND s.state = 'graded' AND s.score IS NOT NULL GROUP BY s.problem_id
    ) pa
    JOIN (
        SELECT s.problem_id, count(*) AS n, avg(s.score) AS score,
               avg(s.tokens_small + s.tokens_large + s.tokens_inserted)::float8 AS tokens
        FROM samples s WHERE s.job_id = b.id AND s.state = 'graded' AND s.score IS NOT NULL GROUP BY s.problem_id
    ) pb USING (problem_id)
) c
CROSS JOIN LATERAL (
    SELECT c.difference - c.others * (1 + c.difference) AS low, c.difference + c.others * (1 - c.difference) AS high
    WHERE c.is_edge AND c.num_problems > 1
    UNION ALL
    SELECT greatest(-1, c.difference - c.half), least(1, c.difference + c.half) WHERE NOT c.is_edge
    UNION ALL SELECT NULL, NULL WHERE c.num_problems < 2
) i;

COMMENT ON VIEW job_comparison IS
    'Two jobs on the same problem set, paired by problem: over the problems that have a score in both, each problem '
    'counting once with the mean score of its samples. Every pair is there in both orders. Name both jobs in a '
    'query: all pairs of many jobs are many. The interval is the paired one by Student''s t; where all '
    'differences are equal, the exact bound for n problems that agree: at most 1 - 0.025 ^ (1 / n) of all problems '
    'have another difference, from -1 to 1. Where a problem has more scored samples in one job than in the other, '
    'which job does better on it depends on these numbers too: num_b_better and the like are null then.';
COMMENT ON COLUMN job_comparison.job_a IS 'the job compared with';
COMMENT ON COLUMN job_comparison.job_b IS 'the job compared';
COMMENT ON COLUMN job_comparison.num_problems IS 'problems scored in both';
COMMENT ON COLUMN job_comparison.num_scored_a IS 'scored samples of these problems in job_a';
COMMENT ON COLUMN job_comparison.num_scored_b IS 'scored samples of these problems in job_b';
COMMENT ON COLUMN job_comparison.accuracy_a IS 'mean over these problems in job_a';
COMMENT ON COLUMN job_comparison.accuracy_b IS 'mean over these problems in job_b';
COMMENT ON COLUMN job_comparison.difference IS 'accuracy_b - accuracy_a';
COMMENT ON COLUMN job_comparison.difference_low IS 'lower end of its 95 % interval, null for fewer than two problems';
COMMENT ON COLUMN job_comparison.difference_high IS 'upper end of its 95 % interval';
COMMENT ON COLUMN job_comparison.num_b_better IS 'problems where job_b scores higher, null where sample counts differ';
COMMENT ON COLUMN job_comparison.num_a_better IS 'problems where job_a scores higher, null where sample counts differ';
COMMENT ON COLUMN job_comparison.num_equal IS 'problems where both score the same, null where sample counts differ';
COMMENT ON COLUMN job_comparison.mean_output_tokens_a IS 'mean over these problems in job_a, scored samples';
COMMENT ON COLUMN job_comparison.mean_output_tokens_b IS 'mean over these problems in job_b, scored samples';
COMMENT ON COLUMN job_comparison.token_ratio IS 'mean_output_tokens_b over mean_output_tokens_a';
