-- Read by: Client.stats.

CREATE VIEW step_summary AS
SELECT j.id AS job_id, g.sentence_class, g.author, g.num_steps,
       g.num_steps / (c.finished + c.graded)::float8 AS steps_per_sample,
       g.tokens, g.mean_tokens, g.p50_tokens, g.p90_tokens, g.num_taken_over, g.num_scored, g.accuracy
FROM jobs j
CROSS JOIN LATERAL (
    WITH placed AS (
        SELECT b.*, sum(b.n) OVER (PARTITION BY b.sentence_class, b.author ORDER BY b.tokens) AS upto,
               sum(b.n) OVER (PARTITION BY b.sentence_class, b.author) AS total
        FROM (
            SELECT t.sentence_class, t.author, t.tokens, sum(t.num_steps)::float8 AS n,
                   sum(t.num_taken_over) AS num_taken_over, sum(t.scored) AS scored, sum(t.score_sum) AS score_sum
            FROM job_steps(j.id) t GROUP BY t.sentence_class, t.author, t.tokens
        ) b
    )
    SELECT sentence_class, author, sum(n)::bigint AS num_steps, sum(n * tokens)::bigint AS tokens,
           sum(n * tokens) / sum(n) AS mean_tokens,
           interpolated(min(tokens) FILTER (WHERE upto > floor(0.5 * (total - 1))),
                        min(tokens) FILTER (WHERE upto > ceil(0.5 * (total - 1))),
                        0.5 * (max(total) - 1)) AS p50_tokens,
           interpolated(min(tokens) FILTER (WHERE upto > floor(0.9 * (total - 1))),
                        min(tokens) FILTER (WHERE upto > ceil(0.9 * (total - 1))),
                        0.9 * (max(total) - 1)) AS p90_tokens,
           sum(num_taken_over)::bigint AS num_taken_over,
           sum(scored)::bigint AS num_scored,
           sum(score_sum) / nullif(sum(scored), 0)::float8 AS accuracy
    FROM placed GROUP BY sentence_class, author
) g
CROSS JOIN LATERAL count_states(j.id) c;

COMMENT ON VIEW step_summary IS
    'The reasoning steps of the complete samples of a job, by the kind of sentence they begin with and by author.';
COMMENT ON COLUMN step_summary.job_id IS 'the job';
COMMENT ON COLUMN step_summary.sentence_class IS 'statement, reflection or affirmation';
COMMENT ON COLUMN step_summary.author IS 'who wrote most of the step: small, large or inserted';
COMMENT ON COLUMN step_summary.num_steps IS 'steps';
COMMENT ON COLUMN step_summary.steps_per_sample IS 'num_steps over the complete samples';
COMMENT ON COLUMN step_summary.tokens IS 'kept tokens of the steps, all authors';
COMMENT ON COLUMN step_summary.mean_tokens IS 'tokens per step';
COMMENT ON COLUMN step_summary.p50_tokens IS 'median tokens of a step';
COMMENT ON COLUMN step_summary.p90_tokens IS '90th percentile of the same';
COMMENT ON COLUMN step_summary.num_taken_over IS 'steps in which a takeover begins';
COMMENT ON COLUMN step_summary.num_scored IS 'of num_steps, those of samples with a score';
COMMENT ON COLUMN step_summary.accuracy IS 'mean score of these, each sample counting as often as it has such steps';
