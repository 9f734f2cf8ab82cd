-- Read by: specthink stats and compare, the report's page, doctor --check, Client.stats.

CREATE VIEW job_summary AS
SELECT j.id AS job_id, j.name, j.policy, j.small_model, j.large_model, j.judge_model, j.state, j.num_problems,
       j.num_samples,
       c.samples_total, c.finished AS samples_finished, c.graded AS samples_graded, c.failed AS samples_failed,
       c.cancelled AS samples_cancelled, c.samples_total - c.graded - c.failed - c.cancelled AS samples_open,
       c.num_scored, c.accuracy,
       w.low AS accuracy_low, w.high AS accuracy_high,
       c.mean_output_tokens, c.p50_output_tokens, c.p90_output_tokens,
       c.tokens_large / nullif(c.tokens_small + c.tokens_large + c.tokens_inserted, 0)::float8 AS share_large,
       c.takeovers, c.takeovers_per_sample, c.tokens_small, c.tokens_large, c.tokens_inserted,
       c.discarded_small, c.discarded_large, c.aside_small, c.aside_large, c.aside_judge, c.taken_small, c.taken_large,
       written.small AS written_small, written.large AS written_large, c.aside_judge AS written_judge, t.seconds,
       (c.tokens_small + c.tokens_large + c.tokens_inserted) / t.seconds AS tokens_per_second,
       written.small / t.seconds AS tokens_per_second_small,
       written.large / t.seconds AS tokens_per_second_large,
       c.aside_judge / t.seconds AS tokens_per_second_judge,
       j.submitted_at, j.first_claimed_at, j.finished_at
FROM jobs j
CROSS JOIN LATERAL totals_of_samples(j.id) c
CROSS JOIN LATERAL (
    SELECT c.tokens_small + c.discarded_small + c.aside_small - c.taken_small AS small,
           c.tokens_large + c.discarded_large + c.aside_large - c.taken_large AS large
) written
CROSS JOIN LATERAL (
    SELECT CASE WHEN c.problems_scored < 2 OR c.score_variance = 0 THEN c.problems_scored
                ELSE c.num_scored / greatest(1, c.problems_scored / (c.problems_scored - 1.0) * c.score_squares
                                                / (c.num_scored * c.score_variance))
           END::float8 AS samples,
           CASE WHEN c.problems_scored > 1 AND c.num_scored > c.problems_scored AND c.score_variance > 0
                THEN student_t(c.problems_scored - 1) ELSE 1.96 END AS z
) e
CROSS JOIN LATERAL wilson_interval(c.accuracy, e.samples, e.z) w
CROSS JOIN LATERAL (
    SELECT nullif(extract(epoch FROM coalesce(j.finished_at, clock_timestamp()) - j.first_claimed_at), 0)::float8
           AS seconds
) t;

COMMENT ON VIEW job_summary IS
    'One row per job: how far it is, how right, how long its texts are, who wrote them, how fast. The interval of '
    'accuracy is Wilson''s, over the effective number of samples: the number scored divided by the design effect of '
    'drawing several samples per problem (cluster-robust variance by problem over the variance of independent draws, '
    'at least 1), with Student''s t for the number of problems, from which that effect is estimated. With one sample '
    'per problem it is Wilson''s plain interval: never of no width, also where all are right. It is the one to '
    'quote. Where all scores are equal, or only one problem is scored, the effective number is the number of problems.';
COMMENT ON COLUMN job_summary.job_id IS 'the job';
COMMENT ON COLUMN job_summary.name IS 'free text for people';
COMMENT ON COLUMN job_summary.policy IS 'NAME or NAME:PRESET';
COMMENT ON COLUMN job_summary.small_model IS 'the small model, null where the policy needs none';
COMMENT ON COLUMN job_summary.large_model IS 'the large model, null where the policy needs none';
COMMENT ON COLUMN job_summary.judge_model IS 'the judge, null where the policy needs none';
COMMENT ON COLUMN job_summary.state IS 'running, paused, completed, completed_with_errors or cancelled';
COMMENT ON COLUMN job_summary.num_problems IS 'problems the job uses';
COMMENT ON COLUMN job_summary.num_samples IS 'solutions drawn per problem';
COMMENT ON COLUMN job_summary.samples_total IS 'all samples of the job';
COMMENT ON COLUMN job_summary.samples_finished IS 'with complete text, not yet graded';
COMMENT ON COLUMN job_summary.samples_graded IS 'complete and graded';
COMMENT ON COLUMN job_summary.samples_failed IS 'set aside with an error';
COMMENT ON COLUMN job_summary.samples_cancelled IS 'ended by cancelling the job';
COMMENT ON COLUMN job_summary.samples_open IS 'in no final state yet (the finished ones included)';
COMMENT ON COLUMN job_summary.num_scored IS 'graded samples that have a score';
COMMENT ON COLUMN job_summary.accuracy IS 'mean score of the scored samples';
COMMENT ON COLUMN job_summary.accuracy_low IS 'lower end of the 95 % interval, see the view''s comment';
COMMENT ON COLUMN job_summary.accuracy_high IS 'upper end of the 95 % interval, see the view''s comment';
COMMENT ON COLUMN job_summary.mean_output_tokens IS 'mean kept tokens of the complete samples, all authors';
COMMENT ON COLUMN job_summary.p50_output_tokens IS 'median of the same';
COMMENT ON COLUMN job_summary.p90_output_tokens IS '90th percentile of the same';
COMMENT ON COLUMN job_summary.share_large IS 'kept tokens of the large model over all kept tokens, 0 to 1';
COMMENT ON COLUMN job_summary.takeovers IS 'times the large model was called in, all samples';
COMMENT ON COLUMN job_summary.takeovers_per_sample IS 'mean over the complete samples';
COMMENT ON COLUMN job_summary.tokens_small IS 'kept tokens written by the small model, all samples';
COMMENT ON COLUMN job_summary.tokens_large IS 'kept tokens written by the large model, all samples';
COMMENT ON COLUMN job_summary.tokens_inserted IS 'kept tokens put in by the policy, all samples';
COMMENT ON COLUMN job_summary.discarded_small IS 'tokens the small model wrote that were not kept';
COMMENT ON COLUMN job_summary.discarded_large IS 'tokens the large model wrote that were not kept';
COMMENT ON COLUMN job_summary.aside_small IS 'tokens the small model wrote in asides, on side branches of the text';
COMMENT ON COLUMN job_summary.aside_large IS 'tokens the large model wrote in asides, on side branches of the text';
COMMENT ON COLUMN job_summary.aside_judge IS 'tokens the judge wrote: in asides alone, none is kept';
COMMENT ON COLUMN job_summary.taken_small IS 'of aside_small, put into the text: in tokens_small too';
COMMENT ON COLUMN job_summary.taken_large IS 'of aside_large, put into the text: in tokens_large too';
COMMENT ON COLUMN job_summary.written_small IS
    'all tokens the small model wrote, each once: tokens_small + discarded_small + aside_small - taken_small';
COMMENT ON COLUMN job_summary.written_large IS
    'all tokens the large model wrote, each once: tokens_large + discarded_large + aside_large - taken_large';
COMMENT ON COLUMN job_summary.written_judge IS 'all tokens the judge wrote: aside_judge';
COMMENT ON COLUMN job_summary.seconds IS 'from the first claim of a sample to the job''s end, or until now';
COMMENT ON COLUMN job_summary.tokens_per_second IS 'kept tokens of all authors per second';
COMMENT ON COLUMN job_summary.tokens_per_second_small IS 'written_small per second';
COMMENT ON COLUMN job_summary.tokens_per_second_large IS 'written_large per second';
COMMENT ON COLUMN job_summary.tokens_per_second_judge IS 'written_judge per second';
COMMENT ON COLUMN job_summary.submitted_at IS 'when the job was submitted';
COMMENT ON COLUMN job_summary.first_claimed_at IS 'when a worker first took one of its samples';
COMMENT ON COLUMN job_summary.finished_at IS 'when the job ended';
