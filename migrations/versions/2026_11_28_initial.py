"""All tables.

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


def upgrade() -> None:
    op.create_table(
        "engines",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="given by the database"),
        sa.Column("sha256", sa.String(), nullable=False, comment="of the columns below"),
        sa.Column("kind", sa.String(), nullable=False, comment="e.g. vllm"),
        sa.Column("version", sa.String(), nullable=False, comment="of the engine's package"),
        sa.Column("model", sa.String(), nullable=False, comment="the name that jobs use"),
        sa.Column("model_fingerprint", sa.String(), nullable=False, comment="sha256 of tokenizer and chat template"),
        sa.Column(
            "vocabulary_sha256",
            sa.String(),
            nullable=False,
            comment="equal for models whose token ids mean the same text",
        ),
        sa.Column("settings", JSONB(), nullable=False, comment="as it was started"),
        sa.Column(
            "weights_sha256",
            sa.String(),
            nullable=True,
            comment="of a sample of every tensor; null: no files of weights are here",
        ),
        sa.Column("revision", sa.String(), nullable=True, comment="of the hub, as the worker was started with"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_engines")),
        sa.UniqueConstraint("sha256", name=op.f("uq_engines_sha256")),
        comment="An engine: its models' identity, versions and settings, stored once per distinct content.",
    )
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="given by the database"),
        sa.Column("job_id", sa.BigInteger(), nullable=False, comment="the job"),
        sa.Column("sample_id", sa.BigInteger(), nullable=True, comment="null: the job itself changed"),
        sa.Column("from_state", sa.String(), nullable=False, comment="before"),
        sa.Column("to_state", sa.String(), nullable=False, comment="after"),
        sa.Column("epoch", sa.Integer(), nullable=True, comment="of the sample, after the change"),
        sa.Column(
            "worker_id", sa.BigInteger(), nullable=True, comment="who holds it after the change, or held it before"
        ),
        sa.Column(
            "at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
            comment="when it happened; ids may be in another order",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        comment="Append-only: one row per change of a sample's or a job's state, written by a trigger.",
    )
    op.create_index("ix_events_job_id", "events", ["job_id", "sample_id"], unique=False)
    op.create_table(
        "problem_sets",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="given by the database"),
        sa.Column("name", sa.String(), nullable=False, comment="as first submitted"),
        sa.Column(
            "content_sha256", sa.String(), nullable=False, comment="the version: a hash of all problems and answers"
        ),
        sa.Column("num_problems", sa.Integer(), nullable=False, comment="problems in it"),
        sa.Column(
            "num_references", sa.Integer(), nullable=False, comment="problems in it that have a reference answer"
        ),
        sa.Column("has_choices", sa.Boolean(), nullable=False, comment="whether it is a multiple choice"),
        sa.Column(
            "tells_answers_of",
            sa.BigInteger(),
            nullable=True,
            comment="a judge's set: its prompts show the reference answers of that one; null: prompts show none",
        ),
        sa.Column(
            "source",
            JSONB(),
            nullable=True,
            comment="where on a hub it was first loaded from: hub, config, split, revision; null: from a file",
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="when it was first submitted",
        ),
        sa.ForeignKeyConstraint(
            ["tells_answers_of"], ["problem_sets.id"], name=op.f("fk_problem_sets_tells_answers_of_problem_sets")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_problem_sets")),
        sa.UniqueConstraint("content_sha256", name=op.f("uq_problem_sets_content_sha256")),
        comment="A versioned list of problems, stored once per content.",
    )
    op.create_index(
        "ix_problem_sets_telling",
        "problem_sets",
        ["tells_answers_of"],
        unique=False,
        postgresql_where=sa.text("tells_answers_of IS NOT NULL"),
    )
    op.create_table(
        "schema_objects",
        sa.Column("sha256", sa.String(), nullable=False, comment="of the files that create them"),
        sa.Column(
            "names", sa.ARRAY(sa.String()), nullable=False, comment="in the order of creation, as DROP names them"
        ),
        sa.Column(
            "applied_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="when they were created",
        ),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_schema_objects")),
        comment="The views, functions and triggers that the database was given (pipeline.db.schema_objects); one row.",
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="given by the database"),
        sa.Column("name", sa.String(), nullable=False, comment="free text for people"),
        sa.Column("problem_set_id", sa.BigInteger(), nullable=False, comment="what it asks"),
        sa.Column(
            "state",
            sa.Enum(
                "running",
                "paused",
                "completed",
                "completed_with_errors",
                "cancelled",
                name="state",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            nullable=False,
            comment="pipeline.jobs.config.JobState",
        ),
        sa.Column(
            "config", JSONB(), nullable=False, comment="pipeline.jobs.JobConfig as submitted, every value spelled out"
        ),
        sa.Column("versions", JSONB(), nullable=False, comment="of the packages at submit"),
        sa.Column("policy", sa.String(), nullable=False, comment="NAME or NAME:PRESET, as submitted"),
        sa.Column("small_model", sa.String(), nullable=True, comment="null where the policy needs none"),
        sa.Column("large_model", sa.String(), nullable=True, comment="null where the policy needs none"),
        sa.Column("judge_model", sa.String(), nullable=True, comment="null where the policy needs none"),
        sa.Column(
            "first_role",
            sa.Enum("small", "large", "judge", name="first_role", native_enum=False, create_constraint=True, length=24),
            nullable=False,
            comment="who opens each sample",
        ),
        sa.Column(
            "think_start",
            sa.String(),
            nullable=True,
            comment="the tag that opens the think phase in its texts, '' for none; null: no worker has had it yet",
        ),
        sa.Column(
            "think_end",
            sa.String(),
            nullable=True,
            comment="the tag that ends the think phase in its texts, '' for none; null: no worker has had it yet",
        ),
        sa.Column(
            "think_opened",
            sa.Boolean(),
            nullable=True,
            comment="whether the prompt opens the think phase; else the texts have the opening tag",
        ),
        sa.Column(
            "small_identity",
            JSONB(),
            nullable=True,
            comment="tokenizer and template, weights and revision of its first worker's model; null: none has had it "
            "yet",
        ),
        sa.Column("large_identity", JSONB(), nullable=True, comment="the same of the large model"),
        sa.Column("judge_identity", JSONB(), nullable=True, comment="the same of the judge"),
        sa.Column("num_problems", sa.Integer(), nullable=False, comment="the first so many of the set"),
        sa.Column("num_samples", sa.Integer(), nullable=False, comment="per problem"),
        sa.Column(
            "submitted_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="when it was stored",
        ),
        sa.Column(
            "first_claimed_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when a worker first took one of its samples",
        ),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True, comment="null until it has ended"),
        sa.Column(
            "followed_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="last sign of the task that shows its progress in Flower",
        ),
        sa.Column(
            "priority",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="jobs with a higher one are admitted first",
        ),
        sa.Column(
            "events_removed_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when the events of its samples were pruned; null: they were not",
        ),
        sa.Column(
            "cloned_from", sa.BigInteger(), nullable=True, comment="the job whose problems and configuration it took"
        ),
        sa.Column(
            "judged_job_id",
            sa.BigInteger(),
            nullable=True,
            comment="the job whose answers it judges; null: it is no judge, or that job was removed",
        ),
        sa.Column(
            "verdicts_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="of a judge: when its verdicts last became grades",
        ),
        sa.CheckConstraint(
            "(state IN ('running', 'paused')) = (finished_at IS NULL)", name=op.f("ck_jobs_finished_at")
        ),
        sa.ForeignKeyConstraint(["cloned_from"], ["jobs.id"], name=op.f("fk_jobs_cloned_from_jobs")),
        sa.ForeignKeyConstraint(["judged_job_id"], ["jobs.id"], name=op.f("fk_jobs_judged_job_id_jobs")),
        sa.ForeignKeyConstraint(
            ["problem_set_id"], ["problem_sets.id"], name=op.f("fk_jobs_problem_set_id_problem_sets")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        comment="One requested unit of work: a problem set, its models and a policy, frozen at submit.",
    )
    op.create_table(
        "experiments",
        sa.Column("name", sa.String(), nullable=False, comment="as its users call it"),
        sa.Column(
            "changed_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="when a job was last to be added",
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_experiments")),
        comment="An experiment: jobs that are compared with each other. Whoever adds a job to it locks its row.",
    )
    op.create_table(
        "experiment_jobs",
        sa.Column("experiment", sa.String(), nullable=False, comment="its name"),
        sa.Column(
            "row_name",
            sa.String(),
            nullable=False,
            comment="policy and what was varied: once in an experiment, whoever submits it again",
        ),
        sa.Column("job_id", sa.BigInteger(), nullable=False, comment="the job"),
        sa.Column(
            "control_of",
            sa.BigInteger(),
            nullable=True,
            comment="the job that it is matched to; null: it is no control, or that was removed",
        ),
        sa.ForeignKeyConstraint(["control_of"], ["jobs.id"], name=op.f("fk_experiment_jobs_control_of_jobs")),
        sa.ForeignKeyConstraint(
            ["experiment"], ["experiments.name"], name=op.f("fk_experiment_jobs_experiment_experiments")
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_experiment_jobs_job_id_jobs")),
        sa.PrimaryKeyConstraint("experiment", "row_name", name=op.f("pk_experiment_jobs")),
        comment="A job as a row of an experiment: of a sweep over policies and their numbers, and of its controls.",
    )
    op.create_index("ix_experiment_jobs_control_of", "experiment_jobs", ["control_of"], unique=False)
    op.create_index("ix_experiment_jobs_job_id", "experiment_jobs", ["job_id"], unique=False)
    op.create_index(
        "ix_jobs_judges", "jobs", ["id"], unique=False, postgresql_where=sa.text("judged_job_id IS NOT NULL")
    )
    op.create_index("ix_jobs_running", "jobs", ["id"], unique=False, postgresql_where=sa.text("state = 'running'"))
    op.create_table(
        "problems",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="given by the database"),
        sa.Column("problem_set_id", sa.BigInteger(), nullable=False, comment="the set it is of"),
        sa.Column("position", sa.Integer(), nullable=False, comment="0-based place in the set"),
        sa.Column("external_id", sa.String(), nullable=False, comment="the id in the submitted file"),
        sa.Column("prompt", sa.String(), nullable=False, comment="the question's text, before any template"),
        sa.Column("subject", sa.String(), nullable=True, comment="as in the file, e.g. algebra"),
        sa.Column("level", sa.String(), nullable=True, comment="as in the file, e.g. Level 5"),
        sa.Column(
            "shown",
            JSONB(),
            nullable=False,
            comment="what a prompt template may show beside the prompt: choices, earlier turns, kept columns",
        ),
        sa.ForeignKeyConstraint(
            ["problem_set_id"], ["problem_sets.id"], name=op.f("fk_problems_problem_set_id_problem_sets")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_problems")),
        sa.UniqueConstraint("problem_set_id", "external_id", name=op.f("uq_problems_problem_set_id_external_id")),
        sa.UniqueConstraint("problem_set_id", "position", name=op.f("uq_problems_problem_set_id_position")),
        comment="One question, with what generating workers read: nothing but what a prompt template shows.",
    )
    op.create_table(
        "workers",
        sa.Column(
            "id",
            sa.BigInteger(),
            sa.Identity(),
            nullable=False,
            comment="of one life; its last six digits are drawn",
        ),
        sa.Column(
            "kind",
            sa.Enum(
                "small",
                "large",
                "judge",
                "grade",
                "upkeep",
                name="kind",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            nullable=False,
            comment="small, large, judge, grade or upkeep",
        ),
        sa.Column("model", sa.String(), nullable=True, comment="the name jobs use"),
        sa.Column("engine_id", sa.BigInteger(), nullable=True, comment="null: it has none"),
        sa.Column("host", sa.String(), nullable=False, comment="where it runs"),
        sa.Column("pid", sa.Integer(), nullable=False, comment="its process there"),
        sa.Column(
            "queue", sa.String(), nullable=False, comment="its own queue, for samples whose context it has cached"
        ),
        sa.Column(
            "max_in_flight",
            sa.Integer(),
            nullable=False,
            comment="most samples that it works on at the same time, as it started",
        ),
        sa.Column(
            "num_slots",
            sa.Integer(),
            nullable=True,
            comment="samples that its cache has room for now; null: max_in_flight. Upkeep admits by this",
        ),
        sa.Column(
            "started_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="when it registered",
        ),
        sa.Column(
            "renewed_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="when it last renewed its lease",
        ),
        sa.Column(
            "expires_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="the lease's end, by this database's clock",
        ),
        sa.Column(
            "ended_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="null: it lives, or nobody has noticed that it does not",
        ),
        sa.Column(
            "end_reason",
            sa.Enum(
                "stopped",
                "lapsed",
                "engine_died",
                "engine_stalled",
                "writer_failed",
                name="end_reason_choice",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            nullable=True,
            comment="pipeline.workforce.WorkerEnd",
        ),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True, comment="when all it held was given back"),
        sa.Column(
            "num_in_flight",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="samples it writes, or holds until it can write or commit them, at renewed_at",
        ),
        sa.Column(
            "refused_jobs",
            JSONB(),
            server_default="{}",
            nullable=False,
            comment="jobs that it cannot write, by id, each with the reason",
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
        sa.Column(
            "num_drafts",
            sa.BigInteger(),
            server_default="0",
            nullable=False,
            comment="steps of a sample for which its accelerator drafted tokens",
        ),
        sa.Column("draft_tokens", sa.BigInteger(), server_default="0", nullable=False, comment="in these drafts"),
        sa.Column(
            "accepted_tokens",
            sa.BigInteger(),
            server_default="0",
            nullable=False,
            comment="of these, accepted: among tokens_generated",
        ),
        sa.Column(
            "tokens_withdrawn",
            sa.BigInteger(),
            server_default="0",
            nullable=False,
            comment="of the committed ones, in segments that a retry with a larger budget took away",
        ),
        sa.CheckConstraint("(ended_at IS NULL) = (end_reason IS NULL)", name=op.f("ck_workers_end_reason")),
        sa.ForeignKeyConstraint(["engine_id"], ["engines.id"], name=op.f("fk_workers_engine_id_engines")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
        comment="One life of one worker process: its lease, and its engine's token counters.",
    )
    op.create_index(
        "ix_workers_live", "workers", ["kind", "model"], unique=False, postgresql_where=sa.text("ended_at IS NULL")
    )
    op.create_index(
        "ix_workers_unsettled", "workers", ["id"], unique=False, postgresql_where=sa.text("settled_at IS NULL")
    )
    op.create_table(
        "job_totals",
        sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="the job"),
        sa.Column("counted_at", sa.DateTime(timezone=True), nullable=False, comment="when"),
        sa.Column(
            "stale_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when a grade was last changed after the count; null: the counts hold",
        ),
        sa.Column("samples_total", sa.BigInteger(), nullable=False, comment="all samples of the job"),
        sa.Column("pending", sa.BigInteger(), nullable=False, comment="by state"),
        sa.Column("ready", sa.BigInteger(), nullable=False, comment="by state"),
        sa.Column("drafting", sa.BigInteger(), nullable=False, comment="by state"),
        sa.Column("awaiting_large", sa.BigInteger(), nullable=False, comment="by state"),
        sa.Column("assisting", sa.BigInteger(), nullable=False, comment="by state"),
        sa.Column("awaiting_judge", sa.BigInteger(), nullable=False, comment="by state"),
        sa.Column("judging", sa.BigInteger(), nullable=False, comment="by state"),
        sa.Column("finished", sa.BigInteger(), nullable=False, comment="by state"),
        sa.Column("graded", sa.BigInteger(), nullable=False, comment="by state"),
        sa.Column("failed", sa.BigInteger(), nullable=False, comment="by state"),
        sa.Column("cancelled", sa.BigInteger(), nullable=False, comment="by state"),
        sa.Column(
            "num_length", sa.BigInteger(), nullable=False, comment="complete samples ended by the job's max_tokens"
        ),
        sa.Column(
            "num_context", sa.BigInteger(), nullable=False, comment="complete samples ended by the model's context"
        ),
        sa.Column(
            "num_repetition", sa.BigInteger(), nullable=False, comment="complete samples ended by the loop guard"
        ),
        sa.Column("num_scored", sa.BigInteger(), nullable=False, comment="graded samples that have a score"),
        sa.Column("num_right", sa.BigInteger(), nullable=False, comment="of these, with a score of at least 0.5"),
        sa.Column("problems_scored", sa.BigInteger(), nullable=False, comment="problems with a scored sample"),
        sa.Column("takeovers", sa.BigInteger(), nullable=False, comment="times the large model was called in"),
        sa.Column("tokens_small", sa.BigInteger(), nullable=False, comment="kept, written by the small model"),
        sa.Column("tokens_large", sa.BigInteger(), nullable=False, comment="kept, written by the large model"),
        sa.Column("tokens_inserted", sa.BigInteger(), nullable=False, comment="kept, put in by the policy"),
        sa.Column("discarded_small", sa.BigInteger(), nullable=False, comment="written by the small model, not kept"),
        sa.Column("discarded_large", sa.BigInteger(), nullable=False, comment="written by the large model, not kept"),
        sa.Column("aside_small", sa.BigInteger(), nullable=False, comment="written in asides by the small model"),
        sa.Column("aside_large", sa.BigInteger(), nullable=False, comment="written in asides by the large model"),
        sa.Column("aside_judge", sa.BigInteger(), nullable=False, comment="written in asides by the judge"),
        sa.Column(
            "taken_small",
            sa.BigInteger(),
            nullable=False,
            comment="of aside_small, put into the text: in tokens_small too",
        ),
        sa.Column(
            "taken_large",
            sa.BigInteger(),
            nullable=False,
            comment="of aside_large, put into the text: in tokens_large too",
        ),
        sa.Column(
            "prompt_tokens_small",
            sa.BigInteger(),
            nullable=False,
            comment="of the small model's prompts, computed: not found in the prefix cache",
        ),
        sa.Column(
            "prompt_tokens_large",
            sa.BigInteger(),
            nullable=False,
            comment="of the large model's prompts, computed: not found in the prefix cache",
        ),
        sa.Column(
            "prompt_tokens_judge",
            sa.BigInteger(),
            nullable=False,
            comment="of the judge's prompts, computed: not found in the prefix cache",
        ),
        sa.Column("accuracy", sa.Double(), nullable=True, comment="mean score of the scored samples"),
        sa.Column("score_variance", sa.Double(), nullable=True, comment="variance of their scores"),
        sa.Column(
            "score_squares",
            sa.Double(),
            nullable=True,
            comment="sum over problems of the squared sum of deviations from the accuracy",
        ),
        sa.Column("mean_output_tokens", sa.Double(), nullable=True, comment="mean kept tokens of the complete samples"),
        sa.Column("p50_output_tokens", sa.Double(), nullable=True, comment="median of the same"),
        sa.Column("p90_output_tokens", sa.Double(), nullable=True, comment="90th percentile of the same"),
        sa.Column("takeovers_per_sample", sa.Double(), nullable=True, comment="mean over the complete samples"),
        sa.Column(
            "p50_wall_seconds",
            sa.Double(),
            nullable=True,
            comment="from admission to complete text, median of the complete samples",
        ),
        sa.Column("p95_wall_seconds", sa.Double(), nullable=True, comment="95th percentile of the same"),
        sa.Column(
            "engine_seconds_small",
            sa.Double(),
            nullable=True,
            comment="time in which a small worker had a request of this job, summed over the workers",
        ),
        sa.Column(
            "engine_seconds_large",
            sa.Double(),
            nullable=True,
            comment="time in which a large worker had a request of this job, summed over the workers",
        ),
        sa.Column(
            "engine_seconds_judge",
            sa.Double(),
            nullable=True,
            comment="time in which a judge worker had a request of this job, summed over the workers",
        ),
        sa.Column(
            "request_seconds_small",
            sa.Double(),
            nullable=True,
            comment="sum of the durations of the small model's requests",
        ),
        sa.Column(
            "request_seconds_large",
            sa.Double(),
            nullable=True,
            comment="sum of the durations of the large model's requests",
        ),
        sa.Column(
            "request_seconds_judge",
            sa.Double(),
            nullable=True,
            comment="sum of the durations of the judge's requests",
        ),
        sa.Column(
            "mean_wait_seconds",
            sa.Double(),
            nullable=True,
            comment="from when it could be claimed to the claim, all segments of a sample together, mean over samples",
        ),
        sa.Column("p95_wait_seconds", sa.Double(), nullable=True, comment="95th percentile of the same"),
        sa.Column(
            "mean_queue_seconds",
            sa.Double(),
            nullable=True,
            comment="inside the engines before their first work, all requests of a sample together, mean over samples",
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_totals_job_id_jobs")),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_job_totals")),
        comment="The totals of a job that has ended; count_samples and count_cost count the same of one that runs.",
    )
    op.create_table(
        "length_counts",
        sa.Column("job_id", sa.BigInteger(), nullable=False, comment="the job"),
        sa.Column("author", sa.String(), nullable=False, comment="whose tokens: all, small, large or inserted"),
        sa.Column("finish_reason", sa.String(), nullable=False, comment="why their texts ended"),
        sa.Column("verdict", sa.String(), nullable=False, comment="right, wrong or unscored"),
        sa.Column("tokens", sa.Integer(), nullable=False, comment="how long they are"),
        sa.Column("n", sa.BigInteger(), nullable=False, comment="samples added, negative for samples taken out"),
        sa.Column("score", sa.Numeric(), nullable=False, comment="sum of their scores, negative for samples taken out"),
        sa.Column(
            "is_base",
            sa.Boolean(),
            server_default="false",
            nullable=False,
            comment="the one row of its key that others are added to",
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_length_counts_job_id_jobs")),
        comment="How many of a job's samples in valid rollups are so long; rows of one key add up.",
    )
    op.create_index(
        "ix_length_counts_added", "length_counts", ["job_id"], unique=False, postgresql_where=sa.text("NOT is_base")
    )
    op.create_index(
        "ix_length_counts_base",
        "length_counts",
        ["job_id", "author", "finish_reason", "verdict", "tokens"],
        unique=True,
        postgresql_where=sa.text("is_base"),
    )
    op.create_index("ix_length_counts_job_id", "length_counts", ["job_id", "author"], unique=False)
    op.create_table(
        "hidden_columns",
        sa.Column("problem_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="the problem"),
        sa.Column("columns", JSONB(), nullable=False, comment="value by column, as in the file"),
        sa.ForeignKeyConstraint(["problem_id"], ["problems.id"], name=op.f("fk_hidden_columns_problem_id_problems")),
        sa.PrimaryKeyConstraint("problem_id", name=op.f("pk_hidden_columns")),
        comment="All other columns of a problem's row, as rationales and tests; generating workers cannot read them.",
    )
    op.create_table(
        "reference_answers",
        sa.Column("problem_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="the problem"),
        sa.Column(
            "answer",
            sa.String(),
            nullable=False,
            comment="as in the file; of a multiple choice, the letter of the right one",
        ),
        sa.Column(
            "also_accepted",
            sa.ARRAY(sa.String()),
            server_default="{}",
            nullable=False,
            comment="further answers, each as right as that one",
        ),
        sa.ForeignKeyConstraint(["problem_id"], ["problems.id"], name=op.f("fk_reference_answers_problem_id_problems")),
        sa.PrimaryKeyConstraint("problem_id", name=op.f("pk_reference_answers")),
        comment="The right answer of a problem; read by graders only.",
    )
    op.create_table(
        "rollups",
        sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="the job"),
        sa.Column("first_problem", sa.BigInteger(), autoincrement=False, nullable=False, comment="least problem id"),
        sa.Column("last_problem", sa.BigInteger(), nullable=False, comment="greatest problem id"),
        sa.Column(
            "refreshed_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="since when the sums hold; null: they do not, its samples are to be looked at",
        ),
        sa.Column(
            "changed_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when a sample of it last stopped being idle, or changed while it was",
        ),
        sa.Column("samples", JSONB(), nullable=True, comment="type sample_sums"),
        sa.Column("problems", JSONB(), nullable=True, comment="type problem_sums"),
        sa.Column("cost", JSONB(), nullable=True, comment="type cost_sums, but for waits"),
        sa.Column(
            "walls",
            ARRAY(sa.Double()),
            nullable=True,
            comment="seconds from admission to complete text, of each complete sample",
        ),
        sa.Column(
            "waits",
            ARRAY(sa.Double()),
            nullable=True,
            comment="seconds from when it could be claimed to the claim, all claims of a sample together",
        ),
        sa.Column("busy", JSONB(), nullable=True, comment="type busy_part, by worker and author"),
        sa.Column("delegation", JSONB(), nullable=True, comment="type delegation_part, by author and trigger"),
        sa.Column("flow", JSONB(), nullable=True, comment="type flow_part, by trigger and what followed"),
        sa.Column("tenths", JSONB(), nullable=True, comment="type tenth_part, by tenth"),
        sa.Column("passes", JSONB(), nullable=True, comment="type pass_part, by scored and right samples of a problem"),
        sa.Column("votes", JSONB(), nullable=True, comment="type vote_part, by number of votes"),
        sa.Column("steps", JSONB(), nullable=True, comment="type step_part, by class, author and length"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_rollups_job_id_jobs")),
        sa.PrimaryKeyConstraint("job_id", "first_problem", name=op.f("pk_rollups")),
        comment="What the samples of a part of a job add up to, kept while all are idle: pending, or in a final state.",
    )
    op.create_index(
        "ix_rollups_invalid", "rollups", ["job_id"], unique=False, postgresql_where=sa.text("refreshed_at IS NULL")
    )
    op.create_table(
        "samples",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="given by the database"),
        sa.Column("job_id", sa.BigInteger(), nullable=False, comment="the job"),
        sa.Column("problem_id", sa.BigInteger(), nullable=False, comment="the problem"),
        sa.Column("sample_index", sa.Integer(), nullable=False, comment="0-based among the samples of its problem"),
        sa.Column(
            "state",
            sa.Enum(
                "pending",
                "ready",
                "drafting",
                "awaiting_large",
                "assisting",
                "awaiting_judge",
                "judging",
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
            comment="pipeline.samples.SampleState",
        ),
        sa.Column(
            "phase",
            sa.String(24),
            sa.Computed(
                "CASE state WHEN 'ready'::text THEN 'admitted'::character varying "
                "WHEN 'awaiting_large'::text THEN 'admitted'::character varying "
                "WHEN 'awaiting_judge'::text THEN 'admitted'::character varying "
                "WHEN 'drafting'::text THEN 'admitted'::character varying "
                "WHEN 'assisting'::text THEN 'admitted'::character varying "
                "WHEN 'judging'::text THEN 'admitted'::character varying ELSE state END",
                persisted=True,
            ),
            nullable=False,
            comment="admitted while it waits for a model or a worker has it, else its state; for indexes",
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
        sa.Column(
            "large_worker_id", sa.BigInteger(), nullable=True, comment="the large worker whose cache holds the context"
        ),
        sa.Column(
            "judge_worker_id", sa.BigInteger(), nullable=True, comment="the judge worker whose cache holds the context"
        ),
        sa.Column(
            "runnable_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="since when it waits, or waited before its claim, for a worker or a grader",
        ),
        sa.Column(
            "published_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when a message for its present state was last due",
        ),
        sa.Column(
            "num_rescues",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="times its worker died with it since its last commit or part",
        ),
        sa.Column(
            "trial_epoch",
            sa.Integer(),
            nullable=True,
            comment="of the claim under which it last had an engine to itself, as a suspect",
        ),
        sa.Column(
            "part_tokens",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="of its open segment, stored in segment_parts while its request ran",
        ),
        sa.Column(
            "num_attempts",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="times an engine refused it for the moment since its last commit",
        ),
        sa.Column(
            "not_before",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="to be claimed no earlier: the delay after a failure",
        ),
        sa.Column("max_tokens", sa.Integer(), nullable=True, comment="a larger budget than its job's; null: the job's"),
        sa.Column(
            "next_role",
            sa.Enum("small", "large", "judge", name="next_role", native_enum=False, create_constraint=True, length=24),
            nullable=True,
            comment="who writes next; null: nobody has written, the job's first_role opens",
        ),
        sa.Column("policy_state", JSONB(), nullable=True, comment="of the policy, after the last segment or aside"),
        sa.Column(
            "next_request",
            JSONB(),
            nullable=True,
            comment="what the policy asks next (pipeline.policies.requests); null: nothing, or nobody has written",
        ),
        sa.Column("num_segments", sa.Integer(), server_default="0", nullable=False, comment="pieces of its text"),
        sa.Column(
            "num_takeovers",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="times the large model was called in: its segments with takes_over",
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
            "num_asides", sa.Integer(), server_default="0", nullable=False, comment="pieces written on side branches"
        ),
        sa.Column(
            "aside_small",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="written in asides by the small model",
        ),
        sa.Column(
            "aside_large",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="written in asides by the large model",
        ),
        sa.Column(
            "aside_judge", sa.Integer(), server_default="0", nullable=False, comment="written in asides by the judge"
        ),
        sa.Column(
            "taken_small",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="of aside_small, put into the text: in tokens_small too",
        ),
        sa.Column(
            "taken_large",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="of aside_large, put into the text: in tokens_large too",
        ),
        sa.Column(
            "finish_reason",
            sa.Enum(
                "eos",
                "length",
                "context",
                "repetition",
                "stop",
                name="finish_reason",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            nullable=True,
            comment="why its text ended",
        ),
        sa.Column("predicted_answer", sa.String(), nullable=True, comment="by the latest grading"),
        sa.Column(
            "score", sa.Double(), nullable=True, comment="by the latest grading; null: unscored, which is not wrong"
        ),
        sa.Column("error_class", sa.String(), nullable=True, comment="pipeline.samples.ErrorClass"),
        sa.Column("error", sa.String(), nullable=True, comment="why it was set aside"),
        sa.Column("admitted_at", sa.DateTime(timezone=True), nullable=True, comment="when upkeep let it in"),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True, comment="when its text was complete"),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True, comment="when it reached a final state"),
        sa.CheckConstraint("(state = 'failed') = (error IS NOT NULL)", name=op.f("ck_samples_error")),
        sa.CheckConstraint(
            "(state IN ('drafting', 'assisting', 'judging')) = (holder_id IS NOT NULL)", name=op.f("ck_samples_holder")
        ),
        sa.CheckConstraint(
            "(state NOT IN ('graded', 'failed', 'cancelled')) = (ended_at IS NULL)", name=op.f("ck_samples_ended_at")
        ),
        sa.CheckConstraint(
            "error_class IN ('bad_input', 'budget', 'engine_refused', 'engine_died', 'timed_out', 'internal')",
            name=op.f("ck_samples_error_class"),
        ),
        sa.CheckConstraint(
            "state NOT IN ('finished', 'graded') OR finish_reason IS NOT NULL",
            name=op.f("ck_samples_finish_reason_set"),
        ),
        sa.ForeignKeyConstraint(["holder_id"], ["workers.id"], name=op.f("fk_samples_holder_id_workers")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_samples_job_id_jobs")),
        sa.ForeignKeyConstraint(["judge_worker_id"], ["workers.id"], name=op.f("fk_samples_judge_worker_id_workers")),
        sa.ForeignKeyConstraint(["large_worker_id"], ["workers.id"], name=op.f("fk_samples_large_worker_id_workers")),
        sa.ForeignKeyConstraint(["problem_id"], ["problems.id"], name=op.f("fk_samples_problem_id_problems")),
        sa.ForeignKeyConstraint(["small_worker_id"], ["workers.id"], name=op.f("fk_samples_small_worker_id_workers")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_samples")),
        sa.UniqueConstraint(
            "job_id", "problem_id", "sample_index", name=op.f("uq_samples_job_id_problem_id_sample_index")
        ),
        postgresql_with={"fillfactor": 80},
        comment="One solution drawn for one problem of one job. Its epoch fences every write.",
    )
    op.create_index(
        "ix_samples_failed", "samples", ["job_id"], unique=False, postgresql_where=sa.text("phase = 'failed'")
    )
    op.create_index(
        "ix_samples_finished", "samples", ["finished_at"], unique=False, postgresql_where=sa.text("phase = 'finished'")
    )
    op.create_index(
        "ix_samples_in_work",
        "samples",
        ["job_id", "phase"],
        unique=False,
        postgresql_where=sa.text("phase IN ('admitted', 'finished')"),
    )
    op.create_index(
        "ix_samples_open",
        "samples",
        ["job_id"],
        unique=False,
        postgresql_where=sa.text("phase IN ('pending', 'admitted', 'finished')"),
    )
    op.create_index(
        "ix_samples_pending", "samples", ["job_id", "id"], unique=False, postgresql_where=sa.text("phase = 'pending'")
    )
    op.create_index(
        "ix_samples_suspect",
        "samples",
        ["id"],
        unique=False,
        postgresql_where=sa.text("num_rescues >= 2 AND phase = 'admitted'"),
    )
    op.create_table(
        "asides",
        sa.Column("sample_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="the sample"),
        sa.Column("aside_index", sa.Integer(), autoincrement=False, nullable=False, comment="from 0 in its sample"),
        sa.Column(
            "after_segment", sa.Integer(), nullable=False, comment="segments that were there when it was asked for"
        ),
        sa.Column(
            "author",
            sa.Enum("small", "large", "judge", name="author", native_enum=False, create_constraint=True, length=24),
            nullable=False,
            comment="small, large or judge",
        ),
        sa.Column("purpose", sa.String(), nullable=False, comment="what the policy asked it for"),
        sa.Column("question", sa.String(), nullable=False, comment="fixed text after the kept text, '' for none"),
        sa.Column("turn", sa.Boolean(), nullable=False, comment="the question was a new user message"),
        sa.Column("opening", sa.String(), nullable=False, comment="what the reply was begun with, '' for nothing"),
        sa.Column(
            "after_asides",
            JSONB(),
            nullable=False,
            comment="asides whose heads stood before the question: [index, number of tokens] of each",
        ),
        sa.Column("token_ids", ARRAY(sa.INTEGER()), nullable=False, comment="as written, without EOS"),
        sa.Column("text", sa.String(), nullable=False, comment="of token_ids"),
        sa.Column("token_lengths", ARRAY(sa.INTEGER()), nullable=False, comment="characters per token"),
        sa.Column(
            "finish",
            sa.Enum("eos", "length", "watch", name="finish", native_enum=False, create_constraint=True, length=24),
            nullable=False,
            comment="why it ended",
        ),
        sa.Column(
            "top",
            ARRAY(sa.Double()),
            nullable=False,
            comment="log-probabilities of the most likely first tokens, greatest first; empty where nothing was read",
        ),
        sa.Column(
            "labels",
            JSONB(),
            nullable=False,
            comment="log-probability of each label as the first token; null: not among the most likely",
        ),
        sa.Column("value", sa.Double(), nullable=True, comment="the number that decided about it, where one did"),
        sa.Column("threshold", sa.Double(), nullable=True, comment="what value was compared with"),
        sa.Column("outcome", sa.String(), nullable=True, comment="what was decided by value"),
        sa.Column("tokens_generated", sa.Integer(), nullable=False, comment="as its engine counts: the ids and EOS"),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False, comment="kept text, heads of asides and question"),
        sa.Column("cached_tokens", sa.Integer(), nullable=False, comment="of the prompt's, not computed again"),
        sa.Column("seed", sa.BigInteger(), nullable=True, comment="null: greedy, or the job draws without seeds"),
        sa.Column("epoch", sa.Integer(), nullable=False, comment="of the claim under which it was written"),
        sa.Column("worker_id", sa.BigInteger(), nullable=False, comment="that wrote it"),
        sa.Column("engine_id", sa.BigInteger(), nullable=False, comment="that worker's"),
        sa.Column("content_sha256", sa.String(), nullable=False, comment="of what was written, for replay"),
        sa.Column("wait_seconds", sa.Double(), nullable=True, comment="from when it could be claimed to the claim"),
        sa.Column("queue_seconds", sa.Double(), nullable=True, comment="inside the engine before its first work"),
        sa.Column("first_token_seconds", sa.Double(), nullable=True, comment="from handing in to the first token"),
        sa.Column("write_seconds", sa.Double(), nullable=True, comment="from handing in to the end"),
        sa.Column(
            "held_seconds",
            sa.Double(),
            nullable=True,
            comment="from its end to the commit, while more was written under the same claim",
        ),
        sa.Column(
            "committed_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="when it was stored",
        ),
        sa.ForeignKeyConstraint(["engine_id"], ["engines.id"], name=op.f("fk_asides_engine_id_engines")),
        sa.ForeignKeyConstraint(["sample_id"], ["samples.id"], name=op.f("fk_asides_sample_id_samples")),
        sa.ForeignKeyConstraint(["worker_id"], ["workers.id"], name=op.f("fk_asides_worker_id_workers")),
        sa.PrimaryKeyConstraint("sample_id", "aside_index", name=op.f("pk_asides")),
        comment="A short piece on a side branch of a sample, which a policy asked for. It is never kept by itself.",
    )
    op.create_table(
        "grades",
        sa.Column("sample_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="the sample"),
        sa.Column("grader", sa.String(), nullable=False, comment="its name"),
        sa.Column("grader_version", sa.String(), nullable=False, comment="of its rules"),
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
            comment="pipeline.samples.GradeStatus",
        ),
        sa.Column("score", sa.Double(), nullable=True, comment="0 to 1; null: unscored, which is not wrong"),
        sa.Column("predicted_answer", sa.String(), nullable=True, comment="what it took for the answer"),
        sa.Column("detail", sa.String(), nullable=True, comment="why it stayed unscored"),
        sa.Column(
            "started_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="when it was last begun",
        ),
        sa.Column("num_tries", sa.Integer(), server_default="1", nullable=False, comment="times it was begun"),
        sa.Column("graded_at", sa.DateTime(timezone=True), nullable=True, comment="when it ended"),
        sa.ForeignKeyConstraint(["sample_id"], ["samples.id"], name=op.f("fk_grades_sample_id_samples")),
        sa.PrimaryKeyConstraint("sample_id", "grader", "grader_version", name=op.f("pk_grades")),
        comment="What one grader, in one version, said about one sample.",
    )
    op.create_index(
        "ix_grades_failed",
        "grades",
        ["sample_id"],
        unique=False,
        postgresql_where=sa.text("status IN ('timeout', 'error')"),
    )
    op.create_index(
        "ix_grades_running", "grades", ["started_at"], unique=False, postgresql_where=sa.text("status = 'running'")
    )
    op.create_table(
        "judged_samples",
        sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="the judge's job"),
        sa.Column("sample_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="the judged sample"),
        sa.Column(
            "epoch",
            sa.Integer(),
            nullable=False,
            comment="of the judged text: one that is drawn again has another",
        ),
        sa.Column(
            "problem_id",
            sa.BigInteger(),
            nullable=True,
            comment="what the judge is asked of it, shared by equal answers; null: the sample has no answer to judge",
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_judged_samples_job_id_jobs")),
        sa.ForeignKeyConstraint(["problem_id"], ["problems.id"], name=op.f("fk_judged_samples_problem_id_problems")),
        sa.ForeignKeyConstraint(["sample_id"], ["samples.id"], name=op.f("fk_judged_samples_sample_id_samples")),
        sa.PrimaryKeyConstraint("job_id", "sample_id", name=op.f("pk_judged_samples")),
        comment="A complete sample of another job that a judge was submitted for, and where it is judged.",
    )
    op.create_index("ix_judged_samples_sample_id", "judged_samples", ["sample_id"], unique=False)
    op.create_table(
        "segments",
        sa.Column("sample_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="the sample"),
        sa.Column("segment_index", sa.Integer(), autoincrement=False, nullable=False, comment="from 0 in its sample"),
        sa.Column(
            "author",
            sa.Enum(
                "small",
                "large",
                "inserted",
                "judge",
                name="author",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            nullable=False,
            comment="small, large or inserted",
        ),
        sa.Column("trigger", sa.String(), nullable=False, comment="why this author wrote here"),
        sa.Column("cue", sa.String(), nullable=False, comment="the words that pulled the trigger, '' where none did"),
        sa.Column(
            "takes_over",
            sa.Boolean(),
            server_default="false",
            nullable=False,
            comment="the large model was called in here in the place of the small one: this alone is a takeover",
        ),
        sa.Column(
            "taken_from",
            sa.Integer(),
            nullable=True,
            comment="the aside whose head this is: nothing was generated for it; null: written for itself",
        ),
        sa.Column("token_ids", ARRAY(sa.INTEGER()), nullable=False, comment="kept"),
        sa.Column("text", sa.String(), nullable=False, comment="kept"),
        sa.Column(
            "discarded_ids", ARRAY(sa.INTEGER()), nullable=False, comment="written after the kept ones, not kept"
        ),
        sa.Column("discarded_text", sa.String(), nullable=False, comment="of discarded_ids"),
        sa.Column(
            "token_lengths", ARRAY(sa.INTEGER()), nullable=False, comment="characters per token, kept then discarded"
        ),
        sa.Column(
            "finish",
            sa.Enum("eos", "length", "watch", name="finish", native_enum=False, create_constraint=True, length=24),
            nullable=True,
            comment="null for inserted and taken ones",
        ),
        sa.Column("value", sa.Double(), nullable=True, comment="the number that decided about it, where one did"),
        sa.Column("threshold", sa.Double(), nullable=True, comment="what value was compared with"),
        sa.Column("outcome", sa.String(), nullable=True, comment="what was decided by value"),
        sa.Column(
            "tokens_generated",
            sa.Integer(),
            nullable=False,
            comment="as its engine counts: kept, discarded and EOS, from the last of resumed_at on",
        ),
        sa.Column(
            "prompt_tokens",
            sa.Integer(),
            nullable=False,
            comment="given to the engine: the prompt and the output so far",
        ),
        sa.Column("cached_tokens", sa.Integer(), nullable=False, comment="of the prompt's, not computed again"),
        sa.Column(
            "seed",
            sa.BigInteger(),
            nullable=True,
            comment="null: inserted, taken, greedy, or the job draws without seeds; from the last of resumed_at on",
        ),
        sa.Column(
            "resumed_at",
            ARRAY(sa.INTEGER()),
            nullable=True,
            comment="tokens at which a later claim went on behind a stored part, with other noise; null: in one go",
        ),
        sa.Column("epoch", sa.Integer(), nullable=False, comment="of the claim under which it was written"),
        sa.Column("worker_id", sa.BigInteger(), nullable=False, comment="that stored it"),
        sa.Column("engine_id", sa.BigInteger(), nullable=False, comment="its author's"),
        sa.Column(
            "content_sha256",
            sa.String(),
            nullable=True,
            comment="of what was written, for replay; null: stored before there was one",
        ),
        sa.Column("wait_seconds", sa.Double(), nullable=True, comment="from when it could be claimed to the claim"),
        sa.Column("queue_seconds", sa.Double(), nullable=True, comment="inside the engine before its first work"),
        sa.Column("first_token_seconds", sa.Double(), nullable=True, comment="from handing in to the first token"),
        sa.Column("write_seconds", sa.Double(), nullable=True, comment="from handing in to the end"),
        sa.Column(
            "held_seconds",
            sa.Double(),
            nullable=True,
            comment="from its end to the commit, while more was written under the same claim",
        ),
        sa.Column(
            "committed_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="when it was stored",
        ),
        sa.ForeignKeyConstraint(["engine_id"], ["engines.id"], name=op.f("fk_segments_engine_id_engines")),
        sa.ForeignKeyConstraint(["sample_id"], ["samples.id"], name=op.f("fk_segments_sample_id_samples")),
        sa.ForeignKeyConstraint(["worker_id"], ["workers.id"], name=op.f("fk_segments_worker_id_workers")),
        sa.CheckConstraint("author <> 'judge'", name=op.f("ck_segments_no_judge")),
        sa.PrimaryKeyConstraint("sample_id", "segment_index", name=op.f("pk_segments")),
        comment="One uninterrupted piece of writing. Kept ids of segments 0…n-1, joined, are the sample's output.",
    )
    op.create_table(
        "segment_parts",
        sa.Column("sample_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="the sample"),
        sa.Column(
            "segment_index",
            sa.Integer(),
            autoincrement=False,
            nullable=False,
            comment="of the segment; a part counts while the sample has so many",
        ),
        sa.Column("start_token", sa.Integer(), autoincrement=False, nullable=False, comment="in the segment"),
        sa.Column(
            "token_ids",
            ARRAY(sa.INTEGER()),
            nullable=False,
            comment="as the engine wrote them, in its model's vocabulary",
        ),
        sa.Column("epoch", sa.Integer(), nullable=False, comment="of the claim under which it was written"),
        sa.Column("worker_id", sa.BigInteger(), nullable=False, comment="that wrote it"),
        sa.Column(
            "stored_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="when it was stored",
        ),
        sa.ForeignKeyConstraint(["sample_id"], ["samples.id"], name=op.f("fk_segment_parts_sample_id_samples")),
        sa.ForeignKeyConstraint(["worker_id"], ["workers.id"], name=op.f("fk_segment_parts_worker_id_workers")),
        sa.PrimaryKeyConstraint("sample_id", "segment_index", "start_token", name=op.f("pk_segment_parts")),
        comment="What is written so far of a segment whose request still runs; deleted with the commit of that one.",
    )
    op.create_table(
        "signals",
        sa.Column("sample_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="the sample"),
        sa.Column("kind", sa.String(), nullable=False, comment="segment or aside"),
        sa.Column("index", sa.Integer(), autoincrement=False, nullable=False, comment="segment_index or aside_index"),
        sa.Column("name", sa.String(), nullable=False, comment="pipeline.signals.Signal"),
        sa.Column(
            "places", ARRAY(sa.INTEGER()), nullable=True, comment="tokens that have a value, from 0; null: each has one"
        ),
        sa.Column("values", ARRAY(sa.Double()), nullable=False, comment="as the policy saw them; null: out of sight"),
        sa.CheckConstraint("kind IN ('segment', 'aside')", name=op.f("ck_signals_kind")),
        sa.ForeignKeyConstraint(["sample_id"], ["samples.id"], name=op.f("fk_signals_sample_id_samples")),
        sa.PrimaryKeyConstraint("sample_id", "kind", "index", "name", name=op.f("pk_signals")),
        comment="What a policy had read of the tokens of a segment (the discarded ones too) or an aside.",
    )
    op.create_table(
        "steps",
        sa.Column("sample_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="the sample"),
        sa.Column("step_index", sa.Integer(), autoincrement=False, nullable=False, comment="from 0 in its sample"),
        sa.Column("text", sa.String(), nullable=False, comment="with the break that ends it"),
        sa.Column(
            "author",
            sa.Enum(
                "small",
                "large",
                "inserted",
                "judge",
                name="author",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            nullable=False,
            comment="who wrote most of its tokens",
        ),
        sa.Column("tokens_small", sa.Integer(), nullable=False, comment="by the small model"),
        sa.Column("tokens_large", sa.Integer(), nullable=False, comment="by the large model"),
        sa.Column("tokens_inserted", sa.Integer(), nullable=False, comment="put in by the policy"),
        sa.Column("start_token", sa.Integer(), nullable=False, comment="place of its first token in the output"),
        sa.Column("sentence_class", sa.String(), nullable=False, comment="statement, reflection or affirmation"),
        sa.Column("trigger", sa.String(), nullable=True, comment="of the takeover that begins in it"),
        sa.ForeignKeyConstraint(["sample_id"], ["samples.id"], name=op.f("fk_steps_sample_id_samples")),
        sa.PrimaryKeyConstraint("sample_id", "step_index", name=op.f("pk_steps")),
        comment="One reasoning step: the text between two breaks, whoever wrote it.",
    )
    op.create_table(
        "upkeep_leader",
        sa.Column("is_single", sa.Boolean(), server_default="true", nullable=False, comment="true: there is one row"),
        sa.Column("worker_id", sa.BigInteger(), nullable=True, comment="the leader; null: nobody leads"),
        sa.Column(
            "backend_pid", sa.Integer(), nullable=True, comment="of its session, which is open as long as it leads"
        ),
        sa.Column("backend_start", sa.DateTime(timezone=True), nullable=True, comment="when that session began"),
        sa.Column("since", sa.DateTime(timezone=True), nullable=True, comment="when it began to lead"),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=True, comment="when it last said so"),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True, comment="from then on another may lead"),
        sa.Column(
            "can_publish",
            sa.Boolean(),
            server_default="true",
            nullable=False,
            comment="whether Redis took its last messages; one that cannot gives way to one that can",
        ),
        sa.CheckConstraint("is_single", name=op.f("ck_upkeep_leader_is_single")),
        sa.ForeignKeyConstraint(["worker_id"], ["workers.id"], name=op.f("fk_upkeep_leader_worker_id_workers")),
        sa.PrimaryKeyConstraint("is_single", name=op.f("pk_upkeep_leader")),
        comment="The upkeep worker that does the duties now (pipeline.db.leadership); one row.",
    )
    op.execute("INSERT INTO upkeep_leader DEFAULT VALUES")
    op.create_table(
        "api_keys",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False, comment="given by the database"),
        sa.Column(
            "name", sa.String(), nullable=False, comment="whose it is, for people; once among the keys that are valid"
        ),
        sa.Column("sha256", sa.String(), nullable=False, comment="of the key"),
        sa.Column(
            "role",
            sa.Enum("read", "submit", "admin", name="role", native_enum=False, create_constraint=True, length=24),
            nullable=False,
            comment="pipeline.batches.KeyRole",
        ),
        sa.Column(
            "requests_per_minute",
            sa.Integer(),
            nullable=True,
            comment="to each gateway process; null: as many as it likes",
        ),
        sa.Column(
            "max_file_bytes",
            sa.BigInteger(),
            nullable=True,
            comment="of one upload; null: what the gateway's settings say",
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="when it was made",
        ),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True, comment="to a minute"),
        sa.Column(
            "revoked_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="from then on it opens nothing; null: it is valid",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("sha256", name=op.f("uq_api_keys_sha256")),
        comment="A key of the gateway; of the key itself only a hash is stored.",
    )
    op.create_index(
        "ix_api_keys_name", "api_keys", ["name"], unique=True, postgresql_where=sa.text("revoked_at IS NULL")
    )
    op.create_table(
        "model_aliases",
        sa.Column("name", sa.String(), nullable=False, comment="as requests write it"),
        sa.Column(
            "options", JSONB(), nullable=False, comment="options of a submission by name; jobs keep their own copy"
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="when it was last saved",
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_model_aliases")),
        comment="A name that requests may give as their model, for a pair and how it is asked.",
    )
    op.create_table(
        "files",
        sa.Column("id", sa.String(), nullable=False, comment="as clients know it"),
        sa.Column(
            "owner_id", sa.BigInteger(), nullable=True, comment="the key that uploaded it; null: there were no keys"
        ),
        sa.Column("purpose", sa.String(), nullable=False, comment="pipeline.batches.FilePurpose"),
        sa.Column("filename", sa.String(), nullable=False, comment="as the client named it"),
        sa.Column("num_bytes", sa.BigInteger(), nullable=False, comment="of its content"),
        sa.Column("sha256", sa.String(), nullable=False, comment="of its content"),
        sa.Column(
            "request_sha256",
            sa.String(),
            nullable=False,
            comment="of what was asked, so that the same again makes no second file",
        ),
        sa.Column("idempotency_key", sa.String(), nullable=True, comment="the client's own, for 24 hours"),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
            comment="when it was stored",
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True, comment="when it is deleted; null: never"),
        sa.Column(
            "deleted_at", sa.DateTime(timezone=True), nullable=True, comment="its parts are gone; null: it is there"
        ),
        sa.ForeignKeyConstraint(["owner_id"], ["api_keys.id"], name=op.f("fk_files_owner_id_api_keys")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_files")),
        comment="A file that was uploaded to the gateway; its content is in file_parts.",
    )
    op.create_index("ix_files_created_at_id", "files", ["created_at", "id"], unique=False)
    op.create_index(
        "ix_files_expires_at", "files", ["expires_at"], unique=False, postgresql_where=sa.text("deleted_at IS NULL")
    )
    op.create_index("ix_files_idempotency_key", "files", ["owner_id", "idempotency_key"], unique=False)
    op.create_table(
        "file_parts",
        sa.Column("file_id", sa.String(), nullable=False, comment="the file"),
        sa.Column("part", sa.Integer(), autoincrement=False, nullable=False, comment="from 0 in its file"),
        sa.Column("data", sa.LargeBinary(), nullable=False, comment="the bytes, as they came"),
        sa.ForeignKeyConstraint(["file_id"], ["files.id"], name=op.f("fk_file_parts_file_id_files")),
        sa.PrimaryKeyConstraint("file_id", "part", name=op.f("pk_file_parts")),
        comment="A piece of an uploaded file, at most 1 MiB of its bytes.",
    )
    op.create_table(
        "batches",
        sa.Column("id", sa.String(), nullable=False, comment="as clients know it"),
        sa.Column(
            "owner_id", sa.BigInteger(), nullable=True, comment="the key that created it; null: there were no keys"
        ),
        sa.Column("input_file_id", sa.String(), nullable=False, comment="its requests, one a line"),
        sa.Column(
            "answers_file_id",
            sa.String(),
            nullable=True,
            comment="its reference answers by custom_id; null: it has none",
        ),
        sa.Column("endpoint", sa.String(), nullable=False, comment="what each line asks, e.g. /v1/chat/completions"),
        sa.Column("completion_window", sa.String(), nullable=False, comment="as asked: 24h, 7d or background"),
        sa.Column("metadata", JSONB(), nullable=True, comment="the client's own, texts by name"),
        sa.Column("options", JSONB(), nullable=False, comment="what was asked under specthink"),
        sa.Column(
            "request_sha256",
            sa.String(),
            nullable=False,
            comment="of what was asked, so that the same again makes no second batch",
        ),
        sa.Column("idempotency_key", sa.String(), nullable=True, comment="the client's own, for 24 hours"),
        sa.Column(
            "model", sa.String(), nullable=True, comment="of its lines, as they call it; null: not read yet, or several"
        ),
        sa.Column("errors", JSONB(), nullable=True, comment="of a bad input, each with its line"),
        sa.Column(
            "num_lines", sa.Integer(), server_default="0", nullable=False, comment="requests; 0 until they were read"
        ),
        sa.Column("num_completed", sa.Integer(), nullable=True, comment="lines with their answer; null: it is open"),
        sa.Column("num_failed", sa.Integer(), nullable=True, comment="lines with an error instead; null: it is open"),
        sa.Column("usage", JSONB(), nullable=True, comment="tokens of all answers; null: not measured yet"),
        sa.Column("output_bytes", sa.BigInteger(), nullable=True, comment="of its output file; null: not measured yet"),
        sa.Column("error_bytes", sa.BigInteger(), nullable=True, comment="of its error file; null: not measured yet"),
        sa.Column(
            "num_retries",
            sa.Integer(),
            server_default="0",
            nullable=False,
            comment="times its failed lines were tried again",
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
            comment="when it was stored",
        ),
        sa.Column("in_progress_at", sa.DateTime(timezone=True), nullable=True, comment="when its jobs were stored"),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True, comment="its deadline; null: it has none"),
        sa.Column(
            "expiring_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when its jobs were cancelled because of the deadline",
        ),
        sa.Column("finalizing_at", sa.DateTime(timezone=True), nullable=True, comment="when its last sample had ended"),
        sa.Column(
            "completed_at", sa.DateTime(timezone=True), nullable=True, comment="when it ended with every line done"
        ),
        sa.Column("failed_at", sa.DateTime(timezone=True), nullable=True, comment="when its input was found to be bad"),
        sa.Column("expired_at", sa.DateTime(timezone=True), nullable=True, comment="when it ended by its deadline"),
        sa.Column(
            "cancelling_at", sa.DateTime(timezone=True), nullable=True, comment="when somebody asked to cancel it"
        ),
        sa.Column("cancelled_at", sa.DateTime(timezone=True), nullable=True, comment="when it ended so"),
        sa.Column(
            "output_deleted_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when its output file was deleted; null: it is there",
        ),
        sa.Column(
            "error_deleted_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when its error file was deleted; null: it is there",
        ),
        sa.Column(
            "output_expires_s",
            sa.Integer(),
            nullable=True,
            comment="seconds after its end at which its files go; null: they stay",
        ),
        sa.CheckConstraint(
            "num_completed + num_failed = num_lines OR coalesce(completed_at, expired_at, cancelled_at) IS NULL",
            name=op.f("ck_batches_every_line"),
        ),
        sa.CheckConstraint(
            "num_nonnulls(completed_at, failed_at, expired_at, cancelled_at) <= 1", name=op.f("ck_batches_one_end")
        ),
        sa.ForeignKeyConstraint(["answers_file_id"], ["files.id"], name=op.f("fk_batches_answers_file_id_files")),
        sa.ForeignKeyConstraint(["input_file_id"], ["files.id"], name=op.f("fk_batches_input_file_id_files")),
        sa.ForeignKeyConstraint(["owner_id"], ["api_keys.id"], name=op.f("fk_batches_owner_id_api_keys")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batches")),
        comment="A file of requests to answer; its status follows from its jobs.",
    )
    op.create_index("ix_batches_answers_file_id", "batches", ["answers_file_id"], unique=False)
    op.create_index("ix_batches_created_at_id", "batches", ["created_at", "id"], unique=False)
    op.create_index("ix_batches_idempotency_key", "batches", ["owner_id", "idempotency_key"], unique=False)
    op.create_index("ix_batches_input_file_id", "batches", ["input_file_id"], unique=False)
    op.create_index(
        "ix_batches_open",
        "batches",
        ["id"],
        unique=False,
        postgresql_where=sa.text("coalesce(completed_at, failed_at, expired_at, cancelled_at) IS NULL"),
    )
    op.create_table(
        "batch_jobs",
        sa.Column("batch_id", sa.String(), nullable=False, comment="the batch"),
        sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False, comment="the job"),
        sa.Column("model", sa.String(), nullable=False, comment="as its lines call it"),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.id"], name=op.f("fk_batch_jobs_batch_id_batches")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_batch_jobs_job_id_jobs")),
        sa.PrimaryKeyConstraint("batch_id", "job_id", name=op.f("pk_batch_jobs")),
        sa.UniqueConstraint("job_id", name=op.f("uq_batch_jobs_job_id")),
        comment="A job of a batch: its lines with the same settings.",
    )
    op.create_table(
        "chat_requests",
        sa.Column("id", sa.String(), nullable=False, comment="as the answer calls itself"),
        sa.Column(
            "external_id",
            sa.String(),
            nullable=False,
            comment="of the problem: the request's own id, or where it names a seed, that of all who ask the same",
        ),
        sa.Column("owner_id", sa.BigInteger(), nullable=True, comment="the key that asked; null: there were no keys"),
        sa.Column(
            "request_sha256",
            sa.String(),
            nullable=False,
            comment="of what was asked, by which a repeated request is known again",
        ),
        sa.Column("job_id", sa.BigInteger(), nullable=False, comment="the job"),
        sa.Column("model", sa.String(), nullable=False, comment="as the request calls it"),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
            comment="when it was stored",
        ),
        sa.Column(
            "waited_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
            comment="last sign of somebody who waits for the answer",
        ),
        sa.Column(
            "delivered_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when the answer was given; null: it was not",
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_chat_requests_job_id_jobs")),
        sa.ForeignKeyConstraint(["owner_id"], ["api_keys.id"], name=op.f("fk_chat_requests_owner_id_api_keys")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_chat_requests")),
        comment="A request that waits for its answer online: a problem of a job that is stored for some such requests.",
    )
    op.create_index("ix_chat_requests_job_id", "chat_requests", ["job_id"], unique=False)
    op.create_index(
        "ix_chat_requests_request_sha256",
        "chat_requests",
        ["request_sha256"],
        unique=False,
        postgresql_where=sa.text("delivered_at IS NULL"),
    )
    op.create_index(
        "ix_chat_requests_waited_at",
        "chat_requests",
        ["waited_at"],
        unique=False,
        postgresql_where=sa.text("delivered_at IS NULL"),
    )


def downgrade() -> None:
    for table in (
        "chat_requests",
        "batch_jobs",
        "batches",
        "file_parts",
        "files",
        "model_aliases",
        "api_keys",
        "upkeep_leader",
        "steps",
        "signals",
        "segments",
        "segment_parts",
        "judged_samples",
        "experiment_jobs",
        "experiments",
        "grades",
        "asides",
        "samples",
        "rollups",
        "reference_answers",
        "hidden_columns",
        "length_counts",
        "job_totals",
        "workers",
        "problems",
        "jobs",
        "schema_objects",
        "problem_sets",
        "events",
        "engines",
    ):
        op.drop_table(table)
