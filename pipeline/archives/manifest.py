"""The manifest of an archive: what it is of, who wrote it, and each file with its rows, size and hash."""

from __future__ import annotations

import datetime as dt
import hashlib
from pathlib import Path
from typing import Annotated, BinaryIO

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import ArchiveError

FILE_NAME = "manifest.json"
FORMAT = 1
"""Of the files and this manifest. A later one is refused: who wrote it knew more."""
MAX_BYTES = 4 * 2**20
_BLOCK = 2**20


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FileEntry(_Part):
    """A file of the archive, which has its table's name."""

    rows: Annotated[int, Field(ge=0)]
    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class JobMark(_Part):
    """A job as it is known again in any database. submitted_at: in microseconds since 1970."""

    id: Annotated[int, Field(ge=1, le=10**15)]
    submitted_at: int


class Manifest(_Part):
    """What ``manifest.json`` says.

    version: of the program that wrote it. revision: of the database's schema. clones: jobs that were made from it.
    control_of: jobs that it is a control of in an experiment. controls: those that are its own.
    """

    format: int
    version: str
    revision: str
    archived_at: str
    job: JobMark
    name: str
    state: str
    cloned_from: JobMark | None
    clones: tuple[JobMark, ...]
    control_of: tuple[JobMark, ...]
    controls: tuple[JobMark, ...]
    tables: dict[str, FileEntry]

    @property
    def num_rows(self) -> int:
        return sum(entry.rows for entry in self.tables.values())

    @property
    def num_bytes(self) -> int:
        return sum(entry.bytes for entry in self.tables.values())


class _Header(BaseModel):
    """What manifests of all formats have."""

    format: Annotated[int, Field(ge=1)]
    version: str = "another version"


def read_manifest(folder: Path) -> Manifest:
    """Raises ArchiveError where there is none, or one that this version cannot read."""
    path = folder / FILE_NAME
    try:
        with path.open("rb") as file:
            written = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        why = f"it has no {FILE_NAME}"
        if folder.is_dir():
            why += ": it is no archive of a job, or one whose writing was interrupted"
        raise ArchiveError(folder, why) from None
    except OSError as error:
        raise ArchiveError(folder, f"{FILE_NAME} cannot be read: {error.strerror}") from error
    if len(written) > MAX_BYTES:
        raise ArchiveError(folder, f"{FILE_NAME} is larger than {MAX_BYTES} bytes")
    try:
        header = _Header.model_validate_json(written)
        if header.format > FORMAT:
            raise ArchiveError(
                folder,
                f"it has format {header.format}, this version reads {FORMAT}: specthink {header.version} wrote it",
            )
        return Manifest.model_validate_json(written)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ArchiveError(folder, f"{FILE_NAME}{f', {where}' if where else ''}: {first['msg']}") from None


def now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def sha256_of(file: BinaryIO) -> str:
    """Of a file from its present place to its end."""
    digest = hashlib.sha256()
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()
