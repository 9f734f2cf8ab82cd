-- Rollups: what the samples of a part of a job add up to, kept so that a running job of a million samples is summed up
-- at once. docs/architecture/rollups.md explains them.
-- Read by: the views; upkeep, which refreshes them (pipeline.db.rollups); a trigger on samples, which invalidates them.
--
-- The problems of a job are cut into parts of about a thousand samples. A sample is idle while it is pending or in a
-- final state. Once all samples of a part are idle, upkeep keeps their sums (refresh_rollup). A query adds up the valid
-- rollups of its job and aggregates the samples of the other parts (live_ranges). A change of an idle sample
-- invalidates its rollup in the same transaction, so that a query is right at every moment.
--
-- Each kind of sum has one type. aggregate_X looks at the samples of a range of problems; job_X gives the rows of a
-- whole job, from rollups and by aggregate_X; where rows have a key, the same key comes more than once. Whoever changes
-- a type or what it means writes a migration that invalidates the rollups:
--     UPDATE rollups SET refreshed_at = NULL; DELETE FROM length_counts;

-- Helpers

CREATE FUNCTION verdict_of(score float8) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN score >= 0.5 THEN 'right' WHEN score < 0.5 THEN 'wrong' ELSE 'unscored' END
$$;

COMMENT ON FUNCTION verdict_of IS
    'right (at least 0.5), wrong or unscored';

CREATE FUNCTION interpolated(low integer, high integer, place float8) RETURNS float8 LANGUAGE sql IMMUTABLE AS $$
    SELECT low + (high - low) * (place - floor(place))
$$;

COMMENT ON FUNCTION interpolated IS
    'a percentile as percentile_cont gives it: low and high are the values at floor(place) and ceil(place), from 0';

-- The parts of a job

CREATE FUNCTION create_rollups(job bigint, size integer DEFAULT 1024) RETURNS void LANGUAGE sql AS $$
    INSERT INTO rollups (job_id, first_problem, last_problem)
    SELECT job, b.first, coalesce(lead(b.first) OVER (ORDER BY b.first) - 1, 9223372036854775807)
    FROM (
        SELECT 0 AS first
        UNION ALL
        SELECT p.id FROM jobs j JOIN problems p ON p.problem_set_id = j.problem_set_id
        WHERE j.id = job AND p.position BETWEEN 1 AND j.num_problems - 1
          AND p.position % greatest(1, size / j.num_samples) = 0
    ) b
$$;

COMMENT ON FUNCTION create_rollups IS
    'cuts a new job into parts of about so many samples: refreshing one takes a quarter of a second';

CREATE FUNCTION live_ranges(job bigint) RETURNS TABLE (first_problem bigint, last_problem bigint)
LANGUAGE sql STABLE ROWS 5 AS $$
    SELECT r.first_problem, r.last_problem FROM rollups r WHERE r.job_id = job AND r.refreshed_at IS NULL
    UNION ALL
    -- The whole job where it has no rollups: whatever somebody stores by hand is seen.
    SELECT 0, 9223372036854775807 WHERE NOT EXISTS (SELECT FROM rollups r WHERE r.job_id = job)
$$;

COMMENT ON FUNCTION live_ranges IS
    'the parts of a job without a valid rollup, as problem ids from, to: their samples must be looked at';

-- Sums over samples

CREATE TYPE sample_sums AS (
    samples_total bigint, pending bigint, ready bigint, drafting bigint, awaiting_large bigint, assisting bigint,
    finished bigint, graded bigint, failed bigint, cancelled bigint,
    num_length bigint, num_context bigint, num_repetition bigint, num_scored bigint, num_right bigint,
    scored_truncated bigint, scored_eos bigint, takeovers bigint,
    tokens_small bigint, tokens_large bigint, tokens_inserted bigint, discarded_small bigint, discarded_large bigint,
    aside_small bigint, aside_large bigint, taken_small bigint, taken_large bigint,
    complete_tokens bigint, complete_takeovers bigint,
    score_sum numeric, score_squares numeric, truncated_scores numeric, eos_scores numeric
);

COMMENT ON TYPE sample_sums IS
    'what samples add up to: all and by state, complete ones by end, scores, takeovers, tokens';

CREATE FUNCTION aggregate_samples(job bigint, first_problem bigint, last_problem bigint) RETURNS SETOF sample_sums
LANGUAGE sql STABLE ROWS 1 AS $$
    SELECT coalesce(sum(g.num), 0)::bigint,
           coalesce(sum(g.num) FILTER (WHERE g.state = 'pending'), 0)::bigint,
           coalesce(sum(g.num) FILTER (WHERE g.state = 'ready'), 0)::bigint,
           coalesce(sum(g.num) FILTER (WHERE g.state = 'drafting'), 0)::bigint,
           coalesce(sum(g.num) FILTER (WHERE g.state = 'awaiting_large'), 0)::bigint,
           coalesce(sum(g.num) FILTER (WHERE g.state = 'assisting'), 0)::bigint,
           coalesce(sum(g.num) FILTER (WHERE g.state = 'finished'), 0)::bigint,
           coalesce(sum(g.num) FILTER (WHERE g.state = 'graded'), 0)::bigint,
           coalesce(sum(g.num) FILTER (WHERE g.state = 'failed'), 0)::bigint,
           coalesce(sum(g.num) FILTER (WHERE g.state = 'cancelled'), 0)::bigint,
           coalesce(sum(g.num) FILTER (WHERE g.is_complete AND g.finish_reason = 'length'), 0)::bigint,
           coalesce(sum(g.num) FILTER (WHERE g.is_complete AND g.finish_reason = 'context'), 0)::bigint,
           coalesce(sum(g.num) FILTER (WHERE g.is_complete AND g.finish_reason = 'repetition'), 0)::bigint,
           coalesce(sum(g.num) FILTER (WHERE g.state = 'graded' AND g.score IS NOT NULL), 0)::bigint,
           coalesce(sum(g.num) FILTER (WHERE g.state = 'graded' AND g.score >= 0.5), 0)::bigint,
           coalesce(sum(g.num) FILTER (WHERE g.is_truncated AND g.score IS NOT NULL), 0)::bigint,
           coalesce(sum(g.num) FILTER (WHERE g.is_eos AND g.score IS NOT NULL), 0)::bigint,
           coalesce(sum(g.takeovers), 0)::bigint,
           coalesce(sum(g.tokens_small), 0)::bigint, coalesce(sum(g.tokens_large), 0)::bigint,
           coalesce(sum(g.tokens_inserted), 0)::bigint,
           coalesce(sum(g.discarded_small), 0)::bigint, coalesce(sum(g.discarded_large), 0)::bigint,
           coalesce(sum(g.aside_small), 0)::bigint, coalesce(sum(g.aside_large), 0)::bigint,
           coalesce(sum(g.taken_small), 0)::bigint, coalesce(sum(g.taken_large), 0)::bigint,
           coalesce(sum(g.tokens_small + g.tokens_large + g.tokens_inserted) FILTER (WHERE g.is_complete), 0)::bigint,
           coalesce(sum(g.takeovers) FILTER (WHERE g.is_complete), 0)::bigint,
           coalesce(sum(g.num * g.score) FILTER (WHERE g.state = 'graded'), 0),
           coalesce(sum(g.num * g.score * g.score) FILTER (WHERE g.state = 'graded'), 0),
           coalesce(sum(g.num * g.score) FILTER (WHERE g.is_truncated), 0),
           coalesce(sum(g.num * g.score) FILTER (WHERE g.is_eos), 0)
    FROM (
        -- Grouped first: few samples differ in all three, and exact sums of scores are expensive.
        SELECT s.state, s.finish_reason, s.score::numeric AS score, count(*) AS num,
               s.state IN ('finished', 'graded') AS is_complete,
               s.state IN ('finished', 'graded') AND s.finish_reason IN ('length', 'context') AS is_truncated,
               s.state IN ('finished', 'graded') AND s.finish_reason = 'eos' AS is_eos,
               sum(s.num_takeovers) AS takeovers, sum(s.tokens_small) AS tokens_small,
               sum(s.tokens_large) AS tokens_large, sum(s.tokens_inserted) AS tokens_inserted,
               sum(s.discarded_small) AS discarded_small, sum(s.discarded_large) AS discarded_large,
               sum(s.aside_small) AS aside_small, sum(s.aside_large) AS aside_large,
               sum(s.taken_small) AS taken_small, sum(s.taken_large) AS taken_large
        FROM samples s
        WHERE s.job_id = job AND s.problem_id BETWEEN first_problem AND last_problem
        GROUP BY s.state, s.finish_reason, s.score
    ) g
$$;

COMMENT ON FUNCTION aggregate_samples IS
    'what the samples of a range of problems add up to';

CREATE FUNCTION job_samples(job bigint) RETURNS SETOF sample_sums LANGUAGE sql STABLE AS $$
    SELECT p.* FROM rollups r CROSS JOIN LATERAL jsonb_populate_record(NULL::sample_sums, r.samples) p
    WHERE r.job_id = job AND r.refreshed_at IS NOT NULL
    UNION ALL
    SELECT p.* FROM live_ranges(job) r
    CROSS JOIN LATERAL aggregate_samples(job, r.first_problem, r.last_problem) p
$$;

COMMENT ON FUNCTION job_samples IS
    'the sums over the samples of a job, part by part';

CREATE FUNCTION count_states(job bigint) RETURNS SETOF sample_sums LANGUAGE sql STABLE ROWS 1 AS $$
    SELECT coalesce(sum(p.samples_total), 0)::bigint, coalesce(sum(p.pending), 0)::bigint,
           coalesce(sum(p.ready), 0)::bigint, coalesce(sum(p.drafting), 0)::bigint,
           coalesce(sum(p.awaiting_large), 0)::bigint, coalesce(sum(p.assisting), 0)::bigint,
           coalesce(sum(p.finished), 0)::bigint, coalesce(sum(p.graded), 0)::bigint,
           coalesce(sum(p.failed), 0)::bigint, coalesce(sum(p.cancelled), 0)::bigint,
           coalesce(sum(p.num_length), 0)::bigint, coalesce(sum(p.num_context), 0)::bigint,
           coalesce(sum(p.num_repetition), 0)::bigint, coalesce(sum(p.num_scored), 0)::bigint,
           coalesce(sum(p.num_right), 0)::bigint, coalesce(sum(p.scored_truncated), 0)::bigint,
           coalesce(sum(p.scored_eos), 0)::bigint, coalesce(sum(p.takeovers), 0)::bigint,
           coalesce(sum(p.tokens_small), 0)::bigint, coalesce(sum(p.tokens_large), 0)::bigint,
           coalesce(sum(p.tokens_inserted), 0)::bigint, coalesce(sum(p.discarded_small), 0)::bigint,
           coalesce(sum(p.discarded_large), 0)::bigint, coalesce(sum(p.aside_small), 0)::bigint,
           coalesce(sum(p.aside_large), 0)::bigint, coalesce(sum(p.taken_small), 0)::bigint,
           coalesce(sum(p.taken_large), 0)::bigint, coalesce(sum(p.complete_tokens), 0)::bigint,
           coalesce(sum(p.complete_takeovers), 0)::bigint,
           sum(p.score_sum), sum(p.score_squares), sum(p.truncated_scores), sum(p.eos_scores)
    FROM job_samples(job) p
$$;

COMMENT ON FUNCTION count_states IS
    'the sums over the samples of a whole job; always one row';

CREATE FUNCTION aggregate_walls(job bigint, first_problem bigint, last_problem bigint) RETURNS SETOF float8
LANGUAGE sql STABLE AS $$
    SELECT extract(epoch FROM s.finished_at - s.admitted_at)::float8 FROM samples s
    WHERE s.job_id = job AND s.problem_id BETWEEN first_problem AND last_problem
      AND s.state IN ('finished', 'graded') AND s.finished_at IS NOT NULL AND s.admitted_at IS NOT NULL
$$;

COMMENT ON FUNCTION aggregate_walls IS
    'seconds from admission to complete text, of each complete sample of a range of problems';

CREATE FUNCTION job_walls(job bigint) RETURNS SETOF float8 LANGUAGE sql STABLE AS $$
    SELECT w.wall FROM rollups r CROSS JOIN LATERAL unnest(r.walls) AS w (wall)
    WHERE r.job_id = job AND r.refreshed_at IS NOT NULL
    UNION ALL
    SELECT w.wall FROM live_ranges(job) r
    CROSS JOIN LATERAL aggregate_walls(job, r.first_problem, r.last_problem) AS w (wall)
$$;

COMMENT ON FUNCTION job_walls IS
    'seconds from admission to complete text, of each complete sample of a job';

-- Sums over problems

CREATE TYPE problem_sums AS (
    problems_scored bigint, problem_squares numeric, problem_products numeric, problem_numbers numeric
);

COMMENT ON TYPE problem_sums IS
    'problems with a scored sample; sums over them of the square of the summed scores, of that sum times the number of '
    'scored samples, and of the square of that number';

CREATE FUNCTION aggregate_problems(job bigint, first_problem bigint, last_problem bigint) RETURNS SETOF problem_sums
LANGUAGE sql STABLE ROWS 1 AS $$
    SELECT count(*), coalesce(sum(p.score * p.score), 0), coalesce(sum(p.score * p.n), 0), coalesce(sum(p.n * p.n), 0)
    FROM (
        SELECT sum(s.score::numeric) AS score, count(*) AS n FROM samples s
        WHERE s.job_id = job AND s.problem_id BETWEEN first_problem AND last_problem
          AND s.state = 'graded' AND s.score IS NOT NULL
        GROUP BY s.problem_id
    ) p
$$;

COMMENT ON FUNCTION aggregate_problems IS
    'what the scores of a range of problems add up to, problem by problem';

CREATE FUNCTION job_problems(job bigint) RETURNS SETOF problem_sums LANGUAGE sql STABLE AS $$
    SELECT p.* FROM rollups r CROSS JOIN LATERAL jsonb_populate_record(NULL::problem_sums, r.problems) p
    WHERE r.job_id = job AND r.refreshed_at IS NOT NULL
    UNION ALL
    SELECT p.* FROM live_ranges(job) r
    CROSS JOIN LATERAL aggregate_problems(job, r.first_problem, r.last_problem) p
$$;

COMMENT ON FUNCTION job_problems IS
    'the sums over the problems of a job, part by part';

CREATE TYPE pass_part AS (n bigint, c bigint, problems bigint);

COMMENT ON TYPE pass_part IS
    'problems with n scored samples of which c are right';

CREATE FUNCTION aggregate_passes(job bigint, first_problem bigint, last_problem bigint) RETURNS SETOF pass_part
LANGUAGE sql STABLE AS $$
    SELECT p.n, p.c, count(*)
    FROM (
        SELECT count(*) AS n, count(*) FILTER (WHERE s.score >= 0.5) AS c FROM samples s
        WHERE s.job_id = job AND s.problem_id BETWEEN first_problem AND last_problem
          AND s.state = 'graded' AND s.score IS NOT NULL
        GROUP BY s.problem_id
    ) p
    GROUP BY p.n, p.c
$$;

COMMENT ON FUNCTION aggregate_passes IS
    'the problems of a range by number of scored and of right samples';

CREATE FUNCTION job_passes(job bigint) RETURNS SETOF pass_part LANGUAGE sql STABLE AS $$
    SELECT p.* FROM rollups r CROSS JOIN LATERAL jsonb_populate_recordset(NULL::pass_part, r.passes) p
    WHERE r.job_id = job AND r.refreshed_at IS NOT NULL
    UNION ALL
    SELECT p.* FROM live_ranges(job) r
    CROSS JOIN LATERAL aggregate_passes(job, r.first_problem, r.last_problem) p
$$;

COMMENT ON FUNCTION job_passes IS
    'the problems of a job by number of scored and of right samples';

CREATE TYPE vote_part AS (k bigint, num_problems bigint, share_sum float8);

COMMENT ON TYPE vote_part IS
    'for k votes: problems with so many scored samples, and the sum over them of the share of right majorities';

CREATE FUNCTION aggregate_votes(job bigint, first_problem bigint, last_problem bigint) RETURNS SETOF vote_part
LANGUAGE sql STABLE AS $$
    WITH votes AS (
        SELECT s.problem_id, CASE WHEN s.score >= 0.5 THEN 'right' ELSE 'wrong ' || s.predicted_answer END AS vote,
               row_number() OVER (PARTITION BY s.problem_id ORDER BY s.sample_index) - 1 AS place,
               count(*) OVER (PARTITION BY s.problem_id) AS n
        FROM samples s
        WHERE s.job_id = job AND s.problem_id BETWEEN first_problem AND last_problem
          AND s.state = 'graded' AND s.score IS NOT NULL
    ),
    tallies AS (
        SELECT v.problem_id, i.k, v.place / i.k AS bundle, v.vote, count(v.vote) AS num
        FROM votes v CROSS JOIN LATERAL generate_series(1, v.n) AS i (k)
        WHERE v.place < v.n / i.k * i.k GROUP BY v.problem_id, i.k, v.place / i.k, v.vote
    ),
    winners AS (
        SELECT t.*, max(t.num) OVER (PARTITION BY t.problem_id, t.k, t.bundle) AS most FROM tallies t
    ),
    bundles AS (
        SELECT problem_id, k, bundle,
               coalesce(count(*) FILTER (WHERE vote = 'right' AND num = most)
                        / nullif(count(*) FILTER (WHERE vote IS NOT NULL AND num = most), 0)::float8, 0) AS is_right
        FROM winners GROUP BY problem_id, k, bundle
    ),
    shares AS (SELECT problem_id, k, avg(is_right) AS share FROM bundles GROUP BY problem_id, k)
    SELECT k, count(*), sum(share) FROM shares GROUP BY k
$$;

COMMENT ON FUNCTION aggregate_votes IS
    'shares of right majorities by number of votes, in a range of problems';

CREATE FUNCTION job_votes(job bigint) RETURNS SETOF vote_part LANGUAGE sql STABLE AS $$
    SELECT p.* FROM rollups r CROSS JOIN LATERAL jsonb_populate_recordset(NULL::vote_part, r.votes) p
    WHERE r.job_id = job AND r.refreshed_at IS NOT NULL
    UNION ALL
    SELECT p.* FROM live_ranges(job) r
    CROSS JOIN LATERAL aggregate_votes(job, r.first_problem, r.last_problem) p
$$;

COMMENT ON FUNCTION job_votes IS
    'shares of right majorities by number of votes, in a job';

-- Sums over requests to engines
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
    prompt_tokens_small bigint, prompt_tokens_large bigint, request_seconds_small float8, request_seconds_large float8,
    num_queued bigint, queue_sum float8, waits float8[]
);

COMMENT ON TYPE cost_sums IS
    'prompt tokens not found in the prefix cache; durations of requests; samples that were handed to an engine and the '
    'seconds inside engines before the first work; seconds from publishing to claim, all of a sample together';

CREATE FUNCTION aggregate_cost(job bigint, first_problem bigint, last_problem bigint) RETURNS SETOF cost_sums
LANGUAGE sql STABLE ROWS 1 AS $$
    SELECT coalesce(sum(w.prompts_small), 0)::bigint, coalesce(sum(w.prompts_large), 0)::bigint,
           coalesce(sum(w.seconds_small), 0), coalesce(sum(w.seconds_large), 0),
           count(w.queue), coalesce(sum(w.queue), 0), array_agg(w.wait) FILTER (WHERE w.wait IS NOT NULL)
    FROM (
        SELECT sum(q.prompt_tokens - q.cached_tokens) FILTER (WHERE q.author = 'small') AS prompts_small,
               sum(q.prompt_tokens - q.cached_tokens) FILTER (WHERE q.author = 'large') AS prompts_large,
               sum(q.write_seconds) FILTER (WHERE q.author = 'small') AS seconds_small,
               sum(q.write_seconds) FILTER (WHERE q.author = 'large') AS seconds_large,
               sum(q.wait_seconds) AS wait, sum(q.queue_seconds) AS queue
        FROM samples s CROSS JOIN LATERAL sample_requests(s.id, s.num_asides) q
        WHERE s.job_id = job AND s.problem_id BETWEEN first_problem AND last_problem
        GROUP BY s.id
    ) w
$$;

COMMENT ON FUNCTION aggregate_cost IS
    'what the requests of a range of problems add up to';

CREATE FUNCTION job_cost_sums(job bigint) RETURNS SETOF cost_sums LANGUAGE sql STABLE AS $$
    SELECT p.prompt_tokens_small, p.prompt_tokens_large, p.request_seconds_small, p.request_seconds_large, p.num_queued,
           p.queue_sum, r.waits
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

-- Sums over segments

CREATE TYPE delegation_part AS (
    author text, trigger text, num_segments bigint, num_samples bigint, num_takeovers bigint, tokens bigint,
    tokens_discarded bigint, cached bigint, prompts bigint, waits bigint, wait_sum float8, queues bigint,
    queue_sum float8, writes bigint, write_sum float8
);

COMMENT ON TYPE delegation_part IS
    'what the large model wrote and the policy put in, for one trigger';

CREATE FUNCTION aggregate_delegation(job bigint, first_problem bigint, last_problem bigint)
RETURNS SETOF delegation_part LANGUAGE sql STABLE AS $$
    SELECT g.author, g.trigger, count(*), count(DISTINCT g.sample_id), count(*) FILTER (WHERE g.takes_over),
           sum(cardinality(g.token_ids)), sum(cardinality(g.discarded_ids)), sum(g.cached_tokens),
           sum(g.prompt_tokens), count(g.wait_seconds), coalesce(sum(g.wait_seconds), 0),
           count(g.queue_seconds), coalesce(sum(g.queue_seconds), 0),
           count(g.write_seconds), coalesce(sum(g.write_seconds), 0)
    FROM samples s CROSS JOIN LATERAL (SELECT * FROM segments WHERE sample_id = s.id OFFSET 0) g
    WHERE s.job_id = job AND s.problem_id BETWEEN first_problem AND last_problem AND g.author IN ('large', 'inserted')
    GROUP BY g.author, g.trigger
$$;

COMMENT ON FUNCTION aggregate_delegation IS
    'what the large model wrote and the policy put in, by trigger, in a range of problems';

CREATE FUNCTION job_delegation(job bigint) RETURNS SETOF delegation_part LANGUAGE sql STABLE AS $$
    SELECT p.* FROM rollups r CROSS JOIN LATERAL jsonb_populate_recordset(NULL::delegation_part, r.delegation) p
    WHERE r.job_id = job AND r.refreshed_at IS NOT NULL
    UNION ALL
    SELECT p.* FROM live_ranges(job) r
    CROSS JOIN LATERAL aggregate_delegation(job, r.first_problem, r.last_problem) p
$$;

COMMENT ON FUNCTION job_delegation IS
    'what the large model wrote and the policy put in, by trigger, in a job';

CREATE FUNCTION placed_segments(job bigint, first_problem bigint, last_problem bigint) RETURNS TABLE (
    sample_id bigint, segment_index integer, author text, takes_over boolean, trigger text, tokens integer,
    start_token bigint, output_tokens integer, score float8, is_complete boolean
) LANGUAGE sql STABLE AS $$
    SELECT g.sample_id, g.segment_index, g.author, g.takes_over, g.trigger, cardinality(g.token_ids),
           sum(cardinality(g.token_ids)) OVER (PARTITION BY g.sample_id ORDER BY g.segment_index)
           - cardinality(g.token_ids),
           s.tokens_small + s.tokens_large + s.tokens_inserted, s.score, s.state IN ('finished', 'graded')
    FROM samples s CROSS JOIN LATERAL (SELECT * FROM segments WHERE sample_id = s.id OFFSET 0) g
    WHERE s.job_id = job AND s.problem_id BETWEEN first_problem AND last_problem
$$;

COMMENT ON FUNCTION placed_segments IS
    'the segments of a range of problems with their places in the output';

CREATE TYPE flow_part AS (
    trigger text, followed_by text, num_takeovers bigint, positions bigint, position_sum float8, tokens bigint,
    tokens_between bigint, scored bigint, score_sum float8
);

COMMENT ON TYPE flow_part IS
    'takeovers for one reason that were followed by one for another, or by none (end)';

CREATE FUNCTION aggregate_flow(job bigint, first_problem bigint, last_problem bigint) RETURNS SETOF flow_part
LANGUAGE sql STABLE AS $$
    SELECT t.trigger, t.followed_by, count(*), count(t.position), coalesce(sum(t.position), 0), sum(t.tokens),
           sum(t.tokens_between)::bigint, count(t.score), coalesce(sum(t.score), 0)
    FROM (
        SELECT p.trigger, p.tokens, p.score, p.start_token / nullif(p.output_tokens, 0)::float8 AS position,
               coalesce(lead(p.trigger) OVER w, CASE WHEN p.is_complete THEN 'end' END) AS followed_by,
               coalesce(lead(p.start_token) OVER w, p.output_tokens) - p.start_token - p.tokens AS tokens_between
        FROM placed_segments(job, first_problem, last_problem) p
        WHERE p.takes_over
        WINDOW w AS (PARTITION BY p.sample_id ORDER BY p.segment_index)
    ) t
    WHERE t.followed_by IS NOT NULL
    GROUP BY t.trigger, t.followed_by
$$;

COMMENT ON FUNCTION aggregate_flow IS
    'takeovers by trigger and by what followed, in a range of problems';

CREATE FUNCTION job_flow(job bigint) RETURNS SETOF flow_part LANGUAGE sql STABLE AS $$
    SELECT p.* FROM rollups r CROSS JOIN LATERAL jsonb_populate_recordset(NULL::flow_part, r.flow) p
    WHERE r.job_id = job AND r.refreshed_at IS NOT NULL
    UNION ALL
    SELECT p.* FROM live_ranges(job) r CROSS JOIN LATERAL aggregate_flow(job, r.first_problem, r.last_problem) p
$$;

COMMENT ON FUNCTION job_flow IS
    'takeovers by trigger and by what followed, in a job';

CREATE TYPE tenth_part AS (tenth integer, tokens_large float8, num_takeovers bigint);

COMMENT ON TYPE tenth_part IS
    'of one tenth of the complete samples: tokens that the large model wrote, takeovers that begin in it';

CREATE FUNCTION aggregate_tenths(job bigint, first_problem bigint, last_problem bigint) RETURNS SETOF tenth_part
LANGUAGE sql STABLE AS $$
    SELECT t.tenth, sum(greatest(0, least(p.start_token + p.tokens, t.tenth * t.width)
                                    - greatest(p.start_token, (t.tenth - 1) * t.width)))::float8,
           count(*) FILTER (WHERE p.takes_over AND p.start_token >= (t.tenth - 1) * t.width
                              AND (p.start_token < t.tenth * t.width OR t.tenth = 10))
    FROM placed_segments(job, first_problem, last_problem) p
    CROSS JOIN LATERAL (
        SELECT i AS tenth, p.output_tokens / 10.0::float8 AS width FROM generate_series(1, 10) AS i
    ) t
    WHERE p.author = 'large' AND p.is_complete
    GROUP BY t.tenth
$$;

COMMENT ON FUNCTION aggregate_tenths IS
    'the large model''s share by tenth of the complete samples of a range of problems';

CREATE FUNCTION job_tenths(job bigint) RETURNS SETOF tenth_part LANGUAGE sql STABLE AS $$
    SELECT p.* FROM rollups r CROSS JOIN LATERAL jsonb_populate_recordset(NULL::tenth_part, r.tenths) p
    WHERE r.job_id = job AND r.refreshed_at IS NOT NULL
    UNION ALL
    SELECT p.* FROM live_ranges(job) r
    CROSS JOIN LATERAL aggregate_tenths(job, r.first_problem, r.last_problem) p
$$;

COMMENT ON FUNCTION job_tenths IS
    'the large model''s share by tenth of the complete samples of a job';

-- Sums over steps

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

-- Lengths
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

-- Refreshing and invalidating

CREATE FUNCTION refresh_rollup(job bigint, first bigint) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    last bigint;
    sums sample_sums;
    requests cost_sums;
BEGIN
    -- Whoever changes an idle sample waits for this lock, or has it: what follows sees all that came before.
    SELECT last_problem INTO last FROM rollups
    WHERE job_id = job AND first_problem = first AND refreshed_at IS NULL FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    SELECT * INTO sums FROM aggregate_samples(job, first, last);
    IF sums.ready + sums.drafting + sums.awaiting_large + sums.assisting + sums.finished > 0 THEN
        RETURN false;
    END IF;
    SELECT * INTO requests FROM aggregate_cost(job, first, last);
    UPDATE rollups SET
        refreshed_at = clock_timestamp(), samples = to_jsonb(sums),
        problems = (SELECT to_jsonb(p) FROM aggregate_problems(job, first, last) p),
        cost = to_jsonb(requests) - 'waits', waits = requests.waits,
        walls = (SELECT array_agg(w.wall) FROM aggregate_walls(job, first, last) AS w (wall)),
        busy = (SELECT coalesce(jsonb_agg(to_jsonb(p)), '[]') FROM aggregate_busy(job, first, last) p),
        delegation = (SELECT coalesce(jsonb_agg(to_jsonb(p)), '[]') FROM aggregate_delegation(job, first, last) p),
        flow = (SELECT coalesce(jsonb_agg(to_jsonb(p)), '[]') FROM aggregate_flow(job, first, last) p),
        tenths = (SELECT coalesce(jsonb_agg(to_jsonb(p)), '[]') FROM aggregate_tenths(job, first, last) p),
        passes = (SELECT coalesce(jsonb_agg(to_jsonb(p)), '[]') FROM aggregate_passes(job, first, last) p),
        votes = (SELECT coalesce(jsonb_agg(to_jsonb(p)), '[]') FROM aggregate_votes(job, first, last) p),
        steps = (SELECT coalesce(jsonb_agg(to_jsonb(p)), '[]') FROM aggregate_steps(job, first, last) p)
    WHERE job_id = job AND first_problem = first;
    INSERT INTO length_counts (job_id, author, finish_reason, verdict, tokens, n, score)
    SELECT job, p.* FROM aggregate_lengths(job, first, last) p;
    RETURN true;
END $$;

COMMENT ON FUNCTION refresh_rollup IS
    'keeps what the samples of a part of a job add up to; false: one is not idle, or somebody is at it';

-- Nobody waits for a sample with a rollup locked. The lock is taken before what was aggregated is read, in a statement
-- of its own: what is read afterwards is what was there when the rollup was refreshed, but for the rows changed just
-- now. NOT IN is done by hashing, however few rows a plan was made for.
CREATE FUNCTION invalidate_rollups() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    touched record;
BEGIN
    IF NOT EXISTS (
        SELECT FROM old_rows WHERE state NOT IN ('ready', 'drafting', 'awaiting_large', 'assisting', 'finished')
    ) THEN
        RETURN NULL;
    END IF;
    FOR touched IN
        WITH named AS MATERIALIZED (
            SELECT DISTINCT r.job_id, r.first_problem
            FROM (
                SELECT DISTINCT job_id, problem_id FROM old_rows
                WHERE state NOT IN ('ready', 'drafting', 'awaiting_large', 'assisting', 'finished')
            ) o
            CROSS JOIN LATERAL (
                SELECT r.job_id, r.first_problem FROM rollups r
                WHERE r.job_id = o.job_id AND r.first_problem <= o.problem_id ORDER BY r.first_problem DESC LIMIT 1
            ) r
        ),
        locked AS MATERIALIZED (
            SELECT r.job_id, r.first_problem, r.last_problem, r.refreshed_at, (r.samples->>'graded')::bigint AS graded
            FROM rollups r JOIN named n ON n.job_id = r.job_id AND n.first_problem = r.first_problem
            ORDER BY r.job_id, r.first_problem FOR NO KEY UPDATE OF r
        ),
        changed AS (
            UPDATE rollups r SET refreshed_at = NULL, changed_at = clock_timestamp() FROM locked k
            WHERE r.job_id = k.job_id AND r.first_problem = k.first_problem
        )
        SELECT * FROM locked WHERE refreshed_at IS NOT NULL AND graded > 0
    LOOP
        INSERT INTO length_counts (job_id, author, finish_reason, verdict, tokens, n, score)
        SELECT s.job_id, a.author, s.finish_reason, verdict_of(s.score), a.tokens, -count(*),
               -coalesce(sum(s.score::numeric), 0)
        FROM (
            SELECT * FROM old_rows
            UNION ALL
            SELECT s.* FROM samples s
            WHERE s.job_id = touched.job_id AND s.problem_id BETWEEN touched.first_problem AND touched.last_problem
              AND s.id NOT IN (SELECT id FROM new_rows)
        ) s
        CROSS JOIN LATERAL (
            VALUES ('all', s.tokens_small + s.tokens_large + s.tokens_inserted), ('small', s.tokens_small),
                   ('large', s.tokens_large), ('inserted', s.tokens_inserted)
        ) a (author, tokens)
        WHERE s.job_id = touched.job_id AND s.problem_id BETWEEN touched.first_problem AND touched.last_problem
          AND s.state IN ('finished', 'graded')
        GROUP BY s.job_id, a.author, s.finish_reason, verdict_of(s.score), a.tokens;
    END LOOP;
    RETURN NULL;
END $$;

COMMENT ON FUNCTION invalidate_rollups IS
    'invalidates the rollups of which a sample stops being idle, or changes while it is';

CREATE TRIGGER invalidate_rollups AFTER UPDATE ON samples
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION invalidate_rollups();
