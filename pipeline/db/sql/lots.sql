-- Lots: what samples at rest add up to is kept, a part of a job at a time (pipeline.db.totals).
-- Read by: the views; upkeep, which counts.

CREATE FUNCTION make_lots(job bigint, size integer DEFAULT 1024) RETURNS void LANGUAGE sql AS $$
    INSERT INTO lots (job_id, first_problem, last_problem)
    SELECT job, b.first, coalesce(lead(b.first) OVER (ORDER BY b.first) - 1, 9223372036854775807)
    FROM (
        SELECT 0 AS first
        UNION ALL
        SELECT p.id FROM jobs j JOIN problems p ON p.problem_set_id = j.problem_set_id
        WHERE j.id = job AND p.position BETWEEN 1 AND j.num_problems - 1
          AND p.position % greatest(1, size / j.num_samples) = 0
    ) b
$$;

COMMENT ON FUNCTION make_lots IS
    'cuts a new job into lots of about so many samples';

CREATE FUNCTION open_ranges(job bigint) RETURNS TABLE (first_problem bigint, last_problem bigint)
LANGUAGE sql STABLE ROWS 5 AS $$
    SELECT l.first_problem, l.last_problem FROM lots l WHERE l.job_id = job AND l.counted_at IS NULL
    UNION ALL
    SELECT 0, 9223372036854775807 WHERE NOT EXISTS (SELECT FROM lots l WHERE l.job_id = job)
$$;

COMMENT ON FUNCTION open_ranges IS
    'the parts of a job whose samples must be looked at: problem ids from, to';

CREATE FUNCTION tell_samples(job bigint, first_problem bigint, last_problem bigint) RETURNS TABLE (
    pending bigint, graded bigint, failed bigint, cancelled bigint, num_length bigint, num_context bigint,
    num_repetition bigint, num_scored bigint, num_right bigint, scored_truncated bigint, scored_eos bigint,
    takeovers bigint, tokens_small bigint, tokens_large bigint, tokens_inserted bigint, discarded_small bigint,
    discarded_large bigint, complete_tokens bigint, complete_takeovers bigint, ready bigint, drafting bigint,
    awaiting_large bigint, assisting bigint, finished bigint,
    score_sum numeric, score_squares numeric, truncated_scores numeric, eos_scores numeric, walls float8[]
) LANGUAGE sql STABLE ROWS 1 AS $$
    SELECT coalesce(sum(s.num) FILTER (WHERE s.state = 'pending'), 0)::bigint,
           coalesce(sum(s.num) FILTER (WHERE s.state = 'graded'), 0)::bigint,
           coalesce(sum(s.num) FILTER (WHERE s.state = 'failed'), 0)::bigint,
           coalesce(sum(s.num) FILTER (WHERE s.state = 'cancelled'), 0)::bigint,
           coalesce(sum(s.num) FILTER (WHERE s.is_complete AND s.finish_reason = 'length'), 0)::bigint,
           coalesce(sum(s.num) FILTER (WHERE s.is_complete AND s.finish_reason = 'context'), 0)::bigint,
           coalesce(sum(s.num) FILTER (WHERE s.is_complete AND s.finish_reason = 'repetition'), 0)::bigint,
           coalesce(sum(s.num) FILTER (WHERE s.state = 'graded' AND s.score IS NOT NULL), 0)::bigint,
           coalesce(sum(s.num) FILTER (WHERE s.state = 'graded' AND s.score >= 0.5), 0)::bigint,
           coalesce(sum(s.num) FILTER (WHERE s.is_complete AND s.score IS NOT NULL AND s.finish_reason IN ('length',
           'context')), 0)::bigint,
           coalesce(sum(s.num) FILTER (WHERE s.is_complete AND s.score IS NOT NULL AND s.finish_reason = 'eos'),
           0)::bigint,
           coalesce(sum(s.num_takeovers) FILTER (WHERE true), 0)::bigint,
           coalesce(sum(s.tokens_small) FILTER (WHERE true), 0)::bigint,
           coalesce(sum(s.tokens_large) FILTER (WHERE true), 0)::bigint,
           coalesce(sum(s.tokens_inserted) FILTER (WHERE true), 0)::bigint,
           coalesce(sum(s.discarded_small) FILTER (WHERE true), 0)::bigint,
           coalesce(sum(s.discarded_large) FILTER (WHERE true), 0)::bigint,
           coalesce(sum(s.tokens_small + s.tokens_large + s.tokens_inserted) FILTER (WHERE s.is_complete), 0)::bigint,
           coalesce(sum(s.num_takeovers) FILTER (WHERE s.is_complete), 0)::bigint,
           coalesce(sum(s.num) FILTER (WHERE s.state = 'ready'), 0)::bigint,
           coalesce(sum(s.num) FILTER (WHERE s.state = 'drafting'), 0)::bigint,
           coalesce(sum(s.num) FILTER (WHERE s.state = 'awaiting_large'), 0)::bigint,
           coalesce(sum(s.num) FILTER (WHERE s.state = 'assisting'), 0)::bigint,
           coalesce(sum(s.num) FILTER (WHERE s.state = 'finished'), 0)::bigint,
           coalesce(sum(s.num * s.score) FILTER (WHERE s.state = 'graded'), 0),
           coalesce(sum(s.num * s.score * s.score) FILTER (WHERE s.state = 'graded'), 0),
           coalesce(sum(s.num * s.score) FILTER (WHERE s.is_complete AND s.finish_reason IN ('length', 'context')),
           0),
           coalesce(sum(s.num * s.score) FILTER (WHERE s.is_complete AND s.finish_reason = 'eos'), 0),
           (SELECT array_agg(extract(epoch FROM s.finished_at - s.admitted_at)::float8) FROM samples s
            WHERE s.job_id = job AND s.problem_id BETWEEN first_problem AND last_problem AND s.state IN ('finished',
            'graded') AND s.finished_at IS NOT NULL AND s.admitted_at IS NOT NULL)
    FROM (
        SELECT s.state, s.finish_reason, s.score::numeric AS score, s.state IN ('finished', 'graded') AS is_complete,
               count(*) AS num,
               sum(s.num_takeovers) AS num_takeovers, sum(s.tokens_small) AS tokens_small,
               sum(s.tokens_large) AS tokens_large, sum(s.tokens_inserted) AS tokens_inserted,
               sum(s.discarded_small) AS discarded_small, sum(s.discarded_large) AS discarded_large
        FROM samples s WHERE s.job_id = job AND s.problem_id BETWEEN first_problem AND last_problem GROUP BY s.state,
        s.finish_reason, s.score
    ) s
$$;

COMMENT ON FUNCTION tell_samples IS
    'what the samples of a range of problems add up to: states, ends, scores, tokens';

CREATE FUNCTION tell_problems(job bigint, first_problem bigint, last_problem bigint) RETURNS TABLE (
    problems_scored bigint, problem_squares numeric, problem_products numeric, problem_numbers numeric
) LANGUAGE sql STABLE ROWS 1 AS $$
    SELECT count(*), coalesce(sum(p.score * p.score), 0), coalesce(sum(p.score * p.n), 0), coalesce(sum(p.n * p.n), 0)
    FROM (
        SELECT sum(s.score::numeric) AS score, count(*) AS n FROM samples s
        WHERE s.job_id = job AND s.problem_id BETWEEN first_problem AND last_problem AND s.state = 'graded'
        AND s.score IS NOT NULL GROUP BY s.problem_id
    ) p
$$;

COMMENT ON FUNCTION tell_problems IS
    'what the scores of a range of problems add up to, problem by problem';

CREATE FUNCTION tell_cost(job bigint, first_problem bigint, last_problem bigint) RETURNS TABLE (
    prompt_tokens_small bigint, prompt_tokens_large bigint, num_queued bigint,
    request_seconds_small float8, request_seconds_large float8, queue_sum float8, waits float8[]
) LANGUAGE sql STABLE ROWS 1 AS $$
    SELECT coalesce(sum(w.prompts_small), 0), coalesce(sum(w.prompts_large), 0), count(w.queue),
           coalesce(sum(w.seconds_small), 0), coalesce(sum(w.seconds_large), 0), coalesce(sum(w.queue), 0),
           array_agg(w.wait) FILTER (WHERE w.wait IS NOT NULL)
    FROM (
        SELECT sum(g.prompt_tokens - g.cached_tokens) FILTER (WHERE g.author = 'small') AS prompts_small,
               sum(g.prompt_tokens - g.cached_tokens) FILTER (WHERE g.author = 'large') AS prompts_large,
               sum(g.write_seconds) FILTER (WHERE g.author = 'small') AS seconds_small,
               sum(g.write_seconds) FILTER (WHERE g.author = 'large') AS seconds_large,
               sum(g.wait_seconds) AS wait, sum(g.queue_seconds) AS queue
        FROM samples s CROSS JOIN LATERAL (SELECT * FROM segments WHERE sample_id = s.id OFFSET 0) g
        WHERE s.job_id = job AND s.problem_id BETWEEN first_problem AND last_problem AND g.author IN ('small',
        'large') GROUP BY g.sample_id
    ) w
$$;

COMMENT ON FUNCTION tell_cost IS
    'what the segments of a range of problems add up to: prompts, seconds, waits';

CREATE FUNCTION tell_busy(job bigint, first_problem bigint, last_problem bigint) RETURNS TABLE (worker_id bigint,
author text, times tstzmultirange) LANGUAGE sql STABLE AS $$
        SELECT g.worker_id, g.author, range_agg(tstzrange(
                   g.committed_at - make_interval(secs => greatest(0, coalesce(g.write_seconds, 0))), g.committed_at))
        FROM samples s CROSS JOIN LATERAL (SELECT * FROM segments WHERE sample_id = s.id OFFSET 0) g
        WHERE s.job_id = job AND s.problem_id BETWEEN first_problem AND last_problem AND g.author IN ('small',
        'large') GROUP BY g.worker_id, g.author
     $$;

COMMENT ON FUNCTION tell_busy IS
    'when each worker had a request of a range of problems';

CREATE FUNCTION tell_delegation(job bigint, first_problem bigint, last_problem bigint) RETURNS TABLE (author text,
trigger text, num_segments bigint, num_samples bigint, tokens bigint, tokens_discarded bigint, cached bigint,
prompts bigint, waits bigint, wait_sum float8, queues bigint, queue_sum float8, writes bigint,
write_sum float8) LANGUAGE sql STABLE AS $$
        SELECT g.author, g.trigger, count(*), count(DISTINCT g.sample_id), sum(cardinality(g.token_ids)),
               sum(cardinality(g.discarded_ids)), sum(g.cached_tokens), sum(g.prompt_tokens),
               count(g.wait_seconds), coalesce(sum(g.wait_seconds), 0),
               count(g.queue_seconds), coalesce(sum(g.queue_seconds), 0),
               count(g.write_seconds), coalesce(sum(g.write_seconds), 0)
        FROM samples s CROSS JOIN LATERAL (SELECT * FROM segments WHERE sample_id = s.id OFFSET 0) g
        WHERE s.job_id = job AND s.problem_id BETWEEN first_problem AND last_problem AND g.author IN ('large',
        'inserted') GROUP BY g.author, g.trigger
     $$;

COMMENT ON FUNCTION tell_delegation IS
    'what the large model wrote and the policy put in, by trigger, in a range of problems';

CREATE FUNCTION tell_flow(job bigint, first_problem bigint, last_problem bigint) RETURNS TABLE (trigger text,
followed_by text, num_takeovers bigint, positions bigint, position_sum float8, tokens bigint, tokens_between bigint,
scored bigint, score_sum float8) LANGUAGE sql STABLE AS $$
        SELECT t.trigger, t.followed_by, count(*), count(t.position), coalesce(sum(t.position), 0), sum(t.tokens),
               sum(t.tokens_between), count(t.score), coalesce(sum(t.score), 0)
        FROM (
            SELECT p.trigger, p.tokens, p.score, p.start_token / nullif(p.output_tokens, 0)::float8 AS position,
                   coalesce(lead(p.trigger) OVER w, CASE WHEN p.is_complete THEN 'end' END) AS followed_by,
                   coalesce(lead(p.start_token) OVER w, p.output_tokens) - p.start_token - p.tokens AS tokens_between
            FROM (
    SELECT g.sample_id, g.segment_index, g.author, g.takes_over, g.trigger, cardinality(g.token_ids) AS tokens,
           sum(cardinality(g.token_ids)) OVER (PARTITION BY g.sample_id ORDER BY g.segment_index)
           - cardinality(g.token_ids) AS start_token,
           s.tokens_small + s.tokens_large + s.tokens_inserted AS output_tokens, s.score, s.state IN ('finished',
           'graded') AS is_complete
    FROM samples s CROSS JOIN LATERAL (SELECT * FROM segments WHERE sample_id = s.id OFFSET 0) g
    WHERE s.job_id = job AND s.problem_id BETWEEN first_problem AND last_problem
) p WHERE p.takes_over
            WINDOW w AS (PARTITION BY p.sample_id ORDER BY p.segment_index)
        ) t
        WHERE t.followed_by IS NOT NULL GROUP BY t.trigger, t.followed_by
     $$;

COMMENT ON FUNCTION tell_flow IS
    'takeovers by trigger and by what followed, in a range of problems';

CREATE FUNCTION tell_tenths(job bigint, first_problem bigint, last_problem bigint) RETURNS TABLE (tenth integer,
tokens_large float8, num_takeovers bigint) LANGUAGE sql STABLE AS $$
        SELECT t.tenth, sum(greatest(0, least(p.start_token + p.tokens, t.tenth * t.width)
                                        - greatest(p.start_token, (t.tenth - 1) * t.width)))::float8,
               count(*) FILTER (WHERE p.takes_over AND p.start_token >= (t.tenth - 1) * t.width
                                  AND (p.start_token < t.tenth * t.width OR t.tenth = 10))
        FROM (
    SELECT g.sample_id, g.segment_index, g.author, g.takes_over, g.trigger, cardinality(g.token_ids) AS tokens,
           sum(cardinality(g.token_ids)) OVER (PARTITION BY g.sample_id ORDER BY g.segment_index)
           - cardinality(g.token_ids) AS start_token,
           s.tokens_small + s.tokens_large + s.tokens_inserted AS output_tokens, s.score, s.state IN ('finished',
           'graded') AS is_complete
    FROM samples s CROSS JOIN LATERAL (SELECT * FROM segments WHERE sample_id = s.id OFFSET 0) g
    WHERE s.job_id = job AND s.problem_id BETWEEN first_problem AND last_problem
) p
        CROSS JOIN LATERAL (
            SELECT i AS tenth, p.output_tokens / 10.0::float8 AS width FROM generate_series(1, 10) AS i
        ) t
        WHERE p.author = 'large' AND p.is_complete GROUP BY t.tenth
     $$;

COMMENT ON FUNCTION tell_tenths IS
    'the large model''s share by tenth of the complete samples of a range of problems';

CREATE FUNCTION tell_passes(job bigint, first_problem bigint, last_problem bigint) RETURNS TABLE (n bigint, c bigint,
problems bigint) LANGUAGE sql STABLE AS $$
        SELECT p.n, p.c, count(*)
        FROM (
            SELECT count(*) AS n, count(*) FILTER (WHERE s.score >= 0.5) AS c FROM samples s
            WHERE s.job_id = job AND s.problem_id BETWEEN first_problem AND last_problem AND s.state = 'graded'
            AND s.score IS NOT NULL GROUP BY s.problem_id
        ) p
        GROUP BY p.n, p.c
     $$;

COMMENT ON FUNCTION tell_passes IS
    'problems of a range by number of scored and of right samples';

CREATE FUNCTION tell_votes(job bigint, first_problem bigint, last_problem bigint) RETURNS TABLE (k bigint,
num_problems bigint, share_sum float8) LANGUAGE sql STABLE AS $$
        WITH votes AS (
            SELECT s.problem_id,
                   CASE WHEN s.score >= 0.5 THEN 'right' ELSE 'wrong ' || s.predicted_answer END AS vote,
                   row_number() OVER (PARTITION BY s.problem_id ORDER BY s.sample_index) - 1 AS place,
                   count(*) OVER (PARTITION BY s.problem_id) AS n
            FROM samples s WHERE s.job_id = job AND s.problem_id BETWEEN first_problem AND last_problem
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
                            / nullif(count(*) FILTER (WHERE vote IS NOT NULL AND num = most), 0)::float8,
                            0) AS is_right
            FROM winners GROUP BY problem_id, k, bundle
        ),
        shares AS (SELECT problem_id, k, avg(is_right) AS share FROM bundles GROUP BY problem_id, k)
        SELECT k, count(*), sum(share) FROM shares GROUP BY k
     $$;

COMMENT ON FUNCTION tell_votes IS
    'shares of right majorities by number of votes, in a range of problems';

CREATE FUNCTION tell_step_counts(job bigint, first_problem bigint,
last_problem bigint) RETURNS TABLE (sentence_class text, author text, tokens integer, num_steps bigint,
num_taken_over bigint, scored bigint, score_sum float8) LANGUAGE sql STABLE AS $$
        SELECT t.sentence_class, t.author, n.tokens, count(*), count(t.trigger), count(s.score),
               coalesce(sum(s.score), 0)
        FROM samples s CROSS JOIN LATERAL (SELECT * FROM steps WHERE sample_id = s.id OFFSET 0) t
        CROSS JOIN LATERAL (SELECT t.tokens_small + t.tokens_large + t.tokens_inserted AS tokens) n
        WHERE s.job_id = job AND s.problem_id BETWEEN first_problem AND last_problem AND s.state IN ('finished',
        'graded') GROUP BY t.sentence_class, t.author, n.tokens
     $$;

COMMENT ON FUNCTION tell_step_counts IS
    'steps by class, author and length, in a range of problems';

CREATE FUNCTION lengths(job bigint) RETURNS TABLE (
    author text, finish_reason text, verdict text, tokens integer, n bigint, score numeric
) LANGUAGE sql STABLE AS $$
    SELECT c.author, c.finish_reason, c.verdict, c.tokens, c.n, c.score FROM length_counts c WHERE c.job_id = job
    UNION ALL
    SELECT l.author, l.finish_reason, l.verdict, l.tokens, l.n, l.score
    FROM open_ranges(job) r CROSS JOIN LATERAL (
        SELECT s.job_id, a.author, s.finish_reason,
               CASE WHEN s.score >= 0.5 THEN 'right' WHEN s.score < 0.5 THEN 'wrong' ELSE 'unscored' END AS verdict,
               a.tokens, 1 AS n, coalesce(s.score::numeric, 0) AS score
        FROM samples s
    CROSS JOIN LATERAL (
        VALUES ('all', s.tokens_small + s.tokens_large + s.tokens_inserted), ('small', s.tokens_small),
               ('large', s.tokens_large), ('inserted', s.tokens_inserted)
    ) a (author, tokens)
 WHERE s.job_id = job AND s.problem_id BETWEEN r.first_problem AND r.last_problem AND s.state IN ('finished',
 'graded')
    ) l
$$;

COMMENT ON FUNCTION lengths IS
    'how many complete samples of a job are how long, by author, end and verdict; a key comes more than once';

CREATE FUNCTION count_states(job bigint) RETURNS TABLE (
    samples_total bigint, pending bigint, graded bigint, failed bigint, cancelled bigint, num_length bigint,
    num_context bigint, num_repetition bigint, num_scored bigint, num_right bigint, scored_truncated bigint,
    scored_eos bigint, takeovers bigint, tokens_small bigint, tokens_large bigint, tokens_inserted bigint,
    discarded_small bigint, discarded_large bigint, complete_tokens bigint, complete_takeovers bigint, ready bigint,
    drafting bigint, awaiting_large bigint, assisting bigint, finished bigint
) LANGUAGE sql STABLE ROWS 1 AS $$
    SELECT coalesce(sum(pending + graded + failed + cancelled + ready + drafting + awaiting_large + assisting
           + finished), 0)::bigint AS samples_total, coalesce(sum(pending), 0)::bigint, coalesce(sum(graded),
           0)::bigint, coalesce(sum(failed), 0)::bigint, coalesce(sum(cancelled), 0)::bigint,
           coalesce(sum(num_length), 0)::bigint, coalesce(sum(num_context), 0)::bigint, coalesce(sum(num_repetition),
           0)::bigint, coalesce(sum(num_scored), 0)::bigint, coalesce(sum(num_right), 0)::bigint,
           coalesce(sum(scored_truncated), 0)::bigint, coalesce(sum(scored_eos), 0)::bigint, coalesce(sum(takeovers),
           0)::bigint, coalesce(sum(tokens_small), 0)::bigint, coalesce(sum(tokens_large), 0)::bigint,
           coalesce(sum(tokens_inserted), 0)::bigint, coalesce(sum(discarded_small), 0)::bigint,
           coalesce(sum(discarded_large), 0)::bigint, coalesce(sum(complete_tokens), 0)::bigint,
           coalesce(sum(complete_takeovers), 0)::bigint, coalesce(sum(ready), 0)::bigint, coalesce(sum(drafting),
           0)::bigint, coalesce(sum(awaiting_large), 0)::bigint, coalesce(sum(assisting), 0)::bigint,
           coalesce(sum(finished), 0)::bigint
    FROM (
        SELECT l.pending, l.graded, l.failed, l.cancelled, l.num_length, l.num_context, l.num_repetition,
               l.num_scored,
               l.num_right, l.scored_truncated, l.scored_eos, l.takeovers, l.tokens_small, l.tokens_large,
               l.tokens_inserted, l.discarded_small, l.discarded_large, l.complete_tokens, l.complete_takeovers,
               0 AS ready, 0 AS drafting, 0 AS awaiting_large, 0 AS assisting, 0 AS finished
        FROM lots l WHERE l.job_id = job AND l.counted_at IS NOT NULL
        UNION ALL
        SELECT t.pending, t.graded, t.failed, t.cancelled, t.num_length, t.num_context, t.num_repetition,
               t.num_scored,
               t.num_right, t.scored_truncated, t.scored_eos, t.takeovers, t.tokens_small, t.tokens_large,
               t.tokens_inserted, t.discarded_small, t.discarded_large, t.complete_tokens, t.complete_takeovers,
               t.ready,
               t.drafting, t.awaiting_large, t.assisting, t.finished
        FROM open_ranges(job) r CROSS JOIN LATERAL tell_samples(job, r.first_problem, r.last_problem) t
    ) a
$$;

COMMENT ON FUNCTION count_states IS
    'the sums of a job''s samples now, from counted lots and a look at the others';

CREATE FUNCTION count_lot(job bigint, first bigint) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    last bigint;
BEGIN
    -- Whoever changes a sample that rests waits for this lock, or has it: what follows sees all that came before.
    SELECT last_problem INTO last FROM lots
    WHERE job_id = job AND first_problem = first AND counted_at IS NULL FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE lots l SET counted_at = clock_timestamp(), pending = t.pending, graded = t.graded, failed = t.failed,
        cancelled = t.cancelled, num_length = t.num_length, num_context = t.num_context,
        num_repetition = t.num_repetition, num_scored = t.num_scored, num_right = t.num_right,
        scored_truncated = t.scored_truncated, scored_eos = t.scored_eos, takeovers = t.takeovers,
        tokens_small = t.tokens_small, tokens_large = t.tokens_large, tokens_inserted = t.tokens_inserted,
        discarded_small = t.discarded_small, discarded_large = t.discarded_large,
        complete_tokens = t.complete_tokens, complete_takeovers = t.complete_takeovers, score_sum = t.score_sum,
        score_squares = t.score_squares, truncated_scores = t.truncated_scores, eos_scores = t.eos_scores,
        walls = t.walls, problems_scored = t.problems_scored, problem_squares = t.problem_squares,
        problem_products = t.problem_products, problem_numbers = t.problem_numbers,
        prompt_tokens_small = t.prompt_tokens_small, prompt_tokens_large = t.prompt_tokens_large,
        num_queued = t.num_queued, request_seconds_small = t.request_seconds_small,
        request_seconds_large = t.request_seconds_large, queue_sum = t.queue_sum, waits = t.waits,
        busy = (SELECT coalesce(jsonb_agg(to_jsonb(p)), '[]') FROM tell_busy(job, first, last) p),
        delegation = (SELECT coalesce(jsonb_agg(to_jsonb(p)), '[]') FROM tell_delegation(job, first, last) p),
        flow = (SELECT coalesce(jsonb_agg(to_jsonb(p)), '[]') FROM tell_flow(job, first, last) p),
        tenths = (SELECT coalesce(jsonb_agg(to_jsonb(p)), '[]') FROM tell_tenths(job, first, last) p),
        passes = (SELECT coalesce(jsonb_agg(to_jsonb(p)), '[]') FROM tell_passes(job, first, last) p),
        votes = (SELECT coalesce(jsonb_agg(to_jsonb(p)), '[]') FROM tell_votes(job, first, last) p),
        step_counts = (SELECT coalesce(jsonb_agg(to_jsonb(p)), '[]') FROM tell_step_counts(job, first, last) p)
    FROM (
        SELECT s.*, p.*, c.*
        FROM tell_samples(job, first, last) s, tell_problems(job, first, last) p, tell_cost(job, first, last) c
    ) t
    WHERE l.job_id = job AND l.first_problem = first AND t.ready + t.drafting + t.awaiting_large + t.assisting
    + t.finished = 0;
    IF NOT FOUND THEN
        RETURN false;
    END IF;

    INSERT INTO length_counts (job_id, author, finish_reason, verdict, tokens, n, score)
    SELECT job_id, author, finish_reason, verdict, tokens, sum(n), sum(score) FROM (
        SELECT s.job_id, a.author, s.finish_reason,
               CASE WHEN s.score >= 0.5 THEN 'right' WHEN s.score < 0.5 THEN 'wrong' ELSE 'unscored' END AS verdict,
               a.tokens, 1 AS n, coalesce(s.score::numeric, 0) AS score
        FROM samples s
    CROSS JOIN LATERAL (
        VALUES ('all', s.tokens_small + s.tokens_large + s.tokens_inserted), ('small', s.tokens_small),
               ('large', s.tokens_large), ('inserted', s.tokens_inserted)
    ) a (author, tokens)
 WHERE s.job_id = job AND s.problem_id BETWEEN first AND last AND s.state IN ('finished', 'graded')
    ) c
    GROUP BY job_id, author, finish_reason, verdict, tokens
;
    RETURN true;
END $$;

COMMENT ON FUNCTION count_lot IS
    'keeps what the samples of a lot add up to; false: one does not rest, or somebody is at it';

CREATE FUNCTION reopen_lots() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    counted record;
BEGIN
    IF NOT EXISTS (SELECT FROM old_rows WHERE state NOT IN ('ready', 'drafting', 'awaiting_large', 'assisting',
    'finished')) THEN
        RETURN NULL;
    END IF;
    FOR counted IN
        WITH touched AS MATERIALIZED (
            SELECT DISTINCT l.job_id, l.first_problem
            FROM (SELECT DISTINCT job_id, problem_id FROM old_rows WHERE state NOT IN ('ready', 'drafting',
            'awaiting_large', 'assisting', 'finished')) o
            CROSS JOIN LATERAL (
                SELECT l.job_id, l.first_problem FROM lots l
                WHERE l.job_id = o.job_id AND l.first_problem <= o.problem_id ORDER BY l.first_problem DESC LIMIT 1
            ) l
        ),
        locked AS MATERIALIZED (
            SELECT l.job_id, l.first_problem, l.last_problem, l.counted_at, l.graded
            FROM lots l JOIN touched t ON t.job_id = l.job_id AND t.first_problem = l.first_problem
            ORDER BY l.job_id, l.first_problem FOR NO KEY UPDATE OF l
        ),
        changed AS (
            UPDATE lots l SET counted_at = NULL, changed_at = clock_timestamp() FROM locked k
            WHERE l.job_id = k.job_id AND l.first_problem = k.first_problem
        )
        SELECT * FROM locked WHERE counted_at IS NOT NULL AND graded > 0
    LOOP

    INSERT INTO length_counts (job_id, author, finish_reason, verdict, tokens, n, score)
    SELECT job_id, author, finish_reason, verdict, tokens, sum(n), sum(score) FROM (
        SELECT s.job_id, a.author, s.finish_reason,
               CASE WHEN s.score >= 0.5 THEN 'right' WHEN s.score < 0.5 THEN 'wrong' ELSE 'unscored' END AS verdict,
               a.tokens, -1 AS n, -coalesce(s.score::numeric, 0) AS score
        FROM (SELECT * FROM old_rows UNION ALL SELECT s.* FROM samples s WHERE s.job_id = counted.job_id
        AND s.problem_id BETWEEN counted.first_problem AND counted.last_problem AND s.id NOT IN (SELECT id
        FROM new_rows)) s
    CROSS JOIN LATERAL (
        VALUES ('all', s.tokens_small + s.tokens_large + s.tokens_inserted), ('small', s.tokens_small),
               ('large', s.tokens_large), ('inserted', s.tokens_inserted)
    ) a (author, tokens)
 WHERE s.job_id = counted.job_id AND s.problem_id BETWEEN counted.first_problem AND counted.last_problem
 AND s.state IN ('finished', 'graded')
    ) c
    GROUP BY job_id, author, finish_reason, verdict, tokens
;
    END LOOP;
    RETURN NULL;
END $$;

COMMENT ON FUNCTION reopen_lots IS
    'takes out the lots in which a sample stops to rest, or changes while it rests';

CREATE TRIGGER reopen_lots AFTER UPDATE ON samples
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION reopen_lots();
