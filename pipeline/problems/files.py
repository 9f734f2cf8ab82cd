"""Reads the rows of a problem file, one at a time, and says for each broken one where it is and why.

Knows nothing of problems: a row is a dict of column names and plain values. Numbers keep the form they were written
in (``NumberText``), because a reference answer "1.0" is not "1".

A file may be hostile: whatever its bytes are, reading ends, with rows and faults or with UnreadableFile, and holds no
more than one row and, for Parquet, what its decoder may take (``pipeline.problems.decode_parquet``).
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.problems.csv_rows import read_csv, read_tsv
from pipeline.problems.json_rows import read_json, read_jsonl
from pipeline.problems.lines import Fault, Row, UnreadableFile
from pipeline.problems.opening import PACKINGS, open_rows
from pipeline.problems.parquet_rows import read_parquet

MAX_LINE_BYTES = 16 * 2**20
"""Longest row: a line of JSONL, a row of CSV with all of its lines, a row of Parquet as JSON."""
MAX_FILE_BYTES = 2**30
"""Largest file, because a set is kept in memory while it is submitted. Measured: 1,000 MiB of JSONL, 1.1 million
problems, take 2.4 GiB; a file of other contents that takes more than three times the limit is refused too."""
STANDARD_INPUT = Path("-")

_READERS: dict[str, Callable[[Any, int], Iterator[Row | Fault]]] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
}
_SPLITS = ("train", "test", "validation", "valid", "val", "dev")


def ending_of(path: Path) -> str:
    """The ending that says how a file is read, packed or not; '' for one that cannot be read."""
    name = path.name.lower()
    bare = next((name.removesuffix(packing) for packing in PACKINGS if name.endswith(packing)), name)
    found = Path(bare).suffix
    is_packed_parquet = found == ".parquet" and bare != name
    return found if found in _READERS and not is_packed_parquet else ""


def unit_name(path: Path) -> str:
    """What a row's number counts in this file."""
    return "row" if ending_of(path) == ".parquet" else "line"


def place_of(entry: Row | Fault, path: Path) -> str:
    """Where a row or fault is, e.g. "line 3" or "part-2.csv, line 3"; '' for the file as a whole."""
    place = "" if entry.number is None else f"{unit_name(Path(entry.file) if entry.file else path)} {entry.number}"
    return ", ".join(filter(None, [entry.file, place]))


def read_rows(
    path: Path, *, max_file_bytes: int = MAX_FILE_BYTES, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[Row | Fault]:
    """The rows of a file in order, with a Fault in place of each broken one; of a folder, those of its files by name.

    Raises UnreadableFile.
    """
    try:
        shards = find_shards(path) if path.is_dir() else None
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise UnreadableFile(error.strerror or str(error)) from error
    if shards is None:
        yield from _read_file(path, max_file_bytes, max_line_bytes)
        return
    left = max_file_bytes
    for shard in shards:
        left -= shard.stat().st_size
        if left < 0:
            raise UnreadableFile(f"its files have more than {max_file_bytes / 2**20:,.0f} MiB together; split it")
        try:
            for entry in _read_file(shard, max_file_bytes, max_line_bytes):
                yield replace(entry, file=shard.name)
        except UnreadableFile as error:
            raise UnreadableFile(f"{shard.name}: {error}") from error


def _read_file(path: Path, max_file_bytes: int, max_line_bytes: int) -> Iterator[Row | Fault]:
    reader = _READERS.get(ending_of(path))
    if reader is None:
        known = ", ".join(sorted(_READERS))
        raise UnreadableFile(
            f"unknown ending {path.suffix!r}; it must be one of {known}, all but .parquet also packed as .gz or .zst"
        )
    with open_rows(path, max_file_bytes) as file:
        yield from reader(file, max_line_bytes)


def find_shards(folder: Path) -> list[Path]:
    """The files of a set in a folder, by name. Raises UnreadableFile where they are not of one kind and one split."""
    found = sorted(each for each in folder.iterdir() if not each.name.startswith(".") and ending_of(each))
    if not found:
        raise UnreadableFile(f"a folder without a file that ends in one of {', '.join(sorted(_READERS))}")
    endings = sorted({ending_of(each) for each in found})
    if len(endings) > 1:
        raise UnreadableFile(f"a folder with files of several kinds ({', '.join(endings)}); name one of them")
    splits = {split for each in found for split in _SPLITS if split in re.split(r"[^a-z]+", each.name.lower())}
    if len(splits) > 1:
        raise UnreadableFile(f"a folder with several splits ({', '.join(sorted(splits))}); name the file of one")
    return found


@contextmanager
def as_file(path: Path, max_bytes: int = MAX_FILE_BYTES) -> Iterator[Path]:
    """The path itself, or for ``-`` a file with what standard input gives, named by what its first bytes are."""
    if path != STANDARD_INPUT:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="specthink-") as folder:
        kept = Path(folder) / "stdin"
        size = 0
        with kept.open("wb") as file:
            while piece := sys.stdin.buffer.read(2**20):
                size += len(piece)
                if size > max_bytes:
                    raise UnreadableFile(f"more than {max_bytes / 2**20:,.0f} MiB, which is the limit")
                file.write(piece)
        with kept.open("rb") as file:
            start = file.read(2**16)
        yield kept.rename(kept.with_name("stdin" + _guess_ending(start)))


def _guess_ending(start: bytes) -> str:
    """Packed text is taken for JSON, which may be JSONL."""
    for mark, ending in ((b"PAR1", ".parquet"), (b"\x1f\x8b", ".json.gz"), (b"\x28\xb5\x2f\xfd", ".json.zst")):
        if start.startswith(mark):
            return ending
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    return ".json" if text[:1] in (b"[", b"{") else ".csv"
