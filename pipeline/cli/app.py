"""The command's frame: its groups of subcommands and what they share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.client import Client
    from pipeline.settings import Settings

HELP = """Batch evaluation with Speculative Thinking: a small model thinks, a large one takes over where it reflects.

Every command works against the embedded servers of a state folder, or against servers of your own where
SPECTHINK_DATABASE_URL and SPECTHINK_REDIS_URL name them.
"""

EXAMPLES = """Examples:

specthink up --small org/small-1b --large org/large-32b

specthink submit problems.jsonl --small org/small-1b --large org/large-32b --samples 4 --wait

specthink pause 1 · specthink resume 1 · specthink retry 1 · specthink clone 1 --set sampling.temperature=0.9

specthink stats 1 · specthink results 1 --format csv --output results.csv

specthink sql "SELECT job_id, accuracy, share_large FROM job_summary"

specthink down

Exit codes: 0 done, 1 failed, 2 wrong option or setting, 3 not found, 4 a server cannot be reached, 130 interrupted.
"""

app = typer.Typer(
    help=HELP,
    epilog=EXAMPLES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

StateDir = Annotated[
    Path | None,
    typer.Option(
        "--state-dir", help="Folder of the embedded servers.", show_default="SPECTHINK_STATE_DIR, else your data folder"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
JobId = Annotated[int, typer.Argument(metavar="JOB", help="The number that submit printed.", min=1)]


@app.callback()
def common(context: typer.Context, state_dir: StateDir = None) -> None:
    context.obj = state_dir


def settings_of(context: typer.Context, state_dir: Path | None) -> Settings:
    """This process's settings; a --state-dir after the command wins over one before it."""
    from pipeline.settings import load_settings

    return load_settings(state_dir=state_dir or context.find_root().obj)


def connect(context: typer.Context, state_dir: Path | None) -> Client:
    from pipeline.client import Client

    return Client.connect(settings_of(context, state_dir))


from pipeline.cli import jobs, queries, plans, servers, doctor  # noqa: E402, I001  (they add their commands to the app above, in this order)

__all__ = ["app", "doctor", "jobs", "plans", "queries", "servers"]
