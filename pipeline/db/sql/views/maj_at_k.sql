-- Read by: specthink stats, the report's page, Client.stats.

CREATE VIEW maj_at_k AS
SELECT j.id AS job_id, t.k, sum(t.num_problems)::bigint AS num_problems,
       sum(t.share_sum) / sum(t.num_problems)::float8 AS maj_at_k
FROM jobs j CROSS JOIN LATERAL job_votes(j.id) t GROUP BY j.id, t.k;

COMMENT ON VIEW maj_at_k IS
    'Probability that the most frequent answer among k samples of a problem is right. Of a problem '
    'with up to 8 scored samples every subset of k votes; of one with more, 64 drawn subsets, the same ones each time, '
    'and for k = 1 every sample. Each problem counts once with the mean of its subsets: the estimate is unbiased. '
    'Right answers count as one answer whatever their form, others by their text; a sample without an answer does '
    'not vote. Of equally frequent answers each is taken with equal probability.';
COMMENT ON COLUMN maj_at_k.job_id IS 'the job';
COMMENT ON COLUMN maj_at_k.k IS 'samples that vote, from 1 to the most scored samples of a problem';
COMMENT ON COLUMN maj_at_k.num_problems IS 'problems with at least k scored samples';
COMMENT ON COLUMN maj_at_k.maj_at_k IS 'the estimate, 0 to 1';
