-- Counts of complete samples by length.
-- Read by: the totals (totals.sql); the views token_lengths, length_histogram and budget_curve; refresh.sql.
--
-- Percentiles cannot be added up. They come from counts by length, whose rows are only added to: refreshing a rollup
-- adds its samples, invalidating it adds them negatively, and upkeep adds up what came together (compact_lengths).

CREATE TYPE length_part AS (
    author text, finish_reason text, verdict text, tokens integer, n bigint, score numeric
);

COMMENT ON TYPE length_part IS
    'complete samples by author, end, verdict and length in tokens, with the sum of their scores';

CREATE FUNCTION aggregate_lengths(job bigint, first_problem bigint, last_problem bigint) RETURNS SETOF length_part
LANGUAGE sql STABLE AS $$
    SELECT a.author, s.finish_reason, verdict_of(s.score), a.tokens, count(*), coalesce(sum(s.score::numeric), 0)
    FROM samples s
    CROSS JOIN LATERAL (
        VALUES ('all', s.tokens_small + s.tokens_large + s.tokens_inserted), ('small', s.tokens_small),
               ('large', s.tokens_large), ('inserted', s.tokens_inserted)
    ) a (author, tokens)
    WHERE s.job_id = job AND s.problem_id BETWEEN first_problem AND last_problem AND s.state IN ('finished', 'graded')
    GROUP BY a.author, s.finish_reason, verdict_of(s.score), a.tokens
$$;

COMMENT ON FUNCTION aggregate_lengths IS
    'how many complete samples of a range of problems are how long';

CREATE FUNCTION job_lengths(job bigint) RETURNS SETOF length_part LANGUAGE sql STABLE AS $$
    SELECT c.author, c.finish_reason, c.verdict, c.tokens, c.n, c.score FROM length_counts c WHERE c.job_id = job
    UNION ALL
    SELECT p.* FROM live_ranges(job) r
    CROSS JOIN LATERAL aggregate_lengths(job, r.first_problem, r.last_problem) p
$$;

COMMENT ON FUNCTION job_lengths IS
    'how many complete samples of a job are how long; rows of one key add up, to 0 where samples were taken out';
