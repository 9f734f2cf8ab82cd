-- Read by: people.

CREATE VIEW throughput AS
SELECT s.job_id, date_trunc('minute', r.committed_at) AS minute, r.author, count(*) AS num_requests,
       count(DISTINCT s.id) AS num_samples, count(DISTINCT r.worker_id) AS num_workers,
       sum(r.tokens)::bigint AS tokens, sum(r.tokens) / 60.0::float8 AS tokens_per_second
FROM samples s
CROSS JOIN LATERAL (
    SELECT g.committed_at, g.author, g.worker_id, cardinality(g.token_ids) + cardinality(g.discarded_ids) AS tokens
    FROM segments g WHERE g.sample_id = s.id AND g.author IN ('small', 'large') AND g.taken_from IS NULL
    UNION ALL
    SELECT a.committed_at, a.author, a.worker_id, cardinality(a.token_ids)
    FROM asides a WHERE a.sample_id = s.id AND s.num_asides > 0
) r
GROUP BY s.job_id, date_trunc('minute', r.committed_at), r.author;

COMMENT ON VIEW throughput IS
    'How many tokens of a job each model wrote in each minute, by when they were stored: a long segment counts in the '
    'minute in which it ended. Added up over the minutes these are written_small, written_large and written_judge of job_summary.';
COMMENT ON COLUMN throughput.job_id IS 'the job';
COMMENT ON COLUMN throughput.minute IS 'its start';
COMMENT ON COLUMN throughput.author IS 'small, large or judge';
COMMENT ON COLUMN throughput.num_requests IS 'segments and asides stored';
COMMENT ON COLUMN throughput.num_samples IS 'samples they are of';
COMMENT ON COLUMN throughput.num_workers IS 'workers that wrote them';
COMMENT ON COLUMN throughput.tokens IS 'tokens written, kept or not, each once';
COMMENT ON COLUMN throughput.tokens_per_second IS 'tokens over the 60 seconds';
