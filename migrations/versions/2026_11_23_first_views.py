"""First views: the stable face of the database for people who ask questions in SQL.

Every view is right at any moment of a job, on whatever is finished so far. Only samples with a score count for
accuracy: unscored is not wrong. "right" means a score of at least 0.5. A sample is complete in the states finished
and graded.

Lock taken: none that matters, everything is new.
Way back: drops the views.
"""

from typing import NamedTuple

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


class View(NamedTuple):
    """columns: name → what it means, stored as the column's comment; all of them, in order."""

    name: str
    comment: str
    columns: dict[str, str]
    query: str


JOB_SUMMARY = View(
    "job_summary",
    "One row per job: how far it is, how right, how long its texts are, who wrote them, how fast. "
    "The interval of accuracy is Wilson's, over the effective number of samples: the number scored divided by the "
    "design effect of drawing several samples per problem (cluster-robust variance by problem over the variance of "
    "independent draws, at least 1). With one sample per problem it is Wilson's plain interval. Where all scores are "
    "equal, or only one problem is scored, the effective number is the number of problems.",
    {
        "job_id": "the job",
        "name": "free text for people",
        "policy": "NAME or NAME:PRESET",
        "small_model": "the small model, null where the policy needs none",
        "large_model": "the large model, null where the policy needs none",
        "state": "running, completed, completed_with_errors or cancelled",
        "num_problems": "problems the job uses",
        "num_samples": "solutions drawn per problem",
        "samples_total": "all samples of the job",
        "samples_finished": "with complete text, not yet graded",
        "samples_graded": "complete and graded",
        "samples_failed": "set aside with an error",
        "samples_cancelled": "ended by cancelling the job",
        "samples_open": "in no final state yet (the finished ones included)",
        "num_scored": "graded samples that have a score",
        "accuracy": "mean score of the scored samples",
        "accuracy_low": "lower end of the 95 % interval, see the view's comment",
        "accuracy_high": "upper end of the 95 % interval, see the view's comment",
        "mean_output_tokens": "mean kept tokens of the complete samples, all authors",
        "p50_output_tokens": "median of the same",
        "p90_output_tokens": "90th percentile of the same",
        "share_large": "kept tokens of the large model over all kept tokens, 0 to 1",
        "takeovers": "times the large model was called in, all samples",
        "takeovers_per_sample": "mean over the complete samples",
        "tokens_small": "kept tokens written by the small model, all samples",
        "tokens_large": "kept tokens written by the large model, all samples",
        "tokens_inserted": "kept tokens put in by the policy, all samples",
        "discarded_small": "tokens the small model wrote that were not kept",
        "discarded_large": "tokens the large model wrote that were not kept",
        "seconds": "from the first claim of a sample to the job's end, or until now",
        "tokens_per_second": "kept tokens of all authors per second",
        "tokens_per_second_small": "tokens the small model wrote, kept or not, per second",
        "tokens_per_second_large": "tokens the large model wrote, kept or not, per second",
        "submitted_at": "when the job was submitted",
        "first_claimed_at": "when a worker first took one of its samples",
        "finished_at": "when the job ended",
    },
    """
    SELECT j.id AS job_id, j.name, j.policy, j.small_model, j.large_model, j.state, j.num_problems, j.num_samples,
           c.samples_total, c.samples_finished, c.samples_graded, c.samples_failed, c.samples_cancelled,
           c.samples_open, c.num_scored, c.accuracy,
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
    CROSS JOIN LATERAL (
        SELECT count(*) AS samples_total,
               count(*) FILTER (WHERE s.state = 'finished') AS samples_finished,
               count(*) FILTER (WHERE s.state = 'graded') AS samples_graded,
               count(*) FILTER (WHERE s.state = 'failed') AS samples_failed,
               count(*) FILTER (WHERE s.state = 'cancelled') AS samples_cancelled,
               count(*) FILTER (WHERE s.state NOT IN ('graded', 'failed', 'cancelled')) AS samples_open,
               count(s.score) FILTER (WHERE s.state = 'graded') AS num_scored,
               avg(s.score) FILTER (WHERE s.state = 'graded') AS accuracy,
               var_samp(s.score) FILTER (WHERE s.state = 'graded') AS score_variance,
               avg(n.tokens) FILTER (WHERE n.is_complete)::float8 AS mean_output_tokens,
               percentile_cont(0.5) WITHIN GROUP (ORDER BY n.tokens) FILTER (WHERE n.is_complete) AS p50_output_tokens,
               percentile_cont(0.9) WITHIN GROUP (ORDER BY n.tokens) FILTER (WHERE n.is_complete) AS p90_output_tokens,
               coalesce(sum(s.num_takeovers), 0) AS takeovers,
               avg(s.num_takeovers) FILTER (WHERE n.is_complete)::float8 AS takeovers_per_sample,
               coalesce(sum(s.tokens_small), 0) AS tokens_small,
               coalesce(sum(s.tokens_large), 0) AS tokens_large,
               coalesce(sum(s.tokens_inserted), 0) AS tokens_inserted,
               coalesce(sum(s.discarded_small), 0) AS discarded_small,
               coalesce(sum(s.discarded_large), 0) AS discarded_large
        FROM samples s
        CROSS JOIN LATERAL (
            SELECT s.tokens_small + s.tokens_large + s.tokens_inserted AS tokens,
                   s.state IN ('finished', 'graded') AS is_complete
        ) n
        WHERE s.job_id = j.id
    ) c
    CROSS JOIN LATERAL (
        -- Spread of the problems' summed deviations from the job's mean: the numerator of the clustered variance.
        SELECT count(*) AS problems, sum(p.deviation ^ 2) AS squares
        FROM (
            SELECT sum(s.score - c.accuracy) AS deviation FROM samples s
            WHERE s.job_id = j.id AND s.state = 'graded' AND s.score IS NOT NULL GROUP BY s.problem_id
        ) p
    ) g
    CROSS JOIN LATERAL (
        SELECT CASE WHEN g.problems < 2 OR c.score_variance = 0 THEN g.problems
                    ELSE c.num_scored / greatest(1, g.problems / (g.problems - 1.0) * g.squares
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
    """,
)

TOKEN_LENGTHS = View(
    "token_lengths",
    "Lengths of the complete samples of a job in kept tokens: per author, per finish reason, right or wrong, and each "
    "of these together ('all'). All samples of a job: author = 'all' AND finish_reason = 'all' AND verdict = 'all'.",
    {
        "job_id": "the job",
        "author": "whose tokens are counted in each sample: all, small, large or inserted",
        "finish_reason": "all, eos, length, context or repetition",
        "verdict": "all, right (score of at least 0.5), wrong or unscored",
        "n": "samples; those where the author wrote nothing count with 0 tokens",
        "mean": "mean tokens",
        "sd": "standard deviation (of a sample of the population), null for n = 1",
        "min": "fewest tokens",
        "p50": "median",
        "p90": "90th percentile, interpolated",
        "p95": "95th percentile, interpolated",
        "p99": "99th percentile, interpolated",
        "max": "most tokens",
        "total": "sum of the tokens",
    },
    """
    SELECT j.id AS job_id, l.*
    FROM jobs j
    CROSS JOIN LATERAL (
        SELECT a.author, coalesce(s.finish_reason, 'all') AS finish_reason, coalesce(v.verdict, 'all') AS verdict,
               count(*) AS n, avg(a.tokens)::float8 AS mean, stddev_samp(a.tokens)::float8 AS sd, min(a.tokens) AS min,
               percentile_cont(0.50) WITHIN GROUP (ORDER BY a.tokens) AS p50,
               percentile_cont(0.90) WITHIN GROUP (ORDER BY a.tokens) AS p90,
               percentile_cont(0.95) WITHIN GROUP (ORDER BY a.tokens) AS p95,
               percentile_cont(0.99) WITHIN GROUP (ORDER BY a.tokens) AS p99,
               max(a.tokens) AS max, sum(a.tokens) AS total
        FROM samples s
        CROSS JOIN LATERAL (
            VALUES ('all', s.tokens_small + s.tokens_large + s.tokens_inserted), ('small', s.tokens_small),
                   ('large', s.tokens_large), ('inserted', s.tokens_inserted)
        ) a (author, tokens)
        CROSS JOIN LATERAL (
            SELECT CASE WHEN s.score >= 0.5 THEN 'right' WHEN s.score < 0.5 THEN 'wrong' ELSE 'unscored' END AS verdict
        ) v
        WHERE s.job_id = j.id AND s.state IN ('finished', 'graded')
        GROUP BY a.author, CUBE (s.finish_reason, v.verdict)
    ) l
    """,
)

DELEGATION = View(
    "delegation",
    "What the large model wrote and the policy put in, by trigger. Summed over the triggers the kept tokens are the "
    "job's tokens_large and tokens_inserted.",
    {
        "job_id": "the job",
        "author": "large or inserted",
        "trigger": "why it wrote; start: it opened the sample",
        "num_segments": "times it was called",
        "num_samples": "samples in which it was called",
        "tokens": "kept tokens",
        "mean_tokens": "kept tokens per segment",
        "tokens_discarded": "tokens written and not kept",
        "share_cached": "share of the prompts' tokens that were found in the prefix cache",
        "mean_wait_seconds": "from publishing the segment to a worker's claim",
        "mean_queue_seconds": "inside the engine before its first work",
        "mean_write_seconds": "from handing in to the engine to the end",
    },
    """
    SELECT j.id AS job_id, d.*
    FROM jobs j
    CROSS JOIN LATERAL (
        SELECT g.author, g.trigger, count(*) AS num_segments, count(DISTINCT g.sample_id) AS num_samples,
               sum(cardinality(g.token_ids)) AS tokens, avg(cardinality(g.token_ids))::float8 AS mean_tokens,
               sum(cardinality(g.discarded_ids)) AS tokens_discarded,
               sum(g.cached_tokens) / nullif(sum(g.prompt_tokens), 0)::float8 AS share_cached,
               avg(g.wait_seconds) AS mean_wait_seconds, avg(g.queue_seconds) AS mean_queue_seconds,
               avg(g.write_seconds) AS mean_write_seconds
        FROM samples s JOIN segments g ON g.sample_id = s.id
        WHERE s.job_id = j.id AND g.author IN ('large', 'inserted')
        GROUP BY g.author, g.trigger
    ) d
    """,
)

PASS_AT_K = View(
    "pass_at_k",
    "Probability that at least one of k samples of a problem is right: the unbiased estimate 1 - C(n-c, k) / C(n, k) "
    "for n scored samples of which c are right, averaged over the problems with at least k scored samples.",
    {
        "job_id": "the job",
        "k": "samples drawn, from 1 to the most scored samples of a problem",
        "num_problems": "problems with at least k scored samples",
        "pass_at_k": "the estimate, 0 to 1",
    },
    """
    SELECT j.id AS job_id, e.k, sum(e.problems)::bigint AS num_problems,
           sum(e.problems * e.pass) / sum(e.problems)::float8 AS pass_at_k
    FROM jobs j
    CROSS JOIN LATERAL (
        -- One row per (n, c) and k; the share of draws without a right one is a running product over k.
        SELECT t.problems, i.k, 1 - CASE WHEN t.n - t.c < i.k THEN 0 ELSE
                   exp(sum(ln((t.n - t.c - i.k + 1)::float8 / (t.n - i.k + 1)))
                       FILTER (WHERE t.n - t.c >= i.k) OVER (PARTITION BY t.n, t.c ORDER BY i.k)) END AS pass
        FROM (
            SELECT p.n, p.c, count(*) AS problems
            FROM (
                SELECT count(*) AS n, count(*) FILTER (WHERE s.score >= 0.5) AS c FROM samples s
                WHERE s.job_id = j.id AND s.state = 'graded' AND s.score IS NOT NULL GROUP BY s.problem_id
            ) p
            GROUP BY p.n, p.c
        ) t
        CROSS JOIN LATERAL generate_series(1, t.n) AS i (k)
    ) e
    GROUP BY j.id, e.k
    """,
)

JOB_COMPARISON = View(
    "job_comparison",
    "Two jobs on the same problem set, paired by problem: over the problems that have a score in both, each problem "
    "counting once with the mean score of its samples. Every pair is there in both orders. Name both jobs in a query: "
    "all pairs of many jobs are many. The interval is the paired one, normal approximation.",
    {
        "job_a": "the job compared with",
        "job_b": "the job compared",
        "num_problems": "problems scored in both",
        "accuracy_a": "mean over these problems in job_a",
        "accuracy_b": "mean over these problems in job_b",
        "difference": "accuracy_b - accuracy_a",
        "difference_low": "lower end of its 95 % interval, null for fewer than two problems",
        "difference_high": "upper end of its 95 % interval",
        "num_b_better": "problems where job_b scores higher",
        "num_a_better": "problems where job_a scores higher",
        "num_equal": "problems where both score the same",
        "mean_output_tokens_a": "mean over these problems in job_a, scored samples",
        "mean_output_tokens_b": "mean over these problems in job_b, scored samples",
        "token_ratio": "mean_output_tokens_b over mean_output_tokens_a",
    },
    """
    SELECT a.id AS job_a, b.id AS job_b, c.num_problems, c.accuracy_a, c.accuracy_b, c.difference,
           c.difference - c.half AS difference_low, c.difference + c.half AS difference_high,
           c.num_b_better, c.num_a_better, c.num_equal, c.mean_output_tokens_a, c.mean_output_tokens_b,
           c.mean_output_tokens_b / nullif(c.mean_output_tokens_a, 0) AS token_ratio
    FROM jobs a JOIN jobs b ON b.problem_set_id = a.problem_set_id AND b.id <> a.id
    CROSS JOIN LATERAL (
        SELECT count(*) AS num_problems, avg(pa.score) AS accuracy_a, avg(pb.score) AS accuracy_b,
               avg(pb.score - pa.score) AS difference,
               1.96 * stddev_samp(pb.score - pa.score) / sqrt(count(*)) AS half,
               count(*) FILTER (WHERE pb.score > pa.score) AS num_b_better,
               count(*) FILTER (WHERE pb.score < pa.score) AS num_a_better,
               count(*) FILTER (WHERE pb.score = pa.score) AS num_equal,
               avg(pa.tokens) AS mean_output_tokens_a, avg(pb.tokens) AS mean_output_tokens_b
        FROM (
            SELECT s.problem_id, avg(s.score) AS score,
                   avg(s.tokens_small + s.tokens_large + s.tokens_inserted)::float8 AS tokens
            FROM samples s WHERE s.job_id = a.id AND s.state = 'graded' AND s.score IS NOT NULL GROUP BY s.problem_id
        ) pa
        JOIN (
            SELECT s.problem_id, avg(s.score) AS score,
                   avg(s.tokens_small + s.tokens_large + s.tokens_inserted)::float8 AS tokens
            FROM samples s WHERE s.job_id = b.id AND s.state = 'graded' AND s.score IS NOT NULL GROUP BY s.problem_id
        ) pb USING (problem_id)
    ) c
    """,
)

ERRORS = View(
    "errors",
    "What went wrong in a job, by kind, with one example each.",
    {
        "job_id": "the job",
        "stage": "generation: the sample failed; grading: it is complete but stayed unscored",
        "error_class": "the kind of error; for grading the status timeout or error",
        "num_samples": "samples with it",
        "example_sample_id": "the first of them",
        "example": "its message",
        "first_at": "when it first happened",
        "last_at": "when it last happened",
    },
    """
    SELECT s.job_id, 'generation' AS stage, s.error_class, count(*) AS num_samples, min(s.id) AS example_sample_id,
           (array_agg(s.error ORDER BY s.id))[1] AS example, min(s.ended_at) AS first_at, max(s.ended_at) AS last_at
    FROM samples s WHERE s.state = 'failed' GROUP BY s.job_id, s.error_class
    UNION ALL
    SELECT s.job_id, 'grading', g.status, count(*), min(s.id),
           (array_agg(g.detail ORDER BY s.id))[1], min(g.graded_at), max(g.graded_at)
    FROM samples s JOIN grades g ON g.sample_id = s.id
    WHERE g.status IN ('timeout', 'error') GROUP BY s.job_id, g.status
    """,
)

TRUNCATION = View(
    "truncation",
    "How many complete samples of a job ended without the model's own end of text, and what that costs in accuracy.",
    {
        "job_id": "the job",
        "num_complete": "complete samples",
        "num_truncated": "ended by max_tokens or by the model's context",
        "share_truncated": "num_truncated over num_complete",
        "num_length": "ended by the job's max_tokens",
        "num_context": "ended by the model's context",
        "num_repetition": "ended by the loop guard",
        "accuracy_truncated": "mean score of the truncated ones that have one",
        "accuracy_eos": "mean score of those the model ended itself",
    },
    """
    SELECT s.job_id, count(*) AS num_complete,
           count(*) FILTER (WHERE s.finish_reason IN ('length', 'context')) AS num_truncated,
           avg((s.finish_reason IN ('length', 'context'))::integer)::float8 AS share_truncated,
           count(*) FILTER (WHERE s.finish_reason = 'length') AS num_length,
           count(*) FILTER (WHERE s.finish_reason = 'context') AS num_context,
           count(*) FILTER (WHERE s.finish_reason = 'repetition') AS num_repetition,
           avg(s.score) FILTER (WHERE s.finish_reason IN ('length', 'context')) AS accuracy_truncated,
           avg(s.score) FILTER (WHERE s.finish_reason = 'eos') AS accuracy_eos
    FROM samples s WHERE s.state IN ('finished', 'graded') GROUP BY s.job_id
    """,
)

JOB_PROGRESS = View(
    "job_progress",
    "One row per job: its samples by state, the live workers it can use, and what it waits for.",
    {
        "job_id": "the job",
        "name": "free text for people",
        "state": "running, completed, completed_with_errors or cancelled",
        "samples_total": "all samples of the job",
        "samples_done": "in a final state",
        "pending": "stored, not yet admitted",
        "ready": "wait for a small worker",
        "drafting": "a small worker writes",
        "awaiting_large": "wait for a large worker",
        "assisting": "a large worker writes",
        "finished": "complete, wait for their grade",
        "graded": "final: complete and graded",
        "failed": "final: set aside with an error",
        "cancelled": "final: the job was cancelled",
        "live_small_workers": "workers with a valid lease that serve its small model",
        "live_large_workers": "workers with a valid lease that serve its large model",
        "samples_ahead": "samples of older running jobs that wait to be admitted to the same opening model",
        "waiting_for": "why it does not go on or goes on slowly; null: it runs, or has ended",
        "takeovers": "times the large model was called in so far",
        "written_small": "tokens the small model wrote so far, kept or not; booked when a segment ends",
        "written_large": "tokens the large model wrote so far, kept or not; booked when a segment ends",
        "seconds": "from the first claim of a sample to the job's end, or until now",
    },
    """
    SELECT j.id AS job_id, j.name, j.state, c.samples_total, c.graded + c.failed + c.cancelled AS samples_done,
           c.pending, c.ready, c.drafting, c.awaiting_large, c.assisting, c.finished, c.graded, c.failed, c.cancelled,
           l.small AS live_small_workers, l.large AS live_large_workers, a.samples_ahead,
           CASE WHEN j.state <> 'running' THEN NULL
                WHEN l.upkeep = 0 THEN 'no live upkeep worker'
                WHEN l.small = 0 AND (c.ready > 0 OR c.pending > 0 AND j.first_role = 'small')
                    THEN 'no live small worker serves ' || j.small_model
                WHEN l.large = 0 AND (c.awaiting_large > 0 OR c.pending > 0 AND j.first_role = 'large')
                    THEN 'no live large worker serves ' || j.large_model
                WHEN l.grade = 0 AND c.finished > 0 THEN 'no live grade worker'
                WHEN a.samples_ahead > 0 AND c.pending > 0
                    THEN a.samples_ahead || ' samples of older jobs are ahead'
           END AS waiting_for,
           c.takeovers, c.written_small, c.written_large,
           extract(epoch FROM coalesce(j.finished_at, clock_timestamp()) - j.first_claimed_at)::float8 AS seconds
    FROM jobs j
    CROSS JOIN LATERAL (
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
               coalesce(sum(s.num_takeovers), 0) AS takeovers,
               coalesce(sum(s.tokens_small + s.discarded_small), 0) AS written_small,
               coalesce(sum(s.tokens_large + s.discarded_large), 0) AS written_large
        FROM samples s WHERE s.job_id = j.id
    ) c
    CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE w.kind = 'small' AND w.model = j.small_model) AS small,
               count(*) FILTER (WHERE w.kind = 'large' AND w.model = j.large_model) AS large,
               count(*) FILTER (WHERE w.kind = 'grade') AS grade,
               count(*) FILTER (WHERE w.kind = 'upkeep') AS upkeep
        FROM workers w WHERE w.ended_at IS NULL AND w.expires_at > clock_timestamp()
    ) l
    CROSS JOIN LATERAL (
        SELECT count(*) AS samples_ahead
        FROM jobs o JOIN samples s ON s.job_id = o.id AND s.state = 'pending'
        WHERE j.state = 'running' AND o.state = 'running' AND o.id < j.id AND o.first_role = j.first_role
          AND CASE j.first_role WHEN 'small' THEN o.small_model = j.small_model ELSE o.large_model = j.large_model END
    ) a
    """,
)

VIEWS = (
    JOB_SUMMARY, TOKEN_LENGTHS, DELEGATION, PASS_AT_K, JOB_COMPARISON, ERRORS, TRUNCATION, JOB_PROGRESS,
)  # fmt: skip


def quoted(literal: str) -> str:
    return "'" + literal.replace("'", "''") + "'"


def upgrade() -> None:
    for view in VIEWS:
        op.execute(f"CREATE VIEW {view.name} AS {view.query}")
        op.execute(f"COMMENT ON VIEW {view.name} IS {quoted(view.comment)}")
        for column, comment in view.columns.items():
            op.execute(f"COMMENT ON COLUMN {view.name}.{column} IS {quoted(comment)}")


def downgrade() -> None:
    for view in reversed(VIEWS):
        op.execute(f"DROP VIEW {view.name}")
