-- Sums over samples: by state and end, of scores and tokens, and how long each took.
-- Read by: the totals (totals.sql); the views job_progress, delegation_progress, step_summary, truncation; refresh.sql.

CREATE TYPE sample_sums AS (
    samples_total bigint, pending bigint, ready bigint, drafting bigint, awaiting_large bigint, assisting bigint,
    awaiting_judge bigint, judging bigint, finished bigint, graded bigint, failed bigint, cancelled bigint,
    num_length bigint, num_context bigint, num_repetition bigint, num_scored bigint, num_right bigint,
    scored_truncated bigint, scored_eos bigint, takeovers bigint,
    tokens_small bigint, tokens_large bigint, tokens_inserted bigint, discarded_small bigint, discarded_large bigint,
    aside_small bigint, aside_large bigint, aside_judge bigint, taken_small bigint, taken_large bigint,
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
           coalesce(sum(g.num) FILTER (WHERE g.state = 'awaiting_judge'), 0)::bigint,
           coalesce(sum(g.num) FILTER (WHERE g.state = 'judging'), 0)::bigint,
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
           coalesce(sum(g.aside_judge), 0)::bigint,
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
               s.state IN ('finished', 'graded') AND s.finish_reason IN ('eos', 'stop') AS is_eos,
               sum(s.num_takeovers) AS takeovers, sum(s.tokens_small) AS tokens_small,
               sum(s.tokens_large) AS tokens_large, sum(s.tokens_inserted) AS tokens_inserted,
               sum(s.discarded_small) AS discarded_small, sum(s.discarded_large) AS discarded_large,
               sum(s.aside_small) AS aside_small, sum(s.aside_large) AS aside_large,
               sum(s.aside_judge) AS aside_judge,
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
           coalesce(sum(p.awaiting_judge), 0)::bigint, coalesce(sum(p.judging), 0)::bigint,
           coalesce(sum(p.finished), 0)::bigint, coalesce(sum(p.graded), 0)::bigint,
           coalesce(sum(p.failed), 0)::bigint, coalesce(sum(p.cancelled), 0)::bigint,
           coalesce(sum(p.num_length), 0)::bigint, coalesce(sum(p.num_context), 0)::bigint,
           coalesce(sum(p.num_repetition), 0)::bigint, coalesce(sum(p.num_scored), 0)::bigint,
           coalesce(sum(p.num_right), 0)::bigint, coalesce(sum(p.scored_truncated), 0)::bigint,
           coalesce(sum(p.scored_eos), 0)::bigint, coalesce(sum(p.takeovers), 0)::bigint,
           coalesce(sum(p.tokens_small), 0)::bigint, coalesce(sum(p.tokens_large), 0)::bigint,
           coalesce(sum(p.tokens_inserted), 0)::bigint, coalesce(sum(p.discarded_small), 0)::bigint,
           coalesce(sum(p.discarded_large), 0)::bigint, coalesce(sum(p.aside_small), 0)::bigint,
           coalesce(sum(p.aside_large), 0)::bigint, coalesce(sum(p.aside_judge), 0)::bigint,
           coalesce(sum(p.taken_small), 0)::bigint,
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
