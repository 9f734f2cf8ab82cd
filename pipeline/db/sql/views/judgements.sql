-- Read by: people.

CREATE VIEW judgements AS
SELECT w.job_id, m.job_id AS judge_job_id, m.sample_id, p.external_id AS problem, w.sample_index,
       b.grader AS grader_before, b.score AS score_before,
       CASE v.score WHEN 1 THEN 'correct' WHEN 0 THEN 'incorrect' END AS verdict,
       CASE WHEN m.problem_id IS NULL THEN 'no answer to judge'
            WHEN w.state <> 'graded' OR w.epoch <> m.epoch THEN 'drawn again since'
            WHEN v.score IS NOT NULL THEN NULL
            WHEN v.state = 'graded' THEN coalesce(g.detail, 'the judge gave no verdict')
            ELSE concat_ws(': ', v.state, v.error) END AS why_none,
       v.id AS judge_sample_id, q.prompt, o.judge_text
FROM judged_samples m JOIN samples w ON w.id = m.sample_id JOIN problems p ON p.id = w.problem_id
LEFT JOIN problems q ON q.id = m.problem_id
LEFT JOIN samples v ON v.job_id = m.job_id AND v.problem_id = m.problem_id AND v.sample_index = 0
LEFT JOIN LATERAL (
    SELECT n.grader, n.score FROM grades n WHERE n.sample_id = w.id AND n.status <> 'running' AND n.grader <> 'judge'
    ORDER BY n.graded_at DESC, n.grader DESC, n.grader_version DESC LIMIT 1
) b ON true
LEFT JOIN LATERAL (
    SELECT n.detail FROM grades n WHERE n.sample_id = v.id AND n.status <> 'running'
    ORDER BY n.graded_at DESC, n.grader DESC, n.grader_version DESC LIMIT 1
) g ON true
LEFT JOIN LATERAL (
    SELECT string_agg(t.text, '' ORDER BY t.segment_index) AS judge_text FROM segments t WHERE t.sample_id = v.id
) o ON true;

COMMENT ON VIEW judgements IS
    'One row per sample that a judge was submitted for, with what the judge was asked and what it wrote. Samples of one '
    'problem whose answers are equal share a sample of the judge''s. The verdicts are grades by the grader "judge" once '
    'the judge has ended: jobs.verdicts_at of judge_job_id says when.';
COMMENT ON COLUMN judgements.job_id IS 'the judged job';
COMMENT ON COLUMN judgements.judge_job_id IS 'the judge''s job';
COMMENT ON COLUMN judgements.sample_id IS 'the judged sample';
COMMENT ON COLUMN judgements.problem IS 'its problem''s id in the submitted file';
COMMENT ON COLUMN judgements.sample_index IS '0-based among the samples of the problem';
COMMENT ON COLUMN judgements.grader_before IS 'whose grade it has beside those of judges; null: none';
COMMENT ON COLUMN judgements.score_before IS 'that grade''s score; null: unscored';
COMMENT ON COLUMN judgements.verdict IS 'correct or incorrect; null: none (yet), see why_none';
COMMENT ON COLUMN judgements.why_none IS
    'no answer to judge; drawn again since; why the judge''s text has no verdict; or the state of the judge''s sample';
COMMENT ON COLUMN judgements.judge_sample_id IS 'the judge''s sample, as in results and segments; null: none';
COMMENT ON COLUMN judgements.prompt IS 'all that the judge was asked, with the reference answer where its template shows it';
COMMENT ON COLUMN judgements.judge_text IS 'what the judge wrote so far, thoughts included';
