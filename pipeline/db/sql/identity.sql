-- Read by: the claim, the choice of a worker to pass a message on to, job_progress.
-- It is pipeline.jobs.config.ModelSpec.why_not as SQL (a test compares them).

CREATE FUNCTION why_not_served(
    wanted jsonb, fixed jsonb, fingerprint text, weights text, revision text
) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN fingerprint <> wanted->>'fingerprint' OR fingerprint <> fixed->>'fingerprint'
        THEN 'this worker''s model has another tokenizer or chat template than the job''s'
        WHEN weights <> wanted->>'weights' OR weights <> fixed->>'weights'
        THEN 'this worker''s model has other weights than the job''s'
        WHEN wanted->>'revision' IS DISTINCT FROM revision AND wanted->>'revision' IS NOT NULL
        THEN format('the job asks for revision ''%s'', and this worker was started with %s', wanted->>'revision',
                    coalesce(quote_literal(revision), 'None'))
    END
$$;

COMMENT ON FUNCTION why_not_served IS
    'why a worker whose model is this one may not write for a job that wants that one, or has had another; null: it '
    'may, and what is not known counts as the same';

CREATE FUNCTION identity_of(wanted jsonb, fixed jsonb) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT concat_ws(', ', 'tokenizer and template ' || left(coalesce(fixed->>'fingerprint', wanted->>'fingerprint'), 12),
                     'weights ' || left(coalesce(fixed->>'weights', wanted->>'weights'), 12),
                     'revision ' || (wanted->>'revision'))
$$;

COMMENT ON FUNCTION identity_of IS 'the beginnings of the hashes by which a job knows its model, for people';
