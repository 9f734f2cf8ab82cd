"""How a command of this project ends: errors that were foreseen are one line on stderr, and an exit code."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

from pipeline.errors import PipelineError


def run_command(command: Callable[[], object]) -> None:
    """Run it. A PipelineError, an error of the database, or a full disk ends the process with one line; any other is
    raised.

    Nothing that any of them quotes commands the terminal.
    """
    sys.excepthook = _show_fault
    try:
        command()
    except PipelineError as error:
        _end(str(error), error.exit_code)
    except Exception as error:
        from pipeline.db.faults import line_of

        line = _disk_fault(error) or line_of(error)
        if line is None:
            raise
        _end(line, 1)


def _disk_fault(error: Exception) -> str | None:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"what was being written is not complete: {error.strerror}"
    return None


def _show_fault(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    from pipeline.texts import visible

    sys.stderr.write(visible("".join(traceback.format_exception(kind, error, trace))))


def _end(line: str, exit_code: int) -> NoReturn:
    from pipeline.texts import visible

    print(f"specthink: {visible(line)}", file=sys.stderr)
    sys.exit(exit_code)
