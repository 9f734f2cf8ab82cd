"""First tables, the state machine that the database keeps, and the log of its changes.

Lock taken: none that matters, everything is new.
Way back: drops everything.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

STATE_MACHINE = """
CREATE FUNCTION log_sample_changes() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    wrong record;
BEGIN
    SELECT o.id, o.state AS from_state, n.state AS to_state INTO wrong
    FROM old_rows o JOIN new_rows n ON n.id = o.id
    WHERE n.state <> o.state AND (o.state || '>' || n.state) NOT IN (
        'assisting>awaiting_large', 'assisting>cancelled', 'assisting>failed',
        'assisting>finished', 'assisting>ready', 'awaiting_large>assisting',
        'awaiting_large>cancelled', 'awaiting_large>failed', 'drafting>awaiting_large',
        'drafting>cancelled', 'drafting>failed', 'drafting>finished',
        'drafting>ready', 'finished>cancelled', 'finished>failed',
        'finished>graded', 'pending>awaiting_large', 'pending>cancelled',
        'pending>failed', 'pending>ready', 'ready>cancelled',
        'ready>drafting', 'ready>failed'
    ) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'sample %: no transition from % to %', wrong.id, wrong.from_state, wrong.to_state
            USING ERRCODE = 'check_violation';
    END IF;
    INSERT INTO events (job_id, sample_id, from_state, to_state, epoch, worker_id)
    SELECT n.job_id, n.id, o.state, n.state, n.epoch, coalesce(n.holder_id, o.holder_id)
    FROM old_rows o JOIN new_rows n ON n.id = o.id WHERE n.state <> o.state;
    RETURN NULL;
END $$;

CREATE TRIGGER log_changes AFTER UPDATE ON samples
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION log_sample_changes();

CREATE FUNCTION log_job_changes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF old.state <> 'running' THEN
        RAISE EXCEPTION 'job %: no transition from % to %', old.id, old.state, new.state
            USING ERRCODE = 'check_violation';
    END IF;
    INSERT INTO events (job_id, from_state, to_state) VALUES (new.id, old.state, new.state);
    RETURN NULL;
END $$;

CREATE TRIGGER log_changes AFTER UPDATE OF state ON jobs
    FOR EACH ROW WHEN (old.state <> new.state) EXECUTE FUNCTION log_job_changes();

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', tg_table_name USING ERRCODE = 'check_violation';
END $$;

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
"""


def upgrade() -> None:
    op.create_table(
        "engines",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("model_fingerprint", sa.String(), nullable=False, comment="sha256 of tokenizer and chat template"),
        sa.Column(
            "vocabulary_sha256",
            sa.String(),
            nullable=False,
            comment="equal for models whose token ids mean the same text",
        ),
        sa.Column("settings", JSONB, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_engines"),
        sa.UniqueConstraint("sha256", name="uq_engines_sha256"),
    )
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("sample_id", sa.BigInteger(), nullable=True, comment="null: the job itself changed"),
        sa.Column("from_state", sa.String(), nullable=False),
        sa.Column("to_state", sa.String(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=True),
        sa.Column(
            "worker_id", sa.BigInteger(), nullable=True, comment="who holds it after the change, or held it before"
        ),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
    )
    op.create_index("ix_events_job_id", "events", ["job_id"], unique=False)
    op.create_index("ix_events_sample_id", "events", ["sample_id"], unique=False)
    op.create_table(
        "problem_sets",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.String(), nullable=False, comment="as first submitted"),
        sa.Column(
            "content_sha256", sa.String(), nullable=False, comment="the version: a hash of all problems and answers"
        ),
        sa.Column("num_problems", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_problem_sets"),
        sa.UniqueConstraint("content_sha256", name="uq_problem_sets_content_sha256"),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.String(), nullable=False, comment="free text for people"),
        sa.Column("problem_set_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "running",
                "completed",
                "completed_with_errors",
                "cancelled",
                name="state",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            nullable=False,
        ),
        sa.Column(
            "config", JSONB, nullable=False, comment="pipeline.jobs.JobConfig as submitted, every value spelled out"
        ),
        sa.Column("versions", JSONB, nullable=False, comment="of the packages at submit"),
        sa.Column("policy", sa.String(), nullable=False, comment="NAME or NAME:PRESET, as submitted"),
        sa.Column("small_model", sa.String(), nullable=True),
        sa.Column("large_model", sa.String(), nullable=True),
        sa.Column(
            "first_role",
            sa.Enum("small", "large", name="first_role", native_enum=False, create_constraint=True, length=24),
            nullable=False,
            comment="who opens each sample",
        ),
        sa.Column("num_problems", sa.Integer(), nullable=False),
        sa.Column("num_samples", sa.Integer(), nullable=False, comment="per problem"),
        sa.Column("submitted_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "first_claimed_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when a worker first took one of its samples",
        ),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "followed_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="last sign of the task that shows its progress in Flower",
        ),
        sa.CheckConstraint("(state = 'running') = (finished_at IS NULL)", name="ck_jobs_finished_at"),
        sa.ForeignKeyConstraint(["problem_set_id"], ["problem_sets.id"], name="fk_jobs_problem_set_id_problem_sets"),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
    )
    op.create_index("ix_jobs_running", "jobs", ["id"], unique=False, postgresql_where=sa.text("state = 'running'"))
    op.create_table(
        "problems",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("problem_set_id", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False, comment="0-based place in the set"),
        sa.Column("external_id", sa.String(), nullable=False, comment="the id in the submitted file"),
        sa.Column("prompt", sa.String(), nullable=False, comment="the question's text, before any template"),
        sa.Column("subject", sa.String(), nullable=True),
        sa.Column("level", sa.String(), nullable=True),
        sa.Column("extra", JSONB, nullable=False, comment="the file's other columns"),
        sa.ForeignKeyConstraint(
            ["problem_set_id"], ["problem_sets.id"], name="fk_problems_problem_set_id_problem_sets"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_problems"),
        sa.UniqueConstraint("problem_set_id", "external_id", name="uq_problems_problem_set_id_external_id"),
        sa.UniqueConstraint("problem_set_id", "position", name="uq_problems_problem_set_id_position"),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column(
            "kind",
            sa.Enum(
                "small", "large", "grade", "upkeep", name="kind", native_enum=False, create_constraint=True, length=24
            ),
            nullable=False,
        ),
        sa.Column("model", sa.String(), nullable=True, comment="the name jobs use"),
        sa.Column("engine_id", sa.BigInteger(), nullable=True),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column(
            "queue", sa.String(), nullable=False, comment="its own queue, for samples whose context it has cached"
        ),
        sa.Column("max_in_flight", sa.Integer(), nullable=False, comment="samples it works on at the same time"),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("renewed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "expires_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="the lease's end, by this database's clock",
        ),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "end_reason",
            sa.Enum(
                "stopped", "lapsed", name="end_reason_choice", native_enum=False, create_constraint=True, length=24
            ),
            nullable=True,
        ),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True, comment="when all it held was given back"),
        sa.Column(
            "num_in_flight",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="samples it writes, at renewed_at",
        ),
        sa.Column(
            "tokens_generated",
            sa.BigInteger(),
            server_default="0",
            nullable=False,
            comment="by its engine, EOS included, at renewed_at",
        ),
        sa.Column(
            "tokens_committed",
            sa.BigInteger(),
            server_default="0",
            nullable=False,
            comment="of these, in a segment row as kept or discarded, or an EOS",
        ),
        sa.Column(
            "tokens_dropped",
            sa.BigInteger(),
            server_default="0",
            nullable=False,
            comment="of these, refused at commit or aborted: generated again by others",
        ),
        sa.Column("prompt_tokens", sa.BigInteger(), server_default="0", nullable=False, comment="given to its engine"),
        sa.Column(
            "cached_tokens",
            sa.BigInteger(),
            server_default="0",
            nullable=False,
            comment="of these, found in the prefix cache",
        ),
        sa.CheckConstraint("(ended_at IS NULL) = (end_reason IS NULL)", name="ck_workers_end_reason"),
        sa.ForeignKeyConstraint(["engine_id"], ["engines.id"], name="fk_workers_engine_id_engines"),
        sa.PrimaryKeyConstraint("id", name="pk_workers"),
    )
    op.create_index(
        "ix_workers_live", "workers", ["kind", "model"], unique=False, postgresql_where=sa.text("ended_at IS NULL")
    )
    op.create_index(
        "ix_workers_unsettled", "workers", ["id"], unique=False, postgresql_where=sa.text("settled_at IS NULL")
    )
    op.create_table(
        "reference_answers",
        sa.Column("problem_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("answer", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["problem_id"], ["problems.id"], name="fk_reference_answers_problem_id_problems"),
        sa.PrimaryKeyConstraint("problem_id", name="pk_reference_answers"),
    )
    op.create_table(
        "samples",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("problem_id", sa.BigInteger(), nullable=False),
        sa.Column("sample_index", sa.Integer(), nullable=False, comment="0-based among the samples of its problem"),
        sa.Column(
            "state",
            sa.Enum(
                "pending",
                "ready",
                "drafting",
                "awaiting_large",
                "assisting",
                "finished",
                "graded",
                "failed",
                "cancelled",
                name="state",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            server_default="pending",
            nullable=False,
        ),
        sa.Column(
            "epoch",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="raised by every claim and rescue; fences writes",
        ),
        sa.Column("holder_id", sa.BigInteger(), nullable=True, comment="the worker that writes now"),
        sa.Column(
            "small_worker_id", sa.BigInteger(), nullable=True, comment="the small worker whose cache holds the context"
        ),
        sa.Column("large_worker_id", sa.BigInteger(), nullable=True, comment="likewise, large"),
        sa.Column(
            "published_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when a message for its present state was last due",
        ),
        sa.Column(
            "num_rescues", sa.Integer(), server_default="0", nullable=False, comment="times its worker died with it"
        ),
        sa.Column("policy_state", JSONB, nullable=True, comment="of the policy, after the last segment"),
        sa.Column("next_max_tokens", sa.Integer(), nullable=True, comment="what the policy asks the next writer for"),
        sa.Column("next_trigger", sa.String(), nullable=True, comment="why the next writer writes"),
        sa.Column("next_cue", sa.String(), nullable=True),
        sa.Column("num_segments", sa.Integer(), server_default="0", nullable=False),
        sa.Column(
            "num_takeovers",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="times the large model was called in",
        ),
        sa.Column(
            "tokens_small", sa.Integer(), server_default="0", nullable=False, comment="kept, written by the small model"
        ),
        sa.Column(
            "tokens_large", sa.Integer(), server_default="0", nullable=False, comment="kept, written by the large model"
        ),
        sa.Column(
            "tokens_inserted", sa.Integer(), server_default="0", nullable=False, comment="kept, put in by the policy"
        ),
        sa.Column(
            "discarded_small",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="written by the small model, not kept",
        ),
        sa.Column(
            "discarded_large",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="written by the large model, not kept",
        ),
        sa.Column(
            "finish_reason",
            sa.Enum(
                "eos",
                "length",
                "context",
                "repetition",
                name="finish_reason",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            nullable=True,
        ),
        sa.Column("predicted_answer", sa.String(), nullable=True, comment="by the latest grading"),
        sa.Column(
            "score", sa.Double(), nullable=True, comment="by the latest grading; null: unscored, which is not wrong"
        ),
        sa.Column("error_class", sa.String(), nullable=True),
        sa.Column("error", sa.String(), nullable=True, comment="why it was set aside"),
        sa.Column("admitted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True, comment="when its text was complete"),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True, comment="when it reached a final state"),
        sa.CheckConstraint("(state = 'failed') = (error IS NOT NULL)", name="ck_samples_error"),
        sa.CheckConstraint("(state IN ('drafting', 'assisting')) = (holder_id IS NOT NULL)", name="ck_samples_holder"),
        sa.CheckConstraint(
            "(state NOT IN ('graded', 'failed', 'cancelled')) = (ended_at IS NULL)", name="ck_samples_ended_at"
        ),
        sa.CheckConstraint(
            "state NOT IN ('finished', 'graded') OR finish_reason IS NOT NULL", name="ck_samples_finish_reason_set"
        ),
        sa.ForeignKeyConstraint(["holder_id"], ["workers.id"], name="fk_samples_holder_id_workers"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_samples_job_id_jobs"),
        sa.ForeignKeyConstraint(["large_worker_id"], ["workers.id"], name="fk_samples_large_worker_id_workers"),
        sa.ForeignKeyConstraint(["problem_id"], ["problems.id"], name="fk_samples_problem_id_problems"),
        sa.ForeignKeyConstraint(["small_worker_id"], ["workers.id"], name="fk_samples_small_worker_id_workers"),
        sa.PrimaryKeyConstraint("id", name="pk_samples"),
        sa.UniqueConstraint("job_id", "problem_id", "sample_index", name="uq_samples_job_id_problem_id_sample_index"),
    )
    op.create_index(
        "ix_samples_admitted",
        "samples",
        ["job_id"],
        unique=False,
        postgresql_where=sa.text("state IN ('ready', 'drafting', 'awaiting_large', 'assisting')"),
    )
    op.create_index(
        "ix_samples_held", "samples", ["holder_id"], unique=False, postgresql_where=sa.text("holder_id IS NOT NULL")
    )
    op.create_index(
        "ix_samples_open",
        "samples",
        ["job_id"],
        unique=False,
        postgresql_where=sa.text("state NOT IN ('graded', 'failed', 'cancelled')"),
    )
    op.create_index(
        "ix_samples_pending", "samples", ["job_id", "id"], unique=False, postgresql_where=sa.text("state = 'pending'")
    )
    op.create_index(
        "ix_samples_published",
        "samples",
        ["published_at"],
        unique=False,
        postgresql_where=sa.text("state IN ('ready', 'awaiting_large', 'finished')"),
    )
    op.create_table(
        "grades",
        sa.Column("sample_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("grader", sa.String(), nullable=False),
        sa.Column("grader_version", sa.String(), nullable=False),
        sa.Column(
            "status",
            sa.Enum(
                "running",
                "done",
                "timeout",
                "error",
                name="status",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            nullable=False,
        ),
        sa.Column("score", sa.Double(), nullable=True),
        sa.Column("predicted_answer", sa.String(), nullable=True),
        sa.Column("detail", sa.String(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("graded_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["sample_id"], ["samples.id"], name="fk_grades_sample_id_samples"),
        sa.PrimaryKeyConstraint("sample_id", "grader", "grader_version", name="pk_grades"),
    )
    op.create_table(
        "segments",
        sa.Column("sample_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("segment_index", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column(
            "author",
            sa.Enum("small", "large", "inserted", name="author", native_enum=False, create_constraint=True, length=24),
            nullable=False,
        ),
        sa.Column("trigger", sa.String(), nullable=False, comment="why this author wrote here"),
        sa.Column("cue", sa.String(), nullable=False, comment="the words that pulled the trigger, '' where none did"),
        sa.Column("token_ids", ARRAY(sa.Integer), nullable=False, comment="kept"),
        sa.Column("text", sa.String(), nullable=False, comment="kept"),
        sa.Column(
            "discarded_ids",
            ARRAY(sa.Integer),
            nullable=False,
            comment="written after the kept ones, not kept",
        ),
        sa.Column("discarded_text", sa.String(), nullable=False),
        sa.Column(
            "token_lengths",
            ARRAY(sa.Integer),
            nullable=False,
            comment="characters per token, kept then discarded",
        ),
        sa.Column(
            "finish",
            sa.Enum("eos", "length", "watch", name="finish", native_enum=False, create_constraint=True, length=24),
            nullable=True,
            comment="null for inserted ones",
        ),
        sa.Column(
            "tokens_generated", sa.Integer(), nullable=False, comment="as its engine counts: kept, discarded and EOS"
        ),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("cached_tokens", sa.Integer(), nullable=False, comment="of the prompt's, not computed again"),
        sa.Column("seed", sa.BigInteger(), nullable=True),
        sa.Column("epoch", sa.Integer(), nullable=False, comment="of the claim under which it was written"),
        sa.Column("worker_id", sa.BigInteger(), nullable=False),
        sa.Column("engine_id", sa.BigInteger(), nullable=False),
        sa.Column("wait_seconds", sa.Double(), nullable=True, comment="from publishing to claim"),
        sa.Column("queue_seconds", sa.Double(), nullable=True, comment="inside the engine before its first work"),
        sa.Column("first_token_seconds", sa.Double(), nullable=True, comment="from handing in to the first token"),
        sa.Column("write_seconds", sa.Double(), nullable=True, comment="from handing in to the end"),
        sa.Column("committed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["engine_id"], ["engines.id"], name="fk_segments_engine_id_engines"),
        sa.ForeignKeyConstraint(["sample_id"], ["samples.id"], name="fk_segments_sample_id_samples"),
        sa.ForeignKeyConstraint(["worker_id"], ["workers.id"], name="fk_segments_worker_id_workers"),
        sa.PrimaryKeyConstraint("sample_id", "segment_index", name="pk_segments"),
    )
    op.create_table(
        "steps",
        sa.Column("sample_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("step_index", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column(
            "author",
            sa.Enum("small", "large", "inserted", name="author", native_enum=False, create_constraint=True, length=24),
            nullable=False,
            comment="who wrote most of its tokens",
        ),
        sa.Column("tokens_small", sa.Integer(), nullable=False),
        sa.Column("tokens_large", sa.Integer(), nullable=False),
        sa.Column("tokens_inserted", sa.Integer(), nullable=False),
        sa.Column("start_token", sa.Integer(), nullable=False, comment="place of its first token in the output"),
        sa.Column("sentence_class", sa.String(), nullable=False, comment="statement, reflection or affirmation"),
        sa.Column("trigger", sa.String(), nullable=True, comment="of the takeover that begins in it"),
        sa.ForeignKeyConstraint(["sample_id"], ["samples.id"], name="fk_steps_sample_id_samples"),
        sa.PrimaryKeyConstraint("sample_id", "step_index", name="pk_steps"),
    )
    op.execute(STATE_MACHINE)


def downgrade() -> None:
    op.drop_table("steps")
    op.drop_table("segments")
    op.drop_table("grades")
    op.drop_index(
        "ix_samples_published",
        table_name="samples",
        postgresql_where=sa.text("state IN ('ready', 'awaiting_large', 'finished')"),
    )
    op.drop_index("ix_samples_pending", table_name="samples", postgresql_where=sa.text("state = 'pending'"))
    op.drop_index(
        "ix_samples_open",
        table_name="samples",
        postgresql_where=sa.text("state NOT IN ('graded', 'failed', 'cancelled')"),
    )
    op.drop_index("ix_samples_held", table_name="samples", postgresql_where=sa.text("holder_id IS NOT NULL"))
    op.drop_index(
        "ix_samples_admitted",
        table_name="samples",
        postgresql_where=sa.text("state IN ('ready', 'drafting', 'awaiting_large', 'assisting')"),
    )
    op.drop_table("samples")
    op.drop_table("reference_answers")
    op.drop_index("ix_workers_unsettled", table_name="workers", postgresql_where=sa.text("settled_at IS NULL"))
    op.drop_index("ix_workers_live", table_name="workers", postgresql_where=sa.text("ended_at IS NULL"))
    op.drop_table("workers")
    op.drop_table("problems")
    op.drop_index("ix_jobs_running", table_name="jobs", postgresql_where=sa.text("state = 'running'"))
    op.drop_table("jobs")
    op.drop_table("problem_sets")
    op.drop_index("ix_events_sample_id", table_name="events")
    op.drop_index("ix_events_job_id", table_name="events")
    op.drop_table("events")
    op.drop_table("engines")
    op.execute("DROP FUNCTION log_sample_changes(), log_job_changes(), refuse_change()")
