"""Where vLLM puts the sockets by which a worker and its engine's process speak: a folder of the worker's own.

vLLM makes them in the machine's folder for temporary files, by random names, and leaves those of a process that was
killed. The folder here goes with the engine; where only the worker is killed, the engine's process removes it, and
where both are, the next worker that starts on this machine does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import ConfigurationError

VARIABLE = "VLLM_RPC_BASE_PATH"
_PREFIX = "specthink-rpc-"
_LOCK = "lock"
_LONGEST_FOLDER = 107 - 1 - 36
"""Bytes: the name of a Unix socket has 107 at most, and vLLM's are a UUID in that folder."""


class SocketFolder:
    """A new folder, held until it is removed or this process ends, however that ends."""

    def __init__(self) -> None:
        base = _base()
        _remove_abandoned(base)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        self._end = weakref.finalize(self, _end, self.path, lock)  # also where this process ends by itself

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Let vLLM, and the process that it starts meanwhile, use the folder."""
        before = os.environ.get(VARIABLE)
        os.environ[VARIABLE] = str(self.path)
        try:
            yield
        finally:
            os.environ.pop(VARIABLE)
            if before is not None:
                os.environ[VARIABLE] = before

    def remove(self) -> None:
        """Once nobody speaks by it. A second time does nothing."""
        self._end()


def _end(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def remove_told_folder() -> None:
    """Called by the engine's process when its worker is gone."""
    told = Path(os.environ.get(VARIABLE, ""))
    if told.name.startswith(_PREFIX):
        shutil.rmtree(told, ignore_errors=True)


def _base() -> Path:
    """Where the folder may be, whose name must leave room for a socket's. Raises ConfigurationError."""
    choices = [os.environ.get(VARIABLE) or tempfile.gettempdir(), "/tmp"]
    for choice in map(Path, choices):
        longest = len(os.fsencode(choice / f"{_PREFIX}12345678"))
        if longest <= _LONGEST_FOLDER and os.access(choice, os.W_OK):
            return choice
    raise ConfigurationError(
        f"no folder for the engine's sockets: neither {choices[0]} nor /tmp can be written, or its name is too long; "
        f"let {VARIABLE} name a short one"
    )


def _remove_abandoned(base: Path) -> None:
    """Remove what killed workers of this user left. A folder that lives is locked; one without a lock is just made."""
    for folder in base.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if folder.stat().st_uid == os.geteuid():
                    shutil.rmtree(folder)
            finally:
                os.close(lock)
