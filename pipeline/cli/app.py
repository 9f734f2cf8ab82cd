"""The command ``specthink``: its help and all of its commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pipeline.cli import (
    addresses,
    archives,
    calibration,
    demo,
    doctor,
    experiments,
    gateway,
    jobs,
    judging,
    models,
    plans,
    programs,
    queries,
    removal,
    servers,
    submission,
)
from pipeline.cli.options import StateDir
from pipeline.texts import visible

HELP = """Batch evaluation with Speculative Thinking: a small model thinks, a large one takes over where it reflects.

Every command works against the embedded servers of a state folder, or against servers of your own where
SPECTHINK_DATABASE_URL and SPECTHINK_REDIS_URL name them.
"""

EXAMPLES = """Examples:

specthink demo: three jobs on a small pair of models that comes with it

specthink up --small org/small-1b --large org/large-32b

specthink submit problems.jsonl --small org/small-1b --large org/large-32b --samples 4 --wait

specthink pause 1 · specthink resume 1 · specthink retry 1 · specthink clone 1 --set sampling.temperature=0.9

specthink stats 1 · specthink results 1 --format csv --output results.csv

specthink sql "SELECT job_id, accuracy, share_large FROM job_summary"

specthink down

Exit codes: 0 done, 1 failed, 2 wrong option or setting, 3 not found, 4 a server cannot be reached, 130 interrupted.
"""


class _VisibleErrors(TyperGroup):
    """What is wrong with an option quotes the option, or a file's name: it commands no terminal."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with _visible_message():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        with _visible_message():
            return super().invoke(ctx)


@contextmanager
def _visible_message() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message"):  # one of click's, whose classes typer does not give
            told = visible(error.format_message())
            error.format_message = lambda: told
        raise


app = typer.Typer(
    cls=_VisibleErrors,
    help=HELP,
    epilog=EXAMPLES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"specthink {metadata.version('specthink')}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    state_dir: StateDir = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    context.obj = state_dir


# Help lists them in this order.
for module in (
    submission,
    jobs,
    experiments,
    judging,
    removal,
    archives,
    models,
    queries,
    addresses,
    calibration,
    plans,
    servers,
    programs,
    gateway,
    doctor,
    demo,
):
    app.add_typer(module.commands)
