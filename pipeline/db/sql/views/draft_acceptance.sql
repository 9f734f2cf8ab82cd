-- Read by: people.

CREATE VIEW draft_acceptance AS
SELECT d.engine_id, d.role, d.model, d.accelerator, d.num_workers, d.num_drafts, d.draft_tokens, d.accepted_tokens,
       d.accepted_tokens / nullif(d.draft_tokens, 0)::float8 AS share_accepted,
       1 + d.accepted_tokens / nullif(d.num_drafts, 0)::float8 AS tokens_per_step
FROM (
    SELECT e.id AS engine_id, w.kind AS role, w.model, e.settings ->> 'accelerate' AS accelerator,
           count(*) AS num_workers, sum(w.num_drafts)::bigint AS num_drafts,
           sum(w.draft_tokens)::bigint AS draft_tokens, sum(w.accepted_tokens)::bigint AS accepted_tokens
    FROM engines e JOIN workers w ON w.engine_id = e.id
    WHERE e.settings ? 'accelerate'
    GROUP BY e.id, w.kind, w.model
) d;

COMMENT ON VIEW draft_acceptance IS
    'One row per engine with an accelerator and role: how many of the tokens that it drafted its model accepted, in all '
    'of its workers'' lives. Drafts that are not accepted are in no other count of tokens.';
COMMENT ON COLUMN draft_acceptance.engine_id IS 'the engine: engines.settings says how it was started';
COMMENT ON COLUMN draft_acceptance.role IS 'small, large or judge';
COMMENT ON COLUMN draft_acceptance.model IS 'the name that jobs use';
COMMENT ON COLUMN draft_acceptance.accelerator IS 'ngram, suffix, eagle3:MODEL or draft:MODEL';
COMMENT ON COLUMN draft_acceptance.num_workers IS 'workers that had this engine, those that have ended too';
COMMENT ON COLUMN draft_acceptance.num_drafts IS 'steps of a sample for which tokens were drafted';
COMMENT ON COLUMN draft_acceptance.draft_tokens IS 'tokens in these drafts';
COMMENT ON COLUMN draft_acceptance.accepted_tokens IS 'of these, accepted';
COMMENT ON COLUMN draft_acceptance.share_accepted IS 'accepted over drafted tokens; null: none was drafted';
COMMENT ON COLUMN draft_acceptance.tokens_per_step IS
    'mean number of tokens that a step with a draft gave: the accepted ones and one more; null: there was none';
