"""Commands that remove jobs: rm and prune."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import StateDir, make_group, settings_of
from pipeline.cli.render import console, counted, table

if TYPE_CHECKING:
    import datetime as dt

    from sqlalchemy import Engine

    from pipeline.results.reports import StoredJob

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
    _remove(context, state_dir, lambda db_engine: sorted(set(jobs)), yes=yes)


@commands.command(
    rich_help_panel=PANEL,
    epilog="Examples: specthink prune --older-than 30d --dry-run · specthink prune --older-than 4w",
)
def prune(
    context: typer.Context,
    older_than: Annotated[str, typer.Option(metavar="AGE", help="Since they ended: 12h, 30d or 4w.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list them.")] = False,
    yes: Yes = False,
    state_dir: StateDir = None,
) -> None:
    """Remove the jobs that ended long ago, with all that was written for them, for good.

    Their problem sets stay, but for the prompts of judges.
    """
    age = parse_age(older_than)

    def ended(db_engine: Engine) -> list[int]:
        from pipeline.db.removal import jobs_ended_before
        from pipeline.db.session import transaction

        with transaction(db_engine) as connection:
            return jobs_ended_before(connection, age)

    _remove(context, state_dir, ended, yes=yes, dry_run=dry_run)


def parse_age(given: str) -> dt.timedelta:
    """12h, 30d or 4w as a duration."""
    import datetime as dt

    found = re.fullmatch(r"(\d{1,6})([hdw])", given)
    if found is None:
        raise typer.BadParameter(f"{given!r}: write 12h, 30d or 4w", param_hint="--older-than")
    return dt.timedelta(**{_UNITS[found[2]]: int(found[1])})


def _remove(
    context: typer.Context,
    state_dir: Path | None,
    choose: Callable[[Engine], list[int]],
    *,
    yes: bool,
    dry_run: bool = False,
) -> None:
    """List the chosen jobs with their sizes, ask, and remove them, each in a transaction of its own."""
    from pipeline.db.removal import remove_job, stored_jobs
    from pipeline.db.revision import require_current
    from pipeline.db.session import open_database, transaction
    from pipeline.embedded import resolve_connections

    db_engine = open_database(
        resolve_connections(settings_of(context, state_dir)).database_url, application_name="specthink rm"
    )
    try:
        require_current(db_engine)
        chosen = choose(db_engine)
        if not chosen:
            typer.echo("no job to remove")
            return
        with transaction(db_engine) as connection:
            found = stored_jobs(connection, chosen)
        _print(found)
        if dry_run or not (yes or _agrees(found)):
            typer.echo("nothing was removed")
            return
        for job in found:
            with transaction(db_engine) as connection:
                remove_job(connection, job.job_id)
            typer.echo(f"job {job.job_id} removed, {size(job.num_bytes)}")
    finally:
        db_engine.dispose()


def _print(jobs: list[StoredJob]) -> None:
    rows = [[job.job_id, job.name, job.state, job.finished_at, job.num_samples, size(job.num_bytes)] for job in jobs]
    console().print(table(["job", "name", "state", "ended", "samples", "size"], rows))


def _agrees(jobs: list[StoredJob]) -> bool:
    if not sys.stdin.isatty():
        raise typer.BadParameter("there is nobody to ask: give --yes", param_hint="--yes")
    total = size(sum(job.num_bytes for job in jobs))
    return typer.confirm(f"remove {counted(len(jobs), 'job')}, {total}, for good?")


def size(num_bytes: int) -> str:
    """12 kB, 3.4 MB, 1.2 GB."""
    if num_bytes < 1_000_000:
        return f"{-(-num_bytes // 1000)} kB"
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes < 1e9 else f"{num_bytes / 1e9:.1f} GB"
