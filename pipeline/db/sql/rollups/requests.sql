-- Sums over requests to engines: what they cost, and when each worker had one.
-- Read by: the totals (totals.sql); refresh.sql.
--
-- Segments, asides and steps are looked up sample by sample, by index (LATERAL with OFFSET 0): few samples are looked
-- at, whatever the statistics make of the range.

CREATE FUNCTION sample_requests(sample bigint, num_asides integer) RETURNS TABLE (
    author text, worker_id bigint, prompt_tokens integer, cached_tokens integer,
    wait_seconds float8, queue_seconds float8, write_seconds float8, ended_at timestamptz
) LANGUAGE sql STABLE ROWS 10 AS $$
    SELECT g.author, g.worker_id, g.prompt_tokens, g.cached_tokens, g.wait_seconds, g.queue_seconds, g.write_seconds,
           g.committed_at - make_interval(secs => coalesce(g.held_seconds, 0))
    FROM segments g WHERE g.sample_id = sample AND g.author IN ('small', 'large') AND g.taken_from IS NULL
    UNION ALL
    SELECT a.author, a.worker_id, a.prompt_tokens, a.cached_tokens, a.wait_seconds, a.queue_seconds, a.write_seconds,
           a.committed_at - make_interval(secs => coalesce(a.held_seconds, 0))
    FROM asides a WHERE num_asides > 0 AND a.sample_id = sample
    OFFSET 0
$$;

COMMENT ON FUNCTION sample_requests IS
    'the requests to engines of a sample: its segments, but for taken heads of asides, and its asides';

CREATE TYPE cost_sums AS (
    prompt_tokens_small bigint, prompt_tokens_large bigint, prompt_tokens_judge bigint,
    request_seconds_small float8, request_seconds_large float8, request_seconds_judge float8,
    num_queued bigint, queue_sum float8, waits float8[]
);

COMMENT ON TYPE cost_sums IS
    'prompt tokens not found in the prefix cache; durations of requests; samples that were handed to an engine and the '
    'seconds inside engines before the first work; seconds from when it could be claimed to the claim, all of a sample together';

CREATE FUNCTION aggregate_cost(job bigint, first_problem bigint, last_problem bigint) RETURNS SETOF cost_sums
LANGUAGE sql STABLE ROWS 1 AS $$
    SELECT coalesce(sum(w.prompts_small), 0)::bigint, coalesce(sum(w.prompts_large), 0)::bigint,
           coalesce(sum(w.prompts_judge), 0)::bigint, coalesce(sum(w.seconds_small), 0),
           coalesce(sum(w.seconds_large), 0), coalesce(sum(w.seconds_judge), 0),
           count(w.queue), coalesce(sum(w.queue), 0), array_agg(w.wait) FILTER (WHERE w.wait IS NOT NULL)
    FROM (
        SELECT sum(q.prompt_tokens - q.cached_tokens) FILTER (WHERE q.author = 'small') AS prompts_small,
               sum(q.prompt_tokens - q.cached_tokens) FILTER (WHERE q.author = 'large') AS prompts_large,
               sum(q.prompt_tokens - q.cached_tokens) FILTER (WHERE q.author = 'judge') AS prompts_judge,
               sum(q.write_seconds) FILTER (WHERE q.author = 'small') AS seconds_small,
               sum(q.write_seconds) FILTER (WHERE q.author = 'large') AS seconds_large,
               sum(q.write_seconds) FILTER (WHERE q.author = 'judge') AS seconds_judge,
               sum(q.wait_seconds) AS wait, sum(q.queue_seconds) AS queue
        FROM samples s CROSS JOIN LATERAL sample_requests(s.id, s.num_asides) q
        WHERE s.job_id = job AND s.problem_id BETWEEN first_problem AND last_problem
        GROUP BY s.id
    ) w
$$;

COMMENT ON FUNCTION aggregate_cost IS
    'what the requests of a range of problems add up to';

CREATE FUNCTION job_cost_sums(job bigint) RETURNS SETOF cost_sums LANGUAGE sql STABLE AS $$
    SELECT p.prompt_tokens_small, p.prompt_tokens_large, p.prompt_tokens_judge, p.request_seconds_small,
           p.request_seconds_large, p.request_seconds_judge, p.num_queued, p.queue_sum, r.waits
    FROM rollups r CROSS JOIN LATERAL jsonb_populate_record(NULL::cost_sums, r.cost) p
    WHERE r.job_id = job AND r.refreshed_at IS NOT NULL
    UNION ALL
    SELECT p.* FROM live_ranges(job) r CROSS JOIN LATERAL aggregate_cost(job, r.first_problem, r.last_problem) p
$$;

COMMENT ON FUNCTION job_cost_sums IS
    'the sums over the requests of a job, part by part';

CREATE TYPE busy_part AS (worker_id bigint, author text, times tstzmultirange);

COMMENT ON TYPE busy_part IS
    'when a worker had at least one request';

CREATE FUNCTION aggregate_busy(job bigint, first_problem bigint, last_problem bigint) RETURNS SETOF busy_part
LANGUAGE sql STABLE AS $$
    SELECT q.worker_id, q.author, range_agg(tstzrange(
               q.ended_at - make_interval(secs => greatest(0, coalesce(q.write_seconds, 0))), q.ended_at))
    FROM samples s CROSS JOIN LATERAL sample_requests(s.id, s.num_asides) q
    WHERE s.job_id = job AND s.problem_id BETWEEN first_problem AND last_problem
    GROUP BY q.worker_id, q.author
$$;

COMMENT ON FUNCTION aggregate_busy IS
    'when each worker had a request of a range of problems';

CREATE FUNCTION job_busy(job bigint) RETURNS SETOF busy_part LANGUAGE sql STABLE AS $$
    SELECT p.* FROM rollups r CROSS JOIN LATERAL jsonb_populate_recordset(NULL::busy_part, r.busy) p
    WHERE r.job_id = job AND r.refreshed_at IS NOT NULL
    UNION ALL
    SELECT p.* FROM live_ranges(job) r CROSS JOIN LATERAL aggregate_busy(job, r.first_problem, r.last_problem) p
$$;

COMMENT ON FUNCTION job_busy IS
    'when each worker had a request of a job';
