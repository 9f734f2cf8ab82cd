-- Read by: specthink compare --json, Client.problem_scores; bootstrap intervals.

CREATE VIEW problem_scores AS
SELECT s.job_id, s.problem_id, min(p.external_id) AS problem, count(*) AS num_scored,
       count(*) FILTER (WHERE s.score >= 0.5) AS num_right, avg(s.score) AS score,
       avg(s.tokens_small + s.tokens_large + s.tokens_inserted)::float8 AS mean_output_tokens
FROM samples s JOIN problems p ON p.id = s.problem_id
WHERE s.state = 'graded' AND s.score IS NOT NULL
GROUP BY s.job_id, s.problem_id;

COMMENT ON VIEW problem_scores IS
    'One row per job and problem that has a scored sample: what accuracy is averaged from, and jobs are paired by.';
COMMENT ON COLUMN problem_scores.job_id IS 'the job';
COMMENT ON COLUMN problem_scores.problem_id IS 'the problem';
COMMENT ON COLUMN problem_scores.problem IS 'its id in the submitted file';
COMMENT ON COLUMN problem_scores.num_scored IS 'scored samples of the problem';
COMMENT ON COLUMN problem_scores.num_right IS 'of these, with a score of at least 0.5';
COMMENT ON COLUMN problem_scores.score IS 'their mean score';
COMMENT ON COLUMN problem_scores.mean_output_tokens IS 'their mean kept tokens, all authors';
