"""Opens a file of problems without ever blocking, and unpacks one that is packed."""

from __future__ import annotations

import gzip
import io
import os
import stat
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

from pipeline.problems import decode_parquet
from pipeline.problems.lines import UnreadableFile

PACKINGS = (".gz", ".zst")
"""Endings of packed files."""


@contextmanager
def open_rows(path: Path, max_file_bytes: int) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked where its ending says that it is packed.

    Raises UnreadableFile for what is no regular file, is larger than max_file_bytes (packed or not), is broken, or
    changes meanwhile.
    """
    with open_regular(path, max_file_bytes) as file:
        before = os.fstat(file.fileno())
        try:
            match path.suffix.lower():
                case ".gz":
                    yield io.BufferedReader(_Limited(gzip.GzipFile(fileobj=file), max_file_bytes))
                case ".zst":
                    with _unpack_zstd(file) as unpacked:
                        yield io.BufferedReader(_Limited(unpacked, max_file_bytes))
                case _:
                    yield file
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UnreadableFile(f"broken gzip: {error}") from error
        except OSError as error:
            raise UnreadableFile(f"it cannot be read to its end: {error.strerror or error}") from error
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise UnreadableFile("it changed while it was read; try again when it is complete")


class _Limited(io.RawIOBase):
    """What is unpacked, to a limit: a few bytes can stand for many."""

    def __init__(self, source: IO[bytes] | gzip.GzipFile, max_bytes: int) -> None:
        self._source = source
        self._left = self._max_bytes = max_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # all that BufferedReader passes
        piece = self._source.read(len(buffer))
        self._left -= len(piece)
        if self._left < 0:
            raise UnreadableFile(f"unpacked it has more than {self._max_bytes / 2**20:,.0f} MiB, which is the limit")
        buffer[: len(piece)] = piece
        return len(piece)


@contextmanager
def _unpack_zstd(file: BinaryIO) -> Iterator[IO[bytes]]:
    """Native code unpacks it, so in a process of its own, as for Parquet."""
    command = [sys.executable, "-P", decode_parquet.__file__, str(decode_parquet.MAX_MEMORY), "zstd"]
    with subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as unpacker:
        assert unpacker.stdout is not None
        try:
            yield unpacker.stdout
            if unpacker.stdout.read(1) == b"" and unpacker.wait() != 0:
                raise UnreadableFile("broken Zstandard: damaged, cut off, or no Zstandard at all")
        finally:
            unpacker.kill()


def open_regular(path: Path, max_file_bytes: int) -> BinaryIO:
    """Open a regular file. Never blocks: a FIFO or a device is refused before and after it is opened."""
    try:
        _refuse_irregular(os.stat(path), max_file_bytes)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise UnreadableFile(getattr(error, "strerror", None) or str(error)) from error
    try:
        _refuse_irregular(os.fstat(descriptor), max_file_bytes)
    except UnreadableFile:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def _refuse_irregular(found: os.stat_result, max_file_bytes: int) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise UnreadableFile("a folder, not a file")
    if not stat.S_ISREG(found.st_mode):
        raise UnreadableFile("not a regular file (a pipe, socket or device)")
    if found.st_size == 0:  # as the kernel's files in /proc say of themselves, some of which never end
        raise UnreadableFile("empty: it holds no problem")
    if found.st_size > max_file_bytes:
        raise UnreadableFile(
            f"it has {found.st_size / 2**20:,.0f} MiB, and {max_file_bytes / 2**20:,.0f} MiB is the limit; split it, "
            "or leave out the columns that are not needed"
        )
