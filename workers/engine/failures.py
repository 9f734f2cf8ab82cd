"""Says in one line why an engine failed; carries it from the engine's own process to the worker, too."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_FILE_VARIABLE = "SPECTHINK_ENGINE_FAILURE_FILE"
"""Environment variable: where the engine's process writes why its model could not be loaded."""


def one_line(error: BaseException) -> str:
    """An error for a message: its kind and text, at most 500 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


@contextmanager
def failure_file() -> Iterator[Callable[[], str]]:
    """Let an engine's process that is started meanwhile leave why it failed; gives a function that reads it."""
    with tempfile.TemporaryDirectory(prefix="specthink-engine-") as folder:
        file = Path(folder) / "failure"
        os.environ[_FILE_VARIABLE] = str(file)
        try:
            yield lambda: file.read_text(encoding="utf-8") if file.exists() else ""
        finally:
            del os.environ[_FILE_VARIABLE]


def leave_failure(error: Exception) -> None:
    """Tell the process that started this one; without effect where nobody reads it."""
    if file := os.environ.get(_FILE_VARIABLE):
        Path(file).write_text(one_line(error), encoding="utf-8")
