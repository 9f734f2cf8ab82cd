-- Read by: specthink stats and compare, Client.stats.

CREATE VIEW job_cost AS
SELECT j.id AS job_id, n.complete AS num_complete, c.num_right,
       k.engine_seconds_small, k.engine_seconds_large, k.engine_seconds_judge,
       k.request_seconds_small, k.request_seconds_large, k.request_seconds_judge,
       (k.engine_seconds_small + k.engine_seconds_large + k.engine_seconds_judge) / nullif(c.num_right, 0)
       AS seconds_per_right,
       k.engine_seconds_small / nullif(c.num_right, 0) AS small_seconds_per_right,
       k.engine_seconds_large / nullif(c.num_right, 0) AS large_seconds_per_right,
       k.engine_seconds_judge / nullif(c.num_right, 0) AS judge_seconds_per_right,
       m.money, m.money / nullif(c.num_right, 0) AS money_per_right, o.jobs AS overlapping_jobs,
       k.prompt_tokens_small, k.prompt_tokens_large, k.prompt_tokens_judge, c.p50_wall_seconds, c.p95_wall_seconds,
       k.mean_wait_seconds, k.p95_wait_seconds, k.mean_queue_seconds,
       c.num_length / nullif(n.complete, 0)::float8 AS share_length,
       c.num_context / nullif(n.complete, 0)::float8 AS share_context,
       c.num_repetition / nullif(n.complete, 0)::float8 AS share_repetition
FROM jobs j
CROSS JOIN LATERAL totals_of_samples(j.id) c
CROSS JOIN LATERAL totals_of_cost(j.id) k
CROSS JOIN LATERAL (SELECT c.finished + c.graded AS complete) n
CROSS JOIN LATERAL (
    SELECT CASE WHEN p.small IS NOT NULL OR p.large IS NOT NULL OR p.judge IS NOT NULL
                THEN (k.engine_seconds_small * coalesce(p.small, 0) + k.engine_seconds_large * coalesce(p.large, 0)
                      + k.engine_seconds_judge * coalesce(p.judge, 0)) / 3600 END AS money
    FROM (
        SELECT nullif(current_setting('specthink.small_per_hour', true), '')::float8 AS small,
               nullif(current_setting('specthink.large_per_hour', true), '')::float8 AS large,
               nullif(current_setting('specthink.judge_per_hour', true), '')::float8 AS judge
    ) p
) m
CROSS JOIN LATERAL (
    SELECT coalesce(array_agg(o.id ORDER BY o.id), '{}') AS jobs FROM jobs o
    WHERE o.id <> j.id AND o.first_claimed_at < coalesce(j.finished_at, clock_timestamp())
      AND coalesce(o.finished_at, clock_timestamp()) > j.first_claimed_at
) o;

COMMENT ON VIEW job_cost IS
    'What a job took, measured. Engine seconds: time in which a worker had at least one request of this job in its '
    'engine, summed over the workers of the role; with one GPU per worker these are GPU seconds. Jobs that ran at '
    'the same time on the same workers share that time, and each counts it: overlapping_jobs names them; run jobs one '
    'after the other to compare them. Money is engine seconds at the prices of the settings SPECTHINK_PRICES__…, which '
    'specthink gives to its sessions; elsewhere SET specthink.small_per_hour, specthink.large_per_hour and '
    'specthink.judge_per_hour. Request seconds count every request, however many ran together: divided by the engine seconds they are '
    'the mean number of requests at work. A wait is counted once per claim; all of a sample''s are added up.';
COMMENT ON COLUMN job_cost.job_id IS 'the job';
COMMENT ON COLUMN job_cost.num_complete IS 'samples with complete text';
COMMENT ON COLUMN job_cost.num_right IS 'graded samples with a score of at least 0.5';
COMMENT ON COLUMN job_cost.engine_seconds_small IS
    'time in which a small worker had a request of this job, summed over the workers';
COMMENT ON COLUMN job_cost.engine_seconds_large IS
    'time in which a large worker had a request of this job, summed over the workers';
COMMENT ON COLUMN job_cost.engine_seconds_judge IS
    'time in which a judge worker had a request of this job, summed over the workers';
COMMENT ON COLUMN job_cost.request_seconds_small IS 'durations of the small model''s requests, summed';
COMMENT ON COLUMN job_cost.request_seconds_large IS 'durations of the large model''s requests, summed';
COMMENT ON COLUMN job_cost.request_seconds_judge IS 'durations of the judge''s requests, summed';
COMMENT ON COLUMN job_cost.seconds_per_right IS 'engine seconds of all roles per right sample';
COMMENT ON COLUMN job_cost.small_seconds_per_right IS 'engine_seconds_small per right sample';
COMMENT ON COLUMN job_cost.large_seconds_per_right IS 'engine_seconds_large per right sample';
COMMENT ON COLUMN job_cost.judge_seconds_per_right IS 'engine_seconds_judge per right sample';
COMMENT ON COLUMN job_cost.money IS 'engine seconds at the prices per hour of the roles, null where none is set';
COMMENT ON COLUMN job_cost.money_per_right IS 'money per right sample';
COMMENT ON COLUMN job_cost.overlapping_jobs IS
    'other jobs that ran at some time while this one did: its times and rates may be shared with them';
COMMENT ON COLUMN job_cost.prompt_tokens_small IS
    'of the small model''s prompts, computed: not found in the prefix cache';
COMMENT ON COLUMN job_cost.prompt_tokens_large IS
    'of the large model''s prompts, computed: not found in the prefix cache';
COMMENT ON COLUMN job_cost.prompt_tokens_judge IS
    'of the judge''s prompts, computed: not found in the prefix cache';
COMMENT ON COLUMN job_cost.p50_wall_seconds IS 'from admission to complete text, median of the complete samples';
COMMENT ON COLUMN job_cost.p95_wall_seconds IS '95th percentile of the same';
COMMENT ON COLUMN job_cost.mean_wait_seconds IS
    'from when a sample could be claimed to a worker''s claim, all claims of a sample together, mean over samples';
COMMENT ON COLUMN job_cost.p95_wait_seconds IS '95th percentile of the same';
COMMENT ON COLUMN job_cost.mean_queue_seconds IS
    'inside the engines before their first work, all requests of a sample together, mean over samples';
COMMENT ON COLUMN job_cost.share_length IS 'share of the complete samples that were cut by the job''s max_tokens';
COMMENT ON COLUMN job_cost.share_context IS 'share cut by the model''s context';
COMMENT ON COLUMN job_cost.share_repetition IS 'share ended by the loop guard';
