"""Numbers: counts of ended jobs are kept, and views for what the first ones lack.

``count_samples`` and ``count_cost`` count one job; ``job_totals`` keeps what they gave for a job that has ended. The
views read the kept counts where there are any that hold, and count otherwise, so that they are right either way.
Nothing is counted here: upkeep does it for the jobs that have ended already.

Lock taken: the two views that are made anew are locked for the time of the migration.
Way back: drops all of it and restores the two views of revision 0002.
"""

from typing import Any, NamedTuple

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


class View(NamedTuple):
    """columns: name → what it means, stored as the column's comment; all of them, in order."""

    name: str
    comment: str
    columns: dict[str, str]
    query: str


SAMPLE_COUNTS = {
    "samples_total": "all samples of the job",
    "pending": "by state",
    "ready": "by state",
    "drafting": "by state",
    "awaiting_large": "by state",
    "assisting": "by state",
    "finished": "by state",
    "graded": "by state",
    "failed": "by state",
    "cancelled": "by state",
    "num_length": "complete samples ended by the job's max_tokens",
    "num_context": "complete samples ended by the model's context",
    "num_repetition": "complete samples ended by the loop guard",
    "num_scored": "graded samples that have a score",
    "num_right": "of these, with a score of at least 0.5",
    "problems_scored": "problems with a scored sample",
    "takeovers": "times the large model was called in",
    "tokens_small": "kept, written by the small model",
    "tokens_large": "kept, written by the large model",
    "tokens_inserted": "kept, put in by the policy",
    "discarded_small": "written by the small model, not kept",
    "discarded_large": "written by the large model, not kept",
}
SAMPLE_MEASURES = {
    "accuracy": "mean score of the scored samples",
    "score_variance": "variance of their scores",
    "score_squares": "sum over problems of the squared sum of deviations from the accuracy",
    "mean_output_tokens": "mean kept tokens of the complete samples",
    "p50_output_tokens": "median of the same",
    "p90_output_tokens": "90th percentile of the same",
    "takeovers_per_sample": "mean over the complete samples",
    "p50_wall_seconds": "from admission to complete text, median of the complete samples",
    "p95_wall_seconds": "95th percentile of the same",
}
COST_COUNTS = {
    "prompt_tokens_small": "of the small model's prompts, computed: not found in the prefix cache",
    "prompt_tokens_large": "likewise, large",
}
COST_MEASURES = {
    "engine_seconds_small": "time in which a small worker had a request of this job, summed over the workers",
    "engine_seconds_large": "likewise, large",
    "request_seconds_small": "sum of the durations of the small model's requests",
    "request_seconds_large": "likewise, large",
    "mean_wait_seconds": "from publishing to claim, all segments of a sample together, mean over samples",
    "p95_wait_seconds": "95th percentile of the same",
    "mean_queue_seconds": "inside the engines before the first work, likewise, mean over samples",
}

COUNT_SAMPLES = f"""
CREATE FUNCTION count_samples(job bigint) RETURNS TABLE (
    {", ".join(f"{name} bigint" for name in SAMPLE_COUNTS)},
    {", ".join(f"{name} double precision" for name in SAMPLE_MEASURES)}
) LANGUAGE sql STABLE AS $$
    SELECT c.samples_total, c.pending, c.ready, c.drafting, c.awaiting_large, c.assisting, c.finished, c.graded,
           c.failed, c.cancelled, c.num_length, c.num_context, c.num_repetition, c.num_scored, c.num_right, p.problems,
           c.takeovers, c.tokens_small, c.tokens_large, c.tokens_inserted, c.discarded_small, c.discarded_large,
           c.accuracy, c.score_variance, p.squares, c.mean_output_tokens, c.p50_output_tokens, c.p90_output_tokens,
           c.takeovers_per_sample, c.p50_wall_seconds, c.p95_wall_seconds
    FROM (
        SELECT count(*) AS samples_total,
               count(*) FILTER (WHERE s.state = 'pending') AS pending,
               count(*) FILTER (WHERE s.state = 'ready') AS ready,
               count(*) FILTER (WHERE s.state = 'drafting') AS drafting,
               count(*) FILTER (WHERE s.state = 'awaiting_large') AS awaiting_large,
               count(*) FILTER (WHERE s.state = 'assisting') AS assisting,
               count(*) FILTER (WHERE s.state = 'finished') AS finished,
               count(*) FILTER (WHERE s.state = 'graded') AS graded,
               count(*) FILTER (WHERE s.state = 'failed') AS failed,
               count(*) FILTER (WHERE s.state = 'cancelled') AS cancelled,
               count(*) FILTER (WHERE n.is_complete AND s.finish_reason = 'length') AS num_length,
               count(*) FILTER (WHERE n.is_complete AND s.finish_reason = 'context') AS num_context,
               count(*) FILTER (WHERE n.is_complete AND s.finish_reason = 'repetition') AS num_repetition,
               count(s.score) FILTER (WHERE s.state = 'graded') AS num_scored,
               count(*) FILTER (WHERE s.state = 'graded' AND s.score >= 0.5) AS num_right,
               coalesce(sum(s.num_takeovers), 0) AS takeovers,
               coalesce(sum(s.tokens_small), 0) AS tokens_small,
               coalesce(sum(s.tokens_large), 0) AS tokens_large,
               coalesce(sum(s.tokens_inserted), 0) AS tokens_inserted,
               coalesce(sum(s.discarded_small), 0) AS discarded_small,
               coalesce(sum(s.discarded_large), 0) AS discarded_large,
               avg(s.score) FILTER (WHERE s.state = 'graded') AS accuracy,
               var_samp(s.score) FILTER (WHERE s.state = 'graded') AS score_variance,
               avg(n.tokens) FILTER (WHERE n.is_complete)::float8 AS mean_output_tokens,
               percentile_cont(0.5) WITHIN GROUP (ORDER BY n.tokens) FILTER (WHERE n.is_complete) AS p50_output_tokens,
               percentile_cont(0.9) WITHIN GROUP (ORDER BY n.tokens) FILTER (WHERE n.is_complete) AS p90_output_tokens,
               avg(s.num_takeovers) FILTER (WHERE n.is_complete)::float8 AS takeovers_per_sample,
               percentile_cont(0.5) WITHIN GROUP (ORDER BY n.wall) FILTER (WHERE n.is_complete) AS p50_wall_seconds,
               percentile_cont(0.95) WITHIN GROUP (ORDER BY n.wall) FILTER (WHERE n.is_complete) AS p95_wall_seconds
        FROM samples s
        CROSS JOIN LATERAL (
            SELECT s.tokens_small + s.tokens_large + s.tokens_inserted AS tokens,
                   s.state IN ('finished', 'graded') AS is_complete,
                   extract(epoch FROM s.finished_at - s.admitted_at)::float8 AS wall
        ) n
        WHERE s.job_id = job
    ) c
    CROSS JOIN LATERAL (
        -- Spread of the problems' summed deviations from the job's mean: the numerator of the clustered variance.
        SELECT count(*) AS problems, sum(d.deviation ^ 2) AS squares
        FROM (
            SELECT sum(s.score - c.accuracy) AS deviation FROM samples s
            WHERE s.job_id = job AND s.state = 'graded' AND s.score IS NOT NULL GROUP BY s.problem_id
        ) d
    ) p
$$
"""

COUNT_COST = f"""
CREATE FUNCTION count_cost(job bigint) RETURNS TABLE (
    {", ".join(f"{name} bigint" for name in COST_COUNTS)},
    {", ".join(f"{name} double precision" for name in COST_MEASURES)}
) LANGUAGE sql STABLE AS $$
    WITH requests AS (
        SELECT g.sample_id, g.author, g.worker_id, g.wait_seconds, g.queue_seconds,
               g.prompt_tokens - g.cached_tokens AS computed, coalesce(g.write_seconds, 0) AS seconds,
               g.committed_at AS until, g.committed_at - make_interval(secs => coalesce(g.write_seconds, 0)) AS since
        FROM samples s JOIN segments g ON g.sample_id = s.id
        WHERE s.job_id = job AND g.author IN ('small', 'large')
    ),
    -- What each request adds to the time that its worker's earlier requests cover.
    added AS (
        SELECT author, computed, seconds,
               greatest(0, extract(epoch FROM until - greatest(since, max(until) OVER (
                   PARTITION BY worker_id ORDER BY since, until ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
               ))))::float8 AS engine_seconds
        FROM requests
    ),
    waits AS (
        SELECT sum(wait_seconds) AS wait, sum(queue_seconds) AS queue FROM requests GROUP BY sample_id
    )
    SELECT a.*, w.*
    FROM (
        SELECT coalesce(sum(computed) FILTER (WHERE author = 'small'), 0),
               coalesce(sum(computed) FILTER (WHERE author = 'large'), 0),
               coalesce(sum(engine_seconds) FILTER (WHERE author = 'small'), 0),
               coalesce(sum(engine_seconds) FILTER (WHERE author = 'large'), 0),
               coalesce(sum(seconds) FILTER (WHERE author = 'small'), 0),
               coalesce(sum(seconds) FILTER (WHERE author = 'large'), 0)
        FROM added
    ) a
    CROSS JOIN (
        SELECT avg(wait), percentile_cont(0.95) WITHIN GROUP (ORDER BY wait), avg(queue) FROM waits
    ) w
$$
"""


def kept_or_counted(function: str, *, columns: str = "*") -> str:
    """What is kept of job j where it holds, else what the function counts now: always one row."""
    return f"""(
        SELECT {columns} FROM (
            SELECT {{names}} FROM job_totals t WHERE t.job_id = j.id AND t.stale_at IS NULL
            UNION ALL
            SELECT {{names}} FROM {function}(j.id) t
            WHERE NOT EXISTS (SELECT FROM job_totals k WHERE k.job_id = j.id AND k.stale_at IS NULL)
        ) u
    )""".replace("{names}", ", ".join(f"t.{name}" for name in NAMES[function]))


NAMES = {
    "count_samples": [*SAMPLE_COUNTS, *SAMPLE_MEASURES],
    "count_cost": [*COST_COUNTS, *COST_MEASURES],
}

JOB_SUMMARY_QUERY = f"""
    SELECT j.id AS job_id, j.name, j.policy, j.small_model, j.large_model, j.state, j.num_problems, j.num_samples,
           c.samples_total, c.finished AS samples_finished, c.graded AS samples_graded, c.failed AS samples_failed,
           c.cancelled AS samples_cancelled, c.samples_total - c.graded - c.failed - c.cancelled AS samples_open,
           c.num_scored, c.accuracy,
           w.centre - w.half AS accuracy_low, w.centre + w.half AS accuracy_high,
           c.mean_output_tokens, c.p50_output_tokens, c.p90_output_tokens,
           c.tokens_large / nullif(c.tokens_small + c.tokens_large + c.tokens_inserted, 0)::float8 AS share_large,
           c.takeovers, c.takeovers_per_sample, c.tokens_small, c.tokens_large, c.tokens_inserted,
           c.discarded_small, c.discarded_large, t.seconds,
           (c.tokens_small + c.tokens_large + c.tokens_inserted) / t.seconds AS tokens_per_second,
           (c.tokens_small + c.discarded_small) / t.seconds AS tokens_per_second_small,
           (c.tokens_large + c.discarded_large) / t.seconds AS tokens_per_second_large,
           j.submitted_at, j.first_claimed_at, j.finished_at
    FROM jobs j
    CROSS JOIN LATERAL {kept_or_counted("count_samples")} c
    CROSS JOIN LATERAL (
        SELECT CASE WHEN c.problems_scored < 2 OR c.score_variance = 0 THEN c.problems_scored
                    ELSE c.num_scored / greatest(1, c.problems_scored / (c.problems_scored - 1.0) * c.score_squares
                                                    / (c.num_scored * c.score_variance))
               END::float8 AS samples
    ) e
    CROSS JOIN LATERAL (
        SELECT (c.accuracy + 1.96 ^ 2 / (2 * e.samples)) / (1 + 1.96 ^ 2 / e.samples) AS centre,
               1.96 * sqrt(c.accuracy * (1 - c.accuracy) / e.samples + 1.96 ^ 2 / (4 * e.samples ^ 2))
               / (1 + 1.96 ^ 2 / e.samples) AS half
        WHERE c.num_scored > 0
        UNION ALL SELECT NULL, NULL WHERE c.num_scored = 0
    ) w
    CROSS JOIN LATERAL (
        SELECT nullif(extract(epoch FROM coalesce(j.finished_at, clock_timestamp()) - j.first_claimed_at), 0)::float8
               AS seconds
    ) t
"""

LIVE_PROGRESS = """(
        SELECT count(*) AS samples_total,"""
KEPT_PROGRESS = """(
        SELECT t.samples_total, t.pending, t.ready, t.drafting, t.awaiting_large, t.assisting, t.finished, t.graded,
               t.failed, t.cancelled, t.takeovers, t.tokens_small + t.discarded_small AS written_small,
               t.tokens_large + t.discarded_large AS written_large
        FROM job_totals t WHERE t.job_id = j.id AND t.stale_at IS NULL
        UNION ALL
        SELECT count(*) AS samples_total,"""
LIVE_PROGRESS_END = """
        FROM samples s WHERE s.job_id = j.id
    ) c"""
KEPT_PROGRESS_END = """
        FROM samples s WHERE s.job_id = j.id
        HAVING NOT EXISTS (SELECT FROM job_totals k WHERE k.job_id = j.id AND k.stale_at IS NULL)
    ) c"""

JOB_COST = View(
    "job_cost",
    "What a job took, measured. Engine seconds: time in which a worker had at least one request of this job in its "
    "engine, summed over the workers of the role; with one GPU per worker these are GPU seconds. Jobs that ran at the "
    "same time on the same workers share that time, and each counts it: run jobs one after the other to compare them. "
    "Request seconds count every request, however many ran together: divided by the engine seconds they are the mean "
    "number of requests at work. A wait is counted once per hop; all of a sample's are added up.",
    {
        "job_id": "the job",
        "num_complete": "samples with complete text",
        "num_right": "graded samples with a score of at least 0.5",
        "engine_seconds_small": "time in which a small worker had a request of this job, summed over the workers",
        "engine_seconds_large": "likewise, large",
        "request_seconds_small": "durations of the small model's requests, summed",
        "request_seconds_large": "likewise, large",
        "seconds_per_right": "engine seconds of both roles per right sample",
        "small_seconds_per_right": "engine_seconds_small per right sample",
        "large_seconds_per_right": "engine_seconds_large per right sample",
        "prompt_tokens_small": "of the small model's prompts, computed: not found in the prefix cache",
        "prompt_tokens_large": "likewise, large",
        "p50_wall_seconds": "from admission to complete text, median of the complete samples",
        "p95_wall_seconds": "95th percentile of the same",
        "mean_wait_seconds": "from publishing to a worker's claim, all hops of a sample together, mean over samples",
        "p95_wait_seconds": "95th percentile of the same",
        "mean_queue_seconds": "inside the engines before their first work, likewise, mean over samples",
        "share_length": "share of the complete samples that were cut by the job's max_tokens",
        "share_context": "share cut by the model's context",
        "share_repetition": "share ended by the loop guard",
    },
    f"""
    SELECT j.id AS job_id, n.complete AS num_complete, c.num_right,
           k.engine_seconds_small, k.engine_seconds_large, k.request_seconds_small, k.request_seconds_large,
           (k.engine_seconds_small + k.engine_seconds_large) / nullif(c.num_right, 0) AS seconds_per_right,
           k.engine_seconds_small / nullif(c.num_right, 0) AS small_seconds_per_right,
           k.engine_seconds_large / nullif(c.num_right, 0) AS large_seconds_per_right,
           k.prompt_tokens_small, k.prompt_tokens_large, c.p50_wall_seconds, c.p95_wall_seconds,
           k.mean_wait_seconds, k.p95_wait_seconds, k.mean_queue_seconds,
           c.num_length / nullif(n.complete, 0)::float8 AS share_length,
           c.num_context / nullif(n.complete, 0)::float8 AS share_context,
           c.num_repetition / nullif(n.complete, 0)::float8 AS share_repetition
    FROM jobs j
    CROSS JOIN LATERAL {kept_or_counted("count_samples")} c
    CROSS JOIN LATERAL {kept_or_counted("count_cost")} k
    CROSS JOIN LATERAL (SELECT c.finished + c.graded AS complete) n
    """,
)

PROBLEM_SCORES = View(
    "problem_scores",
    "One row per job and problem that has a scored sample: what accuracy is averaged from, and jobs are paired by.",
    {
        "job_id": "the job",
        "problem_id": "the problem",
        "problem": "its id in the submitted file",
        "num_scored": "scored samples of the problem",
        "num_right": "of these, with a score of at least 0.5",
        "score": "their mean score",
        "mean_output_tokens": "their mean kept tokens, all authors",
    },
    """
    SELECT s.job_id, s.problem_id, min(p.external_id) AS problem, count(*) AS num_scored,
           count(*) FILTER (WHERE s.score >= 0.5) AS num_right, avg(s.score) AS score,
           avg(s.tokens_small + s.tokens_large + s.tokens_inserted)::float8 AS mean_output_tokens
    FROM samples s JOIN problems p ON p.id = s.problem_id
    WHERE s.state = 'graded' AND s.score IS NOT NULL
    GROUP BY s.job_id, s.problem_id
    """,
)

MAJ_AT_K = View(
    "maj_at_k",
    "Probability that the most frequent answer among k samples of a problem is right. The scored samples of a problem, "
    "in their order, are cut into groups of k (what is left over does not count); each group votes, each problem "
    "counts once with the mean of its groups, so that every sample counts once and the estimate is unbiased. Right "
    "answers count as one answer whatever their form, others by their text; a sample without an answer does not "
    "vote. Of equally frequent answers each is taken with equal probability.",
    {
        "job_id": "the job",
        "k": "samples that vote, from 1 to the most scored samples of a problem",
        "num_problems": "problems with at least k scored samples",
        "maj_at_k": "the estimate, 0 to 1",
    },
    """
    SELECT j.id AS job_id, m.k, count(*) AS num_problems, avg(m.share)::float8 AS maj_at_k
    FROM jobs j
    CROSS JOIN LATERAL (
        WITH votes AS (
            SELECT s.problem_id, CASE WHEN s.score >= 0.5 THEN 'right' ELSE 'wrong ' || s.predicted_answer END AS vote,
                   row_number() OVER (PARTITION BY s.problem_id ORDER BY s.sample_index) - 1 AS place,
                   count(*) OVER (PARTITION BY s.problem_id) AS n
            FROM samples s WHERE s.job_id = j.id AND s.state = 'graded' AND s.score IS NOT NULL
        ),
        tallies AS (
            SELECT v.problem_id, i.k, v.place / i.k AS bundle, v.vote, count(v.vote) AS num
            FROM votes v CROSS JOIN LATERAL generate_series(1, v.n) AS i (k)
            WHERE v.place < v.n / i.k * i.k
            GROUP BY v.problem_id, i.k, v.place / i.k, v.vote
        ),
        winners AS (
            SELECT t.*, max(t.num) OVER (PARTITION BY t.problem_id, t.k, t.bundle) AS most FROM tallies t
        ),
        bundles AS (
            SELECT problem_id, k, bundle,
                   coalesce(count(*) FILTER (WHERE vote = 'right' AND num = most)
                            / nullif(count(*) FILTER (WHERE vote IS NOT NULL AND num = most), 0)::float8, 0) AS is_right
            FROM winners GROUP BY problem_id, k, bundle
        )
        SELECT problem_id, k, avg(is_right) AS share FROM bundles GROUP BY problem_id, k
    ) m
    GROUP BY j.id, m.k
    """,
)

LENGTH_HISTOGRAM = View(
    "length_histogram",
    "How many complete samples of a job are how long: 20 buckets of equal width from 0 to the longest sample.",
    {
        "job_id": "the job",
        "bucket": "1 to 20",
        "from_tokens": "fewest kept tokens of the bucket",
        "to_tokens": "first number of tokens beyond it",
        "n": "complete samples in it",
        "num_right": "of these, with a score of at least 0.5",
        "num_wrong": "with a lower score",
        "num_unscored": "without a score",
    },
    """
    SELECT j.id AS job_id, l.*
    FROM jobs j
    CROSS JOIN LATERAL (
        WITH complete AS (
            SELECT s.tokens_small + s.tokens_large + s.tokens_inserted AS tokens, s.score
            FROM samples s WHERE s.job_id = j.id AND s.state IN ('finished', 'graded')
        ),
        m AS (SELECT (max(tokens) + 20) / 20 AS width FROM complete),
        h AS (
            SELECT width_bucket(c.tokens::float8, 0, 20 * m.width, 20) AS bucket, count(*) AS n,
                   count(*) FILTER (WHERE c.score >= 0.5) AS num_right,
                   count(*) FILTER (WHERE c.score < 0.5) AS num_wrong,
                   count(*) FILTER (WHERE c.score IS NULL) AS num_unscored
            FROM complete c CROSS JOIN m GROUP BY 1
        )
        SELECT i AS bucket, (i - 1) * m.width AS from_tokens, i * m.width AS to_tokens, coalesce(h.n, 0) AS n,
               coalesce(h.num_right, 0) AS num_right, coalesce(h.num_wrong, 0) AS num_wrong,
               coalesce(h.num_unscored, 0) AS num_unscored
        FROM m CROSS JOIN generate_series(1, 20) AS i LEFT JOIN h ON h.bucket = i
        WHERE m.width IS NOT NULL
    ) l
    """,
)

BUDGET_CURVE = View(
    "budget_curve",
    "What accuracy would be had every sample been cut at so many tokens, at 20 budgets up to the longest sample: a "
    "sample keeps its score where it was complete by then and counts as wrong otherwise. So it is a lower bound: text "
    "that is cut may hold the answer already.",
    {
        "job_id": "the job",
        "budget": "tokens at which every sample is cut",
        "num_scored": "graded samples that have a score",
        "num_complete": "of these, complete within the budget",
        "accuracy": "mean score, cut samples counting as wrong",
        "mean_output_tokens": "mean kept tokens, cut at the budget",
    },
    """
    SELECT j.id AS job_id, l.*
    FROM jobs j
    CROSS JOIN LATERAL (
        WITH scored AS (
            SELECT s.tokens_small + s.tokens_large + s.tokens_inserted AS tokens, s.score
            FROM samples s WHERE s.job_id = j.id AND s.state = 'graded' AND s.score IS NOT NULL
        ),
        m AS (SELECT greatest(1, ceil(max(tokens) / 20.0))::integer AS width, count(*) AS n FROM scored),
        h AS (
            SELECT greatest(1, ceil(c.tokens / m.width::float8)) AS bucket, count(*) AS n, sum(c.score) AS score,
                   sum(c.tokens) AS tokens
            FROM scored c CROSS JOIN m GROUP BY 1
        )
        SELECT i * m.width AS budget, m.n AS num_scored, coalesce(sum(h.n) OVER within, 0)::bigint AS num_complete,
               coalesce(sum(h.score) OVER within, 0) / m.n AS accuracy,
               ((coalesce(sum(h.tokens) OVER within, 0)
                 + (m.n - coalesce(sum(h.n) OVER within, 0)) * i * m.width) / m.n)::float8 AS mean_output_tokens
        FROM m CROSS JOIN generate_series(1, 20) AS i LEFT JOIN h ON h.bucket = i
        WHERE m.n > 0
        WINDOW within AS (ORDER BY i)
    ) l
    """,
)

PLACED = """
            SELECT g.sample_id, g.segment_index, g.author, g.trigger, g.cue, cardinality(g.token_ids) AS tokens,
                   sum(cardinality(g.token_ids)) OVER (PARTITION BY g.sample_id ORDER BY g.segment_index)
                   - cardinality(g.token_ids) AS start_token,
                   s.tokens_small + s.tokens_large + s.tokens_inserted AS output_tokens, s.score,
                   s.state IN ('finished', 'graded') AS is_complete
            FROM samples s JOIN segments g ON g.sample_id = s.id WHERE s.job_id = j.id
"""

TAKEOVERS = View(
    "takeovers",
    "Everything the large model wrote, piece by piece: where in the sample, why, and what came after it.",
    {
        "job_id": "the job",
        "sample_id": "the sample",
        "segment_index": "the piece's place among the sample's segments",
        "trigger": "why the large model wrote; start: it opened the sample",
        "cue": "the words that pulled the trigger, '' where none did",
        "tokens": "kept tokens of the piece",
        "start_token": "output tokens before it",
        "position": "the same as a share of the sample's output so far, 0 to 1",
        "followed_by": "the trigger of the sample's next takeover; end: none came; null: none yet, the sample goes on",
        "tokens_between": "tokens from its end to the next takeover, or to the end of what there is",
        "score": "of the sample, null where it has none",
    },
    f"""
    SELECT j.id AS job_id, l.*
    FROM jobs j
    CROSS JOIN LATERAL (
        SELECT p.sample_id, p.segment_index, p.trigger, p.cue, p.tokens, p.start_token::integer AS start_token,
               p.start_token / nullif(p.output_tokens, 0)::float8 AS position,
               coalesce(lead(p.trigger) OVER w, CASE WHEN p.is_complete THEN 'end' END) AS followed_by,
               (coalesce(lead(p.start_token) OVER w, p.output_tokens) - p.start_token - p.tokens)::integer
                   AS tokens_between,
               p.score
        FROM ({PLACED}) p
        WHERE p.author = 'large'
        WINDOW w AS (PARTITION BY p.sample_id ORDER BY p.segment_index)
    ) l
    """,
)

TAKEOVER_FLOW = View(
    "takeover_flow",
    "What followed the takeovers of a job: how often a takeover for one reason was followed by one for another, or by "
    "none (end).",
    {
        "job_id": "the job",
        "trigger": "why the large model wrote",
        "followed_by": "the trigger of the sample's next takeover, or end",
        "num_takeovers": "takeovers so followed",
        "mean_position": "mean share of the sample's output before them, 0 to 1",
        "mean_tokens": "mean kept tokens of the large model",
        "mean_tokens_between": "mean tokens from their end to the next takeover or the end",
        "accuracy": "mean score of their samples, each counting as often as it has such takeovers",
    },
    """
    SELECT job_id, trigger, followed_by, count(*) AS num_takeovers, avg(position) AS mean_position,
           avg(tokens)::float8 AS mean_tokens, avg(tokens_between)::float8 AS mean_tokens_between,
           avg(score) AS accuracy
    FROM takeovers WHERE followed_by IS NOT NULL GROUP BY job_id, trigger, followed_by
    """,
)

DELEGATION_PROGRESS = View(
    "delegation_progress",
    "How much of the text the large model wrote in each tenth of the complete samples of a job.",
    {
        "job_id": "the job",
        "tenth": "1 to 10: first to last tenth of each sample's output",
        "tokens": "kept tokens in that tenth, all samples; fractions, where a token lies in two",
        "tokens_large": "of these, written by the large model",
        "share_large": "tokens_large over tokens",
        "num_takeovers": "pieces of the large model that begin in it",
    },
    f"""
    SELECT j.id AS job_id, d.tenth, d.tokens, coalesce(l.tokens_large, 0) AS tokens_large,
           coalesce(l.tokens_large, 0) / d.tokens AS share_large, coalesce(l.num_takeovers, 0) AS num_takeovers
    FROM jobs j
    CROSS JOIN LATERAL (
        SELECT i AS tenth, n.tokens / 10.0::float8 AS tokens
        FROM (
            SELECT sum(s.tokens_small + s.tokens_large + s.tokens_inserted) AS tokens
            FROM samples s WHERE s.job_id = j.id AND s.state IN ('finished', 'graded')
        ) n
        CROSS JOIN generate_series(1, 10) AS i WHERE n.tokens > 0
    ) d
    LEFT JOIN LATERAL (
        SELECT t.tenth,
               sum(greatest(0, least(p.start_token + p.tokens, t.tenth * t.width)
                               - greatest(p.start_token, (t.tenth - 1) * t.width))) AS tokens_large,
               count(*) FILTER (WHERE p.start_token >= (t.tenth - 1) * t.width
                                  AND (p.start_token < t.tenth * t.width OR t.tenth = 10)) AS num_takeovers
        FROM ({PLACED}) p
        CROSS JOIN LATERAL (
            SELECT i AS tenth, p.output_tokens / 10.0::float8 AS width FROM generate_series(1, 10) AS i
        ) t
        WHERE p.author = 'large' AND p.is_complete
        GROUP BY t.tenth
    ) l ON l.tenth = d.tenth
    """,
)

STEP_SUMMARY = View(
    "step_summary",
    "The reasoning steps of the complete samples of a job, by the kind of sentence they begin with and by author.",
    {
        "job_id": "the job",
        "sentence_class": "statement, reflection or affirmation",
        "author": "who wrote most of the step: small, large or inserted",
        "num_steps": "steps",
        "steps_per_sample": "num_steps over the complete samples",
        "tokens": "kept tokens of the steps, all authors",
        "mean_tokens": "tokens per step",
        "p50_tokens": "median tokens of a step",
        "p90_tokens": "90th percentile of the same",
        "num_taken_over": "steps in which a takeover begins",
        "accuracy": "mean score of their samples, each counting as often as it has such steps",
    },
    """
    SELECT j.id AS job_id, g.sentence_class, g.author, g.num_steps,
           g.num_steps / c.complete::float8 AS steps_per_sample,
           g.tokens, g.mean_tokens, g.p50_tokens, g.p90_tokens, g.num_taken_over, g.accuracy
    FROM jobs j
    CROSS JOIN LATERAL (
        SELECT count(*) AS complete FROM samples s WHERE s.job_id = j.id AND s.state IN ('finished', 'graded')
    ) c
    CROSS JOIN LATERAL (
        SELECT t.sentence_class, t.author, count(*) AS num_steps, sum(n.tokens) AS tokens,
               avg(n.tokens)::float8 AS mean_tokens,
               percentile_cont(0.5) WITHIN GROUP (ORDER BY n.tokens) AS p50_tokens,
               percentile_cont(0.9) WITHIN GROUP (ORDER BY n.tokens) AS p90_tokens,
               count(t.trigger) AS num_taken_over, avg(s.score) AS accuracy
        FROM samples s JOIN steps t ON t.sample_id = s.id
        CROSS JOIN LATERAL (SELECT t.tokens_small + t.tokens_large + t.tokens_inserted AS tokens) n
        WHERE s.job_id = j.id AND s.state IN ('finished', 'graded')
        GROUP BY t.sentence_class, t.author
    ) g
    """,
)

VIEWS = (
    JOB_COST, PROBLEM_SCORES, MAJ_AT_K, LENGTH_HISTOGRAM, BUDGET_CURVE, TAKEOVERS, TAKEOVER_FLOW, DELEGATION_PROGRESS,
    STEP_SUMMARY,
)  # fmt: skip


def quoted(literal: str) -> str:
    return "'" + literal.replace("'", "''") + "'"


def first_views() -> Any:
    """The migration of revision 0002: two of its views are made anew on other sources, with the same columns."""
    scripts = op.get_context().script
    assert scripts is not None
    return scripts.get_revision("0002").module


def upgrade() -> None:
    op.create_table(
        "job_totals",
        sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("counted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "stale_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when a grade was last changed after the count; null: the counts hold",
        ),
        *(
            sa.Column(name, sa.BigInteger(), nullable=False, comment=comment)
            for name, comment in {**SAMPLE_COUNTS, **COST_COUNTS}.items()
        ),
        *(
            sa.Column(name, sa.Double(), nullable=True, comment=comment)
            for name, comment in {**SAMPLE_MEASURES, **COST_MEASURES}.items()
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_totals_job_id_jobs"),
        sa.PrimaryKeyConstraint("job_id", name="pk_job_totals"),
    )
    op.execute(COUNT_SAMPLES)
    op.execute(COUNT_COST)
    op.execute("COMMENT ON FUNCTION count_samples IS 'what job_totals keeps of a job''s samples, counted now'")
    op.execute("COMMENT ON FUNCTION count_cost IS 'what job_totals keeps of a job''s segments, counted now'")
    op.execute(f"CREATE OR REPLACE VIEW job_summary AS {JOB_SUMMARY_QUERY}")
    progress: str = first_views().JOB_PROGRESS.query
    for live, kept in ((LIVE_PROGRESS, KEPT_PROGRESS), (LIVE_PROGRESS_END, KEPT_PROGRESS_END)):
        assert progress.count(live) == 1
        progress = progress.replace(live, kept)
    op.execute(f"CREATE OR REPLACE VIEW job_progress AS {progress}")
    for view in VIEWS:
        op.execute(f"CREATE VIEW {view.name} AS {view.query}")
        op.execute(f"COMMENT ON VIEW {view.name} IS {quoted(view.comment)}")
        for column, comment in view.columns.items():
            op.execute(f"COMMENT ON COLUMN {view.name}.{column} IS {quoted(comment)}")


def downgrade() -> None:
    for view in reversed(VIEWS):
        op.execute(f"DROP VIEW {view.name}")
    first = first_views()
    for view in (first.JOB_SUMMARY, first.JOB_PROGRESS):
        op.execute(f"CREATE OR REPLACE VIEW {view.name} AS {view.query}")
    op.execute("DROP FUNCTION count_cost")
    op.execute("DROP FUNCTION count_samples")
    op.drop_table("job_totals")
