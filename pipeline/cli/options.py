"""The options that commands share, and their conversion to values."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from pipeline.client import Client
    from pipeline.settings import Settings

Value = TypeVar("Value")

StateDir = Annotated[
    Path | None,
    typer.Option(
        "--state-dir", help="Folder of the embedded servers.", show_default="SPECTHINK_STATE_DIR, else your data folder"
    ),
]

EngineArg = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="An argument of vLLM's EngineArgs, e.g. quantization=fp8. Repeatable."),
]

Accelerate = Annotated[
    str | None,
    typer.Option(
        metavar="METHOD[:MODEL]",
        help="Draft tokens for the model to check: ngram, suffix, eagle3:MODEL or draft:MODEL.",
        show_default="off",
    ),
]
DraftTokens = Annotated[
    int | None,
    typer.Option(
        min=1, max=64, help="Most tokens of one draft.", show_default="ngram and draft 4, eagle3 3, suffix 16"
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

    return load_settings(state_dir=chosen_state_dir(context, state_dir))


def chosen_state_dir(context: typer.Context, state_dir: Path | None) -> Path | None:
    """The state folder that was given with the command; None where the settings choose it."""
    chosen: Path | None = state_dir or context.find_root().obj
    return chosen


def once(pairs: Iterable[tuple[str, Value]], *, option: str) -> dict[str, Value]:
    """Values by key. Raises typer's error for a key that is given twice: one of both would be lost."""
    found: dict[str, Value] = {}
    for key, value in pairs:
        if key in found:
            raise typer.BadParameter(f"{key} is given twice: leave one out", param_hint=option)
        found[key] = value
    return found


def typed(context: typer.Context, *besides: str) -> list[str]:
    """The options that stand on the command line, by their flags. besides: parameters that do not count."""
    return [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.param_type_name == "option" and parameter.name not in (*besides, "state_dir", None)
        if (source := context.get_parameter_source(str(parameter.name))) and source.name == "COMMANDLINE"
    ]


def command_line(state_dir: Path | None) -> str:
    """The command as it must be typed to run this very program on the same state folder, from this folder."""
    found = shutil.which("specthink")
    here = Path(sys.executable).parent / "specthink"
    if found is not None and Path(found).resolve() == here.resolve():
        program = "specthink"
    elif here.is_file():
        program = shlex.quote(_short(here))
    else:
        program = f"{shlex.quote(_short(Path(sys.executable)))} -m pipeline.cli"
    return f"{program} --state-dir {shlex.quote(_short(state_dir))}" if state_dir else program


def _short(path: Path) -> str:
    """Relative to the working folder where it is inside."""
    absolute = Path.cwd() / path
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(path)


def connect(context: typer.Context, state_dir: Path | None) -> Client:
    """A client on the database of the settings."""
    from pipeline.client import Client

    return Client.connect(settings_of(context, state_dir))
