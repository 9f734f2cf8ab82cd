-- Read by: people.

CREATE VIEW step_positions AS
SELECT s.job_id, n.tenth, t.sentence_class, count(*) AS num_steps, count(DISTINCT s.id) AS num_samples,
       count(t.trigger) AS num_taken_over,
       sum(t.tokens_small + t.tokens_large + t.tokens_inserted)::bigint AS tokens,
       avg(t.tokens_small + t.tokens_large + t.tokens_inserted)::float8 AS mean_tokens,
       sum(t.tokens_large) / nullif(sum(t.tokens_small + t.tokens_large + t.tokens_inserted), 0)::float8 AS share_large
FROM samples s JOIN steps t ON t.sample_id = s.id
CROSS JOIN LATERAL (
    SELECT least(10, 1 + 10 * t.start_token
                     / greatest(1, s.tokens_small + s.tokens_large + s.tokens_inserted)) AS tenth
) n
WHERE s.state IN ('finished', 'graded')
GROUP BY s.job_id, n.tenth, t.sentence_class;

COMMENT ON VIEW step_positions IS
    'Where in the complete samples of a job which kinds of steps begin, and where the large model takes over.';
COMMENT ON COLUMN step_positions.job_id IS 'the job';
COMMENT ON COLUMN step_positions.tenth IS '1 to 10: the tenth of its sample''s output in which a step begins';
COMMENT ON COLUMN step_positions.sentence_class IS 'statement, reflection or affirmation';
COMMENT ON COLUMN step_positions.num_steps IS 'steps';
COMMENT ON COLUMN step_positions.num_samples IS 'samples they are of';
COMMENT ON COLUMN step_positions.num_taken_over IS 'of num_steps, those in which a takeover begins';
COMMENT ON COLUMN step_positions.tokens IS 'their kept tokens, all authors';
COMMENT ON COLUMN step_positions.mean_tokens IS 'tokens per step';
COMMENT ON COLUMN step_positions.share_large IS 'the large model''s share of the tokens, 0 to 1';
