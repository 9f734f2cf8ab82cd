-- Rollups: what the samples of a part of a job add up to, kept so that a running job of a million samples is summed up
-- at once. docs/architecture/rollups.md explains them.
-- Read by: the other files of this folder; views; the submission of a job, which creates its rollups (jobs.sql).
--
-- The problems of a job are cut into parts of about a thousand samples. A sample is idle while it is pending or in a
-- final state. Once all samples of a part are idle, upkeep keeps their sums (refresh_rollup). A query adds up the valid
-- rollups of its job and aggregates the samples of the other parts (live_ranges). A change of an idle sample
-- invalidates its rollup in the same transaction, so that a query is right at every moment.
--
-- Each kind of sum has one type. aggregate_X looks at the samples of a range of problems; job_X gives the rows of a
-- whole job, from rollups and by aggregate_X; where rows have a key, the same key comes more than once. A change of
-- a type, or of what it means, needs a migration that invalidates the rollups:
--     UPDATE rollups SET refreshed_at = NULL; DELETE FROM length_counts;

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
