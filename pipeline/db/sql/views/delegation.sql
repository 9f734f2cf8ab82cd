-- Read by: specthink stats, Client.stats.

CREATE VIEW delegation AS
SELECT j.id AS job_id, d.*
FROM jobs j
CROSS JOIN LATERAL (
    SELECT t.author, t.trigger, sum(t.num_segments)::bigint AS num_segments,
           sum(t.num_samples)::bigint AS num_samples, sum(t.num_takeovers)::bigint AS num_takeovers,
           sum(t.tokens)::bigint AS tokens,
           (sum(t.tokens) / sum(t.num_segments))::float8 AS mean_tokens,
           sum(t.tokens_discarded)::bigint AS tokens_discarded,
           sum(t.cached)::bigint / nullif(sum(t.prompts), 0)::float8 AS share_cached,
           sum(t.wait_sum) / nullif(sum(t.waits), 0)::float8 AS mean_wait_seconds,
           sum(t.queue_sum) / nullif(sum(t.queues), 0)::float8 AS mean_queue_seconds,
           sum(t.write_sum) / nullif(sum(t.writes), 0)::float8 AS mean_write_seconds
    FROM job_delegation(j.id) t GROUP BY t.author, t.trigger
) d;

COMMENT ON VIEW delegation IS
    'What the large model wrote and the policy put in, by trigger. Summed over the triggers the kept tokens are the '
    'job''s tokens_large and tokens_inserted.';
COMMENT ON COLUMN delegation.job_id IS 'the job';
COMMENT ON COLUMN delegation.author IS 'large or inserted';
COMMENT ON COLUMN delegation.trigger IS 'why it wrote; start: it opened the sample';
COMMENT ON COLUMN delegation.num_segments IS 'times it was called';
COMMENT ON COLUMN delegation.num_samples IS 'samples in which it was called';
COMMENT ON COLUMN delegation.num_takeovers IS
    'of num_segments, those in which it was called in in the place of the small model';
COMMENT ON COLUMN delegation.tokens IS 'kept tokens';
COMMENT ON COLUMN delegation.mean_tokens IS 'kept tokens per segment';
COMMENT ON COLUMN delegation.tokens_discarded IS 'tokens written and not kept';
COMMENT ON COLUMN delegation.share_cached IS 'share of the prompts'' tokens that were found in the prefix cache';
COMMENT ON COLUMN delegation.mean_wait_seconds IS 'from when the sample could be claimed to a worker''s claim';
COMMENT ON COLUMN delegation.mean_queue_seconds IS 'inside the engine before its first work';
COMMENT ON COLUMN delegation.mean_write_seconds IS 'from handing in to the engine to the end';
