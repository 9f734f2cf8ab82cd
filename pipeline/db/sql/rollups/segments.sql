-- Sums over segments: what was delegated, when and where in a sample.
-- Read by: the views takeovers, takeover_flow, delegation and delegation_progress; refresh.sql.

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
    sample_id bigint, segment_index integer, author text, takes_over boolean, trigger text, cue text,
    tokens integer, start_token bigint, output_tokens integer, score float8, is_complete boolean
) LANGUAGE sql STABLE AS $$
    SELECT s.id, g.segment_index, g.author, g.takes_over, g.trigger, g.cue, cardinality(g.token_ids),
           sum(cardinality(g.token_ids)) OVER (PARTITION BY s.id ORDER BY g.segment_index)
           - cardinality(g.token_ids),
           s.tokens_small + s.tokens_large + s.tokens_inserted, s.score, s.state IN ('finished', 'graded')
    FROM samples s CROSS JOIN LATERAL (SELECT * FROM segments WHERE sample_id = s.id OFFSET 0) g
    WHERE s.job_id = job AND s.problem_id BETWEEN first_problem AND last_problem
$$;

COMMENT ON FUNCTION placed_segments IS
    'the segments of a range of problems with their places in the output';

CREATE FUNCTION placed_takeovers(job bigint, first_problem bigint, last_problem bigint) RETURNS TABLE (
    sample_id bigint, segment_index integer, trigger text, cue text, tokens integer, start_token integer,
    "position" float8, followed_by text, tokens_between integer, score float8
) LANGUAGE sql STABLE AS $$
    SELECT p.sample_id, p.segment_index, p.trigger, p.cue, p.tokens, p.start_token::integer,
           p.start_token / nullif(p.output_tokens, 0)::float8,
           coalesce(lead(p.trigger) OVER w, CASE WHEN p.is_complete THEN 'end' END),
           (coalesce(lead(p.start_token) OVER w, p.output_tokens) - p.start_token - p.tokens)::integer, p.score
    FROM placed_segments(job, first_problem, last_problem) p
    WHERE p.takes_over
    WINDOW w AS (PARTITION BY p.sample_id ORDER BY p.segment_index)
$$;

COMMENT ON FUNCTION placed_takeovers IS
    'the takeovers of a range of problems: where each is in its sample, and what followed it';

CREATE TYPE flow_part AS (
    trigger text, followed_by text, num_takeovers bigint, positions bigint, position_sum float8, tokens bigint,
    tokens_between bigint, scored bigint, score_sum float8
);

COMMENT ON TYPE flow_part IS
    'takeovers for one reason that were followed by one for another, or by none (end)';

CREATE FUNCTION aggregate_flow(job bigint, first_problem bigint, last_problem bigint) RETURNS SETOF flow_part
LANGUAGE sql STABLE AS $$
    SELECT t.trigger, t.followed_by, count(*), count(t.position), coalesce(sum(t.position), 0), sum(t.tokens),
           sum(t.tokens_between), count(t.score), coalesce(sum(t.score), 0)
    FROM placed_takeovers(job, first_problem, last_problem) t
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
