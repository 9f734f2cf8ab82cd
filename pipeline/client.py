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
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import psycopg
from pydantic import SecretStr, ValidationError
from sqlalchemy import Connection, Engine, make_url

from pipeline.controls import matched_values
from pipeline.db import replays, reports, submissions
from pipeline.db.migrate import require_current
from pipeline.db.session import open_database, transaction
from pipeline.errors import ConfigurationError, JobError, NotComparable, PipelineError, ServiceUnavailable
from pipeline.hand_over import ThinkPhase, settle_think_phase
from pipeline.jobs import JobConfig, ModelSpec, SamplingSpec
from pipeline.policies import make_policy, parse_policy
from pipeline.policies.base import Generate, SampleContext
from pipeline.problems import ColumnNames, ProblemSet, check_prompt_lengths, load_problem_set
from pipeline.recipes import Recipe, find_recipe
from pipeline.replay import Replay, replay
from pipeline.reports import (
    Comparison,
    Job,
    JobProgress,
    JobStats,
    JobSummary,
    ProblemScore,
    Result,
    SampleReport,
    WorkerReport,
)
from pipeline.samples import ModelRole
from pipeline.settings import Settings, load_settings

if TYPE_CHECKING:
    from pipeline.chat import ChatModel

JobRef: TypeAlias = Job | int
"""A job or its id."""

_PACKAGES = ("specthink", "celery", "sqlalchemy", "psycopg", "pydantic", "tokenizers", "math-verify")


@dataclass(frozen=True, slots=True)
class Table:
    """What a query gave: names of the columns, and the rows in the order they came."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]

    def as_dicts(self) -> list[dict[str, Any]]:
        """One dict per row; a column name that comes again gets a number: ``n``, ``n_2``."""
        return [dict(zip(self._distinct_columns(), row, strict=True)) for row in self.rows]

    def _distinct_columns(self) -> list[str]:
        seen: dict[str, int] = {}
        names = []
        for name in self.columns:
            seen[name] = seen.get(name, 0) + 1
            names.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
        return names


class Client:
    """A connection to one pipeline's database. Thread-safe; close it, or use it in a ``with``.

    Every method raises ServiceUnavailable when Postgres cannot be reached, and NotFound for a job or sample that does
    not exist.
    """

    def __init__(self, database_url: SecretStr, reader_url: SecretStr | None = None) -> None:
        self._database_url = database_url
        self._reader_url = reader_url or database_url
        self._db_engine: Engine = open_database(database_url, application_name="specthink client")

    @classmethod
    def connect(cls, settings: Settings | None = None, *, database_url: str | None = None) -> Self:
        """Connect to the database of the settings: SPECTHINK_DATABASE_URL, else the embedded one of the state folder.

        database_url: a server of your own, whatever the settings say. Raises ConfigurationError when the database has
        not the schema of this version.
        """
        if database_url is not None:
            client = cls(SecretStr(database_url))
        else:
            from pipeline.embedded import resolve_connections

            connections = resolve_connections(settings or load_settings())
            client = cls(connections.database_url, connections.reader_url)
        try:
            require_current(client._db_engine)
        except PipelineError:
            client.close()
            raise
        return client

    def close(self) -> None:
        self._db_engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with transaction(self._db_engine) as connection:
            yield connection

    # Doing

    def submit(
        self,
        problems: str | PathLike[str] | ProblemSet,
        *,
        small: str | PathLike[str] | None = None,
        large: str | PathLike[str] | None = None,
        policy: str = "speculative-thinking:improved",
        num_samples: int = 1,
        seed: int = 0,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        max_tokens: int | None = None,
        limit: int | None = None,
        name: str | None = None,
        prompt_template: str | None = None,
        grader: str | None = None,
        columns: ColumnNames | None = None,
        recipe: str | None = None,
        matched_to: JobRef | None = None,
    ) -> Job:
        """Store a job and all of its samples in one transaction.

        problems: a .jsonl, .csv or .parquet file, or a set. small, large: the name workers serve a model under, or a
        local folder; a folder's tokenizer and chat template are fingerprinted, so that a worker with another version
        refuses the job, and every prompt is measured against the model's context. A pair that cannot write one text
        is refused, where both are folders or in the hub's cache here. A model that the policy does not call for is
        ignored. temperature, top_p, top_k, max_tokens, prompt_template, grader: None takes the recipe's, else the
        defaults of SamplingSpec and "math". limit: use the first so many problems. recipe: a name in pipeline.recipes;
        the file is then in the columns that this set was published in. matched_to: an ended job, whose takeovers the
        policy "random" shall match in number and length.

        Raises ProblemSetError for a bad file and ConfigurationError for a bad option; nothing is stored then.
        """
        chosen = find_recipe(recipe) if recipe else None
        problem_set = _read_problems(problems, columns, chosen)
        given = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "max_tokens": max_tokens}
        spec = parse_policy(policy, None if matched_to is None else self._matched_values(policy, matched_to))
        roles = make_policy(spec).roles
        models = {ModelRole.SMALL: small, ModelRole.LARGE: large}
        used = {role: model for role, model in models.items() if model is not None and role in roles}
        chats = {role: load_chat_model(model) for role, model in used.items()}
        specs = {role: _model_spec(model, chats[role]) for role, model in used.items()}
        with _options_checked():
            usual = (chosen.sampling if chosen else SamplingSpec()).model_dump()
            sampling = SamplingSpec(**usual | {key: value for key, value in given.items() if value is not None})
            config = JobConfig(
                small=specs.get(ModelRole.SMALL),
                large=specs.get(ModelRole.LARGE),
                policy=spec,
                sampling=sampling,
                num_samples=num_samples,
                seed=seed,
                prompt_template=prompt_template or (chosen.prompt_template if chosen else "math"),
                grader=grader or (chosen.grader if chosen else "math"),
                limit=limit,
            )
        _check_names(config)
        opener = first_role(config)
        think = _think_phase(opener, used, chats)
        _check_prompts(problem_set, config, [chat for chat in chats.values() if chat is not None])
        num_problems = min(limit or len(problem_set.problems), len(problem_set.problems))
        with self._transaction() as connection:
            job_id = submissions.insert_job(
                connection,
                name=name or _job_name(problem_set, policy, matched_to),
                policy=policy,
                problem_set_id=submissions.put_problem_set(connection, problem_set),
                num_problems=num_problems,
                config=config,
                first_role=opener,
                versions=package_versions(),
                think=think,
            )
        return self.job(job_id)

    def _matched_values(self, policy: str, job: JobRef) -> dict[str, Any]:
        """What random delegation is to be set to. Raises ConfigurationError for another policy, JobError for a job that
        still runs: its takeovers are not all there yet."""
        if policy != "random":
            raise ConfigurationError(f"only the policy 'random' can be matched to a job, not {policy!r}")
        with self._transaction() as connection:
            found = reports.get_job(connection, _id(job))
            if not found.is_final:
                raise JobError(found.id, "it still runs; a job can be matched once it has ended")
            takeovers = reports.count_takeovers(connection, found.id)
            num_breaks = reports.count_breaks(connection, found.id)
        return matched_values(found.config.policy, num_breaks=num_breaks, takeovers=takeovers)

    def cancel(self, job: JobRef) -> int:
        """End a running job; returns how many of its samples were still open. Raises JobError where it has ended."""
        with self._transaction() as connection:
            cancelled = submissions.cancel_job(connection, _id(job))
            if cancelled is None:
                found = reports.get_job(connection, _id(job))
                raise JobError(found.id, f"it is {found.state}; only a running job can be cancelled")
        return cancelled

    def wait(
        self,
        *jobs: JobRef,
        on_progress: Callable[[list[JobProgress]], None] | None = None,
        interval_s: float = 0.5,
        timeout_s: float | None = None,
    ) -> list[JobProgress]:
        """Return once all of the jobs have ended, with their last progress.

        on_progress: called with the present progress each time it is read. interval_s: the pause between two reads; it
        grows with the time a read takes. Raises TimeoutError after timeout_s.
        """
        start = time.monotonic()
        while True:
            asked_at = time.monotonic()
            progress = self.progress(*jobs)
            took_s = time.monotonic() - asked_at
            if on_progress:
                on_progress(progress)
            if all(job.is_final for job in progress):
                return progress
            if timeout_s is not None and time.monotonic() - start > timeout_s:
                raise TimeoutError(f"jobs {[job.job_id for job in progress]} did not end within {timeout_s:.0f} s")
            time.sleep(max(interval_s, 10 * took_s))

    # Reading

    def jobs(self, limit: int = 100) -> list[Job]:
        """The newest jobs, newest first."""
        with self._transaction() as connection:
            return reports.list_jobs(connection, limit=limit)

    def job(self, job_id: int) -> Job:
        with self._transaction() as connection:
            return reports.get_job(connection, job_id)

    def progress(self, *jobs: JobRef) -> list[JobProgress]:
        """How far some jobs are, and what they wait for; in the order of their ids."""
        with self._transaction() as connection:
            return reports.select_progress(connection, [_id(job) for job in jobs])

    def results(self, job: JobRef, *, only_final: bool = False, batch: int = 200) -> Iterator[Result]:
        """Every sample of a job with its text so far, streamed: one batch at a time is in memory.

        All rows are of one moment. only_final: leave out samples that are still at work.
        """
        with self._transaction() as connection:
            yield from reports.stream_results(connection, _id(job), only_final=only_final, batch=batch)

    def sample(self, sample_id: int) -> SampleReport:
        """One sample with its segments, and its steps once it is complete."""
        with self._transaction() as connection:
            return reports.get_sample(connection, sample_id)

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
            return reports.select_summaries(connection, [_id(job) for job in jobs])

    def stats(self, job: JobRef) -> JobStats:
        """All statistics of one job."""
        with self._transaction() as connection:
            return reports.get_stats(connection, _id(job))

    def compare(self, first: JobRef, *others: JobRef, anyway: bool = False) -> list[Comparison]:
        """Each of the others compared with the first, paired by problem.

        Raises NotComparable where two are not on the same problem set or were not graded alike; anyway: compare them
        all the same, by the ids of the problems in their files, and say so in the result.
        """
        with self._transaction() as connection:
            return [reports.get_comparison(connection, _id(first), _id(other), anyway=anyway) for other in others]

    def page(self, *jobs: JobRef, num_samples: int = 6) -> str:
        """One self-contained HTML page about jobs: tables, charts, and num_samples samples of each to read.

        The others are compared with the first one, with what speaks against it where that is so.
        """
        from pipeline.page import PageData, render_page

        ids = [_id(job) for job in jobs]
        with self._transaction() as connection:
            data = PageData(
                jobs=tuple(reports.get_job(connection, job) for job in ids),
                stats=tuple(reports.get_stats(connection, job) for job in ids),
                comparisons=tuple(_comparisons(connection, ids)),
                samples=tuple(
                    tuple(
                        reports.get_sample(connection, sample)
                        for sample in reports.select_examples(connection, job, limit=num_samples)
                    )
                    for job in ids
                ),
                read_at=dt.datetime.now(dt.UTC),
            )
        return render_page(data)

    def problem_scores(self, job: JobRef) -> tuple[ProblemScore, ...]:
        """The scored problems of a job, in the order of their set."""
        with self._transaction() as connection:
            return reports.problem_scores(connection, _id(job))

    def workers(self) -> list[WorkerReport]:
        """The workers that are alive."""
        with self._transaction() as connection:
            return reports.live_workers(connection)

    def generated_tokens(self) -> dict[str, int]:
        """Tokens that all small and all large workers generated so far; differences over time give the speed."""
        with self._transaction() as connection:
            return reports.generated_tokens(connection)

    def sql(self, query: str, *, timeout_s: float = 60.0) -> Table:
        """One read-only statement, for whatever question the views answer.

        It runs in a READ ONLY transaction under a time limit, as the reader role where the database is embedded.
        Raises ConfigurationError with the server's message for a query that Postgres refuses.
        """
        url = make_url(self._reader_url.get_secret_value()).set(drivername="postgresql")
        options = f"-c default_transaction_read_only=on -c statement_timeout={int(timeout_s * 1000)}"
        try:
            with psycopg.connect(
                url.render_as_string(hide_password=False), options=options, application_name="specthink sql",
                connect_timeout=10,
            ) as connection:  # fmt: skip
                connection.read_only = True
                # Prepared: the server then takes one statement only, so that none can end the transaction for another.
                cursor = connection.execute(query.strip().removesuffix(";").encode(), prepare=True)
                return _table(cursor)
        except psycopg.errors.QueryCanceled as error:
            raise PipelineError(f"the query ran longer than {timeout_s:g} s; narrow it, or give --timeout") from error
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction) as error:
            raise ConfigurationError(f"specthink sql only reads: {_first_line(error)}") from error
        except psycopg.OperationalError as error:
            if error.sqlstate:
                raise ConfigurationError(f"Postgres refused the query: {_first_line(error)}") from error
            raise ServiceUnavailable(f"Postgres cannot be reached: {_first_line(error)}") from error
        except psycopg.Error as error:
            raise ConfigurationError(f"Postgres refused the query: {str(error).strip()}") from error


def _table(cursor: psycopg.Cursor[Any]) -> Table:
    if cursor.description is None:
        return Table(columns=(), rows=[])
    return Table(columns=tuple(column.name for column in cursor.description), rows=cursor.fetchall())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _id(job: JobRef) -> int:
    return job.id if isinstance(job, Job) else job


@contextlib.contextmanager
def _options_checked() -> Iterator[None]:
    """Turns pydantic's errors into one line that names the options."""
    try:
        yield
    except ValidationError as error:
        faults = (
            ": ".join(filter(None, [" ".join(str(part) for part in fault["loc"]), _plain_message(fault["msg"])]))
            for fault in error.errors()
        )
        raise ConfigurationError("; ".join(faults)) from error


def _plain_message(message: str) -> str:
    return message.removeprefix("Value error, ")


def load_chat_model(model: str | PathLike[str]) -> ChatModel | None:
    """The tokenizer and chat template of a local folder; None for a name, which only workers need to know.

    Raises ConfigurationError for a path that is no folder.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        from pipeline.chat import ChatModel

        return ChatModel.load(path)
    looks_like_path = isinstance(model, PathLike) or model.startswith(("/", ".", "~")) or model.count("/") > 1
    if looks_like_path:
        raise ConfigurationError(f"model {str(model)!r}: there is no such folder; give a model's folder or hub id")
    return None


def _read_problems(
    problems: str | PathLike[str] | ProblemSet, columns: ColumnNames | None, recipe: Recipe | None
) -> ProblemSet:
    if recipe is None:
        return problems if isinstance(problems, ProblemSet) else load_problem_set(problems, columns=columns)
    if columns is not None and columns != ColumnNames():
        raise ConfigurationError(f"the recipe {recipe.name!r} knows its columns ({recipe.published}); name none")
    if isinstance(problems, ProblemSet):
        raise ConfigurationError(f"the recipe {recipe.name!r} reads a file; a problem set is past it")
    return recipe.load(problems)


def _job_name(problem_set: ProblemSet, policy: str, matched_to: JobRef | None) -> str:
    matched = "" if matched_to is None else f" matched to job {_id(matched_to)}"
    return f"{problem_set.name} · {policy}{matched}"


def _comparisons(connection: Connection, ids: Sequence[int]) -> Iterator[Comparison]:
    """Of the first job with those of the others that have a problem in common with it."""
    for other in ids[1:]:
        with contextlib.suppress(NotComparable):
            yield reports.get_comparison(connection, ids[0], other, anyway=True)


def _model_spec(model: str | PathLike[str], chat: ChatModel | None) -> ModelSpec:
    if chat is None:
        return ModelSpec(name=str(model))
    from pipeline.chat import served_name

    return ModelSpec(name=served_name(model), fingerprint=chat.fingerprint)


def _think_phase(
    opener: ModelRole, models: Mapping[ModelRole, str | PathLike[str]], chats: Mapping[ModelRole, ChatModel | None]
) -> ThinkPhase | None:
    """How the job's texts mark the think phase; None where only workers can tell.

    Raises ConfigurationError for a pair that cannot write one text.
    """
    from pipeline.chat import ChatModel

    known = {role: chats[role] or ChatModel.find_cached(str(model)) for role, model in models.items()}
    first, *others = (known[role] for role in sorted(known, key=lambda role: role is not opener))
    if first is None or None in others:
        return None
    return settle_think_phase(first, *others)


def _check_names(config: JobConfig) -> None:
    """Raises ConfigurationError for a prompt template or grader that does not exist."""
    from pipeline.grading import make_grader
    from pipeline.prompts import prompt_template

    prompt_template(config.prompt_template)
    make_grader(config.grader)


def _check_prompts(problem_set: ProblemSet, config: JobConfig, chats: Sequence[ChatModel]) -> None:
    """Render every prompt that will be used, and measure it with each model whose tokenizer is at hand."""
    from pipeline.prompts import render_user_message

    used = replace(problem_set, problems=problem_set.problems[: config.limit])
    messages = {problem.external_id: render_user_message(config.prompt_template, problem) for problem in used.problems}
    for chat in chats:
        if chat.max_model_len is None:
            continue
        check_prompt_lengths(
            used,
            lambda message, chat=chat: len(chat.prompt_ids(message)),  # type: ignore[misc]
            chat.max_model_len - 1,  # room for one token of output
            render=lambda problem: messages[problem.external_id],
        )


def first_role(config: JobConfig) -> ModelRole:
    """Who opens a sample under this job's policy."""
    context = SampleContext(
        job_seed=config.seed,
        problem_id="",
        sample_index=0,
        max_tokens=config.sampling.max_tokens,
        think_end="",
        num_prompt_tokens=0,
    )
    decisions = make_policy(config.policy).start(context).decisions
    return next(decision.role for decision in decisions if isinstance(decision, Generate))


def package_versions() -> dict[str, str]:
    """Versions of the packages that shape a job at submit; those not installed are left out."""
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions
