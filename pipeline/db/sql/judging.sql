-- How a judge's verdicts become grades of the samples that it judged. With the rights of the schema's owner: who submits
-- a judge writes no grade, and upkeep reads no text.
-- Read by: pipeline.db.judging.

-- Equal for judges that would say the same of the same answers: the model, the text around the answers, and how it is
-- asked and drawn from. The seed is none of it, as a sample's seed is none of its job's policy.
CREATE FUNCTION judge_version(judge bigint) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT format('%s weights:%s template:%s settings:%s', j.large_model,
                  coalesce(left(coalesce(j.large_identity->>'weights', j.config#>>'{large,weights}'), 12), 'unknown'),
                  left(j.config#>>'{judging,template_sha256}', 12),
                  left(encode(sha256(convert_to(jsonb_build_array(
                      coalesce(j.large_identity->>'fingerprint', j.config#>>'{large,fingerprint}'),
                      j.config->'sampling', j.config->'large_sampling', j.config->'large_asking',
                      j.config#>'{judging,answer_chars}')::text, 'UTF8')), 'hex'), 8))
    FROM jobs j WHERE j.id = judge
$$;

COMMENT ON FUNCTION judge_version IS
    'the version of a judge as a grader: its model''s name and weights, its template and how it is asked';

-- Locks in the order of everybody who changes grades: the judged job, its samples, their grades. Another judge's
-- verdicts on these samples, or a count of their job, wait until the end.
CREATE FUNCTION carry_verdicts(judge bigint) RETURNS TABLE (
    num_correct bigint, num_incorrect bigint, num_unreadable bigint, num_unanswered bigint, num_redrawn bigint,
    num_changed bigint
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    judged bigint := (SELECT j.judged_job_id FROM jobs j WHERE j.id = judge);
    by_version text := judge_version(judge);
    leaves_cut_out boolean;
BEGIN
    SELECT j.config->>'cut_samples' = 'unscored' INTO leaves_cut_out FROM jobs j WHERE j.id = judged FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'job % judges no job that there is', judge USING ERRCODE = 'no_data_found';
    END IF;
    PERFORM FROM jobs j WHERE j.id = judge AND j.state IN ('completed', 'completed_with_errors') FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'job % has not judged to its end', judge USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    PERFORM FROM samples s JOIN judged_samples m ON m.sample_id = s.id
    WHERE m.job_id = judge AND s.job_id = judged AND s.state = 'graded' AND s.epoch = m.epoch
    ORDER BY s.id FOR NO KEY UPDATE OF s;
    RETURN QUERY
    WITH found AS MATERIALIZED (
        SELECT s.id, s.score AS present, s.predicted_answer, m.problem_id IS NOT NULL AS is_judged,
               CASE WHEN m.problem_id IS NOT NULL THEN v.score
                    WHEN leaves_cut_out AND s.finish_reason NOT IN ('eos', 'stop') THEN NULL ELSE 0 END AS score,
               CASE WHEN m.problem_id IS NULL THEN 'no answer to judge'
                    WHEN v.score IS NOT NULL THEN NULL
                    WHEN v.state = 'graded' THEN coalesce(g.detail, 'the judge gave no verdict')
                    ELSE format('the judge''s sample %s is %s', v.id, concat_ws(': ', v.state, v.error))
               END AS detail
        FROM judged_samples m JOIN samples s ON s.id = m.sample_id
        LEFT JOIN samples v ON v.job_id = m.job_id AND v.problem_id = m.problem_id AND v.sample_index = 0
        LEFT JOIN LATERAL (
            SELECT n.detail FROM grades n WHERE n.sample_id = v.id AND n.status <> 'running'
            ORDER BY n.graded_at DESC, n.grader DESC, n.grader_version DESC LIMIT 1
        ) g ON true
        WHERE m.job_id = judge AND s.job_id = judged AND s.state = 'graded' AND s.epoch = m.epoch
    ),
    given AS MATERIALIZED (
        SELECT f.*, CASE WHEN f.is_judged AND f.score IS NULL THEN 'error' ELSE 'done' END AS status FROM found f
    ),
    new AS MATERIALIZED (
        SELECT n.* FROM given n LEFT JOIN LATERAL (
            SELECT o.grader, o.grader_version, o.status, o.score, o.detail FROM grades o
            WHERE o.sample_id = n.id AND o.status <> 'running'
            ORDER BY o.graded_at DESC, o.grader DESC, o.grader_version DESC LIMIT 1
        ) o ON true
        WHERE (o.grader, o.grader_version, o.status, o.score, o.detail)
              IS DISTINCT FROM ('judge', by_version, n.status, n.score, n.detail) OR n.present IS DISTINCT FROM n.score
    ),
    stored AS (
        INSERT INTO grades (sample_id, grader, grader_version, status, score, predicted_answer, detail, graded_at)
        SELECT n.id, 'judge', by_version, n.status, n.score, n.predicted_answer, n.detail, clock_timestamp() FROM new n
        ON CONFLICT (sample_id, grader, grader_version) DO UPDATE SET
            status = excluded.status, score = excluded.score, predicted_answer = excluded.predicted_answer,
            detail = excluded.detail, graded_at = excluded.graded_at
    ),
    scored AS (
        UPDATE samples s SET score = n.score FROM new n WHERE s.id = n.id AND s.score IS DISTINCT FROM n.score
    ),
    stale AS (
        UPDATE job_totals t SET stale_at = clock_timestamp() WHERE t.job_id = judged AND EXISTS (SELECT FROM new)
    ),
    noted AS (
        UPDATE jobs j SET verdicts_at = clock_timestamp() WHERE j.id = judge
    )
    SELECT count(*) FILTER (WHERE g.is_judged AND g.score = 1), count(*) FILTER (WHERE g.is_judged AND g.score = 0),
           count(*) FILTER (WHERE g.is_judged AND g.score IS NULL), count(*) FILTER (WHERE NOT g.is_judged),
           (SELECT count(*) FROM judged_samples m WHERE m.job_id = judge) - count(*), (SELECT count(*) FROM new)
    FROM given g;
END $$;

COMMENT ON FUNCTION carry_verdicts IS
    'makes the verdicts of a judge that has ended the newest grades of the samples it judged, all or none; says how '
    'many there are of each kind, and how many grades are new';

REVOKE EXECUTE ON FUNCTION carry_verdicts FROM PUBLIC;
