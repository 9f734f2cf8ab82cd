"""The statements that remove jobs with all that was written for them, for the schema's owner alone."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from sqlalchemy import Connection, text

from pipeline.db.tables import METADATA
from pipeline.db.tables.gateway import ENDED
from pipeline.errors import JobError, NotFound
from pipeline.jobs.config import FINAL_JOB_STATES
from pipeline.results.jobs import StoredEvents, StoredJob

_OF_SAMPLES = ("signals", "steps", "grades", "asides", "segment_parts", "segments", "judged_samples")
_OF_JOBS = (
    "length_counts",
    "rollups",
    "job_totals",
    "judged_samples",
    "samples",
    "events",
    "experiment_jobs",
    "batch_jobs",
    "chat_requests",
)


def stored_size(table: str, alias: str = "t") -> str:
    """SQL for the bytes of rows as they are stored: compressed where they are; a header is 24."""
    sizes = (f"coalesce(pg_column_size({alias}.{column.name}), 0)" for column in METADATA.tables[table].columns)
    return f"sum(24 + {' + '.join(sizes)})"


_SIZES = " UNION ALL ".join(
    [
        *(
            f"SELECT s.job_id, {stored_size(table)} AS bytes FROM {table} t JOIN samples s ON s.id = t.sample_id "
            "WHERE s.job_id = ANY(:jobs) GROUP BY s.job_id"
            for table in _OF_SAMPLES
        ),
        *(
            f"SELECT t.job_id, {stored_size(table)} AS bytes FROM {table} t "
            "WHERE t.job_id = ANY(:jobs) GROUP BY t.job_id"
            for table in _OF_JOBS
        ),
    ]
)
_STORED_JOBS = text(f"""
    SELECT j.id AS job_id, j.name, j.state, j.finished_at, c.samples::bigint AS num_samples,
           coalesce(b.bytes, 0)::bigint AS num_bytes
    FROM jobs j
    LEFT JOIN (SELECT job_id, sum(bytes) AS bytes FROM ({_SIZES}) x GROUP BY job_id) b ON b.job_id = j.id
    CROSS JOIN LATERAL (SELECT count(*) AS samples FROM samples s WHERE s.job_id = j.id) c
    WHERE j.id = ANY(:jobs) ORDER BY j.id
""")


def stored_jobs(connection: Connection, job_ids: Sequence[int]) -> list[StoredJob]:
    """What some jobs take in the database, without indexes. Raises NotFound for an unknown id."""
    found = [StoredJob(**row) for row in connection.execute(_STORED_JOBS, {"jobs": list(job_ids)}).mappings()]
    for missing in sorted({*job_ids} - {job.job_id for job in found}):
        raise NotFound.job(missing)
    return found


_ENDED_BEFORE = text("""
    SELECT id FROM jobs WHERE finished_at < clock_timestamp() - :age AND state NOT IN ('running', 'paused') ORDER BY id
""")


def jobs_ended_before(connection: Connection, age: dt.timedelta) -> list[int]:
    """The jobs that ended longer ago than that."""
    return list(connection.execute(_ENDED_BEFORE, {"age": age}).scalars())


_STATE = "SELECT state FROM jobs WHERE id = :job"
_PROBLEM_SET = text("SELECT problem_set_id FROM jobs WHERE id = :job")
_IS_OPEN = text("SELECT EXISTS (SELECT FROM samples WHERE job_id = :job AND ended_at IS NULL)")
_OPEN_BATCH = text(f"""
    SELECT b.id FROM batch_jobs k JOIN batches b ON b.id = k.batch_id WHERE k.job_id = :job AND {ENDED} IS NULL
""")
_TOKENS = text("""
    SELECT w.worker_id, sum(w.tokens_generated)::bigint AS tokens
    FROM (SELECT g.worker_id, g.tokens_generated FROM segments g JOIN samples s ON s.id = g.sample_id
          WHERE s.job_id = :job
          UNION ALL
          SELECT a.worker_id, a.tokens_generated FROM asides a JOIN samples s ON s.id = a.sample_id
          WHERE s.job_id = :job) w
    GROUP BY w.worker_id ORDER BY w.worker_id
""")
_REMOVALS = (
    *(f"DELETE FROM {table} t USING samples s WHERE s.id = t.sample_id AND s.job_id = :job" for table in _OF_SAMPLES),
    "SET LOCAL specthink.removes_job = 'on'",
    *(f"DELETE FROM {table} WHERE job_id = :job" for table in _OF_JOBS),
    "SET LOCAL specthink.removes_job = 'off'",
    "UPDATE jobs SET cloned_from = NULL WHERE cloned_from = :job",
    "UPDATE experiment_jobs SET control_of = NULL WHERE control_of = :job",
    # One that somebody may be adding jobs to stays: its jobs would find it gone.
    "DELETE FROM experiments e WHERE e.changed_at < clock_timestamp() - interval '1 day' "
    "AND NOT EXISTS (SELECT FROM experiment_jobs j WHERE j.experiment = e.name)",
    "UPDATE jobs SET judged_job_id = NULL WHERE judged_job_id = :job",
    "DELETE FROM jobs WHERE id = :job",
)
_OLD_EVENTS = text(f"""
    SELECT j.id AS job_id, j.name, j.state, j.finished_at, e.rows::bigint AS num_rows, e.bytes::bigint AS num_bytes
    FROM jobs j CROSS JOIN LATERAL (
        SELECT count(*) AS rows, {stored_size("events")} AS bytes FROM events t
        WHERE t.job_id = j.id AND t.sample_id IS NOT NULL
    ) e
    WHERE j.finished_at < clock_timestamp() - :age AND j.state NOT IN ('running', 'paused') AND e.rows > 0
    ORDER BY j.id
""")
_REMOVE_EVENTS = (
    "SET LOCAL specthink.removes_job = 'on'",
    "DELETE FROM events WHERE job_id = :job AND sample_id IS NOT NULL",
    "SET LOCAL specthink.removes_job = 'off'",
    "UPDATE jobs SET events_removed_at = clock_timestamp() WHERE id = :job",
)


def old_events(connection: Connection, age: dt.timedelta) -> list[StoredEvents]:
    """The events of samples of jobs that ended longer ago than that, by job."""
    return [StoredEvents(**row) for row in connection.execute(_OLD_EVENTS, {"age": age}).mappings()]


def remove_events(connection: Connection, job_id: int) -> None:
    """Delete the events of the samples of a job that has ended; its own stay. Raises as ``remove_job``."""
    require_ended(connection, job_id, lock=True)
    for statement in _REMOVE_EVENTS:
        connection.execute(text(statement), {"job": job_id} if ":job" in statement else {})


# Not deleted: each problem that is gone would be looked for in all samples, which have no index for that.
_FORGET_PROMPTS = text("""
    WITH told AS (
        UPDATE problem_sets p SET tells_answers_of = NULL, content_sha256 = 'removed ' || p.id
        WHERE p.id = :problem_set AND p.tells_answers_of IS NOT NULL
          AND NOT EXISTS (SELECT FROM jobs j WHERE j.problem_set_id = p.id)
        RETURNING p.id
    )
    UPDATE problems q SET prompt = '(removed with the judge that was asked this)', shown = '{}'
    FROM told WHERE q.problem_set_id = told.id
""")
_WITHDRAW = text("UPDATE workers SET tokens_withdrawn = tokens_withdrawn + :tokens WHERE id = :worker_id")


def require_ended(connection: Connection, job_id: int, *, lock: bool = False) -> None:
    """Raise NotFound, or JobError for a job that has not ended or whose samples have not.

    lock: nobody can change the job, or a grade of it, until the transaction ends.
    """
    values = {"job": job_id}
    state = connection.execute(text(f"{_STATE} FOR UPDATE" if lock else _STATE), values).scalar()
    if state is None:
        raise NotFound.job(job_id)
    if state not in FINAL_JOB_STATES:
        why = f"it is {state}; only a job that has ended can be removed or archived: specthink cancel {job_id}"
        raise JobError(job_id, why)
    batch = connection.execute(_OPEN_BATCH, values).scalar()
    if batch is not None:
        raise JobError(job_id, f"it is of {batch}, whose lines are still to be counted; try again in some seconds")
    if connection.execute(_IS_OPEN, values).scalar_one():
        raise JobError(job_id, "its last samples are being cancelled; try again in some seconds")


_FINGERPRINT = text("""
    SELECT md5(concat_ws(' ', j::text,
        (SELECT sum(hashtextextended(s::text, 0)) FROM samples s WHERE s.job_id = j.id),
        (SELECT sum(hashtextextended(g::text, 0)) FROM grades g JOIN samples s ON s.id = g.sample_id
         WHERE s.job_id = j.id),
        (SELECT string_agg(e::text, ' ' ORDER BY e.experiment, e.row_name) FROM experiment_jobs e
         WHERE e.job_id = j.id)))
    FROM jobs j WHERE j.id = :job
""")


def fingerprint(connection: Connection, job_id: int) -> str:
    """Of all that may change of a job that has ended: a retry changes its samples, another grading its grades, and a
    sweep makes it a row of an experiment."""
    return str(connection.execute(_FINGERPRINT, {"job": job_id}).scalar_one())


def remove_job(connection: Connection, job_id: int) -> None:
    """Delete a job that has ended, with its samples and all that was written for them. Its problem set stays.

    But the prompts of a judge go with the last job that asks them: they show reference answers. Its verdicts stay, as
    grades of the judged samples.

    The tokens count as withdrawn with the workers that generated them, so that those workers' counts hold; their rows
    are locked last, because they renew their leases in them. Raises NotFound, and JobError for a job that has not
    ended or whose samples have not.
    """
    require_ended(connection, job_id, lock=True)
    values = {"job": job_id}
    problem_set = connection.execute(_PROBLEM_SET, values).scalar_one()
    withdrawn = [dict(row) for row in connection.execute(_TOKENS, values).mappings()]
    for statement in _REMOVALS:
        connection.execute(text(statement), values if ":job" in statement else {})
    connection.execute(_FORGET_PROMPTS, {"problem_set": problem_set})
    if withdrawn:
        connection.execute(_WITHDRAW, withdrawn)
