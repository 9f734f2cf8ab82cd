"""Reads an archive whole, and says where it is not what its manifest says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.archives.batches import ContentHash
from pipeline.archives.manifest import Manifest, read_manifest, sha256_of
from pipeline.archives.tables import TABLES, ArchivedTable
from pipeline.errors import ArchiveError

if TYPE_CHECKING:
    import pyarrow


def check(folder: Path) -> Manifest:
    """Read an archive whole; returns its manifest. Raises ArchiveError, with the file, for the first that is wrong."""
    manifest = read_manifest(folder)
    known = {table.name for table in TABLES}
    for name in sorted(manifest.tables.keys() ^ known):
        why = f"names no table {name}" if name in known else f"names a table {name}, which this version does not know"
        raise ArchiveError(folder, f"its manifest {why}")
    check_files(folder, manifest)
    return manifest


def check_files(folder: Path, manifest: Manifest, *, contents: Mapping[str, str] | None = None) -> None:
    """Read every file to its end.

    contents: the content hash of each table as it was read from the database. Raises ArchiveError, with the file, for
    the first that is missing, has other bytes, rows or columns than it must have, or cannot be decoded.
    """
    for table in TABLES:
        _check_file(folder, table, manifest, contents)


def _check_file(folder: Path, table: ArchivedTable, manifest: Manifest, contents: Mapping[str, str] | None) -> None:
    path, entry = folder / table.file_name, manifest.tables[table.name]
    try:
        with path.open("rb") as file:
            found = sha256_of(file)
            num_bytes = file.tell()
    except OSError as error:
        raise ArchiveError(path, f"cannot be read: {error.strerror}") from error
    if num_bytes != entry.bytes or found != entry.sha256:
        raise ArchiveError(path, f"it is damaged: {num_bytes} bytes that are not the {entry.bytes} of its manifest")
    content = ContentHash()
    num_rows = 0
    for batch in read_batches(folder, table):
        num_rows += batch.num_rows
        if contents is not None:
            content.add(batch)
    if num_rows != entry.rows:
        raise ArchiveError(path, f"it has {num_rows} rows, its manifest says {entry.rows}")
    if contents is not None and content.hexdigest() != contents[table.name]:
        raise ArchiveError(path, "what was read back is not what was read from the database")


def read_batches(folder: Path, table: ArchivedTable) -> Iterator[pyarrow.RecordBatch]:
    """A file's rows, one row group in memory at a time, in the columns of this version's table."""
    from pyarrow import parquet

    path = folder / table.file_name
    with _readable(path), parquet.ParquetFile(path) as file:
        _require_columns(path, table, file.schema_arrow)
        for group in range(file.num_row_groups):
            for batch in file.read_row_group(group).combine_chunks().to_batches():
                yield _completed(batch, table)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ArchiveError(path, f"it is damaged: {str(error).splitlines()[0]}") from error


def _require_columns(path: Path, table: ArchivedTable, found: Any) -> None:
    """Raise ArchiveError unless every column is one of the table's, and those that lack may be empty."""
    types = {field.name: field.type for field in found}
    for name in types.keys() - set(table.names):
        raise ArchiveError(path, f"it has a column {name}, which this version does not know")
    for column, field in zip(table.columns, table.schema, strict=True):
        if column.name not in types:
            if not column.nullable:
                raise ArchiveError(path, f"it lacks the column {column.name}")
        elif types[column.name] != field.type:
            raise ArchiveError(path, f"its column {column.name} is {types[column.name]}, not {field.type}")


def _completed(batch: pyarrow.RecordBatch, table: ArchivedTable) -> pyarrow.RecordBatch:
    """With nulls in the columns that came after it was written."""
    import pyarrow

    if batch.schema.names == list(table.names):
        return batch
    there = set(batch.schema.names)
    arrays = [
        batch.column(field.name) if field.name in there else pyarrow.nulls(batch.num_rows, field.type)
        for field in table.schema
    ]
    return pyarrow.RecordBatch.from_arrays(arrays, schema=table.schema)
