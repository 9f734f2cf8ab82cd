-- Refreshing a rollup, and invalidating it when one of its samples changes.
-- Read by: upkeep, which refreshes rollups (pipeline.db.rollups); a trigger on samples, which invalidates them.

-- Upkeep may call this, compact_lengths and keep_totals, and read none of the scores and texts that they add up: they
-- have the rights of the schema's owner.
CREATE FUNCTION refresh_rollup(job bigint, first bigint) RETURNS boolean LANGUAGE plpgsql
SECURITY DEFINER SET search_path = public, pg_temp AS $$
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
    IF sums.ready + sums.drafting + sums.awaiting_large + sums.assisting + sums.awaiting_judge + sums.judging
       + sums.finished > 0 THEN
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
        SELECT FROM old_rows WHERE state NOT IN ('ready', 'drafting', 'awaiting_large', 'assisting', 'awaiting_judge', 'judging', 'finished')
    ) THEN
        RETURN NULL;
    END IF;
    FOR touched IN
        WITH named AS MATERIALIZED (
            SELECT DISTINCT r.job_id, r.first_problem
            FROM (
                SELECT DISTINCT job_id, problem_id FROM old_rows
                WHERE state NOT IN ('ready', 'drafting', 'awaiting_large', 'assisting', 'awaiting_judge', 'judging', 'finished')
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

CREATE FUNCTION compact_lengths(job bigint, at_least integer) RETURNS boolean LANGUAGE plpgsql
SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    IF (SELECT count(*) FROM length_counts WHERE job_id = job AND NOT is_base) < at_least THEN
        RETURN false;
    END IF;
    WITH added AS (
        DELETE FROM length_counts WHERE job_id = job AND NOT is_base
        RETURNING author, finish_reason, verdict, tokens, n, score
    )
    INSERT INTO length_counts (job_id, author, finish_reason, verdict, tokens, n, score, is_base)
    SELECT job, author, finish_reason, verdict, tokens, sum(n), sum(score), true FROM added
    GROUP BY author, finish_reason, verdict, tokens ORDER BY author, finish_reason, verdict, tokens
    ON CONFLICT (job_id, author, finish_reason, verdict, tokens) WHERE is_base
    DO UPDATE SET n = length_counts.n + excluded.n, score = length_counts.score + excluded.score;
    RETURN true;
END $$;

COMMENT ON FUNCTION compact_lengths IS
    'adds the added length counts of a job to its base rows where there are so many; returns whether there were';

REVOKE EXECUTE ON FUNCTION refresh_rollup, compact_lengths FROM PUBLIC;
