"""Reading one pipeline's database from Python: progress, results, statistics, comparisons, frames, SQL.

``pipeline.client.Client`` is a Reader that also submits and changes jobs.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from pydantic import SecretStr
from sqlalchemy import Connection, Engine, text

from pipeline.db import pilots, planning, replays, report_queries, written
from pipeline.db.leadership import get_leader
from pipeline.db.readonly_query import MAX_ROWS, Table, run_query
from pipeline.db.revision import require_current
from pipeline.db.session import open_database, transaction
from pipeline.errors import ConfigurationError, DamagedRow, NotComparable, PipelineError
from pipeline.interop.extras import extra_of
from pipeline.results.jobs import Job
from pipeline.results.notebook import ShownJob
from pipeline.results.replay import Replay, replay
from pipeline.results.reports import Comparison, JobErrors, JobProgress, JobStats, JobSummary, ProblemScore
from pipeline.results.samples import Result, SampleReport
from pipeline.results.unreadable import Unreadable
from pipeline.samples import ModelRole
from pipeline.settings import Settings, load_settings
from pipeline.workforce import LeaderReport, WorkerReport

if TYPE_CHECKING:
    from pipeline.calibration.calibrating import Calibration
    from pipeline.calibration.cues import CueCalibration
    from pipeline.frames import Frame
    from pipeline.planning.answers import Plan
    from pipeline.planning.pools import PartCosts
    from pipeline.settings import PlanningSettings, PriceSettings

JobRef: TypeAlias = Job | int
"""A job or its id."""

_SET_PRICE = text("SELECT set_config(:name, :price, true)")


class Reader:
    """A connection to one pipeline's database, and the questions that it answers. Thread-safe; close it, or use it in
    a ``with``.

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
    def _snapshot(self) -> Iterator[Connection]:
        """A transaction of the reader in which all statements see the same moment."""
        with transaction(self._reader_engine) as connection:
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield connection

    @contextlib.contextmanager
    def _priced(self, db_engine: Engine) -> Iterator[Connection]:
        """A transaction in which the views find the prices of the settings."""
        with transaction(db_engine) as connection:
            for name, price in self._prices.items():
                connection.execute(_SET_PRICE, {"name": name, "price": price})
            yield connection

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
        ids = [job_id_of(job) for job in jobs]
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

    def jobs(self, limit: int = 100) -> list[Job]:
        """The newest jobs, newest first."""
        with self._transaction() as connection:
            found = report_queries.list_jobs(connection, limit=limit)
        return [self._shown(job) for job in found]

    def job(self, job_id: int) -> Job:
        with self._transaction() as connection:
            return self._shown(report_queries.get_job(connection, job_id))

    def progress(self, *jobs: JobRef) -> list[JobProgress]:
        """How far some jobs are, and what they wait for; in the order of their ids."""
        with self._transaction() as connection:
            return report_queries.select_progress(connection, [job_id_of(job) for job in jobs])

    def results(self, job: JobRef, *, only_final: bool = False, batch: int = 200) -> Iterator[Result]:
        """Every sample of a job with its text so far, streamed: one batch at a time is in memory.

        All rows are of one moment. only_final: leave out samples that are still at work.
        """
        with self._reading() as connection:
            yield from report_queries.stream_results(connection, job_id_of(job), only_final=only_final, batch=batch)

    def write_inspect_log(
        self, job: JobRef, path: str | PathLike[str], *, only_final: bool = False
    ) -> tuple[Path, int]:
        """Write a job as a log of Inspect, streamed; returns the file and the number of samples.

        path: a file that ends in .eval or .json, or a folder, in which the log gets the name that Inspect would give
        it. All of it is of one moment. only_final: leave out samples that are still at work. Raises ConfigurationError
        where Inspect is not installed (the extra "inspect").
        """
        write_log = extra_of("inspect", "pipeline.interop.inspect_files").write_log
        with self._snapshot() as connection:
            told = written.get_written_job(connection, job_id_of(job))
            samples = written.stream_written(connection, job_id_of(job), only_final=only_final)
            found: tuple[Path, int] = write_log(told, samples, Path(path))
            return found

    def write_lm_eval(self, job: JobRef, folder: str | PathLike[str], *, only_final: bool = False) -> tuple[Path, int]:
        """Write a job as the files that ``lm_eval --log_samples`` leaves; returns their folder and how many samples.

        folder: a folder in it is named after the models. Scores are means over problems, as lm-eval has them.
        """
        from pipeline.interop.lm_eval import write_files

        with self._snapshot() as connection:
            told = written.get_written_job(connection, job_id_of(job))
            results = report_queries.stream_results(connection, job_id_of(job), only_final=only_final)
            return write_files(told, results, Path(folder))

    def push(self, job: JobRef, repo: str, *, public: bool = False, with_answers: bool = False) -> tuple[str, int]:
        """Push a job to a hub as a data set; returns its address and the number of samples.

        repo: OWNER/NAME; HF_TOKEN or the hub's own login says who pushes. public: where it is new, else it is private.
        with_answers: reference answers, grades' texts and hidden columns too. Raises ConfigurationError where the
        package is not installed (the extra "hub"), where this login may not read answers that are asked for, and for a
        data set that is public already where public is not asked for.
        """
        push = extra_of("hub", "pipeline.interop.push").push
        with self._snapshot() as connection:
            told = written.get_written_job(connection, job_id_of(job))
            samples = written.stream_written(connection, job_id_of(job), only_final=False, with_answers=with_answers)
            found: tuple[str, int] = push(told, samples, repo, public=public, with_answers=with_answers)
            return found

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
            yield from map(replay, replays.stream_complete_samples(connection, job_id_of(job)))

    def summary(self, *jobs: JobRef) -> list[JobSummary]:
        """One line per job: accuracy with its interval, lengths, shares, speed."""
        with self._transaction() as connection:
            return report_queries.select_summaries(connection, [job_id_of(job) for job in jobs])

    def stats(self, job: JobRef) -> JobStats:
        """All statistics of one job."""
        with self._transaction() as connection:
            return report_queries.get_stats(connection, job_id_of(job))

    def errors(self, job: JobRef) -> tuple[JobErrors, ...]:
        """What went wrong in a job, by class, the most frequent first."""
        with self._transaction() as connection:
            return report_queries.get_errors(connection, job_id_of(job))

    def compare(self, first: JobRef, *others: JobRef, anyway: bool = False) -> list[Comparison]:
        """Each of the others compared with the first, paired by problem.

        Raises NotComparable where two are not on the same problem set or were not graded alike; anyway: compare them
        all the same, by the ids of the problems in their files, and say so in the result.
        """
        with self._transaction() as connection:
            return [
                report_queries.get_comparison(connection, job_id_of(first), job_id_of(other), anyway=anyway)
                for other in others
            ]

    def page(self, *jobs: JobRef, num_samples: int = 6) -> str:
        """One self-contained HTML page about jobs: tables, charts, and num_samples samples of each to read.

        Of several jobs it also shows so many problems side by side, those on which they disagree first. The others are
        compared with the first one, with what speaks against it where that is so.
        """
        from pipeline.results.page import PageData, render_page

        ids = [job_id_of(job) for job in jobs]
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
        target: str | PathLike[str] | JobRef | None = None,
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
            return pilots.get_calibration(connection, job_id_of(job), request, target=_scored(target), anyway=anyway)

    def switch_cues(
        self, job: JobRef, *, target: str | PathLike[str] | JobRef | None = None, anyway: bool = False
    ) -> CueCalibration:
        """Words for the policy ``relay``: those behind which large was sure, in a pilot of large alone with MARGIN.

        target, anyway: as for ``calibrate``. Raises JobError for a pilot that still runs, or without margins of what
        large thought, and ConfigurationError where the target shares problems with it.
        """
        with self._transaction() as connection:
            return pilots.get_cue_calibration(connection, job_id_of(job), target=_scored(target), anyway=anyway)

    def problem_scores(self, job: JobRef) -> tuple[ProblemScore, ...]:
        """The scored problems of a job, in the order of their set."""
        with self._transaction() as connection:
            return report_queries.problem_scores(connection, job_id_of(job))

    def plan(
        self,
        job: JobRef,
        *,
        small_workers: int | None = None,
        large_workers: int | None = None,
        judge_workers: int | None = None,
        num_samples: int | None = None,
        slots: int | None = None,
        small_speedup: float = 1.0,
        large_speedup: float = 1.0,
        judge_speedup: float = 1.0,
        deadline: dt.timedelta | None = None,
        shared_cores: float | None = None,
        settings: Settings | None = None,
    ) -> Plan:
        """What a job like this one would take on other numbers of workers: a simulation fed with what it stored.

        small_workers and the like: None for as many as wrote this job. num_samples: in all; None for as many as it
        has. slots: samples that each worker writes at the same time; None for as measured. small_speedup and the like:
        how much faster an engine is than the one it ran on. deadline: also look for the fewest workers
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
            measured = planning.get_measured_job(connection, job_id_of(job))
        sharing = None if shared_cores is None else sharing_of(measured, shared_cores, limits)
        fitted = fit(measured, sharing)
        asked = {ModelRole.SMALL: small_workers, ModelRole.LARGE: large_workers, ModelRole.JUDGE: judge_workers}
        given = {role: count for role, count in asked.items() if count is not None}
        speedups = {
            ModelRole.SMALL: small_speedup, ModelRole.LARGE: large_speedup, ModelRole.JUDGE: judge_speedup,
        }  # fmt: skip
        for role in ModelRole:
            if role not in fitted.roles and (role in given or speedups[role] != 1.0):
                raise ConfigurationError(
                    f"the samples of job {measured.job_id} need no {role} workers; leave out what is said of them"
                )
        request = PlanRequest(
            num_samples=num_samples or measured.num_samples,
            workers={**fitted.num_workers, **given},
            slots={role: slots or fitted.slots[role] for role in fitted.roles},
            speedups=speedups,
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

    def _shown(self, job: Job) -> Job:
        return ShownJob.of(job, self._shown_values)

    def _shown_values(self, job_id: int) -> tuple[JobProgress, JobSummary]:
        (progress,), (summary,) = self.progress(job_id), self.summary(job_id)
        return progress, summary

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

    def frame(self, query: str, *, timeout_s: float = 60.0, max_rows: int = MAX_ROWS) -> Frame:
        """What one read-only statement gives, for pandas, polars or DuckDB: ``client.frame("…").to_pandas()``.

        Runs as ``sql`` does. Raises QueryRefused where there are more rows than max_rows or 256 MiB hold: a frame is
        never a part of what was asked.
        """
        from pipeline.frames import frame_of_table

        return frame_of_table(self.sql(query, timeout_s=timeout_s, max_rows=max_rows))

    def samples(self, job: JobRef, *, only_final: bool = False) -> Frame:
        """Every sample of a job with its text, as ``results``: ``client.samples(job).to_pandas()``. All are in memory.

        Columns are the fields of Result; also_accepted and metadata are JSON. only_final: leave out samples that are
        still at work.
        """
        from pipeline.frames import frame_of_results

        return frame_of_results(self.results(job, only_final=only_final))


def job_id_of(job: JobRef) -> int:
    return job.id if isinstance(job, Job) else job


def _scored(target: str | PathLike[str] | JobRef | None) -> str | PathLike[str] | int | None:
    return target.id if isinstance(target, Job) else target


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


def _comparisons(connection: Connection, ids: Sequence[int]) -> Iterator[Comparison]:
    """Of the first job with those of the others that have a problem in common with it."""
    for other in ids[1:]:
        with contextlib.suppress(NotComparable):
            yield report_queries.get_comparison(connection, ids[0], other, anyway=True)
