-- Sums over problems: their scores, how many of their samples are right, and their majority votes.
-- Read by: the totals (totals.sql); the views pass_at_k and maj_at_k; refresh.sql.

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
