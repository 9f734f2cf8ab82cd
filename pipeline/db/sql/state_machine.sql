-- The state machine of samples and jobs, kept by the database; every change of a state is logged in events.
-- Read by: every statement that changes a state. Its lists of moves are pipeline.samples.TRANSITIONS and
-- pipeline.jobs.config.JOB_TRANSITIONS (a test compares them).

-- With the rights of the schema's owner, so that nobody else needs to write events. Without nested loops, because a
-- plan made for few rows is kept for many.
CREATE FUNCTION log_sample_changes() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = public, pg_temp SET enable_nestloop = off AS $$
DECLARE
    wrong record;
BEGIN
    WITH changed AS MATERIALIZED (
        SELECT n.job_id, n.id, o.state AS from_state, n.state AS to_state, n.epoch,
               coalesce(n.holder_id, o.holder_id) AS worker_id
        FROM old_rows o JOIN new_rows n ON n.id = o.id WHERE n.state <> o.state
    ),
    logged AS (
        INSERT INTO events (job_id, sample_id, from_state, to_state, epoch, worker_id) SELECT * FROM changed
    )
    SELECT id, from_state, to_state INTO wrong FROM changed
    WHERE (from_state || '>' || to_state) NOT IN (
    'assisting>awaiting_judge', 'assisting>awaiting_large', 'assisting>cancelled', 'assisting>failed',
    'assisting>finished', 'assisting>ready',
    'awaiting_judge>cancelled', 'awaiting_judge>failed', 'awaiting_judge>judging',
    'awaiting_large>assisting', 'awaiting_large>cancelled', 'awaiting_large>failed',
    'drafting>awaiting_judge', 'drafting>awaiting_large', 'drafting>cancelled', 'drafting>failed',
    'drafting>finished', 'drafting>ready',
    'finished>cancelled', 'finished>failed', 'finished>graded',
    'judging>awaiting_judge', 'judging>awaiting_large', 'judging>cancelled', 'judging>failed', 'judging>finished',
    'judging>ready',
    'pending>awaiting_judge', 'pending>awaiting_large', 'pending>cancelled', 'pending>failed', 'pending>ready',
    'ready>cancelled', 'ready>drafting', 'ready>failed'
, 'failed>pending', 'graded>pending') LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'sample %: no transition from % to %', wrong.id, wrong.from_state, wrong.to_state
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;

COMMENT ON FUNCTION log_sample_changes IS
    'checks and logs what a statement changed in the states of samples';

CREATE TRIGGER log_changes AFTER UPDATE ON samples
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION log_sample_changes();

CREATE FUNCTION log_job_changes() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public,
pg_temp AS $$
BEGIN
    IF (old.state || '>' || new.state) NOT IN (
    'running>paused', 'paused>running', 'running>completed', 'running>completed_with_errors', 'running>cancelled',
    'paused>cancelled', 'completed>running', 'completed_with_errors>running'
) THEN
        RAISE EXCEPTION 'job %: no transition from % to %', old.id, old.state, new.state
            USING ERRCODE = 'check_violation';
    END IF;
    INSERT INTO events (job_id, from_state, to_state) VALUES (new.id, old.state, new.state);
    RETURN NULL;
END $$;

COMMENT ON FUNCTION log_job_changes IS
    'checks and logs a change of a job''s state';

CREATE TRIGGER log_changes AFTER UPDATE OF state ON jobs
    FOR EACH ROW WHEN (old.state <> new.state) EXECUTE FUNCTION log_job_changes();

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF tg_op = 'DELETE' AND current_setting('specthink.removes_job', true) = 'on' THEN
        RETURN NULL;  -- pipeline.db.removal; nobody but the owner may delete
    END IF;
    RAISE EXCEPTION '% is append-only', tg_table_name USING ERRCODE = 'check_violation';
END $$;

COMMENT ON FUNCTION refuse_change IS
    'keeps the rows of a table as they were written, until their job is removed';

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
