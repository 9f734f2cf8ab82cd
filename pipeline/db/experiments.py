"""The statements of experiments: which jobs are the rows of one, and what each problem gave in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, text

from pipeline.db import report_queries
from pipeline.db.submissions import get_source_job, insert_ready
from pipeline.errors import ConfigurationError, NotFound
from pipeline.experiments.controls import Control, control_name, lacking_controls
from pipeline.experiments.reporting import StoredRow, make_report
from pipeline.experiments.results import ExperimentJob, ExperimentReport, ProblemSums
from pipeline.experiments.submitting import differences
from pipeline.jobs.readiness import ReadyJob
from pipeline.jobs.references import StoredSet
from pipeline.jobs.submission import SourceJob
from pipeline.results.jobs import Job

# A row and no advisory lock: every login can take those, and holds them for as long as it likes.
_LOCK = text("""
    INSERT INTO experiments (name) VALUES (:experiment) ON CONFLICT (name) DO UPDATE SET changed_at = clock_timestamp()
""")
_SELECT_JOBS = text("""
    SELECT row_name AS name, job_id, control_of FROM experiment_jobs WHERE experiment = :experiment ORDER BY job_id
""")
_SELECT_NAMES = text("SELECT experiment FROM experiment_jobs GROUP BY experiment ORDER BY max(job_id) DESC")
_INSERT = text("""
    INSERT INTO experiment_jobs (experiment, row_name, job_id, control_of)
    VALUES (:experiment, :name, :job_id, :control_of)
""")
# Of scored samples alone: what an accuracy is compared with is what these samples cost.
_SUM_PROBLEMS = text("""
    SELECT s.job_id, p.external_id AS problem, count(*) AS num_scored, sum(s.score)::float8 AS score,
           sum(s.tokens_small + s.discarded_small + s.aside_small - s.taken_small)::bigint AS small,
           sum(s.tokens_large + s.discarded_large + s.aside_large - s.taken_large)::bigint AS large,
           sum(s.tokens_inserted)::bigint AS inserted
    FROM samples s JOIN problems p ON p.id = s.problem_id
    WHERE s.job_id = ANY(:jobs) AND s.state = 'graded' AND s.score IS NOT NULL
    GROUP BY s.job_id, p.id ORDER BY s.job_id, p.id
""")


def lock_experiment(connection: Connection, experiment: str) -> None:
    """Store its name where it is new; nobody else adds a row to it until the transaction ends."""
    connection.execute(_LOCK, {"experiment": experiment})


def experiment_jobs(connection: Connection, experiment: str) -> list[ExperimentJob]:
    """Its rows, in the order in which they were submitted; none: there is no such experiment."""
    return [ExperimentJob(**row) for row in connection.execute(_SELECT_JOBS, {"experiment": experiment}).mappings()]


def get_experiment_jobs(connection: Connection, experiment: str) -> list[ExperimentJob]:
    """Its rows. Raises NotFound with those there are, the newest first."""
    found = experiment_jobs(connection, experiment)
    if not found:
        told = ", ".join(connection.execute(_SELECT_NAMES).scalars()) or "none yet"
        raise NotFound(f"there is no experiment {experiment!r}; there are: {told}")
    return found


def find_jobs(connection: Connection, experiment: str) -> dict[str, Job]:
    """Its jobs by the names of their rows, in the order in which they were submitted; none: there is no such one."""
    names = {row.job_id: row.name for row in experiment_jobs(connection, experiment)}
    return {names[job.id]: job for job in report_queries.get_jobs(connection, [*names])}


def insert_rows(connection: Connection, experiment: str, ready: Mapping[str, ReadyJob]) -> list[int]:
    """Store the jobs whose rows, by their names, the experiment has not; returns their ids.

    Raises ConfigurationError for a job that does not ask as those of the experiment do.
    """
    lock_experiment(connection, experiment)
    known = find_jobs(connection, experiment)
    for job in ready.values():
        for before in _references([*known.values()]):
            require_alike(connection, experiment, job, before)
    missing = [name for name in ready if name not in known]
    stored = insert_ready(connection, [ready[name] for name in missing])
    for name, job_id in zip(missing, stored, strict=True):
        insert_row(connection, experiment, ExperimentJob(name=name, job_id=job_id))
    return stored


def find_uncontrolled(connection: Connection, experiment: str, row: ExperimentJob) -> tuple[SourceJob, list[Control]]:
    """The job of a row, and what can be matched to it now and is not yet."""
    job = report_queries.get_job(connection, row.job_id)
    lacking = lacking_controls(row, job, experiment_jobs(connection, experiment))
    return get_source_job(connection, row.job_id), lacking


def insert_control(
    connection: Connection, experiment: str, row: ExperimentJob, control: Control, ready: ReadyJob
) -> list[int]:
    """Store a row's control where it is new; returns its id, or nothing."""
    lock_experiment(connection, experiment)
    name = control_name(row, control)
    if name in {each.name for each in experiment_jobs(connection, experiment)}:
        return []
    (job_id,) = insert_ready(connection, [ready])
    insert_row(connection, experiment, ExperimentJob(name=name, job_id=job_id, control_of=row.job_id))
    return [job_id]


def get_report(connection: Connection, experiment: str) -> ExperimentReport:
    """Raises NotFound."""
    get_experiment_jobs(connection, experiment)
    return make_report(experiment, stored_rows(connection, experiment))


def insert_row(connection: Connection, experiment: str, row: ExperimentJob) -> None:
    values = {"name": row.name, "job_id": row.job_id, "control_of": row.control_of}
    connection.execute(_INSERT, {"experiment": experiment, **values})


def sum_problems(connection: Connection, job_ids: Sequence[int]) -> Mapping[int, dict[str, ProblemSums]]:
    """Of each job its problems with a score, by their ids in the file."""
    found: dict[int, dict[str, ProblemSums]] = {job_id: {} for job_id in job_ids}
    for row in connection.execute(_SUM_PROBLEMS, {"jobs": list(job_ids)}).mappings():
        sums = {name: value for name, value in row.items() if name != "job_id"}
        found[row["job_id"]][row["problem"]] = ProblemSums(**sums)
    return found


def stored_rows(connection: Connection, experiment: str) -> list[StoredRow]:
    """All that a report needs of an experiment's jobs."""
    rows = experiment_jobs(connection, experiment)
    ids = [row.job_id for row in rows]
    problems = sum_problems(connection, ids)
    summaries = report_queries.select_summaries(connection, ids)
    return [
        StoredRow(
            row=row,
            job=report_queries.get_job(connection, row.job_id),
            summary=summary,
            cost=report_queries.get_cost(connection, row.job_id),
            problems=problems[row.job_id],
            budget_curve=report_queries.get_budget_curve(connection, row.job_id),
        )
        for row, summary in zip(rows, summaries, strict=True)
    ]


_SET_SHA256 = text("SELECT content_sha256 FROM problem_sets WHERE id = :problem_set")


def _references(known: Sequence[Job]) -> list[Job]:
    """The first job of an experiment, and the first that has each of the models: small alone says nothing of large."""
    firsts = [known[:1], [job for job in known if job.small_model], [job for job in known if job.large_model]]
    return list({jobs[0].id: jobs[0] for jobs in firsts if jobs}.values())


def require_alike(connection: Connection, experiment: str, job: ReadyJob, first: Job) -> None:
    """Raises ConfigurationError where a job does not ask as one of the experiment's first ones does."""
    sha256 = connection.execute(_SET_SHA256, {"problem_set": first.problem_set_id}).scalar_one()
    if isinstance(job.problems, StoredSet):
        same_set = job.problems.id == first.problem_set_id
    else:
        same_set = job.problems.content_sha256 == sha256
    told = ["other problems"] if not same_set or job.num_problems != first.num_problems else []
    told += differences(job.config, first.config)
    if told:
        raise ConfigurationError(
            f"experiment {experiment!r} was asked otherwise before (job {first.id}): {', '.join(told)}; its rows would "
            "not be comparable: give what was given then, or another name"
        )
