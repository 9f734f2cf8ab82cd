"""The pipeline from Python: submit a job, follow it, read what it gave.

    from pipeline import Client

    with Client.connect() as client:
        job = client.submit("problems.jsonl", small="org/small-1b", large="org/large-32b", num_samples=4)
        client.wait(job)
        print(client.stats(job).summary.accuracy)
        for result in client.results(job):
            print(result.problem, result.sample_index, result.score)

Submitting stores the job and its samples, and that is all: the upkeep worker finds them. So a client needs Postgres
only, and may end as soon as it has submitted.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias, Unpack

from pydantic import SecretStr
from sqlalchemy import Connection, Engine, text

from pipeline.db import job_control, judging, pilots, planning, replays, report_queries, submissions, verdicts
from pipeline.db.leadership import get_leader
from pipeline.db.readonly_query import MAX_ROWS, Table, run_query
from pipeline.db.revision import require_current
from pipeline.db.session import open_database, transaction
from pipeline.errors import ConfigurationError, DamagedRow, JobError, NotComparable, PipelineError
from pipeline.jobs.config import MAX_INTEGER, CalibratedFrom, JobState
from pipeline.jobs.matching import matched_values
from pipeline.jobs.readiness import ReadyJob, make_ready
from pipeline.jobs.references import StoredSet
from pipeline.jobs.submission import ModelChoice, SourceJob, Submission
from pipeline.judging.problems import DEFAULT_ANSWER_CHARS
from pipeline.judging.prompts import DEFAULT_TEMPLATE, load_template
from pipeline.judging.reports import Verdicts
from pipeline.judging.submitting import (
    DEFAULT_MAX_TOKENS,
    DEFAULT_TEMPERATURE,
    ask_about,
    make_judge,
    refuse_open_jobs,
)
from pipeline.problems import Problem, ProblemSet
from pipeline.results.replay import Replay, replay
from pipeline.results.reports import (
    Comparison,
    Job,
    JobChange,
    JobErrors,
    JobProgress,
    JobStats,
    JobSummary,
    ProblemScore,
    Result,
    SampleReport,
)
from pipeline.results.unreadable import Unreadable
from pipeline.samples import ErrorClass, ModelRole
from pipeline.settings import Settings, load_settings
from pipeline.submit_options import SubmitOptions, shows_options
from pipeline.workforce import LeaderReport, WorkerReport

if TYPE_CHECKING:
    from pipeline.calibration.calibrating import Calibration
    from pipeline.experiments.plan import PlannedRow
    from pipeline.experiments.results import ExperimentJob, ExperimentReport
    from pipeline.jobs.dry_run import DryRun
    from pipeline.planning.answers import Plan
    from pipeline.planning.pools import PartCosts
    from pipeline.settings import PlanningSettings, PriceSettings

log = logging.getLogger(__name__)

JobRef: TypeAlias = Job | int
"""A job or its id."""

MAX_PRIORITY = 1000
FROZEN_AFTER_S = 10
"""A change of a job on which the client says nothing for so long is undone: upkeep waits for it, for 30 s at most."""
_SET_PRICE = text("SELECT set_config(:name, :price, true)")
CANCEL_FOR_S = 1.0
"""For so long a cancel ends samples, some 20,000; upkeep goes on with the rest."""


class Client:
    """A connection to one pipeline's database. Thread-safe; close it, or use it in a ``with``.

    Every method raises ServiceUnavailable when Postgres cannot be reached, and NotFound for a job or sample that does
    not exist.
    """

    def __init__(
        self, database_url: SecretStr, reader_url: SecretStr | None = None, prices: PriceSettings | None = None
    ) -> None:
        """prices: of engine hours; None: what a right answer costs is not said."""
        self._prices = prices.session_values() if prices else {}
        self._database_url = database_url
        self._reader_url = reader_url or database_url
        self._on_note: Callable[[str], None] = log.info
        self._db_engine: Engine = open_database(database_url, application_name="specthink client")
        self._reader_engine: Engine = (
            self._db_engine if self._reader_url == database_url
            else open_database(self._reader_url, application_name="specthink client")
        )  # fmt: skip

    @classmethod
    def connect(cls, settings: Settings | None = None, *, database_url: str | None = None) -> Self:
        """Connect to the database of the settings: SPECTHINK_DATABASE_URL, else the embedded one of the state folder.

        As the submitter's login where the settings or the embedded servers have one. database_url: a server of your
        own, whatever the settings say. Raises ConfigurationError when the database has
        not the schema of this version.
        """
        if database_url is not None:
            client = cls(SecretStr(database_url))
        else:
            from pipeline.embedded import resolve_connections

            settings = settings or load_settings()
            connections = resolve_connections(settings)
            client = cls(connections.submitter_url, connections.reader_url, settings.prices)
        try:
            require_current(client._db_engine)
        except PipelineError:
            client.close()
            raise
        return client

    def on_note(self, tell: Callable[[str], None]) -> None:
        """Have what a submission found in its problem file told by ``tell`` instead of the log."""
        self._on_note = tell

    def close(self) -> None:
        self._db_engine.dispose()
        self._reader_engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._priced(self._db_engine) as connection:
            yield connection

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Connection]:
        """A transaction of the reader, who sees what was right, where its login is known."""
        with self._priced(self._reader_engine) as connection:
            yield connection

    @contextlib.contextmanager
    def _priced(self, db_engine: Engine) -> Iterator[Connection]:
        """A transaction in which the views find the prices of the settings."""
        with transaction(db_engine) as connection:
            for name, price in self._prices.items():
                connection.execute(_SET_PRICE, {"name": name, "price": price})
            yield connection

    @contextlib.contextmanager
    def _change(self) -> Iterator[Connection]:
        """A transaction that holds rows which workers and upkeep need: a client that freezes in it is cut off."""
        with self._transaction() as connection:
            connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = '{FROZEN_AFTER_S}s'")
            yield connection

    # Doing

    @shows_options
    def submit(
        self, problems: Submission | ProblemSet | str | PathLike[str] | int, **options: Unpack[SubmitOptions]
    ) -> Job:
        """Store a job and all of its samples in one transaction.

        problems: a .jsonl, .csv or .parquet file, a set, or the number of a stored one. options: the fields of
        ``Submission`` by name, as in ``submit("problems.jsonl", small="org/small-1b", policy="small-only", seed=7)``.
        Or a Submission alone.

        Raises ProblemSetError for a bad file, BadProblem for a problem that the prompt template cannot show, NotFound
        for a stored set or job that does not exist, and ConfigurationError for a bad option; nothing is stored then.
        """
        return self._store(self._make_ready(_submission(problems, options)))[0]

    def submit_all(self, jobs: Iterable[Submission]) -> list[Job]:
        """Store several jobs in one transaction, all or none; checks what ``submit`` checks. In their order."""
        return self._store(*map(self._make_ready, jobs))

    @shows_options
    def dry_run(
        self, problems: Submission | ProblemSet | str | PathLike[str] | int, **options: Unpack[SubmitOptions]
    ) -> DryRun:
        """What ``submit`` would store and ask, and what speaks against it; nothing is stored.

        Takes what ``submit`` takes, checks what it checks, and raises as it does.
        """
        from pipeline.jobs.dry_run import dry_run

        return dry_run(self._make_ready(_submission(problems, options)), self.workers())

    def _make_ready(self, submission: Submission, source: SourceJob | None = None) -> ReadyJob:
        ready = make_ready(
            submission,
            stored=self._stored_set(submission.problems) if isinstance(submission.problems, int) else None,
            source=source,
            matched=self._chosen_values(submission),
        )
        if ready.config.calibrated_from is None:
            return ready
        with self._transaction() as connection:
            return pilots.with_pilot(connection, ready)

    def _chosen_values(self, submission: Submission) -> dict[str, Any] | None:
        """What is found of other jobs for the policy's numbers; None: nothing was asked for."""
        if submission.matched_to is not None:
            return self._matched_values(submission)
        pilot = submission.calibrated_from
        return None if pilot is None or pilot.share is None else self._calibrated_values(submission, pilot)

    def _calibrated_values(self, submission: Submission, pilot: CalibratedFrom) -> dict[str, Any]:
        """The threshold for the wanted share. Raises ConfigurationError for a policy without a threshold."""
        from pipeline.calibration.request import chosen_threshold

        found = self.calibrate(
            pilot.job, policy=submission.policy, policy_values=submission.policy_values, shares=[pilot.share or 0]
        )
        return chosen_threshold(found)

    def _store(self, *jobs: ReadyJob) -> list[Job]:
        """Store jobs in one transaction, then tell what was found in them."""
        told: list[str] = []
        stored: list[Job] = []
        with self._transaction() as connection:
            for ready in jobs:
                stored.append(report_queries.get_job(connection, submissions.insert_ready(connection, ready)))
                told += [*ready.notes, *_told_by_judges(connection, stored[-1].problem_set_id)]
        for note in told:
            self._on_note(note)
        return stored

    def sweep(
        self,
        experiment: str,
        rows: Sequence[PlannedRow],
        problems: ProblemSet | str | PathLike[str] | int,
        **options: Unpack[SubmitOptions],
    ) -> list[Job]:
        """Store the rows of an experiment that it has not, all or none; returns their jobs, in order.

        rows: as ``pipeline.experiments.plan.plan_rows`` makes them. problems, options: what all of them share, as for
        ``submit``; without a seed all have the experiment's. Raises what ``submit`` raises, and ConfigurationError
        where the experiment was asked otherwise before.
        """
        from pipeline.db import experiments
        from pipeline.experiments.submitting import check_name, row_submission, with_seed

        check_name(experiment)
        with self._transaction() as connection:
            first, names = experiments.find_first(connection, experiment)
        shared = _submission(problems, with_seed(options, first.config if first else None))
        todo = [row for row in rows if row.name not in names] or rows[:1]
        ready = {row.name: self._make_ready(row_submission(experiment, row, shared)) for row in todo}
        with self._transaction() as connection:
            job_ids = experiments.insert_rows(connection, experiment, ready, first)
        for note in dict.fromkeys(note for job in ready.values() for note in job.notes):
            self._on_note(note)
        return [self.job(job_id) for job_id in job_ids]

    def add_controls(self, experiment: str) -> list[Job]:
        """Store for each row of an experiment that has ended and has no control random takeovers matched to it.

        What cannot be matched is noted. Raises NotFound for an experiment that does not exist.
        """
        from pipeline.db import experiments
        from pipeline.experiments.submitting import control_submission

        stored: list[int] = []
        for row in self._experiment_jobs(experiment):
            with self._transaction() as connection:
                source = experiments.find_uncontrolled(connection, experiment, row)
            if source is None:
                continue
            try:
                ready = self._make_ready(control_submission(experiment, row, source), source)
            except ConfigurationError as error:
                self._on_note(f"job {row.job_id} ({row.name}) gets no control: {error}")
                continue
            with self._transaction() as connection:
                stored += experiments.insert_control(connection, experiment, row, ready)
        return [self.job(job_id) for job_id in stored]

    def _experiment_jobs(self, experiment: str) -> list[ExperimentJob]:
        from pipeline.db import experiments

        with self._transaction() as connection:
            return experiments.get_experiment_jobs(connection, experiment)

    def experiment_jobs(self, experiment: str) -> dict[int, str]:
        """The names of an experiment's rows by their jobs. Raises NotFound."""
        return {row.job_id: row.name for row in self._experiment_jobs(experiment)}

    def experiment(self, experiment: str) -> ExperimentReport:
        """The report of an experiment, on whatever is graded now. Raises NotFound."""
        from pipeline.db import experiments

        with self._transaction() as connection:
            return experiments.get_report(connection, experiment)

    def judge(
        self,
        job: JobRef,
        *,
        model: ModelChoice,
        template: str | PathLike[str] | None = None,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        temperature: float = DEFAULT_TEMPERATURE,
        seed: int | None = None,
        max_answer_chars: int = DEFAULT_ANSWER_CHARS,
        asking: Mapping[str, Any] | None = None,
        expose_references: bool = False,
        name: str | None = None,
    ) -> Job:
        """Store the judge of a job that has ended: a job in which a model, alone, says which answers are correct.

        model: as ``large`` of ``submit``. template: a file with {{question}}, {{answer}} or {{predicted_answer}}, and
        {{reference}}; None: the usual one. max_answer_chars: so much of an answer's end is shown. asking: system,
        template_variables and think_tags as for ``submit``. expose_references: also while other jobs ask the same
        problems, whose writers could read the reference answers in the judge's prompts. Once the judge has ended, its
        verdicts become the judged samples' grades (``apply_verdicts`` says how many of each kind).

        Raises JobError for a job that still runs, is a judge itself or has nothing to judge, and where other jobs ask
        the same problems; ConfigurationError where this client's logins may not read reference answers.
        """
        chosen = DEFAULT_TEMPLATE if template is None else load_template(Path(template))
        options = dict(asking or {}) | {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        with self._reading() as connection:
            judged = judging.get_judged_job(connection, _id(job))
            if chosen.tells_reference:
                judging.require_answers_readable(connection)
            asked = ask_about(
                judged.id,
                judged.problem_set_id,
                judged.config,
                judging.stream_complete_samples(connection, judged.id, with_answers=chosen.tells_reference),
                template=chosen,
                answer_chars=max_answer_chars,
            )
        ready = make_judge(
            judged.id,
            asked,
            model=model,
            template=chosen,
            answer_chars=max_answer_chars,
            name=name,
            options=options,
        )
        with self._transaction() as connection:
            if chosen.tells_reference and not expose_references:
                refuse_open_jobs(judged.id, judging.open_jobs_on(connection, judged.problem_set_id))
            judge_id = judging.insert_judge(
                connection, ready, judged, asked.places, tells_answers=chosen.tells_reference
            )
        for note in ready.notes:
            self._on_note(note)
        return self.job(judge_id)

    def apply_verdicts(self, job: JobRef, judge: JobRef) -> Verdicts:
        """Make the verdicts of a job's judge, which has ended, the newest grades of the judged samples: all or none.

        Upkeep does so by itself once a judge has ended. Called again, it changes nothing, unless other grades came
        after the verdicts. Raises JobError for a job that is not that one's judge, still runs or was cancelled.
        """
        with self._transaction() as connection:
            verdicts.require_judged(connection, _id(judge), job_id=_id(job))
            return verdicts.carry_verdicts(connection, _id(judge))

    def _stored_set(self, set_id: int) -> StoredSet:
        def read(limit: int) -> tuple[Problem, ...]:
            with self._transaction() as connection:
                return submissions.select_problems(connection, set_id, limit=limit)

        with self._transaction() as connection:
            found = submissions.get_problem_set(connection, set_id)
        return StoredSet(
            id=set_id,
            name=found.name,
            size=found.num_problems,
            num_references=found.num_references,
            has_choices=found.has_choices,
            read=read,
        )

    def _matched_values(self, submission: Submission) -> dict[str, Any]:
        """What random delegation is to be set to. Raises ConfigurationError for another policy, JobError for a job that
        still runs: its takeovers are not all there yet."""
        if submission.policy != "random":
            raise ConfigurationError(f"only the policy 'random' can be matched to a job, not {submission.policy!r}")
        with self._transaction() as connection:
            found = report_queries.get_job(connection, submission.matched_to or 0)
            if not found.is_final:
                raise JobError(found.id, "it still runs; a job can be matched once it has ended")
            words = found.config.policy.control_at == "word"
            written = report_queries.measure_delegation(connection, found.id, words=words)
        same_exit = submission.exit is not None and submission.exit == found.config.exit
        return matched_values(written, same_exit=same_exit)

    def cancel(self, job: JobRef) -> JobChange:
        """End a running or paused job: from its first moment on nobody claims or stores anything for it.

        What is finished stays. Its samples follow, those at work before it returns; of a job that has more than can be
        ended in a second, upkeep ends the rest. Raises JobError for a job that ended otherwise.
        """
        job_id = _id(job)
        deadline = time.monotonic() + CANCEL_FOR_S
        with self._change() as connection:
            is_new = job_control.cancel_job(connection, job_id)
        with self._change() as connection:
            cancelled = job_control.count_cancelled(connection, job_id)
        is_left = True
        while is_left:
            with self._change() as connection:
                is_left = job_control.cancel_samples(connection, job_id) > 0
                if time.monotonic() > deadline and not job_control.is_at_work(connection, job_id):
                    break
        return JobChange(job_id=job_id, state=JobState.CANCELLED, is_new=is_new, num_samples=cancelled)

    def pause(self, job: JobRef) -> JobChange:
        """Let nothing of a running job be admitted or written until it is resumed; complete texts are still graded.

        What is being written goes back to its last stored segment. Raises JobError for a job that has ended.
        """
        job_id = _id(job)
        with self._change() as connection:
            is_new = job_control.pause_job(connection, job_id)
        with self._change() as connection:
            released = job_control.release_job_samples(connection, job_id)
        return JobChange(job_id=job_id, state=JobState.PAUSED, is_new=is_new, num_samples=released)

    def resume(self, job: JobRef) -> JobChange:
        """Let a paused job go on where it was. Raises JobError for a job that has ended."""
        job_id = _id(job)
        with self._change() as connection:
            waiting = job_control.resume_job(connection, job_id)
        return JobChange(job_id=job_id, state=JobState.RUNNING, is_new=waiting is not None, num_samples=waiting or 0)

    def retry(
        self, job: JobRef, *, classes: Sequence[ErrorClass | str] = (), cut: bool = False, max_tokens: int | None = None
    ) -> JobChange:
        """Let failed samples be tried again, from their last stored segments; a job that has ended runs again for them.

        classes: only those that failed so. cut, max_tokens: instead, the samples that a smaller budget has cut are
        drawn again from their beginning with this one; with the same seed they say the same and go on. Nothing to retry
        is no error: is_new is False then. Raises JobError for a cancelled job, ConfigurationError for options that do
        not go together.
        """
        wanted = _error_classes(classes)
        if cut != (max_tokens is not None) or (cut and wanted):
            raise ConfigurationError("a retry takes either error classes, or cut with max_tokens")
        job_id = _id(job)
        with self._change() as connection:
            found = report_queries.get_job(connection, job_id)
            if max_tokens is None:
                ids = job_control.select_failed(connection, job_id, wanted)
            else:
                _check_budget(found, max_tokens)
                ids = job_control.select_cut(connection, job_id, max_tokens=max_tokens)
            job_control.require_retryable(connection, job_id)
        count, size = 0, job_control.BATCH if max_tokens is None else job_control.CUT_BATCH
        for start in range(0, len(ids), size):
            batch = ids[start : start + size]
            with self._change() as connection:
                if max_tokens is None:
                    count += job_control.retry_failed(connection, job_id, batch)
                else:
                    count += job_control.retry_cut(connection, job_id, batch, max_tokens=max_tokens)
        return JobChange(job_id=job_id, state=self.job(job_id).state, is_new=count > 0, num_samples=count)

    def set_priority(self, job: JobRef, priority: int) -> JobChange:
        """Have a job's samples admitted before those of jobs with a lower priority (0 at first, -1000 to 1000).

        What is admitted already keeps its place. Raises JobError for a job that has ended.
        """
        if abs(priority) > MAX_PRIORITY:
            raise ConfigurationError(f"priority {priority}: give a number from -{MAX_PRIORITY} to {MAX_PRIORITY}")
        job_id = _id(job)
        with self._change() as connection:
            is_new = job_control.set_priority(connection, job_id, priority)
            state = report_queries.get_job(connection, job_id).state
        return JobChange(job_id=job_id, state=state, is_new=is_new)

    def clone(self, job: JobRef, changes: Mapping[str, Any] | None = None, *, name: str | None = None) -> Job:
        """Store a new job on the same problems, with the same configuration but for some values.

        changes: by dotted key, as in {"sampling.temperature": 0.9, "policy.n1": 30, "num_samples": 8}; ``policy`` is
        NAME[:PRESET] or another preset of the same name, ``small`` and ``large`` are models as for ``submit``. name:
        None derives it from the job's and the changes. Checks what ``submit`` checks, and prompts where what they are
        measured with changes. Raises ConfigurationError for a key that is not there, naming those that are, and for a
        value that is wrong.
        """
        with self._transaction() as connection:
            source = submissions.get_source_job(connection, _id(job))
        if source.config.judging is not None:
            raise JobError(source.id, f"it is a judge; specthink judge {source.config.judging.job} makes another one")
        return self._store(self._make_ready(Submission.from_job(source, changes or {}, name=name), source))[0]

    def wait(
        self,
        *jobs: JobRef,
        on_progress: Callable[[list[JobProgress]], None] | None = None,
        interval_s: float = 0.5,
        timeout_s: float | None = None,
    ) -> list[JobProgress]:
        """Return once all of the jobs have ended, with their last progress.

        on_progress: called with the present progress each time it is read; without it only states are read meanwhile.
        interval_s: the pause between two reads; it grows with the time a read takes. Raises TimeoutError after
        timeout_s.
        """
        ids = [_id(job) for job in jobs]
        start = time.monotonic()
        while True:
            asked_at = time.monotonic()
            if on_progress or not self._any_open(ids):
                progress = self.progress(*jobs)
                if on_progress:
                    on_progress(progress)
                if all(job.is_final for job in progress):
                    return progress
                _require_known_states(progress)
            took_s = time.monotonic() - asked_at
            if timeout_s is not None and time.monotonic() - start > timeout_s:
                raise TimeoutError(f"jobs {sorted(ids)} did not end within {timeout_s:.0f} s")
            time.sleep(max(interval_s, 10 * took_s))

    def _any_open(self, job_ids: Sequence[int]) -> bool:
        with self._transaction() as connection:
            return report_queries.any_open(connection, job_ids)

    # Reading

    def jobs(self, limit: int = 100) -> list[Job]:
        """The newest jobs, newest first."""
        with self._transaction() as connection:
            return report_queries.list_jobs(connection, limit=limit)

    def job(self, job_id: int) -> Job:
        with self._transaction() as connection:
            return report_queries.get_job(connection, job_id)

    def progress(self, *jobs: JobRef) -> list[JobProgress]:
        """How far some jobs are, and what they wait for; in the order of their ids."""
        with self._transaction() as connection:
            return report_queries.select_progress(connection, [_id(job) for job in jobs])

    def results(self, job: JobRef, *, only_final: bool = False, batch: int = 200) -> Iterator[Result]:
        """Every sample of a job with its text so far, streamed: one batch at a time is in memory.

        All rows are of one moment. only_final: leave out samples that are still at work.
        """
        with self._reading() as connection:
            yield from report_queries.stream_results(connection, _id(job), only_final=only_final, batch=batch)

    def sample(self, sample_id: int) -> SampleReport:
        """One sample with its segments, and its steps once it is complete."""
        with self._reading() as connection:
            return report_queries.get_sample(connection, sample_id)

    def replay(self, sample_id: int) -> Replay:
        """Feed a sample's stored segments through its policy; say where it decides otherwise than what is stored."""
        with self._transaction() as connection:
            return replay(replays.get_stored_sample(connection, sample_id))

    def replay_job(self, job: JobRef) -> Iterator[Replay]:
        """Replay every complete sample of a job, in the order of their ids."""
        with self._transaction() as connection:
            yield from map(replay, replays.stream_complete_samples(connection, _id(job)))

    def summary(self, *jobs: JobRef) -> list[JobSummary]:
        """One line per job: accuracy with its interval, lengths, shares, speed."""
        with self._transaction() as connection:
            return report_queries.select_summaries(connection, [_id(job) for job in jobs])

    def stats(self, job: JobRef) -> JobStats:
        """All statistics of one job."""
        with self._transaction() as connection:
            return report_queries.get_stats(connection, _id(job))

    def errors(self, job: JobRef) -> tuple[JobErrors, ...]:
        """What went wrong in a job, by class, the most frequent first."""
        with self._transaction() as connection:
            return report_queries.get_errors(connection, _id(job))

    def compare(self, first: JobRef, *others: JobRef, anyway: bool = False) -> list[Comparison]:
        """Each of the others compared with the first, paired by problem.

        Raises NotComparable where two are not on the same problem set or were not graded alike; anyway: compare them
        all the same, by the ids of the problems in their files, and say so in the result.
        """
        with self._transaction() as connection:
            return [
                report_queries.get_comparison(connection, _id(first), _id(other), anyway=anyway) for other in others
            ]

    def page(self, *jobs: JobRef, num_samples: int = 6) -> str:
        """One self-contained HTML page about jobs: tables, charts, and num_samples samples of each to read.

        Of several jobs it also shows so many problems side by side, those on which they disagree first. The others are
        compared with the first one, with what speaks against it where that is so.
        """
        from pipeline.results.page import PageData, render_page

        ids = [_id(job) for job in jobs]
        with self._reading() as connection:
            same = report_queries.select_same_problems(connection, ids, limit=num_samples) if len(ids) > 1 else []
            data = PageData(
                jobs=tuple(report_queries.get_job(connection, job) for job in ids),
                stats=tuple(report_queries.get_stats(connection, job) for job in ids),
                comparisons=tuple(_comparisons(connection, ids)),
                samples=tuple(
                    tuple(
                        report_queries.get_sample(connection, sample)
                        for sample in report_queries.select_examples(connection, job, limit=num_samples)
                    )
                    for job in ids
                ),
                read_at=dt.datetime.now(dt.UTC),
                side_by_side=tuple(
                    tuple(report_queries.get_sample(connection, sample) for sample in samples) for samples in same
                ),
            )
        return render_page(data)

    def calibrate(
        self,
        job: JobRef,
        *,
        policy: str | None = None,
        policy_values: Mapping[str, Any] | None = None,
        shares: Sequence[float] | None = None,
        share_of: str = "steps",
        statistic: str | None = None,
        side: str | None = None,
        field: str | None = None,
        step_tokens: float | None = None,
        target: str | PathLike[str] | int | None = None,
        anyway: bool = False,
    ) -> Calibration:
        """Thresholds for wanted shares, from the signals that a pilot stored.

        policy, policy_values: whose threshold; None: all statistics that there are. shares: of the places of a
        statistic, or of all tokens (share_of="tokens"), that large shall write. statistic, side, field: for a policy
        that does not say itself what its threshold is compared with. step_tokens: of a step of large; None: the
        pilot's mean step. target: what will be scored: a problem file, "set:N" or a job; anyway: also where it shares
        problems with the pilot.

        Raises JobError for a pilot that still runs or stored no such signal, ConfigurationError for a wrong option, and
        where the target shares problems with the pilot.
        """
        from pipeline.calibration.request import SHARES, CalibrationRequest

        request = CalibrationRequest.parse(
            policy=policy, policy_values=policy_values, shares=SHARES if shares is None else shares, share_of=share_of,
            statistic=statistic, side=side, field=field, step_tokens=step_tokens,
        )  # fmt: skip
        with self._transaction() as connection:
            return pilots.get_calibration(connection, _id(job), request, target=target, anyway=anyway)

    def problem_scores(self, job: JobRef) -> tuple[ProblemScore, ...]:
        """The scored problems of a job, in the order of their set."""
        with self._transaction() as connection:
            return report_queries.problem_scores(connection, _id(job))

    def plan(
        self,
        job: JobRef,
        *,
        small_workers: int | None = None,
        large_workers: int | None = None,
        num_samples: int | None = None,
        slots: int | None = None,
        small_speedup: float = 1.0,
        large_speedup: float = 1.0,
        deadline: dt.timedelta | None = None,
        shared_cores: float | None = None,
        settings: Settings | None = None,
    ) -> Plan:
        """What a job like this one would take on other numbers of workers: a simulation fed with its segments.

        small_workers, large_workers: None for as many as wrote this job. num_samples: in all; None for as many as it
        has. slots: samples that each worker writes at the same time; None for as measured. small_speedup,
        large_speedup: how much faster an engine is than the one it ran on. deadline: also look for the fewest workers
        that meet it. shared_cores: engines on a CPU share so many cores, now and when the job was measured; None where
        every worker has a device of its own. settings: of upkeep and planning.

        Raises JobError where too little of the job is complete, ConfigurationError for an option that does not fit.
        """
        from pipeline.planning.answers import PlanRequest, make_plan
        from pipeline.planning.fitting import fit, sharing_of
        from pipeline.planning.pools import Admission

        chosen = settings or load_settings()
        limits = _part_costs(chosen.planning)
        with self._transaction() as connection:
            measured = planning.get_measured_job(connection, _id(job))
        sharing = None if shared_cores is None else sharing_of(measured, shared_cores, limits)
        fitted = fit(measured, sharing)
        asked = {ModelRole.SMALL: small_workers, ModelRole.LARGE: large_workers}
        given = {role: count for role, count in asked.items() if count is not None}
        request = PlanRequest(
            num_samples=num_samples or measured.num_samples,
            workers={**fitted.num_workers, **given},
            slots={role: slots or fitted.slots[role] for role in fitted.roles},
            speedups={ModelRole.SMALL: small_speedup, ModelRole.LARGE: large_speedup},
            deadline_s=None if deadline is None else deadline.total_seconds(),
            shared_cores=shared_cores,
        )
        admission = Admission(admit_ahead=chosen.upkeep.admit_ahead, tick_s=chosen.upkeep.tick_s)
        return make_plan(measured.job_id, fitted, request, limits=limits, admission=admission)

    def workers(self) -> list[WorkerReport]:
        """The workers that are alive."""
        with self._transaction() as connection:
            return report_queries.live_workers(connection)

    def leader(self) -> LeaderReport | None:
        """The upkeep worker that does the duties now; None: nobody does, and no job goes on."""
        with self._transaction() as connection:
            return get_leader(connection)

    def generated_tokens(self) -> dict[str, int]:
        """Tokens that all small and all large workers generated so far; differences over time give the speed."""
        with self._transaction() as connection:
            return report_queries.generated_tokens(connection)

    def sql(self, query: str, *, timeout_s: float = 60.0, max_rows: int = MAX_ROWS) -> Table:
        """One read-only statement, for whatever question the views answer.

        It runs in a READ ONLY transaction under a time limit, as the reader's role where its login is known. The rows
        are read one by one, to the first max_rows or 256 MiB; the rest is left out, and the table says so. Raises
        QueryRefused with the server's message for a query that Postgres refuses, and ConfigurationError for a login
        that READ ONLY does not hold: it could run programs on the server.
        """
        return run_query(self._reader_url, query, timeout_s=timeout_s, max_rows=max_rows, values=self._prices)


def _submission(problems: Submission | ProblemSet | str | PathLike[str] | int, options: SubmitOptions) -> Submission:
    if isinstance(problems, Submission):
        if options:
            raise ConfigurationError(f"a Submission has its options: set {', '.join(options)} in it")
        return problems
    source = problems if isinstance(problems, ProblemSet | int) else Path(problems)
    matched_to = options.get("matched_to")
    if isinstance(matched_to, Job):
        options["matched_to"] = matched_to.id
    return Submission.parse(problems=source, **options)


def _id(job: JobRef) -> int:
    return job.id if isinstance(job, Job) else job


def _told_by_judges(connection: Connection, problem_set_id: int) -> Iterator[str]:
    """A note where the reference answers of a new job can be read in the prompts of judges."""
    judges = judging.judges_that_tell(connection, problem_set_id)
    if judges:
        yield (
            "the reference answers of these problems stand in the prompts of judges, where logins that write can "
            f"read them; specthink rm {' '.join(map(str, judges))} ends that"
        )


def _require_known_states(jobs: Sequence[JobProgress]) -> None:
    """Raises DamagedRow for a job in a state that this program does not know: nobody can say when it ends."""
    for job in jobs:
        if isinstance(job.state, Unreadable):
            raise DamagedRow(f"job {job.job_id} cannot be waited for: {job.unreadable}")


def _part_costs(settings: PlanningSettings) -> PartCosts:
    """The numbers of the settings, each with the origin of its default."""
    from pipeline.planning.pools import PartCosts

    origins = {name: field.description or "" for name, field in type(settings).model_fields.items()}
    return PartCosts(**settings.model_dump(), origins=origins)


def _error_classes(given: Sequence[ErrorClass | str]) -> list[ErrorClass]:
    """Raises ConfigurationError with the classes there are."""
    known = {error_class.value: error_class for error_class in ErrorClass}
    for name in given:
        if name not in known:
            raise ConfigurationError(f"there is no error class {name!r}; there are {', '.join(known)}")
    return [known[name] for name in given]


def _check_budget(job: Job, max_tokens: int) -> None:
    if max_tokens <= job.config.sampling.max_tokens:
        raise ConfigurationError(
            f"max_tokens {max_tokens}: job {job.id} has {job.config.sampling.max_tokens}; give a larger budget"
        )
    if max_tokens > MAX_INTEGER:
        raise ConfigurationError(f"max_tokens {max_tokens}: give at most {MAX_INTEGER}")


def _comparisons(connection: Connection, ids: Sequence[int]) -> Iterator[Comparison]:
    """Of the first job with those of the others that have a problem in common with it."""
    for other in ids[1:]:
        with contextlib.suppress(NotComparable):
            yield report_queries.get_comparison(connection, ids[0], other, anyway=True)
