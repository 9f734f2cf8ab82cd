"""The folder of an archive while it is written: under a name that says so, renamed once all of it is on the disk."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import ArchiveError

UNFINISHED = ".incomplete"
"""At the end of the name of a folder that is being written, or whose writer was killed."""


@contextmanager
def unfinished_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside target; afterwards it is target. On an error it is gone.

    A folder that a killed writer left is used again. Raises ArchiveError where target is there, and where another
    process writes it.
    """
    folder = target.with_name(target.name + UNFINISHED)
    if target.exists():
        raise ArchiveError(target, "it is there already; archives are never overwritten")
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder, target):
        _empty(folder)
        try:
            yield folder
            sync(folder)
            os.rename(folder, target)
        except BaseException:
            _empty(folder)
            folder.rmdir()
            raise
        sync(target.parent)


@contextmanager
def _locked(folder: Path, target: Path) -> Iterator[None]:
    """The folder, made where it is not there, for this process alone: the lock ends with the process."""
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArchiveError(folder, "another process writes this archive") from None
        if not folder.exists() or not os.path.samestat(os.fstat(descriptor), folder.stat()):
            raise ArchiveError(target, "another process has just written it")
        yield
    finally:
        os.close(descriptor)


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
