-- The totals of one job.
-- Read by: upkeep, which keeps them in job_totals once the job has ended; the views job_summary and job_cost until then.

CREATE FUNCTION count_samples(job bigint) RETURNS TABLE (
    samples_total bigint, pending bigint, ready bigint, drafting bigint, awaiting_large bigint, assisting bigint,
    finished bigint, graded bigint, failed bigint, cancelled bigint, num_length bigint, num_context bigint,
    num_repetition bigint, num_scored bigint, num_right bigint, problems_scored bigint, takeovers bigint,
    tokens_small bigint, tokens_large bigint, tokens_inserted bigint, discarded_small bigint, discarded_large bigint,
    accuracy double precision, score_variance double precision, score_squares double precision,
    mean_output_tokens double precision, p50_output_tokens double precision, p90_output_tokens double precision,
    takeovers_per_sample double precision, p50_wall_seconds double precision, p95_wall_seconds double precision
) LANGUAGE sql STABLE AS $$
    WITH told AS MATERIALIZED (
        SELECT l.pending, l.graded, l.failed, l.cancelled, l.num_length, l.num_context, l.num_repetition,
               l.num_scored,
               l.num_right, l.scored_truncated, l.scored_eos, l.takeovers, l.tokens_small, l.tokens_large,
               l.tokens_inserted, l.discarded_small, l.discarded_large, l.complete_tokens, l.complete_takeovers,
               l.score_sum, l.score_squares, l.truncated_scores, l.eos_scores, l.walls, 0 AS ready, 0 AS drafting,
               0 AS awaiting_large, 0 AS assisting, 0 AS finished
        FROM lots l WHERE l.job_id = job AND l.counted_at IS NOT NULL
        UNION ALL
        SELECT t.pending, t.graded, t.failed, t.cancelled, t.num_length, t.num_context, t.num_repetition,
               t.num_scored,
               t.num_right, t.scored_truncated, t.scored_eos, t.takeovers, t.tokens_small, t.tokens_large,
               t.tokens_inserted, t.discarded_small, t.discarded_large, t.complete_tokens, t.complete_takeovers,
               t.score_sum, t.score_squares, t.truncated_scores, t.eos_scores, t.walls, t.ready, t.drafting,
               t.awaiting_large, t.assisting, t.finished
        FROM open_ranges(job) r CROSS JOIN LATERAL tell_samples(job, r.first_problem, r.last_problem) t
    )
    SELECT c.samples_total, c.pending, c.ready, c.drafting, c.awaiting_large, c.assisting, c.finished, c.graded,
           c.failed, c.cancelled, c.num_length, c.num_context, c.num_repetition, c.num_scored, c.num_right,
           p.problems_scored, c.takeovers, c.tokens_small, c.tokens_large, c.tokens_inserted, c.discarded_small,
           c.discarded_large,
           e.accuracy::float8,
           CASE WHEN c.num_scored > 1
                THEN (c.score_squares - c.score_sum * c.score_sum / c.num_scored) / (c.num_scored - 1) END::float8,
           (p.problem_squares - 2 * e.accuracy * p.problem_products
            + e.accuracy * e.accuracy * p.problem_numbers)::float8,
           (c.complete_tokens / e.complete::numeric)::float8, l.p50, l.p90,
           (c.complete_takeovers / e.complete::numeric)::float8, w.p50, w.p95
    FROM (
        SELECT coalesce(sum(pending + graded + failed + cancelled + ready + drafting + awaiting_large + assisting
               + finished), 0)::bigint AS samples_total, sum(score_sum) AS score_sum,
               sum(score_squares) AS score_squares, sum(truncated_scores) AS truncated_scores,
               sum(eos_scores) AS eos_scores,
               coalesce(sum(pending), 0)::bigint AS pending, coalesce(sum(graded), 0)::bigint AS graded,
               coalesce(sum(failed), 0)::bigint AS failed, coalesce(sum(cancelled), 0)::bigint AS cancelled,
               coalesce(sum(num_length), 0)::bigint AS num_length, coalesce(sum(num_context),
               0)::bigint AS num_context, coalesce(sum(num_repetition), 0)::bigint AS num_repetition,
               coalesce(sum(num_scored), 0)::bigint AS num_scored, coalesce(sum(num_right), 0)::bigint AS num_right,
               coalesce(sum(scored_truncated), 0)::bigint AS scored_truncated, coalesce(sum(scored_eos),
               0)::bigint AS scored_eos, coalesce(sum(takeovers), 0)::bigint AS takeovers,
               coalesce(sum(tokens_small), 0)::bigint AS tokens_small, coalesce(sum(tokens_large),
               0)::bigint AS tokens_large, coalesce(sum(tokens_inserted), 0)::bigint AS tokens_inserted,
               coalesce(sum(discarded_small), 0)::bigint AS discarded_small, coalesce(sum(discarded_large),
               0)::bigint AS discarded_large, coalesce(sum(complete_tokens), 0)::bigint AS complete_tokens,
               coalesce(sum(complete_takeovers), 0)::bigint AS complete_takeovers, coalesce(sum(ready),
               0)::bigint AS ready, coalesce(sum(drafting), 0)::bigint AS drafting, coalesce(sum(awaiting_large),
               0)::bigint AS awaiting_large, coalesce(sum(assisting), 0)::bigint AS assisting,
               coalesce(sum(finished), 0)::bigint AS finished
        FROM told
    ) c
    CROSS JOIN LATERAL (
        SELECT nullif(c.finished + c.graded, 0) AS complete, c.score_sum / nullif(c.num_scored, 0) AS accuracy
    ) e
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(a.problems_scored), 0)::bigint AS problems_scored,
               sum(a.problem_squares) AS problem_squares, sum(a.problem_products) AS problem_products,
               sum(a.problem_numbers) AS problem_numbers
        FROM (
            SELECT l.problems_scored, l.problem_squares, l.problem_products, l.problem_numbers
            FROM lots l WHERE l.job_id = job AND l.counted_at IS NOT NULL
            UNION ALL
            SELECT t.problems_scored, t.problem_squares, t.problem_products, t.problem_numbers
            FROM open_ranges(job) r CROSS JOIN LATERAL tell_problems(job, r.first_problem, r.last_problem) t
        ) a
    ) p
    CROSS JOIN LATERAL (
        SELECT (min(tokens) FILTER (WHERE upto > floor(0.5 * (total - 1)))::float8
         + (min(tokens) FILTER (WHERE upto > ceil(0.5 * (total - 1)))::float8
            - min(tokens) FILTER (WHERE upto > floor(0.5 * (total - 1)))::float8)
           * ((0.5 * (max(total) - 1)) - floor((0.5 * (max(total) - 1))))) AS p50,
           (min(tokens) FILTER (WHERE upto > floor(0.9 * (total - 1)))::float8
            + (min(tokens) FILTER (WHERE upto > ceil(0.9 * (total - 1)))::float8
               - min(tokens) FILTER (WHERE upto > floor(0.9 * (total - 1)))::float8)
              * ((0.9 * (max(total) - 1)) - floor((0.9 * (max(total) - 1))))) AS p90
        FROM (
            SELECT b.tokens, sum(b.n) OVER (ORDER BY b.tokens) AS upto, sum(b.n) OVER () AS total
            FROM (SELECT t.tokens,
            sum(t.n)::float8 AS n FROM lengths(job) t WHERE t.author = 'all' GROUP BY t.tokens) b
        ) q
    ) l
    CROSS JOIN LATERAL (
        SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY x.wall) AS p50,
               percentile_cont(0.95) WITHIN GROUP (ORDER BY x.wall) AS p95
        FROM told a CROSS JOIN LATERAL unnest(a.walls) AS x (wall)
    ) w
$$;

COMMENT ON FUNCTION count_samples IS
    'what job_totals keeps of a job''s samples, counted now';

CREATE FUNCTION count_cost(job bigint) RETURNS TABLE (
    prompt_tokens_small bigint, prompt_tokens_large bigint,
    engine_seconds_small double precision, engine_seconds_large double precision,
    request_seconds_small double precision, request_seconds_large double precision,
    mean_wait_seconds double precision, p95_wait_seconds double precision, mean_queue_seconds double precision
) LANGUAGE sql STABLE AS $$
    WITH told AS MATERIALIZED (
        SELECT l.prompt_tokens_small, l.prompt_tokens_large, l.num_queued, l.request_seconds_small,
               l.request_seconds_large, l.queue_sum, l.waits
        FROM lots l WHERE l.job_id = job AND l.counted_at IS NOT NULL
        UNION ALL
        SELECT t.prompt_tokens_small, t.prompt_tokens_large, t.num_queued, t.request_seconds_small,
               t.request_seconds_large, t.queue_sum, t.waits
        FROM open_ranges(job) r CROSS JOIN LATERAL tell_cost(job, r.first_problem, r.last_problem) t
    )
    SELECT c.prompt_tokens_small, c.prompt_tokens_large, b.small, b.large, c.request_seconds_small,
           c.request_seconds_large, w.mean, w.p95, c.queue_sum / nullif(c.num_queued, 0)
    FROM (
        SELECT coalesce(sum(a.prompt_tokens_small), 0)::bigint AS prompt_tokens_small,
               coalesce(sum(a.prompt_tokens_large), 0)::bigint AS prompt_tokens_large,
               coalesce(sum(a.request_seconds_small), 0) AS request_seconds_small,
               coalesce(sum(a.request_seconds_large), 0) AS request_seconds_large,
               sum(a.queue_sum) AS queue_sum, sum(a.num_queued) AS num_queued
        FROM told a
    ) c
    CROSS JOIN (
        SELECT coalesce(sum(d.seconds) FILTER (WHERE d.author = 'small'), 0)::float8 AS small,
               coalesce(sum(d.seconds) FILTER (WHERE d.author = 'large'), 0)::float8 AS large
        FROM (
            SELECT u.author, extract(epoch FROM upper(x.time) - lower(x.time)) AS seconds
            FROM (
                SELECT t.author, range_agg(y.time) AS times
                FROM (
                    SELECT t.worker_id, t.author, t.times
                    FROM lots l CROSS JOIN LATERAL jsonb_to_recordset(l.busy) AS t (
                        worker_id bigint, author text, times tstzmultirange
                    )
                    WHERE l.job_id = job AND l.counted_at IS NOT NULL
                    UNION ALL
                    SELECT t.worker_id, t.author, t.times
                    FROM open_ranges(job) r CROSS JOIN LATERAL tell_busy(job, r.first_problem, r.last_problem) t
                ) t CROSS JOIN LATERAL unnest(t.times) AS y (time)
                GROUP BY t.worker_id, t.author
            ) u
            CROSS JOIN LATERAL unnest(u.times) AS x (time)
        ) d
    ) b
    CROSS JOIN (
        SELECT avg(x.wait) AS mean, percentile_cont(0.95) WITHIN GROUP (ORDER BY x.wait) AS p95
        FROM told a CROSS JOIN LATERAL unnest(a.waits) AS x (wait)
    ) w
$$;

COMMENT ON FUNCTION count_cost IS
    'what job_totals keeps of a job''s segments, counted now';
