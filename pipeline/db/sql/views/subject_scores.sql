-- Read by: people.

CREATE VIEW subject_scores AS
SELECT c.job_id, c.subject, c.num_problems, c.num_scored, c.num_right, c.accuracy,
       w.low AS accuracy_low, w.high AS accuracy_high, c.mean_output_tokens, c.share_large
FROM (
    SELECT s.job_id, p.subject, count(DISTINCT s.problem_id) AS num_problems, count(*) AS num_scored,
           count(*) FILTER (WHERE s.score >= 0.5) AS num_right, avg(s.score) AS accuracy,
           avg(s.tokens_small + s.tokens_large + s.tokens_inserted)::float8 AS mean_output_tokens,
           sum(s.tokens_large) / nullif(sum(s.tokens_small + s.tokens_large + s.tokens_inserted), 0)::float8
           AS share_large
    FROM samples s JOIN problems p ON p.id = s.problem_id
    WHERE s.state = 'graded' AND s.score IS NOT NULL GROUP BY s.job_id, p.subject
) c
CROSS JOIN LATERAL wilson_interval(c.accuracy, c.num_problems, 1.96) w;

COMMENT ON VIEW subject_scores IS
    'How right a job is by subject of the problems. The interval is Wilson''s over the number of problems: with several '
    'samples per problem it is wider than need be, never too narrow.';
COMMENT ON COLUMN subject_scores.job_id IS 'the job';
COMMENT ON COLUMN subject_scores.subject IS 'as in the file, null where it says none';
COMMENT ON COLUMN subject_scores.num_problems IS 'problems with a scored sample';
COMMENT ON COLUMN subject_scores.num_scored IS 'scored samples';
COMMENT ON COLUMN subject_scores.num_right IS 'of these, with a score of at least 0.5';
COMMENT ON COLUMN subject_scores.accuracy IS 'mean score of the scored samples';
COMMENT ON COLUMN subject_scores.accuracy_low IS 'lower end of the 95 % interval, see the view''s comment';
COMMENT ON COLUMN subject_scores.accuracy_high IS 'upper end of the 95 % interval, see the view''s comment';
COMMENT ON COLUMN subject_scores.mean_output_tokens IS 'their mean kept tokens, all authors';
COMMENT ON COLUMN subject_scores.share_large IS 'the large model''s share of these, 0 to 1';
