-- Read by: specthink stats, Client.stats, where other jobs ran meanwhile.

CREATE VIEW engine_time_alone AS
SELECT j.id AS job_id, w.author, w.engine_seconds, w.alone_seconds, w.tokens, w.tokens_alone,
       w.tokens_alone / nullif(w.alone_seconds, 0) AS tokens_per_alone_second,
       w.tokens * w.alone_seconds / nullif(w.tokens_alone, 0) AS engine_seconds_if_alone
FROM jobs j
CROSS JOIN LATERAL (
    WITH busy AS MATERIALIZED (
        SELECT own.worker_id, own.author, own.times, own.times - coalesce(others.times, '{}') AS alone
        FROM (
            SELECT t.worker_id, t.author, range_agg(y.time) AS times
            FROM job_busy(j.id) t CROSS JOIN LATERAL unnest(t.times) AS y (time) GROUP BY t.worker_id, t.author
        ) own
        LEFT JOIN (
            SELECT t.worker_id, range_agg(y.time) AS times
            FROM jobs o CROSS JOIN LATERAL job_busy(o.id) t CROSS JOIN LATERAL unnest(t.times) AS y (time)
            WHERE o.id <> j.id AND o.first_claimed_at < coalesce(j.finished_at, clock_timestamp())
              AND coalesce(o.finished_at, clock_timestamp()) > j.first_claimed_at
            GROUP BY t.worker_id
        ) others ON others.worker_id = own.worker_id
    ), written AS (
        SELECT b.author, sum(g.tokens)::float8 AS tokens,
               sum(g.tokens * k.seconds / nullif(extract(epoch FROM upper(g.time) - lower(g.time)), 0))::float8
                   AS tokens_alone
        FROM samples s
        CROSS JOIN LATERAL (
            SELECT t.worker_id, t.author, cardinality(t.token_ids) + cardinality(t.discarded_ids) AS tokens,
                   tstzrange(e.at - make_interval(secs => greatest(0, coalesce(t.write_seconds, 0))), e.at) AS time
            FROM segments t
            CROSS JOIN LATERAL (
                SELECT t.committed_at - make_interval(secs => coalesce(t.held_seconds, 0)) AS at
            ) e
            WHERE t.sample_id = s.id AND t.author IN ('small', 'large') AND t.taken_from IS NULL
        ) g
        JOIN busy b ON b.worker_id = g.worker_id AND b.author = g.author
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(extract(epoch FROM upper(r.time) - lower(r.time))), 0) AS seconds
            FROM unnest(b.alone * g.time::tstzmultirange) AS r (time)
        ) k
        WHERE s.job_id = j.id
        GROUP BY b.author
    )
    SELECT u.author, u.engine_seconds, u.alone_seconds, t.tokens, t.tokens_alone
    FROM (
        SELECT b.author, sum(x.all_of_it)::float8 AS engine_seconds, sum(x.alone)::float8 AS alone_seconds
        FROM busy b
        CROSS JOIN LATERAL (
            SELECT (SELECT coalesce(sum(extract(epoch FROM upper(r.time) - lower(r.time))), 0)
                    FROM unnest(b.times) AS r (time)) AS all_of_it,
                   (SELECT coalesce(sum(extract(epoch FROM upper(r.time) - lower(r.time))), 0)
                    FROM unnest(b.alone) AS r (time)) AS alone
        ) x
        GROUP BY b.author
    ) u
    LEFT JOIN written t ON t.author = u.author
) w;

COMMENT ON VIEW engine_time_alone IS
    'Of a job''s engine time, what was its own: a worker had requests of this job and of no other. A request that was '
    'alone for a part of its time counts with that part of its tokens. What the whole job would take at that rate is '
    'the fair cost of a job that ran beside others; null where it was never alone. Reads every segment of the job.';
COMMENT ON COLUMN engine_time_alone.job_id IS 'the job';
COMMENT ON COLUMN engine_time_alone.author IS 'small, large or judge';
COMMENT ON COLUMN engine_time_alone.engine_seconds IS
    'time in which a worker of the role had a request of this job, summed over the workers';
COMMENT ON COLUMN engine_time_alone.alone_seconds IS 'of these, with requests of no other job';
COMMENT ON COLUMN engine_time_alone.tokens IS 'tokens of its segments, kept or not';
COMMENT ON COLUMN engine_time_alone.tokens_alone IS 'of these, written in the time that was its own';
COMMENT ON COLUMN engine_time_alone.tokens_per_alone_second IS 'the rate in that time';
COMMENT ON COLUMN engine_time_alone.engine_seconds_if_alone IS 'what all of its tokens take at that rate';
