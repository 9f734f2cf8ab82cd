"""What a job waits for is said in every case; failures tell how often they were tried; the log of changes is linear.

The trigger that checks and logs changes of samples joined the old rows with the new ones twice, and for some plans row
by row: 10,000 changes in one statement took many seconds. It joins them once now, by hashing.

Lock taken: the two views that are made anew are locked for the time of the migration.
Way back: restores the two views and the trigger's function.
"""

from typing import Any, NamedTuple

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


class View(NamedTuple):
    """columns: name → what it means, stored as the column's comment; all of them, in order."""

    name: str
    comment: str
    columns: dict[str, str]
    query: str


JOB_STATES = "running, paused, completed, completed_with_errors or cancelled"

# Without nested loops, because a plan made for few rows is kept for many.
LOG_SAMPLE_CHANGES = """
CREATE OR REPLACE FUNCTION log_sample_changes() RETURNS trigger LANGUAGE plpgsql
{rights} SET enable_nestloop = off AS $$
DECLARE
    wrong record;
BEGIN
    WITH changed AS MATERIALIZED (
        SELECT n.job_id, n.id, o.state AS from_state, n.state AS to_state, n.epoch,
               coalesce(n.holder_id, o.holder_id) AS worker_id
        FROM old_rows o JOIN new_rows n ON n.id = o.id WHERE n.state <> o.state
    ),
    logged AS (
        INSERT INTO events (job_id, sample_id, from_state, to_state, epoch, worker_id) SELECT * FROM changed
    )
    SELECT id, from_state, to_state INTO wrong FROM changed
    WHERE (from_state || '>' || to_state) NOT IN ({transitions}) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'sample %: no transition from % to %', wrong.id, wrong.from_state, wrong.to_state
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;
"""

ERRORS = View(
    "errors",
    "What went wrong in a job, by kind, with one example each.",
    {
        "job_id": "the job",
        "stage": "generation: the sample failed; grading: it is complete but stayed unscored",
        "error_class": "the kind of error: bad_input, budget, engine_refused, engine_died, timed_out or internal; for "
        "grading the status timeout or error",
        "num_samples": "samples with it",
        "example_sample_id": "the first of them",
        "example": "its message",
        "first_at": "when it first happened",
        "last_at": "when it last happened",
        "most_tries": "most times that one of them was refused by an engine or lost its worker since it was last "
        "stored; null for grading",
    },
    """
    SELECT s.job_id, 'generation' AS stage, s.error_class, count(*) AS num_samples, min(s.id) AS example_sample_id,
           (array_agg(s.error ORDER BY s.id))[1] AS example, min(s.ended_at) AS first_at, max(s.ended_at) AS last_at,
           max(s.num_attempts + s.num_rescues) AS most_tries
    FROM samples s WHERE s.state = 'failed' GROUP BY s.job_id, s.error_class
    UNION ALL
    SELECT s.job_id, 'grading', g.status, count(*), min(s.id),
           (array_agg(g.detail ORDER BY s.id))[1], min(g.graded_at), max(g.graded_at), NULL
    FROM samples s JOIN grades g ON g.sample_id = s.id
    WHERE g.status IN ('timeout', 'error') GROUP BY s.job_id, g.status
    """,
)

# Reasons why a running job does not go on, or goes on slowly; each is null where it does not hold.
NO_SMALL = """
    CASE WHEN w.small = 0 AND (c.ready > 0 OR c.pending > 0 AND j.first_role = 'small')
         THEN format('no live small worker serves %1$s: specthink worker small --model %1$s starts one', j.small_model)
    END
"""
NO_LARGE = """
    CASE WHEN w.large = 0 AND (c.awaiting_large > 0 OR c.pending > 0 AND j.first_role = 'large')
         THEN format('no live large worker serves %1$s: specthink worker large --model %1$s starts one', j.large_model)
    END
"""
NO_GRADE = """
    CASE WHEN w.grade = 0 AND c.finished > 0 THEN 'no live grade worker: specthink worker grade starts one' END
"""
AHEAD = """
    CASE WHEN a.samples_ahead > 0 AND c.pending > 0
         THEN format('samples of older or higher-ranking jobs ahead: %s', a.samples_ahead) END
"""
LARGE_SATURATED = """
    CASE WHEN c.awaiting_large > 0 AND w.large > 0 AND h.large >= w.large_slots
         THEN format('large pool saturated: %s of %s slots taken, samples waiting for it: %s', h.large, w.large_slots,
                     c.awaiting_large) END
"""
DELAYED = """
    CASE WHEN c.delayed > 0
         THEN format('samples waiting to be tried again because an engine refused them: %s, the next in %s s',
                     c.delayed, greatest(0, ceil(extract(epoch FROM c.next_try_at - clock_timestamp())))) END
"""
SUSPECTS = """
    CASE WHEN c.suspects > 0 AND c.drafting + c.assisting = 0
         THEN format('samples tried one by one because their workers died with them: %s', c.suspects) END
"""
SMALL_BUSY = """
    CASE WHEN (c.ready > 0 OR c.pending > 0 AND j.first_role = 'small') AND c.drafting = 0 AND a.samples_ahead = 0
              AND w.small > 0 AND h.small >= w.small_slots
         THEN format('small pool taken by other jobs: %s of %s slots', h.small, w.small_slots) END
"""
LARGE_BUSY = """
    CASE WHEN c.pending > 0 AND j.first_role = 'large' AND c.awaiting_large = 0 AND c.assisting = 0
              AND a.samples_ahead = 0 AND w.large > 0 AND h.large >= w.large_slots
         THEN format('large pool taken by other jobs: %s of %s slots', h.large, w.large_slots) END
"""
GRADING = """
    CASE WHEN c.finished > 0 AND w.grade > 0 AND c.pending + c.ready + c.drafting + c.awaiting_large + c.assisting = 0
         THEN format('complete samples waiting for their grade: %s', c.finished) END
"""
REASONS = (NO_SMALL, NO_LARGE, NO_GRADE, AHEAD, LARGE_SATURATED, DELAYED, SUSPECTS, SMALL_BUSY, LARGE_BUSY, GRADING)

JOB_PROGRESS = View(
    "job_progress",
    "One row per job: its samples by state, the live workers it can use, and what it waits for.",
    {
        "job_id": "the job",
        "name": "free text for people",
        "state": JOB_STATES,
        "samples_total": "all samples of the job",
        "samples_done": "in a final state",
        "pending": "stored, not yet admitted",
        "ready": "wait for a small worker",
        "drafting": "a small worker writes",
        "awaiting_large": "wait for a large worker",
        "assisting": "a large worker writes",
        "finished": "complete, wait for their grade",
        "graded": "final: complete and graded",
        "failed": "final until a retry: set aside with an error",
        "cancelled": "final: the job was cancelled",
        "live_small_workers": "workers with a valid lease that serve its small model",
        "live_large_workers": "workers with a valid lease that serve its large model",
        "samples_ahead": "samples that wait to be admitted to the same opening model before its own: of running jobs "
        "that are older or of higher priority",
        "waiting_for": "why it does not go on or goes on slowly, with what can be done; null: it runs, or has ended",
        "takeovers": "times the large model was called in so far",
        "written_small": "tokens the small model wrote so far, kept or not; booked when a segment ends",
        "written_large": "tokens the large model wrote so far, kept or not; booked when a segment ends",
        "seconds": "from the first claim of a sample to the job's end, or until now; pauses included",
        "priority": "jobs with a higher one are admitted first",
    },
    f"""
    SELECT j.id AS job_id, j.name, j.state, c.samples_total, c.graded + c.failed + c.cancelled AS samples_done,
           c.pending, c.ready, c.drafting, c.awaiting_large, c.assisting, c.finished, c.graded, c.failed, c.cancelled,
           w.small AS live_small_workers, w.large AS live_large_workers, a.samples_ahead,
           CASE WHEN j.state = 'paused' THEN format('paused: specthink resume %s lets it go on', j.id)
                WHEN j.state <> 'running' THEN NULL
                WHEN w.upkeep = 0 THEN 'no live upkeep worker: specthink worker upkeep starts one'
                ELSE nullif(concat_ws('; ', {", ".join(REASONS)}), '')
           END AS waiting_for,
           c.takeovers, c.written_small, c.written_large,
           extract(epoch FROM coalesce(j.finished_at, clock_timestamp()) - j.first_claimed_at)::float8 AS seconds,
           j.priority
    FROM jobs j
    CROSS JOIN LATERAL (
        SELECT t.samples_total, t.pending, t.ready, t.drafting, t.awaiting_large, t.assisting, t.finished, t.graded,
               t.failed, t.cancelled, t.takeovers, t.tokens_small + t.discarded_small AS written_small,
               t.tokens_large + t.discarded_large AS written_large, 0 AS delayed, NULL AS next_try_at, 0 AS suspects
        FROM job_totals t WHERE t.job_id = j.id AND t.stale_at IS NULL
        UNION ALL
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
               coalesce(sum(s.tokens_large + s.discarded_large), 0) AS written_large,
               count(*) FILTER (WHERE s.state IN ('ready', 'awaiting_large') AND s.not_before > clock_timestamp()),
               min(s.not_before) FILTER (WHERE s.state IN ('ready', 'awaiting_large')
                                           AND s.not_before > clock_timestamp()),
               count(*) FILTER (WHERE s.state IN ('ready', 'awaiting_large') AND s.num_rescues >= 2)
        FROM samples s WHERE s.job_id = j.id
        HAVING NOT EXISTS (SELECT FROM job_totals k WHERE k.job_id = j.id AND k.stale_at IS NULL)
    ) c
    CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE w.kind = 'small' AND w.model = j.small_model) AS small,
               count(*) FILTER (WHERE w.kind = 'large' AND w.model = j.large_model) AS large,
               count(*) FILTER (WHERE w.kind = 'grade') AS grade,
               count(*) FILTER (WHERE w.kind = 'upkeep') AS upkeep,
               sum(w.max_in_flight) FILTER (WHERE w.kind = 'small' AND w.model = j.small_model) AS small_slots,
               sum(w.max_in_flight) FILTER (WHERE w.kind = 'large' AND w.model = j.large_model) AS large_slots
        FROM workers w WHERE w.ended_at IS NULL AND w.expires_at > clock_timestamp()
    ) w
    CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE w.kind = 'small' AND w.model = j.small_model) AS small,
               count(*) FILTER (WHERE w.kind = 'large' AND w.model = j.large_model) AS large
        FROM workers w JOIN samples s ON s.holder_id = w.id
        WHERE j.state = 'running' AND w.ended_at IS NULL AND w.expires_at > clock_timestamp()
    ) h
    CROSS JOIN LATERAL (
        SELECT count(*) AS samples_ahead
        FROM jobs o JOIN samples s ON s.job_id = o.id AND s.state = 'pending'
        WHERE j.state = 'running' AND o.state = 'running' AND (-o.priority, o.id) < (-j.priority, j.id)
          AND o.first_role = j.first_role
          AND CASE j.first_role WHEN 'small' THEN o.small_model = j.small_model ELSE o.large_model = j.large_model END
    ) a
    """,
)

VIEWS = (ERRORS, JOB_PROGRESS)


def quoted(literal: str) -> str:
    return "'" + literal.replace("'", "''") + "'"


def revision_module(number: str) -> Any:
    """An earlier migration: what it made is made anew on the way back."""
    scripts = op.get_context().script
    assert scripts is not None
    return scripts.get_revision(number).module


def comment_on(view: Any) -> None:
    op.execute(f"COMMENT ON VIEW {view.name} IS {quoted(view.comment)}")
    for column, comment in view.columns.items():
        op.execute(f"COMMENT ON COLUMN {view.name}.{column} IS {quoted(comment)}")


def upgrade() -> None:
    life = revision_module("0005")
    transitions = f"{life.SAMPLE_TRANSITIONS}, {life.RETRIED}"
    op.execute(LOG_SAMPLE_CHANGES.format(rights=life.OWNERS_RIGHTS, transitions=transitions))
    for view in VIEWS:
        op.execute(f"CREATE OR REPLACE VIEW {view.name} AS {view.query}")
        comment_on(view)
    op.execute(f"COMMENT ON COLUMN job_summary.state IS {quoted(JOB_STATES)}")


def downgrade() -> None:
    first, numbers, life = (revision_module(number) for number in ("0002", "0004", "0005"))
    progress = first.JOB_PROGRESS.query
    for live, kept in (
        (numbers.LIVE_PROGRESS, numbers.KEPT_PROGRESS),
        (numbers.LIVE_PROGRESS_END, numbers.KEPT_PROGRESS_END),
    ):
        progress = progress.replace(live, kept)
    for view, query in ((first.ERRORS, first.ERRORS.query), (first.JOB_PROGRESS, progress)):
        op.execute(f"DROP VIEW {view.name}")
        op.execute(f"CREATE VIEW {view.name} AS {query}")
        comment_on(view)
    op.execute(f"COMMENT ON COLUMN job_summary.state IS {quoted(first.JOB_SUMMARY.columns['state'])}")
    transitions = f"{life.SAMPLE_TRANSITIONS}, {life.RETRIED}"
    op.execute(life.LOG_SAMPLE_CHANGES.format(rights=life.OWNERS_RIGHTS, transitions=transitions))
