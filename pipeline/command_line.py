"""How a command of this project ends: errors that were foreseen are one line on stderr, and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from pipeline.errors import PipelineError


def run_command(command: Callable[[], object]) -> None:
    """Run it. A PipelineError, or an error of the database, ends the process with one line; any other is raised."""
    try:
        command()
    except PipelineError as error:
        _end(str(error), error.exit_code)
    except Exception as error:
        from pipeline.db.faults import line_of

        line = line_of(error)
        if line is None:
            raise
        _end(line, 1)


def _end(line: str, exit_code: int) -> NoReturn:
    from pipeline.texts import visible

    print(f"specthink: {visible(line)}", file=sys.stderr)
    sys.exit(exit_code)
