-- Read by: Client.stats, people.

CREATE VIEW aside_summary AS
SELECT s.job_id, a.purpose, a.author, count(*) AS num_asides, count(DISTINCT a.sample_id) AS num_samples,
       count(t.tokens) AS num_taken, sum(cardinality(a.token_ids)) AS tokens,
       coalesce(sum(t.tokens), 0)::bigint AS tokens_taken, avg(a.value) AS mean_value,
       sum(a.cached_tokens) / nullif(sum(a.prompt_tokens), 0)::float8 AS share_cached,
       avg(a.wait_seconds) AS mean_wait_seconds, avg(a.queue_seconds) AS mean_queue_seconds,
       avg(a.write_seconds) AS mean_write_seconds
FROM samples s JOIN asides a ON a.sample_id = s.id
LEFT JOIN LATERAL (
    SELECT sum(cardinality(g.token_ids)) AS tokens FROM segments g
    WHERE g.sample_id = a.sample_id AND g.taken_from = a.aside_index
) t ON true
WHERE s.num_asides > 0
GROUP BY s.job_id, a.purpose, a.author;

COMMENT ON VIEW aside_summary IS
    'What was written in asides, on side branches of the samples'' texts, by purpose and author. Summed over these the '
    'tokens are the job''s aside_small and aside_large, and those taken its taken_small and taken_large.';
COMMENT ON COLUMN aside_summary.job_id IS 'the job';
COMMENT ON COLUMN aside_summary.purpose IS 'what the policy asked for';
COMMENT ON COLUMN aside_summary.author IS 'small, large or judge';
COMMENT ON COLUMN aside_summary.num_asides IS 'asides';
COMMENT ON COLUMN aside_summary.num_samples IS 'samples in which there are any';
COMMENT ON COLUMN aside_summary.num_taken IS 'asides whose head was put into the text';
COMMENT ON COLUMN aside_summary.tokens IS 'tokens written';
COMMENT ON COLUMN aside_summary.tokens_taken IS 'of these, put into the text';
COMMENT ON COLUMN aside_summary.mean_value IS 'mean of the numbers that decided, where one did';
COMMENT ON COLUMN aside_summary.share_cached IS
    'share of the prompts'' tokens that were found in the prefix cache';
COMMENT ON COLUMN aside_summary.mean_wait_seconds IS 'from when the sample could be claimed to a worker''s claim';
COMMENT ON COLUMN aside_summary.mean_queue_seconds IS 'inside the engine before its first work';
COMMENT ON COLUMN aside_summary.mean_write_seconds IS 'from handing in to the engine to the end';
