"""Which weights a model folder has: a hash that tells two training runs of one architecture apart.

Hashed are the header of each safetensors file (names, types and shapes of all tensors) and a sample of every tensor:
all of a small one, else its beginning, middle and end. Two runs differ in nearly all of their numbers, and adapters
that are merged into a model change whole tensors. Not seen: a change of a few numbers between the sampled places. Files
of other formats are sampled as if they were one tensor.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import ConfigurationError

_SAMPLE = 4096
"""Bytes at each of the three places of a tensor."""
_WHOLE = 1 << 16
"""A tensor of so many bytes is hashed whole."""
_MAX_HEADER = 100_000_000
_PATTERNS = ("*.safetensors", "*.bin", "*.pth", "*.gguf")
_NO_WEIGHTS = ("training_args.bin", "optimizer.bin", "scheduler.bin", "rng_state.pth")


def weights_sha256(folder: Path) -> str | None:
    """The hash of a folder's weights, wherever it lies; None for a folder without any. Kept by path, size and time.

    Raises ConfigurationError for a file that cannot be read, e.g. one cut off while it was copied.
    """
    files = weight_files(folder)
    if not files:
        return None
    known = _read_cache()
    hashes, new = {}, {}
    for file in files:
        key, stamp = str(file.resolve()), _stamp(file)
        kept = known.get(key)
        if kept and kept[0] == stamp:
            hashes[file.name] = kept[1]
        else:
            hashes[file.name] = _file_sha256(file)
            new[key] = [stamp, hashes[file.name]]
    if new:
        _write_cache(known | new)
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder's weights, by name: of the first format that it has."""
    for pattern in _PATTERNS:
        files = sorted(file for file in folder.glob(pattern) if file.name not in _NO_WEIGHTS)
        if files:
            return files
    return []


def _stamp(file: Path) -> str:
    stat = file.stat()
    return f"{stat.st_size}:{stat.st_mtime_ns}"


def _file_sha256(file: Path) -> str:
    found = hashlib.sha256(str(file.stat().st_size).encode())
    try:
        with file.open("rb") as data:
            for start, length in _spans(file, data, found):
                _hash_span(data, start, length, found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{file}: its weights cannot be read ({error}); copy the file again") from error
    return found.hexdigest()


def _spans(file: Path, data: BinaryIO, found: hashlib._Hash) -> Iterator[tuple[int, int]]:
    """Start and length of each tensor; a header goes into the hash."""
    size = file.stat().st_size
    if file.suffix != ".safetensors":
        yield 0, size
        return
    header_size = int.from_bytes(data.read(8), "little")
    if not 0 < header_size <= min(size, _MAX_HEADER):
        raise ValueError("it has no safetensors header")
    text = data.read(header_size)
    tensors = {name: tensor for name, tensor in json.loads(text).items() if name != "__metadata__"}
    found.update(json.dumps(tensors, sort_keys=True).encode())
    for name in sorted(tensors):
        begin, end = tensors[name]["data_offsets"]
        if 8 + header_size + end > size:
            raise ValueError("the file is cut off")
        yield 8 + header_size + begin, end - begin


def _hash_span(data: BinaryIO, start: int, length: int, found: hashlib._Hash) -> None:
    if length <= _WHOLE:
        places = [(start, length)]
    else:
        middle = start + (length - _SAMPLE) // 2
        places = [(start, _SAMPLE), (middle, _SAMPLE), (start + length - _SAMPLE, _SAMPLE)]
    for place, count in places:
        data.seek(place)
        found.update(data.read(count))


def _cache_file() -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(folder) / "specthink" / "weights.json"


def _read_cache() -> dict[str, list[str]]:
    try:
        content = json.loads(_cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_cache(known: dict[str, list[str]]) -> None:
    """A cache that cannot be written is none: the next start hashes again."""
    file = _cache_file()
    new = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(json.dumps(known), encoding="utf-8")
        new.replace(file)
    except OSError:
        new.unlink(missing_ok=True)
