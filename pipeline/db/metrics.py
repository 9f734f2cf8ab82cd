"""The statements behind the metrics: what all jobs and workers are at, with no text and no answer.

Sums over what is stored fall where jobs are removed or retried; the exporter makes counters of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, RowMapping, TextClause, text

from pipeline.db.revision import current_revision

Rows = Sequence[RowMapping]

_STATES = (
    "pending, ready, drafting, awaiting_large, assisting, awaiting_judge, judging, finished, graded, failed, cancelled"
)
_SUMS = (
    f"{_STATES}, num_length, num_context, num_repetition, takeovers, tokens_small, tokens_large, tokens_inserted, "
    "discarded_small, discarded_large, aside_small, aside_large, aside_judge, taken_small, taken_large"
)
_MODELS = "j.policy, j.small_model, j.large_model, j.judge_model"


def _each(pattern: str) -> str:
    """The sums as a list, each put in the place of $."""
    return ", ".join(pattern.replace("$", name) for name in _SUMS.split(", "))


_COUNT_SAMPLES = text(f"""
    SELECT policy, coalesce(small_model, '') AS small_model, coalesce(large_model, '') AS large_model,
           coalesce(judge_model, '') AS judge_model,
           {_each("sum($)::bigint AS $")}
    FROM (
        SELECT {_MODELS}, {_each("t.$")}
        FROM jobs j JOIN job_totals t ON t.job_id = j.id AND t.stale_at IS NULL
        UNION ALL
        SELECT {_MODELS}, {_each("c.$")}
        FROM jobs j CROSS JOIN LATERAL count_states(j.id) c
        WHERE NOT EXISTS (SELECT FROM job_totals k WHERE k.job_id = j.id AND k.stale_at IS NULL)
    ) counted
    GROUP BY policy, small_model, large_model, judge_model
""")
_COUNT_JOBS = text("SELECT state, count(*) AS number FROM jobs GROUP BY state")
_OLDEST_WAITING = text("""
    SELECT w.role, w.model, greatest(0, extract(epoch FROM clock_timestamp() - min(s.runnable_at)))::float8 AS seconds
    FROM jobs j
    JOIN samples s ON s.job_id = j.id AND s.phase IN ('admitted', 'finished')
    JOIN LATERAL (
        VALUES ('ready', 'small', j.small_model), ('awaiting_large', 'large', j.large_model),
               ('awaiting_judge', 'judge', j.judge_model), ('finished', 'grade', '')
    ) AS w (state, role, model) ON w.state = s.state
    WHERE j.state = 'running' AND w.model IS NOT NULL
    GROUP BY w.role, w.model
""")
_SELECT_DEMAND = text("SELECT role, model, waiting, wanted FROM worker_demand")
_COUNT_WORKERS = text("""
    SELECT kind, coalesce(model, '') AS model, count(*) AS number, sum(coalesce(num_slots, max_in_flight)) AS slots,
           sum(num_in_flight) AS in_flight
    FROM workers WHERE ended_at IS NULL AND expires_at > clock_timestamp() GROUP BY kind, model
""")
_SUM_WORKERS = text("""
    SELECT kind AS role, model, sum(tokens_dropped)::bigint AS dropped, sum(prompt_tokens)::bigint AS prompt,
           sum(cached_tokens)::bigint AS cached, sum(num_drafts)::bigint AS num_drafts,
           sum(draft_tokens)::bigint AS draft_tokens, sum(accepted_tokens)::bigint AS accepted_tokens
    FROM workers WHERE kind IN ('small', 'large', 'judge') AND model IS NOT NULL GROUP BY kind, model
""")
_COUNT_ENDS = text("""
    SELECT kind, end_reason AS reason, count(*) AS number FROM workers WHERE ended_at IS NOT NULL
    GROUP BY kind, end_reason
""")
_COUNT_FAILURES = text(
    "SELECT error_class, count(*) AS number FROM samples WHERE phase = 'failed' GROUP BY error_class"
)
_COUNT_UNSCORED = text("""
    SELECT status, count(*) AS number FROM grades WHERE status IN ('timeout', 'error') GROUP BY status
""")
# Of ranges of problems whose samples rest, as upkeep has counted them: no segment is looked at.
_SUM_TAKEOVERS = text("""
    SELECT j.policy, d.trigger, sum(d.num_takeovers)::bigint AS number
    FROM rollups r JOIN jobs j ON j.id = r.job_id
    CROSS JOIN LATERAL jsonb_populate_recordset(NULL::delegation_part, r.delegation) d
    WHERE r.refreshed_at IS NOT NULL AND d.num_takeovers > 0
    GROUP BY j.policy, d.trigger
""")
# As pipeline.batches.status_of, but that a batch whose jobs are all closed is finalizing until somebody asks for it.
_COUNT_BATCHES = text("""
    SELECT status, count(*) AS number
    FROM batches b
    CROSS JOIN LATERAL (
        SELECT CASE
            WHEN b.failed_at IS NOT NULL THEN 'failed'
            WHEN b.completed_at IS NOT NULL THEN 'completed'
            WHEN b.expired_at IS NOT NULL THEN 'expired'
            WHEN b.cancelled_at IS NOT NULL THEN 'cancelled'
            WHEN b.cancelling_at IS NOT NULL THEN 'cancelling'
            WHEN b.in_progress_at IS NULL THEN 'validating'
            WHEN b.finalizing_at IS NULL AND EXISTS (
                SELECT FROM batch_jobs o JOIN jobs j ON j.id = o.job_id
                WHERE o.batch_id = b.id AND j.state IN ('running', 'paused')
            ) THEN 'in_progress'
            ELSE 'finalizing'
        END AS status
    ) s
    GROUP BY status
""")
_LEADER_AGE = text("""
    SELECT extract(epoch FROM clock_timestamp() - seen_at)::float8 FROM upkeep_leader WHERE worker_id IS NOT NULL
""")
_SELECT_QUEUES = text("""
    SELECT DISTINCT queue FROM workers WHERE ended_at IS NULL AND expires_at > clock_timestamp()
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """All jobs and workers at one moment; the statements of this module say which columns each list has."""

    revision: str
    samples: Rows
    """Sums by policy and models."""
    jobs: Rows
    oldest_waiting: Rows
    demand: Rows
    workers: Rows
    """Live ones by kind and model."""
    worker_tokens: Rows
    """Of all workers that ever were, by role and model."""
    worker_ends: Rows
    failures: Rows
    unscored: Rows
    """Gradings that ended without a score by a fault, by status."""
    takeovers: Rows
    """By policy and trigger, of samples that rest."""
    batches: Rows
    leader_age_s: float | None
    """Since the upkeep leader last said that it leads; None: nobody leads."""
    queues: tuple[str, ...]
    """That live workers read: their own names for them."""


def read_fleet(connection: Connection) -> Fleet:
    """Read all of it with the rights of a monitor. The sums of jobs that run come from their rollups."""

    def rows(statement: TextClause) -> Rows:
        return connection.execute(statement).mappings().all()

    return Fleet(
        revision=current_revision(connection) or "",
        samples=rows(_COUNT_SAMPLES),
        jobs=rows(_COUNT_JOBS),
        oldest_waiting=rows(_OLDEST_WAITING),
        demand=rows(_SELECT_DEMAND),
        workers=rows(_COUNT_WORKERS),
        worker_tokens=rows(_SUM_WORKERS),
        worker_ends=rows(_COUNT_ENDS),
        failures=rows(_COUNT_FAILURES),
        unscored=rows(_COUNT_UNSCORED),
        takeovers=rows(_SUM_TAKEOVERS),
        batches=rows(_COUNT_BATCHES),
        leader_age_s=connection.execute(_LEADER_AGE).scalar(),
        queues=tuple(connection.execute(_SELECT_QUEUES).scalars()),
    )
