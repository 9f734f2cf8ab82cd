-- The totals of a job: from job_totals where they are kept and hold, else counted now.
-- Read by: the views job_summary, job_progress and job_cost; upkeep, which keeps them once a job has ended
-- (pipeline.db.totals).

CREATE TYPE sample_totals AS (
    samples_total bigint, pending bigint, ready bigint, drafting bigint, awaiting_large bigint, assisting bigint,
    awaiting_judge bigint, judging bigint, finished bigint, graded bigint, failed bigint, cancelled bigint,
    num_length bigint, num_context bigint, num_repetition bigint, num_scored bigint, num_right bigint,
    problems_scored bigint, takeovers bigint,
    tokens_small bigint, tokens_large bigint, tokens_inserted bigint, discarded_small bigint, discarded_large bigint,
    aside_small bigint, aside_large bigint, aside_judge bigint, taken_small bigint, taken_large bigint,
    accuracy float8, score_variance float8, score_squares float8, mean_output_tokens float8, p50_output_tokens float8,
    p90_output_tokens float8, takeovers_per_sample float8, p50_wall_seconds float8, p95_wall_seconds float8
);

COMMENT ON TYPE sample_totals IS
    'what job_totals keeps of a job''s samples; its columns'' comments say what each is';

CREATE FUNCTION count_samples(job bigint) RETURNS SETOF sample_totals LANGUAGE sql STABLE ROWS 1 AS $$
    SELECT c.samples_total, c.pending, c.ready, c.drafting, c.awaiting_large, c.assisting,
           c.awaiting_judge, c.judging, c.finished, c.graded, c.failed, c.cancelled, c.num_length, c.num_context, c.num_repetition, c.num_scored, c.num_right,
           p.problems_scored, c.takeovers, c.tokens_small, c.tokens_large, c.tokens_inserted, c.discarded_small,
           c.discarded_large, c.aside_small, c.aside_large, c.aside_judge, c.taken_small, c.taken_large,
           e.accuracy::float8,
           CASE WHEN c.num_scored > 1
                THEN (c.score_squares - c.score_sum * c.score_sum / c.num_scored) / (c.num_scored - 1) END::float8,
           (p.problem_squares - 2 * e.accuracy * p.problem_products
            + e.accuracy * e.accuracy * p.problem_numbers)::float8,
           (c.complete_tokens / e.complete::numeric)::float8, l.p50, l.p90,
           (c.complete_takeovers / e.complete::numeric)::float8, w.p50, w.p95
    FROM count_states(job) c
    CROSS JOIN LATERAL (
        SELECT nullif(c.finished + c.graded, 0) AS complete, c.score_sum / nullif(c.num_scored, 0) AS accuracy
    ) e
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(a.problems_scored), 0)::bigint AS problems_scored,
               sum(a.problem_squares) AS problem_squares, sum(a.problem_products) AS problem_products,
               sum(a.problem_numbers) AS problem_numbers
        FROM job_problems(job) a
    ) p
    CROSS JOIN LATERAL (
        SELECT interpolated(min(q.tokens) FILTER (WHERE q.upto > floor(0.5 * (q.total - 1))),
                            min(q.tokens) FILTER (WHERE q.upto > ceil(0.5 * (q.total - 1))),
                            0.5 * (max(q.total) - 1)) AS p50,
               interpolated(min(q.tokens) FILTER (WHERE q.upto > floor(0.9 * (q.total - 1))),
                            min(q.tokens) FILTER (WHERE q.upto > ceil(0.9 * (q.total - 1))),
                            0.9 * (max(q.total) - 1)) AS p90
        FROM (
            SELECT b.tokens, sum(b.n) OVER (ORDER BY b.tokens) AS upto, sum(b.n) OVER () AS total
            FROM (
                SELECT t.tokens, sum(t.n)::float8 AS n FROM job_lengths(job) t WHERE t.author = 'all' GROUP BY t.tokens
            ) b
        ) q
    ) l
    CROSS JOIN LATERAL (
        SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY x.wall) AS p50,
               percentile_cont(0.95) WITHIN GROUP (ORDER BY x.wall) AS p95
        FROM job_walls(job) AS x (wall)
    ) w
$$;

COMMENT ON FUNCTION count_samples IS
    'what job_totals keeps of a job''s samples, counted now';

CREATE FUNCTION totals_of_samples(job bigint) RETURNS SETOF sample_totals LANGUAGE sql STABLE ROWS 1 AS $$
    SELECT p.* FROM job_totals t CROSS JOIN LATERAL jsonb_populate_record(NULL::sample_totals, to_jsonb(t)) p
    WHERE t.job_id = job AND t.stale_at IS NULL
    UNION ALL
    SELECT c.* FROM count_samples(job) c
    WHERE NOT EXISTS (SELECT FROM job_totals t WHERE t.job_id = job AND t.stale_at IS NULL)
$$;

COMMENT ON FUNCTION totals_of_samples IS
    'the totals of a job''s samples: as kept, or counted now; always one row';

CREATE TYPE cost_totals AS (
    prompt_tokens_small bigint, prompt_tokens_large bigint, prompt_tokens_judge bigint,
    engine_seconds_small float8, engine_seconds_large float8, engine_seconds_judge float8,
    request_seconds_small float8, request_seconds_large float8, request_seconds_judge float8,
    mean_wait_seconds float8, p95_wait_seconds float8, mean_queue_seconds float8
);

COMMENT ON TYPE cost_totals IS
    'what job_totals keeps of a job''s requests; its columns'' comments say what each is';

CREATE FUNCTION count_cost(job bigint) RETURNS SETOF cost_totals LANGUAGE sql STABLE ROWS 1 AS $$
    WITH parts AS MATERIALIZED (SELECT * FROM job_cost_sums(job))
    SELECT c.prompt_tokens_small, c.prompt_tokens_large, c.prompt_tokens_judge, b.small, b.large, b.judge,
           c.request_seconds_small, c.request_seconds_large, c.request_seconds_judge, w.mean, w.p95, c.queue_sum / nullif(c.num_queued, 0)
    FROM (
        SELECT coalesce(sum(a.prompt_tokens_small), 0)::bigint AS prompt_tokens_small,
               coalesce(sum(a.prompt_tokens_large), 0)::bigint AS prompt_tokens_large,
               coalesce(sum(a.prompt_tokens_judge), 0)::bigint AS prompt_tokens_judge,
               coalesce(sum(a.request_seconds_small), 0) AS request_seconds_small,
               coalesce(sum(a.request_seconds_large), 0) AS request_seconds_large,
               coalesce(sum(a.request_seconds_judge), 0) AS request_seconds_judge,
               sum(a.queue_sum) AS queue_sum, sum(a.num_queued)::float8 AS num_queued
        FROM parts a
    ) c
    CROSS JOIN (
        SELECT coalesce(sum(d.seconds) FILTER (WHERE d.author = 'small'), 0)::float8 AS small,
               coalesce(sum(d.seconds) FILTER (WHERE d.author = 'large'), 0)::float8 AS large,
               coalesce(sum(d.seconds) FILTER (WHERE d.author = 'judge'), 0)::float8 AS judge
        FROM (
            SELECT u.author, extract(epoch FROM upper(x.time) - lower(x.time)) AS seconds
            FROM (
                SELECT t.author, range_agg(y.time) AS times
                FROM job_busy(job) t CROSS JOIN LATERAL unnest(t.times) AS y (time)
                GROUP BY t.worker_id, t.author
            ) u
            CROSS JOIN LATERAL unnest(u.times) AS x (time)
        ) d
    ) b
    CROSS JOIN (
        SELECT avg(x.wait) AS mean, percentile_cont(0.95) WITHIN GROUP (ORDER BY x.wait) AS p95
        FROM parts a CROSS JOIN LATERAL unnest(a.waits) AS x (wait)
    ) w
$$;

COMMENT ON FUNCTION count_cost IS
    'what job_totals keeps of a job''s requests, counted now';

CREATE FUNCTION totals_of_cost(job bigint) RETURNS SETOF cost_totals LANGUAGE sql STABLE ROWS 1 AS $$
    SELECT p.* FROM job_totals t CROSS JOIN LATERAL jsonb_populate_record(NULL::cost_totals, to_jsonb(t)) p
    WHERE t.job_id = job AND t.stale_at IS NULL
    UNION ALL
    SELECT c.* FROM count_cost(job) c
    WHERE NOT EXISTS (SELECT FROM job_totals t WHERE t.job_id = job AND t.stale_at IS NULL)
$$;

COMMENT ON FUNCTION totals_of_cost IS
    'the totals of a job''s requests: as kept, or counted now; always one row';

-- A statement of its own after the lock on the job's row (pipeline.db.totals): it sees every grade that was committed
-- before.
CREATE FUNCTION keep_totals(job bigint) RETURNS void LANGUAGE sql
SECURITY DEFINER SET search_path = public, pg_temp AS $$
    DELETE FROM job_totals WHERE job_id = job;
    INSERT INTO job_totals
    SELECT k.* FROM count_samples(job) s CROSS JOIN count_cost(job) c
    CROSS JOIN jsonb_populate_record(
        NULL::job_totals,
        to_jsonb(s) || to_jsonb(c) || jsonb_build_object('job_id', job, 'counted_at', clock_timestamp())
    ) k
$$;

COMMENT ON FUNCTION keep_totals IS
    'counts a job that has ended and keeps its totals';

REVOKE EXECUTE ON FUNCTION keep_totals FROM PUBLIC;
