"""``python -m workers KIND``: the processes behind the commands ``worker``, ``flower`` and ``grade`` of specthink."""

from __future__ import annotations

import gc
from typing import Annotated

import typer

from pipeline.command_line import run_command
from pipeline.logs import configure_logging
from pipeline.samples import ModelRole
from pipeline.settings import Settings, load_settings
from workers.processes.shutdown import end_process

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Model = Annotated[str, typer.Option(help="Local folder or hub id.")]
Name = Annotated[
    str | None,
    typer.Option(help="The name jobs use; default: the hub id or the folder's name."),
]
Revision = Annotated[str | None, typer.Option(help="Hub revision.")]


def _settings() -> Settings:
    settings = load_settings()
    configure_logging(settings)
    return settings


def _worker_settings() -> Settings:
    """Settings of a process that now loads much and keeps it: ``run_celery`` lets garbage be collected again."""
    gc.disable()
    return _settings()


@app.command()
def small(model: Model, name: Name = None, revision: Revision = None) -> None:
    """Write with a small model."""
    settings = _worker_settings()
    from workers.processes.writer import run_writer

    end_process(run_writer(ModelRole.SMALL, model, settings, name=name, revision=revision))


@app.command()
def large(model: Model, name: Name = None, revision: Revision = None) -> None:
    """Write with a large model."""
    settings = _worker_settings()
    from workers.processes.writer import run_writer

    end_process(run_writer(ModelRole.LARGE, model, settings, name=name, revision=revision))


@app.command()
def judge(model: Model, name: Name = None, revision: Revision = None) -> None:
    """Say how good steps are."""
    settings = _worker_settings()
    from workers.processes.writer import run_writer

    end_process(run_writer(ModelRole.JUDGE, model, settings, name=name, revision=revision))


@app.command()
def grade() -> None:
    """Grade finished samples."""
    settings = _worker_settings()
    from workers.processes.grader import run_grader

    end_process(run_grader(settings))


@app.command()
def upkeep() -> None:
    """Admit, rescue, publish again, close jobs."""
    settings = _worker_settings()
    from workers.processes.upkeep import run_upkeep

    end_process(run_upkeep(settings))


@app.command()
def flower() -> None:
    """Serve Flower."""
    from workers.processes.flower import run_flower

    run_flower(_settings())


@app.command()
def grade_again(job_id: int) -> None:
    """Ask the graders to grade a job's samples again; those graded by the present version are left alone."""
    from workers.grading.regrade import grade_again as publish
    from workers.processes.base import open_base

    base = open_base(_settings())
    typer.echo(publish(base.db_engine, base.publisher, job_id))


run_command(app)
