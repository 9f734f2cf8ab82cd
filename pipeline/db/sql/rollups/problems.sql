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

-- With the owner's rights: it tells how often the right answer wins, and lets nobody read an answer.
CREATE FUNCTION aggregate_votes(job bigint, first_problem bigint, last_problem bigint) RETURNS SETOF vote_part
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    WITH votes AS MATERIALIZED (
        SELECT s.problem_id, CASE WHEN s.score >= 0.5 THEN 'right' ELSE 'wrong ' || s.predicted_answer END AS vote,
               (row_number() OVER (PARTITION BY s.problem_id ORDER BY s.sample_index) - 1)::integer AS place,
               (count(*) OVER (PARTITION BY s.problem_id))::integer AS n,
               (s.score >= 0.5)::integer AS is_right
        FROM samples s
        WHERE s.job_id = job AND s.problem_id BETWEEN first_problem AND last_problem
          AND s.state = 'graded' AND s.score IS NOT NULL
    ),
    -- Up to 8 samples: each subset, as the bits of a number.
    tallies AS (
        SELECT v.problem_id, m.subset, v.vote, count(v.vote) AS num
        FROM votes v CROSS JOIN LATERAL generate_series(1, (1 << v.n) - 1) AS m (subset)
        WHERE v.n <= 8 AND (m.subset >> v.place) & 1 = 1 GROUP BY v.problem_id, m.subset, v.vote
    ),
    winners AS (
        SELECT t.*, max(t.num) OVER (PARTITION BY t.problem_id, t.subset) AS most FROM tallies t
    ),
    subsets AS (
        SELECT problem_id, bit_count(subset::bit(8)) AS k,
               coalesce(count(*) FILTER (WHERE vote = 'right' AND num = most)
                        / nullif(count(*) FILTER (WHERE vote IS NOT NULL AND num = most), 0)::float8, 0) AS is_right
        FROM winners GROUP BY problem_id, subset
    ),
    -- More samples: 64 orders of them, the same in every database; the first k of each are a subset of k.
    drawn AS (
        SELECT v.problem_id, d.draw, v.vote,
               row_number() OVER (PARTITION BY v.problem_id, d.draw ORDER BY hashint8extended(v.place, d.draw)) AS k
        FROM votes v CROSS JOIN generate_series(1, 64) AS d (draw) WHERE v.n > 8
    ),
    counted AS (
        SELECT w.*, count(w.vote) OVER (PARTITION BY w.problem_id, w.draw, w.vote ORDER BY w.k) AS num,
               count(*) FILTER (WHERE w.vote = 'right') OVER (PARTITION BY w.problem_id, w.draw ORDER BY w.k)
               AS num_right
        FROM drawn w
    ),
    placed AS (
        SELECT c.*, max(c.num) OVER (PARTITION BY c.problem_id, c.draw ORDER BY c.k) AS most FROM counted c
    ),
    -- A vote has as many as the most from the place on where its number became that.
    tied AS (
        SELECT l.problem_id, l.k, l.num_right = l.most AND l.most > 0 AS is_right,
               count(*) FILTER (WHERE l.num = l.most)
               OVER (PARTITION BY l.problem_id, l.draw, l.most ORDER BY l.k) AS num_leading
        FROM placed l
    ),
    shares AS (
        SELECT problem_id, k, avg(is_right) AS share FROM subsets GROUP BY problem_id, k
        UNION ALL
        SELECT problem_id, k, avg(CASE WHEN is_right THEN 1.0 / num_leading ELSE 0 END)::float8 FROM tied
        WHERE k > 1 GROUP BY problem_id, k
        UNION ALL
        SELECT problem_id, 1, avg(is_right)::float8 FROM votes WHERE n > 8 GROUP BY problem_id
    )
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
