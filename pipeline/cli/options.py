"""The options that commands share, and their conversion to values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.client import Client
    from pipeline.settings import Settings

StateDir = Annotated[
    Path | None,
    typer.Option(
        "--state-dir", help="Folder of the embedded servers.", show_default="SPECTHINK_STATE_DIR, else your data folder"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
JobId = Annotated[int, typer.Argument(metavar="JOB", help="The number that submit printed.", min=1)]
Wait = Annotated[
    bool, typer.Option("--wait", help="Return when the job has ended; 1 if samples failed or it was cancelled.")
]


def make_group() -> typer.Typer:
    """Commands of one module; ``pipeline.cli.app`` puts them beside those of the others."""
    return typer.Typer(rich_markup_mode="markdown")


def settings_of(context: typer.Context, state_dir: Path | None) -> Settings:
    """This process's settings; a --state-dir after the command wins over one before it."""
    from pipeline.settings import load_settings

    return load_settings(state_dir=state_dir or context.find_root().obj)


def connect(context: typer.Context, state_dir: Path | None) -> Client:
    """A client on the database of the settings."""
    from pipeline.client import Client

    return Client.connect(settings_of(context, state_dir))
