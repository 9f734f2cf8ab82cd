-- Read by: specthink status and watch, Flower's progress task, doctor, Client.progress.

CREATE VIEW job_progress AS
SELECT j.id AS job_id, j.name, j.state, c.samples_total, c.graded + c.failed AS samples_done,
       c.pending, c.ready, c.drafting, c.awaiting_large, c.assisting, c.awaiting_judge, c.judging, c.finished, c.graded,
       c.failed, c.cancelled, w.small AS live_small_workers, w.large AS live_large_workers,
       w.judge AS live_judge_workers, a.samples_ahead,
       CASE WHEN j.state = 'paused' THEN format('paused: specthink resume %s lets it go on', j.id)
            WHEN j.state <> 'running' THEN NULL
            WHEN w.upkeep = 0 THEN 'no live upkeep worker: specthink worker upkeep starts one'
            ELSE nullif(concat_ws('; ', r.no_small, r.no_large, r.no_judge, r.no_grade, r.refused, r.ahead,
                                  r.large_saturated, r.judge_saturated, r.delayed, r.suspects, r.small_busy, r.large_busy, r.grading), '')
       END AS waiting_for,
       c.takeovers, c.written_small, c.written_large, c.written_judge,
       extract(epoch FROM coalesce(j.finished_at, clock_timestamp()) - j.first_claimed_at)::float8 AS seconds,
       j.priority
FROM jobs j
CROSS JOIN LATERAL (
    SELECT t.samples_total, t.pending, t.ready, t.drafting, t.awaiting_large, t.assisting, t.awaiting_judge, t.judging,
           t.finished, t.graded, t.failed, t.cancelled, t.takeovers,
           t.tokens_small + t.discarded_small + t.aside_small - t.taken_small AS written_small,
           t.tokens_large + t.discarded_large + t.aside_large - t.taken_large AS written_large,
           t.aside_judge AS written_judge
    FROM job_totals t WHERE t.job_id = j.id AND t.stale_at IS NULL
    UNION ALL
    SELECT t.samples_total, t.pending, t.ready, t.drafting, t.awaiting_large, t.assisting, t.awaiting_judge, t.judging,
           t.finished, t.graded, t.failed, t.cancelled, t.takeovers,
           t.tokens_small + t.discarded_small + t.aside_small - t.taken_small,
           t.tokens_large + t.discarded_large + t.aside_large - t.taken_large, t.aside_judge
    FROM count_states(j.id) t
    WHERE NOT EXISTS (SELECT FROM job_totals k WHERE k.job_id = j.id AND k.stale_at IS NULL)
) c
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE s.not_before > clock_timestamp()) AS delayed,
           min(s.not_before) FILTER (WHERE s.not_before > clock_timestamp()) AS next_try_at,
           count(*) FILTER (WHERE s.num_rescues >= 2) AS suspects
    FROM samples s
    WHERE j.state = 'running' AND s.job_id = j.id AND s.state IN ('ready', 'awaiting_large', 'awaiting_judge')
      AND s.phase = 'admitted'  -- the condition of an index
) d
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE w.kind = 'small' AND w.model = j.small_model AND w.misfit IS NULL) AS small,
           count(*) FILTER (WHERE w.kind = 'large' AND w.model = j.large_model AND w.misfit IS NULL) AS large,
           count(*) FILTER (WHERE w.kind = 'judge' AND w.model = j.judge_model AND w.misfit IS NULL) AS judge,
           min(format('worker %s on %s: %s', w.id, w.host, w.misfit))
           FILTER (WHERE w.kind = 'small' AND w.model = j.small_model AND w.misfit IS NOT NULL) AS other_small,
           min(format('worker %s on %s: %s', w.id, w.host, w.misfit))
           FILTER (WHERE w.kind = 'large' AND w.model = j.large_model AND w.misfit IS NOT NULL) AS other_large,
           min(format('worker %s on %s: %s', w.id, w.host, w.misfit))
           FILTER (WHERE w.kind = 'judge' AND w.model = j.judge_model AND w.misfit IS NOT NULL) AS other_judge,
           count(*) FILTER (WHERE w.kind = 'grade') AS grade,
           count(*) FILTER (WHERE w.kind = 'upkeep') AS upkeep,
           count(*) FILTER (WHERE w.refusal IS NOT NULL) AS refusing,
           min(format('worker %s on %s: %s', w.id, w.host, w.refusal)) FILTER (WHERE w.refusal IS NOT NULL) AS refusal,
           sum(w.slots) FILTER (WHERE w.kind = 'small' AND w.model = j.small_model AND w.misfit IS NULL) AS small_slots,
           sum(w.slots) FILTER (WHERE w.kind = 'large' AND w.model = j.large_model AND w.misfit IS NULL) AS large_slots,
           sum(w.slots) FILTER (WHERE w.kind = 'judge' AND w.model = j.judge_model AND w.misfit IS NULL) AS judge_slots
    FROM (
        SELECT k.*, coalesce(k.num_slots, k.max_in_flight) AS slots, k.refused_jobs ->> j.id::text AS refusal,
               CASE WHEN j.state = 'running' THEN CASE k.kind
                   WHEN 'small' THEN why_not_served(j.config->'small', j.small_identity, e.model_fingerprint,
                                                    e.weights_sha256, e.revision)
                   WHEN 'large' THEN why_not_served(j.config->'large', j.large_identity, e.model_fingerprint,
                                                    e.weights_sha256, e.revision)
                   WHEN 'judge' THEN why_not_served(j.config->'judge', j.judge_identity, e.model_fingerprint,
                                                    e.weights_sha256, e.revision) END END AS misfit
        FROM workers k LEFT JOIN engines e ON e.id = k.engine_id
    ) w
    WHERE w.ended_at IS NULL AND w.expires_at > clock_timestamp()
) w
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE w.kind = 'small' AND w.model = j.small_model) AS small,
           count(*) FILTER (WHERE w.kind = 'large' AND w.model = j.large_model) AS large,
           count(*) FILTER (WHERE w.kind = 'judge' AND w.model = j.judge_model) AS judge
    FROM workers w JOIN samples s ON s.holder_id = w.id AND s.phase = 'admitted'
    WHERE j.state = 'running' AND w.ended_at IS NULL AND w.expires_at > clock_timestamp()
) h
CROSS JOIN LATERAL (
    SELECT coalesce(sum(n.pending), 0)::bigint AS samples_ahead
    FROM jobs o CROSS JOIN LATERAL count_states(o.id) n
    WHERE j.state = 'running' AND o.state = 'running' AND (-o.priority, o.id) < (-j.priority, j.id)
      AND o.first_role = j.first_role
      AND CASE j.first_role WHEN 'small' THEN o.small_model = j.small_model ELSE o.large_model = j.large_model END
) a
-- Why a running job does not go on, or goes on slowly; each is null where it does not hold.
CROSS JOIN LATERAL (
    SELECT CASE WHEN w.small = 0 AND (c.ready > 0 OR c.pending > 0 AND j.first_role = 'small')
                THEN CASE WHEN w.other_small IS NULL
                THEN format('no live small worker serves %1$s: specthink worker small --model %1$s starts one',
                            j.small_model)
                ELSE format('no live small worker serves %s as the job has it (%s); %s', j.small_model,
                            identity_of(j.config->'small', j.small_identity), w.other_small) END END AS no_small,
           CASE WHEN w.large = 0 AND (c.awaiting_large > 0 OR c.pending > 0 AND j.first_role = 'large')
                THEN CASE WHEN w.other_large IS NULL
                THEN format('no live large worker serves %1$s: specthink worker large --model %1$s starts one',
                            j.large_model)
                ELSE format('no live large worker serves %s as the job has it (%s); %s', j.large_model,
                            identity_of(j.config->'large', j.large_identity), w.other_large) END END AS no_large,
           CASE WHEN w.judge = 0 AND c.awaiting_judge > 0
                THEN CASE WHEN w.other_judge IS NULL
                THEN format('no live judge worker serves %1$s: specthink worker judge --model %1$s starts one',
                            j.judge_model)
                ELSE format('no live judge worker serves %s as the job has it (%s); %s', j.judge_model,
                            identity_of(j.config->'judge', j.judge_identity), w.other_judge) END END AS no_judge,
           CASE WHEN w.grade = 0 AND c.finished > 0
                THEN 'no live grade worker: specthink worker grade starts one' END AS no_grade,
           CASE WHEN w.refusing > 0 AND NOT (w.small = 0 AND w.other_small IS NOT NULL
                                             OR w.large = 0 AND w.other_large IS NOT NULL
                                             OR w.judge = 0 AND w.other_judge IS NOT NULL)
                THEN format('workers that refuse this job: %s, e.g. %s', w.refusing, w.refusal) END AS refused,
           CASE WHEN a.samples_ahead > 0 AND c.pending > 0
                THEN format('samples of older or higher-ranking jobs ahead: %s', a.samples_ahead) END AS ahead,
           CASE WHEN c.awaiting_large > 0 AND w.large > 0 AND h.large >= w.large_slots
                THEN format('large pool saturated: samples there: %s for %s slots, of this job waiting: %s', h.large,
                            w.large_slots, c.awaiting_large) END AS large_saturated,
           CASE WHEN c.awaiting_judge > 0 AND w.judge > 0 AND h.judge >= w.judge_slots
                THEN format('judge pool saturated: samples there: %s for %s slots, of this job waiting: %s', h.judge,
                            w.judge_slots, c.awaiting_judge) END AS judge_saturated,
           CASE WHEN d.delayed > 0
                THEN format('samples waiting to be tried again because an engine refused them: %s, the next in %s s',
                            d.delayed, greatest(0, ceil(extract(epoch FROM d.next_try_at - clock_timestamp()))))
                END AS delayed,
           CASE WHEN d.suspects > 0 AND c.drafting + c.assisting + c.judging = 0
                THEN format('samples tried one by one because their workers died with them: %s', d.suspects)
                END AS suspects,
           CASE WHEN (c.ready > 0 OR c.pending > 0 AND j.first_role = 'small') AND c.drafting = 0
                     AND a.samples_ahead = 0 AND w.small > 0 AND h.small >= w.small_slots
                THEN format('small pool taken by other jobs: samples there: %s for %s slots', h.small, w.small_slots)
                END AS small_busy,
           CASE WHEN c.pending > 0 AND j.first_role = 'large' AND c.awaiting_large = 0 AND c.assisting = 0
                     AND a.samples_ahead = 0 AND w.large > 0 AND h.large >= w.large_slots
                THEN format('large pool taken by other jobs: samples there: %s for %s slots', h.large, w.large_slots)
                END AS large_busy,
           CASE WHEN c.finished > 0 AND w.grade > 0
                     AND c.pending + c.ready + c.drafting + c.awaiting_large + c.assisting + c.awaiting_judge
                         + c.judging = 0
                THEN format('complete samples waiting for their grade: %s', c.finished) END AS grading
) r;

COMMENT ON VIEW job_progress IS
    'One row per job: its samples by state, the live workers it can use, and what it waits for.';
COMMENT ON COLUMN job_progress.job_id IS 'the job';
COMMENT ON COLUMN job_progress.name IS 'free text for people';
COMMENT ON COLUMN job_progress.state IS 'running, paused, completed, completed_with_errors or cancelled';
COMMENT ON COLUMN job_progress.samples_total IS 'all samples of the job';
COMMENT ON COLUMN job_progress.samples_done IS 'graded or failed; one that was cancelled is not done';
COMMENT ON COLUMN job_progress.pending IS 'stored, not yet admitted';
COMMENT ON COLUMN job_progress.ready IS 'wait for a small worker';
COMMENT ON COLUMN job_progress.drafting IS 'a small worker writes';
COMMENT ON COLUMN job_progress.awaiting_large IS 'wait for a large worker';
COMMENT ON COLUMN job_progress.assisting IS 'a large worker writes';
COMMENT ON COLUMN job_progress.awaiting_judge IS 'wait for a judge worker';
COMMENT ON COLUMN job_progress.judging IS 'a judge worker says how good a step is';
COMMENT ON COLUMN job_progress.finished IS 'complete, wait for their grade';
COMMENT ON COLUMN job_progress.graded IS 'final: complete and graded';
COMMENT ON COLUMN job_progress.failed IS 'final until a retry: set aside with an error';
COMMENT ON COLUMN job_progress.cancelled IS 'final: the job was cancelled';
COMMENT ON COLUMN job_progress.live_small_workers IS 'workers with a valid lease that serve its small model';
COMMENT ON COLUMN job_progress.live_large_workers IS 'workers with a valid lease that serve its large model';
COMMENT ON COLUMN job_progress.live_judge_workers IS 'workers with a valid lease that serve its judge';
COMMENT ON COLUMN job_progress.samples_ahead IS
    'samples that wait to be admitted to the same opening model before its own: of running jobs that are older or of '
    'higher priority';
COMMENT ON COLUMN job_progress.waiting_for IS
    'why it does not go on or goes on slowly, with what can be done; null: it runs, or has ended';
COMMENT ON COLUMN job_progress.takeovers IS 'times the large model was called in so far';
COMMENT ON COLUMN job_progress.written_small IS
    'tokens the small model wrote so far, kept or not; counted when they are committed';
COMMENT ON COLUMN job_progress.written_large IS
    'tokens the large model wrote so far, kept or not; counted when they are committed';
COMMENT ON COLUMN job_progress.written_judge IS
    'tokens the judge wrote so far, none of which is kept; counted when they are committed';
COMMENT ON COLUMN job_progress.seconds IS
    'from the first claim of a sample to the job''s end, or until now; pauses included';
COMMENT ON COLUMN job_progress.priority IS 'jobs with a higher one are admitted first';
