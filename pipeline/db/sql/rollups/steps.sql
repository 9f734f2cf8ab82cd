-- Sums over steps.
-- Read by: the view step_summary; refresh.sql.

CREATE TYPE step_part AS (
    sentence_class text, author text, tokens integer, num_steps bigint, num_taken_over bigint, scored bigint,
    score_sum float8
);

COMMENT ON TYPE step_part IS
    'steps of one class, author and length in tokens';

CREATE FUNCTION aggregate_steps(job bigint, first_problem bigint, last_problem bigint) RETURNS SETOF step_part
LANGUAGE sql STABLE AS $$
    SELECT t.sentence_class, t.author, n.tokens, count(*), count(t.trigger), count(s.score), coalesce(sum(s.score), 0)
    FROM samples s CROSS JOIN LATERAL (SELECT * FROM steps WHERE sample_id = s.id OFFSET 0) t
    CROSS JOIN LATERAL (SELECT t.tokens_small + t.tokens_large + t.tokens_inserted AS tokens) n
    WHERE s.job_id = job AND s.problem_id BETWEEN first_problem AND last_problem AND s.state IN ('finished', 'graded')
    GROUP BY t.sentence_class, t.author, n.tokens
$$;

COMMENT ON FUNCTION aggregate_steps IS
    'steps by class, author and length, in a range of problems';

CREATE FUNCTION job_steps(job bigint) RETURNS SETOF step_part LANGUAGE sql STABLE AS $$
    SELECT p.* FROM rollups r CROSS JOIN LATERAL jsonb_populate_recordset(NULL::step_part, r.steps) p
    WHERE r.job_id = job AND r.refreshed_at IS NOT NULL
    UNION ALL
    SELECT p.* FROM live_ranges(job) r CROSS JOIN LATERAL aggregate_steps(job, r.first_problem, r.last_problem) p
$$;

COMMENT ON FUNCTION job_steps IS
    'steps by class, author and length, in a job';
