"""The command ``specthink``. Errors that were foreseen are one line with the remedy on stderr, and an exit code:
0 done · 1 failed · 2 wrong option or setting · 3 not found · 4 a server cannot be reached · 130 interrupted."""

from __future__ import annotations

import gc

_MANY = 50_000
"""New objects between two collections of garbage. By Python's own number, 700, a fifth of a command's time is spent
on going through what it has just imported."""


def main() -> None:
    gc.set_threshold(_MANY)
    from pipeline.cli.app import app
    from pipeline.command_line import run_command

    run_command(lambda: app(prog_name="specthink"))
