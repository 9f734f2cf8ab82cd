"""Jobs can be paused, retried, ranked and cloned; failures are classed, counted and delayed in the row.

Lock taken: ACCESS EXCLUSIVE on jobs, samples and workers. New columns rewrite no row; the new checks read every row of
the three tables once (about a second per million samples).
Way back: paused jobs run again; priorities, delays, larger budgets and the parents of clones are forgotten; the error
classes stay as they are.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

SAMPLE_TRANSITIONS = """
    'assisting>awaiting_large', 'assisting>cancelled', 'assisting>failed', 'assisting>finished', 'assisting>ready',
    'awaiting_large>assisting', 'awaiting_large>cancelled', 'awaiting_large>failed',
    'drafting>awaiting_large', 'drafting>cancelled', 'drafting>failed', 'drafting>finished', 'drafting>ready',
    'finished>cancelled', 'finished>failed', 'finished>graded',
    'pending>awaiting_large', 'pending>cancelled', 'pending>failed', 'pending>ready',
    'ready>cancelled', 'ready>drafting', 'ready>failed'
"""
RETRIED = "'failed>pending', 'graded>pending'"
JOB_TRANSITIONS = """
    'running>paused', 'paused>running', 'running>completed', 'running>completed_with_errors', 'running>cancelled',
    'paused>cancelled', 'completed>running', 'completed_with_errors>running'
"""

# Both run with the rights of the schema's owner, so that nobody else needs to write events.
LOG_SAMPLE_CHANGES = """
CREATE OR REPLACE FUNCTION log_sample_changes() RETURNS trigger LANGUAGE plpgsql {rights} AS $$
DECLARE
    wrong record;
BEGIN
    SELECT o.id, o.state AS from_state, n.state AS to_state INTO wrong
    FROM old_rows o JOIN new_rows n ON n.id = o.id
    WHERE n.state <> o.state AND (o.state || '>' || n.state) NOT IN ({transitions}) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'sample %: no transition from % to %', wrong.id, wrong.from_state, wrong.to_state
            USING ERRCODE = 'check_violation';
    END IF;
    INSERT INTO events (job_id, sample_id, from_state, to_state, epoch, worker_id)
    SELECT n.job_id, n.id, o.state, n.state, n.epoch, coalesce(n.holder_id, o.holder_id)
    FROM old_rows o JOIN new_rows n ON n.id = o.id WHERE n.state <> o.state;
    RETURN NULL;
END $$;
"""
LOG_JOB_CHANGES = """
CREATE OR REPLACE FUNCTION log_job_changes() RETURNS trigger LANGUAGE plpgsql {rights} AS $$
BEGIN
    IF {refused} THEN
        RAISE EXCEPTION 'job %: no transition from % to %', old.id, old.state, new.state
            USING ERRCODE = 'check_violation';
    END IF;
    INSERT INTO events (job_id, from_state, to_state) VALUES (new.id, old.state, new.state);
    RETURN NULL;
END $$;
"""
OWNERS_RIGHTS = "SECURITY DEFINER SET search_path = public, pg_temp"

NUM_RESCUES = "times its worker died with it since its last commit"
NUM_RESCUES_BEFORE = "times its worker died with it"
JOB_STATES = ("running", "paused", "completed", "completed_with_errors", "cancelled")
WORKER_ENDS = ("stopped", "lapsed", "engine_died", "engine_stalled")
SUSPECT = "num_rescues >= 2 AND state IN ('ready', 'drafting', 'awaiting_large', 'assisting')"
MISNAMED = {
    "jobs": ("finished_at",),
    "samples": ("ended_at", "error", "finish_reason_set", "holder"),
    "workers": ("end_reason",),
}
"""Checks whose prefix revision 0001 gave twice."""
ERROR_CLASSES = ("bad_input", "budget", "engine_refused", "engine_died", "timed_out", "internal")


def one_of(column: str, values: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(value) for value in values)})"


def change_check(table: str, name: str, condition: str) -> None:
    op.execute(f"ALTER TABLE {table} DROP CONSTRAINT ck_{table}_{name}")
    op.execute(f"ALTER TABLE {table} ADD CONSTRAINT ck_{table}_{name} CHECK ({condition})")


def rename_checks(old: str, new: str) -> None:
    for table, names in MISNAMED.items():
        for name in names:
            before, after = (form.format(table=table, name=name) for form in (old, new))
            op.execute(f"ALTER TABLE {table} RENAME CONSTRAINT {before} TO {after}")


def choice(name: str, *values: str) -> sa.Enum:
    return sa.Enum(*values, name=name, native_enum=False, create_constraint=True, length=24)


def upgrade() -> None:
    op.execute(LOG_SAMPLE_CHANGES.format(rights=OWNERS_RIGHTS, transitions=f"{SAMPLE_TRANSITIONS}, {RETRIED}"))
    refused = f"(old.state || '>' || new.state) NOT IN ({JOB_TRANSITIONS})"
    op.execute(LOG_JOB_CHANGES.format(rights=OWNERS_RIGHTS, refused=refused))

    rename_checks("ck_{table}_ck_{table}_{name}", "ck_{table}_{name}")
    change_check("jobs", "state", one_of("state", JOB_STATES))
    change_check("jobs", "finished_at", "(state IN ('running', 'paused')) = (finished_at IS NULL)")
    op.add_column(
        "jobs",
        sa.Column(
            "priority",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="jobs with a higher one are admitted first",
        ),
    )
    op.add_column(
        "jobs",
        sa.Column(
            "cloned_from",
            sa.BigInteger(),
            sa.ForeignKey("jobs.id", name="fk_jobs_cloned_from_jobs"),
            nullable=True,
            comment="the job whose problems and configuration it took",
        ),
    )

    change_check("workers", "end_reason_choice", one_of("end_reason", WORKER_ENDS))
    op.add_column(
        "workers",
        sa.Column(
            "tokens_withdrawn",
            sa.BigInteger(),
            server_default="0",
            nullable=False,
            comment="of the committed ones, in segments that a retry with a larger budget took away",
        ),
    )

    op.alter_column("samples", "num_rescues", comment=NUM_RESCUES, existing_comment=NUM_RESCUES_BEFORE)
    op.add_column(
        "samples",
        sa.Column(
            "num_attempts",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="times an engine refused it for the moment since its last commit",
        ),
    )
    op.add_column(
        "samples",
        sa.Column(
            "not_before",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="to be claimed no earlier: the delay after a failure",
        ),
    )
    op.add_column(
        "samples",
        sa.Column("max_tokens", sa.Integer(), nullable=True, comment="a larger budget than its job's; null: the job's"),
    )
    op.add_column(
        "samples",
        sa.Column(
            "next_role",
            choice("next_role", "small", "large"),
            nullable=True,
            comment="who writes next; null: nobody has written, the job's first_role opens",
        ),
    )
    op.add_column(
        "grades",
        sa.Column("num_tries", sa.Integer(), server_default="1", nullable=False, comment="times it was begun"),
    )
    op.create_index("ix_samples_suspect", "samples", ["id"], postgresql_where=sa.text(SUSPECT))
    op.execute("""
        UPDATE samples SET next_role = CASE WHEN state IN ('ready', 'drafting') THEN 'small' ELSE 'large' END
        WHERE num_segments > 0 AND state IN ('ready', 'drafting', 'awaiting_large', 'assisting')
    """)
    op.alter_column("samples", "error_class", comment="pipeline.samples.ErrorClass")
    op.execute(f"""
        UPDATE samples SET error_class = CASE
            WHEN {one_of("error_class", ERROR_CLASSES)} THEN error_class  -- kept by the way back
            WHEN error_class = 'PromptTooLong' THEN 'budget'
            WHEN error_class IN ('EngineRefused', 'EngineError') THEN 'engine_refused'
            WHEN error_class IN ('EngineDied', 'WorkerLost') THEN 'engine_died' ELSE 'internal' END
        WHERE error_class IS NOT NULL
    """)
    op.execute(
        f"ALTER TABLE samples ADD CONSTRAINT ck_samples_error_class CHECK ({one_of('error_class', ERROR_CLASSES)})"
    )


def downgrade() -> None:
    op.execute("UPDATE jobs SET state = 'running' WHERE state = 'paused'")
    op.execute("UPDATE workers SET end_reason = 'lapsed' WHERE end_reason IN ('engine_died', 'engine_stalled')")

    op.execute("ALTER TABLE samples DROP CONSTRAINT ck_samples_error_class")
    op.alter_column("samples", "error_class", comment=None, existing_comment="pipeline.samples.ErrorClass")
    op.drop_column("grades", "num_tries")
    op.drop_index("ix_samples_suspect", "samples", postgresql_where=sa.text(SUSPECT))
    for column in ("next_role", "max_tokens", "not_before", "num_attempts"):
        op.drop_column("samples", column)
    op.alter_column("samples", "num_rescues", comment=NUM_RESCUES_BEFORE, existing_comment=NUM_RESCUES)

    op.drop_column("workers", "tokens_withdrawn")
    change_check("workers", "end_reason_choice", one_of("end_reason", WORKER_ENDS[:2]))

    op.drop_column("jobs", "cloned_from")
    op.drop_column("jobs", "priority")
    change_check("jobs", "finished_at", "(state = 'running') = (finished_at IS NULL)")
    change_check("jobs", "state", one_of("state", tuple(state for state in JOB_STATES if state != "paused")))
    rename_checks("ck_{table}_{name}", "ck_{table}_ck_{table}_{name}")

    op.execute(LOG_JOB_CHANGES.format(rights="", refused="old.state <> 'running'"))
    op.execute(LOG_SAMPLE_CHANGES.format(rights="", transitions=SAMPLE_TRANSITIONS))
