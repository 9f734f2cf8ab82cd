"""Commands that keep jobs as files: archive and unarchive."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import StateDir, make_group
from pipeline.cli.removal import PANEL, owner_database, parse_age, size
from pipeline.cli.render import counted

if TYPE_CHECKING:
    import datetime as dt

    from sqlalchemy import Engine

    from pipeline.archives.manifest import Manifest

commands = make_group()


@commands.command(
    rich_help_panel=PANEL,
    epilog="Examples: specthink archive 3 --to archive · specthink archive --older-than 30d --to archive --remove",
)
def archive(
    context: typer.Context,
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="Each job gets a folder job-ID in it.")],
    jobs: Annotated[list[int] | None, typer.Argument(metavar="[JOB...]", help="Jobs that have ended.", min=1)] = None,
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="All that ended before: 12h, 30d or 4w.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Then delete them from the database.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Write jobs that have ended to Parquet files, with all that was written for them; unarchive brings them back.

    Each file is read back and compared before a job counts as archived, and before it is deleted. Three files tell
    answers, and only you can read them: reference_answers, hidden_columns and grades. With --older-than, jobs that
    FOLDER has already are left as they are.
    """
    if not jobs and older_than is None:
        raise typer.BadParameter("name jobs, or give --older-than", param_hint="JOB")
    age = None if older_than is None else parse_age(older_than)
    with owner_database(context, state_dir) as db_engine:
        for job_id in _chosen(db_engine, jobs or [], age, to):
            _archive(db_engine, job_id, to, remove=remove)


@commands.command(
    rich_help_panel=PANEL,
    epilog="Examples: specthink unarchive archive/job-3 · specthink unarchive archive/job-* --dry-run",
)
def unarchive(
    context: typer.Context,
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Folders of archived jobs.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only read the files, and say whether they are whole.")
    ] = False,
    state_dir: StateDir = None,
) -> None:
    """Store archived jobs in the database again, each under its own number, in this database or another one.

    Needs the login that owns the schema. A damaged archive, one of a later version and one whose number is taken are
    refused; nothing of them is stored.
    """
    from pipeline.archives.checking import check

    if dry_run:
        for folder in folders:
            typer.echo(f"{folder} is whole: {_told(check(folder))}")
        return
    with owner_database(context, state_dir) as db_engine:
        from pipeline.archives.restoring import restore_job

        for folder in folders:
            manifest = restore_job(db_engine, folder)
            typer.echo(f"job {manifest.job.id} restored from {folder}: {_told(manifest)}")


def _chosen(db_engine: Engine, jobs: list[int], age: dt.timedelta | None, to: Path) -> list[int]:
    if age is None:
        return sorted(set(jobs))
    from pipeline.db.removal import jobs_ended_before
    from pipeline.db.session import transaction

    with transaction(db_engine) as connection:
        old = jobs_ended_before(connection, age)
    there = [job_id for job_id in old if (to / f"job-{job_id}").exists()]
    for job_id in there:
        typer.echo(f"job {job_id} is in {to / f'job-{job_id}'} already")
    chosen = sorted({*jobs, *old} - {*there} | {*jobs})
    if not chosen:
        typer.echo("no job to archive")
    return chosen


def _archive(db_engine: Engine, job_id: int, to: Path, *, remove: bool) -> None:
    from pipeline.archives.writing import archive_job, remove_archived

    written = archive_job(db_engine, job_id, to)
    typer.echo(f"job {job_id} archived in {written.folder}: {_told(written.manifest)}")
    if remove:
        remove_archived(db_engine, written)
        typer.echo(f"job {job_id} removed from the database")


def _told(manifest: Manifest) -> str:
    samples = counted(manifest.tables["samples"].rows, "sample")
    return f"{samples}, {counted(manifest.num_rows, 'row')}, {size(manifest.num_bytes)}"
