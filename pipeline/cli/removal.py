"""Commands that remove jobs: rm and prune."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import StateDir, make_group, settings_of
from pipeline.cli.render import console, counted, table

if TYPE_CHECKING:
    import datetime as dt

    from sqlalchemy import Engine

    from pipeline.db.unused import UnusedLives, UnusedSet
    from pipeline.results.jobs import StoredEvents, StoredJob

PANEL = "Jobs"

commands = make_group()

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
_UNITS = {"d": "days", "h": "hours", "w": "weeks"}


@commands.command(rich_help_panel=PANEL, epilog="Examples: specthink rm 3 · specthink rm 3 4 5 --yes")
def rm(
    context: typer.Context,
    jobs: Annotated[list[int], typer.Argument(metavar="JOB...", help="Jobs that have ended.", min=1)],
    yes: Yes = False,
    state_dir: StateDir = None,
) -> None:
    """Remove jobs with all that was written for them, for good. Their problem sets stay, but for a judge's prompts.

    Needs the login that owns the schema. The space is used again by later jobs; VACUUM FULL gives it back to the disk.
    """
    with owner_database(context, state_dir) as db_engine:
        _remove_jobs(db_engine, sorted(set(jobs)), yes=yes)


@commands.command(
    rich_help_panel=PANEL,
    epilog="Examples: specthink prune --older-than 30d --dry-run · specthink prune --events-older-than 4w",
)
def prune(
    context: typer.Context,
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="Jobs that ended, and what no job uses: 12h, 30d or 4w.")
    ] = None,
    events_older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="Of jobs that ended, only the events of their samples.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list them.")] = False,
    yes: Yes = False,
    state_dir: StateDir = None,
) -> None:
    """Remove the jobs that ended long ago, with all that was written for them, for good.

    Then what nobody uses and is as old: problem sets without a job, workers that ended and wrote nothing that is
    stored, engines of none. Without their samples' events jobs stay whole but for the log: doctor says what it cannot
    check.
    """
    if older_than is None and events_older_than is None:
        raise typer.BadParameter("give --older-than or --events-older-than", param_hint="--older-than")
    of_jobs = None if older_than is None else parse_age(older_than)
    of_events = None if events_older_than is None else parse_age(events_older_than, option="--events-older-than")
    with owner_database(context, state_dir) as db_engine:
        if of_events is not None:
            _prune_events(db_engine, of_events, yes=yes, dry_run=dry_run)
        if of_jobs is not None:
            _prune_jobs(db_engine, of_jobs, yes=yes, dry_run=dry_run)
            _prune_unused(db_engine, of_jobs, yes=yes, dry_run=dry_run)


def parse_age(given: str, *, option: str = "--older-than") -> dt.timedelta:
    """12h, 30d or 4w as a duration."""
    import datetime as dt

    found = re.fullmatch(r"(\d{1,6})([hdw])", given)
    if found is None:
        raise typer.BadParameter(f"{given!r}: write 12h, 30d or 4w", param_hint=option)
    return dt.timedelta(**{_UNITS[found[2]]: int(found[1])})


@contextmanager
def owner_database(context: typer.Context, state_dir: Path | None) -> Iterator[Engine]:
    """The database as the address's login, which must be the owner's to remove anything."""
    from pipeline.db.revision import require_current
    from pipeline.db.session import open_database
    from pipeline.embedded import resolve_connections

    url = resolve_connections(settings_of(context, state_dir)).database_url
    db_engine = open_database(url, application_name="specthink rm")
    try:
        require_current(db_engine)
        yield db_engine
    finally:
        db_engine.dispose()


def _prune_jobs(db_engine: Engine, age: dt.timedelta, *, yes: bool, dry_run: bool) -> None:
    from pipeline.db.removal import jobs_ended_before
    from pipeline.db.session import transaction

    with transaction(db_engine) as connection:
        chosen = jobs_ended_before(connection, age)
    _remove_jobs(db_engine, chosen, yes=yes, dry_run=dry_run)


def _remove_jobs(db_engine: Engine, chosen: list[int], *, yes: bool, dry_run: bool = False) -> None:
    """List jobs with their sizes, ask, and remove them, each in a transaction of its own."""
    from pipeline.db.removal import remove_job, stored_jobs
    from pipeline.db.session import transaction

    if not chosen:
        typer.echo("no job to remove")
        return
    with transaction(db_engine) as connection:
        found = stored_jobs(connection, chosen)
    rows = [[job.job_id, job.name, job.state, job.finished_at, job.num_samples, size(job.num_bytes)] for job in found]
    console().print(table(["job", "name", "state", "ended", "samples", "size"], rows))
    if not _agreed(f"{counted(len(found), 'job')}, {_total(found)}", yes=yes, dry_run=dry_run):
        return
    for job in found:
        with transaction(db_engine) as connection:
            remove_job(connection, job.job_id)
        typer.echo(f"job {job.job_id} removed, {size(job.num_bytes)}")


def _prune_events(db_engine: Engine, age: dt.timedelta, *, yes: bool, dry_run: bool) -> None:
    from pipeline.db.removal import old_events, remove_events
    from pipeline.db.session import transaction

    with transaction(db_engine) as connection:
        found = old_events(connection, age)
    if not found:
        typer.echo("no events to remove")
        return
    rows = [[job.job_id, job.name, job.state, job.finished_at, job.num_rows, size(job.num_bytes)] for job in found]
    console().print(table(["job", "name", "state", "ended", "events", "size"], rows))
    if not _agreed(f"the events of {counted(len(found), 'job')}, {_total(found)}", yes=yes, dry_run=dry_run):
        return
    for job in found:
        with transaction(db_engine) as connection:
            remove_events(connection, job.job_id)
        typer.echo(f"{counted(job.num_rows, 'event')} of job {job.job_id} removed, {size(job.num_bytes)}")


def _prune_unused(db_engine: Engine, age: dt.timedelta, *, yes: bool, dry_run: bool) -> None:
    from pipeline.db.session import transaction
    from pipeline.db.unused import remove_lives, remove_set, unused_lives, unused_sets

    with transaction(db_engine) as connection:
        sets, lives = unused_sets(connection, age), unused_lives(connection, age)
    if not (sets or lives.workers or lives.engines):
        typer.echo("nothing unused to remove")
        return
    if sets:
        rows = [[each.id, each.name, each.created_at, each.num_problems, size(each.num_bytes)] for each in sets]
        console().print(table(["set", "name", "stored", "problems", "size"], rows))
    what = f"{counted(len(sets), 'problem set')}, {_total(sets)}, {_counted_lives(lives)}"
    if not _agreed(f"what nobody uses: {what}", yes=yes, dry_run=dry_run):
        return
    for each in sets:
        with transaction(db_engine) as connection:
            is_removed = remove_set(connection, each.id)
        typer.echo(f"problem set {each.id} {'removed' if is_removed else 'stays: it has a job now'}")
    with transaction(db_engine) as connection:
        lives = remove_lives(connection, age)
    typer.echo(f"{_counted_lives(lives)} removed")


def _counted_lives(lives: UnusedLives) -> str:
    return f"{counted(len(lives.workers), 'worker')} and {counted(len(lives.engines), 'engine')}"


def _total(found: Iterable[StoredJob | StoredEvents | UnusedSet]) -> str:
    return size(sum(each.num_bytes for each in found))


def _agreed(what: str, *, yes: bool, dry_run: bool) -> bool:
    """Whether it is to be removed: nothing is by a dry run, and whatever is was agreed to."""
    if dry_run:
        typer.echo(f"nothing was removed of {what}")
        return False
    if yes:
        return True
    if not sys.stdin.isatty():
        raise typer.BadParameter("there is nobody to ask: give --yes", param_hint="--yes")
    if typer.confirm(f"remove {what}, for good?"):
        return True
    typer.echo("nothing was removed")
    return False


def size(num_bytes: int) -> str:
    """12 kB, 3.4 MB, 1.2 GB."""
    if num_bytes < 1_000_000:
        return f"{-(-num_bytes // 1000)} kB"
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:.1f} GB"
