-- Read by: specthink stats, Client.stats.

CREATE VIEW delegation AS
SELECT j.id AS job_id, d.*
FROM jobs j
CROSS JOIN LATERAL (
    SELECT t.author, t.trigger, sum(t.num_segments)::bigint AS num_segments,
           sum(t.num_samples)::bigint AS num_samples, sum(t.tokens)::bigint AS tokens,
           (sum(t.tokens) / sum(t.num_segments))::float8 AS mean_tokens,
           sum(t.tokens_discarded)::bigint AS tokens_discarded,
           sum(t.cached)::bigint / nullif(sum(t.prompts), 0)::float8 AS share_cached,
           sum(t.wait_sum) / nullif(sum(t.waits), 0)::float8 AS mean_wait_seconds,
           sum(t.queue_sum) / nullif(sum(t.queues), 0)::float8 AS mean_queue_seconds,
           sum(t.write_sum) / nullif(sum(t.writes), 0)::float8 AS mean_write_seconds
    FROM (
        SELECT t.author, t.trigger, t.num_segments, t.num_samples, t.tokens, t.tokens_discarded, t.cached, t.prompts,
               t.waits, t.wait_sum, t.queues, t.queue_sum, t.writes, t.write_sum
        FROM lots l CROSS JOIN LATERAL jsonb_to_recordset(l.delegation) AS t (
            author text, trigger text, num_segments bigint, num_samples bigint, tokens bigint,
            tokens_discarded bigint,
            cached bigint, prompts bigint, waits bigint, wait_sum float8, queues bigint, queue_sum float8,
            writes bigint,
            write_sum float8
        )
        WHERE l.job_id = j.id AND l.counted_at IS NOT NULL
        UNION ALL
        SELECT t.author, t.trigger, t.num_segments, t.num_samples, t.tokens, t.tokens_discarded, t.cached, t.prompts,
               t.waits, t.wait_sum, t.queues, t.queue_sum, t.writes, t.write_sum
        FROM open_ranges(j.id) r CROSS JOIN LATERAL tell_delegation(j.id, r.first_problem, r.last_problem) t
    ) t GROUP BY t.author, t.trigger
) d;

COMMENT ON VIEW delegation IS
    'What the large model wrote and the policy put in, by trigger. Summed over the triggers the kept tokens are the '
    'job''s tokens_large and tokens_inserted.';
COMMENT ON COLUMN delegation.job_id IS 'the job';
COMMENT ON COLUMN delegation.author IS 'large or inserted';
COMMENT ON COLUMN delegation.trigger IS 'why it wrote; start: it opened the sample';
COMMENT ON COLUMN delegation.num_segments IS 'times it was called';
COMMENT ON COLUMN delegation.num_samples IS 'samples in which it was called';
COMMENT ON COLUMN delegation.tokens IS 'kept tokens';
COMMENT ON COLUMN delegation.mean_tokens IS 'kept tokens per segment';
COMMENT ON COLUMN delegation.tokens_discarded IS 'tokens written and not kept';
COMMENT ON COLUMN delegation.share_cached IS 'share of the prompts'' tokens that were found in the prefix cache';
COMMENT ON COLUMN delegation.mean_wait_seconds IS 'from publishing the segment to a worker''s claim';
COMMENT ON COLUMN delegation.mean_queue_seconds IS 'inside the engine before its first work';
COMMENT ON COLUMN delegation.mean_write_seconds IS 'from handing in to the engine to the end';
