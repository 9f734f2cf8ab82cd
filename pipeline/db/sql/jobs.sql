-- What a submitter may do to samples and cannot do by itself: with the rights of the schema's owner, each checks what it
-- is asked for. Nobody but the owner may call them unless pipeline.db.grants says so.
-- Read by: pipeline.db.submissions and pipeline.db.job_control.

-- Without a look at each referenced row where the owner is a superuser: they are what the query has just read.
-- Measured: the checks take three fifths of the time in which samples are inserted. No trigger but theirs is on INSERT.
CREATE FUNCTION add_samples(new_jobs bigint[]) RETURNS void LANGUAGE plpgsql
SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    num_samples bigint := (SELECT sum(j.num_problems::bigint * j.num_samples) FROM jobs j WHERE j.id = ANY(new_jobs));
    -- Not for few: a session forgets all its plans with each change of this, which costs more than to look.
    is_trusted boolean := num_samples > 100 AND (SELECT rolsuper FROM pg_roles WHERE rolname = current_user);
BEGIN
    IF EXISTS (SELECT FROM samples WHERE job_id = ANY(new_jobs)) THEN
        RAISE EXCEPTION 'a job of % has its samples already', new_jobs USING ERRCODE = 'unique_violation';
    END IF;
    IF is_trusted THEN
        PERFORM set_config('session_replication_role', 'replica', true);
    END IF;
    INSERT INTO samples (job_id, problem_id, sample_index)
    SELECT j.id, p.id, i
    FROM jobs j JOIN problems p ON p.problem_set_id = j.problem_set_id AND p.position < j.num_problems
    CROSS JOIN LATERAL generate_series(0, j.num_samples - 1) AS i
    WHERE j.id = ANY(new_jobs) ORDER BY j.id, p.position, i;
    IF is_trusted THEN
        PERFORM set_config('session_replication_role', 'origin', true);
    END IF;
    -- With the jobs: nobody has changed a sample before there are any.
    PERFORM create_rollups(job) FROM unnest(new_jobs) AS job;
END $$;

COMMENT ON FUNCTION add_samples IS
    'stores the pending samples of new jobs, once';

CREATE FUNCTION withdraw_texts(chosen bigint[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    written record;
BEGIN
    FOR written IN
        WITH gone AS (DELETE FROM segments WHERE sample_id = ANY(chosen) RETURNING worker_id, tokens_generated),
        gone_asides AS (DELETE FROM asides WHERE sample_id = ANY(chosen) RETURNING worker_id, tokens_generated)
        SELECT g.worker_id, sum(g.tokens_generated)::bigint AS tokens
        FROM (SELECT * FROM gone UNION ALL SELECT * FROM gone_asides) g GROUP BY g.worker_id
        ORDER BY g.worker_id  -- so that no two retries wait in a circle
    LOOP
        UPDATE workers SET tokens_withdrawn = tokens_withdrawn + written.tokens WHERE id = written.worker_id;
    END LOOP;
    DELETE FROM segment_parts WHERE sample_id = ANY(chosen);
    DELETE FROM signals WHERE sample_id = ANY(chosen);
    DELETE FROM steps WHERE sample_id = ANY(chosen);
    DELETE FROM grades WHERE sample_id = ANY(chosen);
    UPDATE samples SET num_segments = 0, num_takeovers = 0, tokens_small = 0, tokens_large = 0, tokens_inserted = 0,
        discarded_small = 0, discarded_large = 0, num_asides = 0, aside_small = 0, aside_large = 0, aside_judge = 0,
        taken_small = 0, taken_large = 0, policy_state = NULL, next_role = NULL, next_request = NULL,
        small_worker_id = NULL, large_worker_id = NULL, judge_worker_id = NULL, part_tokens = 0
    WHERE id = ANY(chosen);
END $$;

COMMENT ON FUNCTION withdraw_texts IS
    'deletes what was written of samples that the transaction has locked, and counts its tokens as withdrawn with the workers that generated them';

CREATE FUNCTION retry_failed_samples(job bigint, chosen bigint[]) RETURNS integer LANGUAGE plpgsql
SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    failed bigint[];
    lost bigint[];
BEGIN
    SELECT array_agg(s.id), array_agg(s.id) FILTER (WHERE s.is_lost) INTO failed, lost
    FROM (
        SELECT id, num_segments + num_asides > 0 AND next_role IS NULL AS is_lost FROM samples
        WHERE job_id = job AND id = ANY(chosen) AND state = 'failed' ORDER BY id FOR UPDATE
    ) s;
    IF lost IS NOT NULL THEN
        PERFORM withdraw_texts(lost);
    END IF;
    UPDATE samples SET state = 'pending', epoch = epoch + 1, num_rescues = 0, num_attempts = 0, not_before = NULL,
        published_at = NULL, error_class = NULL, error = NULL, ended_at = NULL
    WHERE id = ANY(failed);
    RETURN coalesce(cardinality(failed), 0);
END $$;

COMMENT ON FUNCTION retry_failed_samples IS
    'lets failed samples of a job go on behind their last segments; one that failed before it was stored who goes on '
    'begins anew';

CREATE FUNCTION retry_cut_samples(job bigint, chosen bigint[], larger_budget integer) RETURNS integer LANGUAGE plpgsql
SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    cut bigint[];
BEGIN
    SELECT array_agg(c.id) INTO cut
    FROM (
        SELECT s.id FROM samples s JOIN jobs j ON j.id = s.job_id
        WHERE s.job_id = job AND s.id = ANY(chosen) AND s.state = 'graded' AND s.finish_reason = 'length'
          AND coalesce(s.max_tokens, (j.config->'sampling'->>'max_tokens')::integer) < larger_budget
        ORDER BY s.id FOR UPDATE OF s
    ) c;
    IF cut IS NULL THEN
        RETURN 0;
    END IF;
    PERFORM withdraw_texts(cut);
    UPDATE samples SET state = 'pending', epoch = epoch + 1, max_tokens = larger_budget, num_rescues = 0,
        num_attempts = 0, not_before = NULL, published_at = NULL, finish_reason = NULL, predicted_answer = NULL,
        score = NULL, admitted_at = NULL, finished_at = NULL, ended_at = NULL
    WHERE id = ANY(cut);
    RETURN cardinality(cut);
END $$;

COMMENT ON FUNCTION retry_cut_samples IS
    'lets samples that a smaller budget has cut be drawn again from their beginning';

-- A try that was never begun: begin_grade takes it up (pipeline.db.grades). Until then its sample keeps this grade.
CREATE FUNCTION reopen_grades(job bigint, by_grader text, by_version text) RETURNS integer LANGUAGE sql
SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH reopened AS (
        UPDATE grades g SET num_tries = 0 FROM samples s
        WHERE s.id = g.sample_id AND s.job_id = job AND g.grader = by_grader AND g.grader_version = by_version
          AND g.status IN ('timeout', 'error')
        RETURNING 1
    )
    SELECT count(*)::integer FROM reopened
$$;

COMMENT ON FUNCTION reopen_grades IS
    'lets gradings of a job that timed out or broke be tried again; returns how many';

REVOKE EXECUTE ON FUNCTION reopen_grades FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION add_samples, withdraw_texts, retry_failed_samples, retry_cut_samples FROM PUBLIC;
