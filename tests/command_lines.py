"""Whether a command line is one that specthink takes, without running it."""

from __future__ import annotations

import shlex
from typing import Any

import typer

from pipeline.cli.app import app


def parse(line: str) -> None:
    """Raises click's errors on an unknown option, a missing argument or a value that the command refuses."""
    program, *arguments = shlex.split(line)
    assert program == "specthink", line
    command: Any = typer.main.get_command(app)
    parent = None
    while hasattr(command, "resolve_command"):
        parent = command.make_context(program, arguments, parent=parent)
        program, command, arguments = command.resolve_command(parent, [*parent._protected_args, *parent.args])
    assert command.make_context(program, list(arguments), parent=parent).args == [], line
