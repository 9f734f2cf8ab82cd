"""Writes a job that has ended into a folder of Parquet files, and reads them back before it says that they are there.

All rows are of one snapshot of the database. Rows are streamed: memory holds one batch, and the ids of the samples.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, text

from pipeline.archives.batches import ContentHash, batches
from pipeline.archives.checking import check_files
from pipeline.archives.folder import sync, unfinished_folder
from pipeline.archives.manifest import FILE_NAME, FORMAT, FileEntry, JobMark, Manifest, now, sha256_of
from pipeline.archives.tables import EVENTS_OF_THE_JOB, TABLES, ArchivedTable
from pipeline.db.invariants import snapshot
from pipeline.db.removal import fingerprint, remove_job, require_ended
from pipeline.db.revision import current_revision
from pipeline.db.session import stream_rows, transaction
from pipeline.errors import ArchiveError, JobError

SAMPLES_AT_A_TIME = 500
_PRIVATE, _OPEN = 0o600, 0o666


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """What was written. fingerprint: of what may change of a job that has ended, as of the snapshot."""

    folder: Path
    manifest: Manifest
    fingerprint: str


def archive_job(db_engine: Engine, job_id: int, folder: Path) -> Archive:
    """Write a job into ``folder/job-ID`` and check what is on the disk against what was read from the database.

    Raises NotFound, JobError for a job that has not ended or is a judge, and ArchiveError where the folder cannot be
    written.
    """
    target = folder / f"job-{job_id}"
    with transaction(db_engine) as connection:
        _require_archivable(connection, job_id)
    try:
        with unfinished_folder(target) as unfinished:
            with snapshot(db_engine) as connection:
                _require_archivable(connection, job_id)
                mark = fingerprint(connection, job_id)
                written = _write_tables(connection, job_id, unfinished)
                manifest = _manifest(connection, job_id, {name: entry for name, (entry, _) in written.items()})
            check_files(unfinished, manifest, contents={name: content for name, (_, content) in written.items()})
            _write_manifest(unfinished / FILE_NAME, manifest)
        return Archive(folder=target, manifest=manifest, fingerprint=mark)
    except OSError as error:
        raise ArchiveError(error.filename or target, f"cannot be written: {error.strerror or error}") from error


def remove_archived(db_engine: Engine, archive: Archive) -> None:
    """Delete an archived job from the database; raises JobError where it has changed since it was archived."""
    job_id = archive.manifest.job.id
    with transaction(db_engine) as connection:
        require_ended(connection, job_id, lock=True)
        if fingerprint(connection, job_id) != archive.fingerprint:
            raise JobError(
                job_id, f"it changed after {archive.folder} was written; nothing was removed, archive it anew"
            )
        remove_job(connection, job_id)


_IS_JUDGE = text("""
    SELECT FROM jobs j JOIN problem_sets p ON p.id = j.problem_set_id
    WHERE j.id = :job AND (j.judged_job_id IS NOT NULL OR p.tells_answers_of IS NOT NULL
                           OR EXISTS (SELECT FROM judged_samples m WHERE m.job_id = j.id))
""")


def _require_archivable(connection: Connection, job_id: int) -> None:
    """Raise JobError for a judge, too: its prompts show answers, and its rows are of the samples of another job."""
    require_ended(connection, job_id)
    if connection.execute(_IS_JUDGE, {"job": job_id}).first() is not None:
        raise JobError(job_id, "it is a judge, and judges are not archived: its verdicts are grades of the judged job")


_SAMPLES = text("SELECT id FROM samples WHERE job_id = :job ORDER BY id")
_HANDS = text("""
    SELECT array_agg(DISTINCT h.worker_id) FILTER (WHERE h.worker_id IS NOT NULL) AS workers,
           array_agg(DISTINCT h.engine_id) FILTER (WHERE h.engine_id IS NOT NULL) AS engines
    FROM (
        SELECT DISTINCT g.worker_id, g.engine_id FROM segments g JOIN samples s ON s.id = g.sample_id
        WHERE s.job_id = :job
        UNION SELECT a.worker_id, a.engine_id FROM asides a JOIN samples s ON s.id = a.sample_id WHERE s.job_id = :job
        UNION SELECT p.worker_id, NULL FROM segment_parts p JOIN samples s ON s.id = p.sample_id WHERE s.job_id = :job
        UNION SELECT w.id, NULL FROM samples s CROSS JOIN LATERAL (
            VALUES (s.small_worker_id), (s.large_worker_id), (s.judge_worker_id), (s.holder_id)) w (id)
        WHERE s.job_id = :job
        UNION SELECT e.worker_id, NULL FROM events e WHERE e.job_id = :job
    ) h
""")
_ENGINES_OF = text("SELECT DISTINCT engine_id FROM workers WHERE id = ANY(:workers) AND engine_id IS NOT NULL")


def _write_tables(connection: Connection, job_id: int, folder: Path) -> dict[str, tuple[FileEntry, str]]:
    """Entry and content hash of each file."""
    samples = array("q", connection.execute(_SAMPLES, {"job": job_id}).scalars())
    hands = connection.execute(_HANDS, {"job": job_id}).one()
    workers, engines = hands.workers or [], set(hands.engines or [])
    engines.update(connection.execute(_ENGINES_OF, {"workers": workers}).scalars())
    values = {"job": job_id, "workers": workers, "engines": sorted(engines)}
    written = {}
    for table in TABLES:
        written[table.name] = _write_table(folder, table, _rows(connection, table, values, samples))
        _require_all(connection, table, values | {"samples": samples.tolist()}, written[table.name][0].rows)
    return written


def _rows(
    connection: Connection, table: ArchivedTable, values: Mapping[str, Any], samples: array[int]
) -> Iterator[tuple[Any, ...]]:
    if not table.by_samples:
        yield from stream_rows(connection, table.select, values)
        return
    for start in range(0, len(samples), SAMPLES_AT_A_TIME):
        some = samples[start : start + SAMPLES_AT_A_TIME]
        yield from stream_rows(connection, table.select, {**values, "samples": some.tolist()})
    if table.name == EVENTS_OF_THE_JOB.name:
        yield from stream_rows(connection, EVENTS_OF_THE_JOB.select, values)


def _write_table(folder: Path, table: ArchivedTable, rows: Iterator[tuple[Any, ...]]) -> tuple[FileEntry, str]:
    from pyarrow import parquet

    path = folder / table.file_name
    content = ContentHash()
    num_rows = 0
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, _PRIVATE if table.is_private else _OPEN)
    with os.fdopen(descriptor, "w+b") as file:
        with parquet.ParquetWriter(file, table.schema, compression="zstd") as writer:
            for batch in batches(rows, table.schema):
                writer.write_batch(batch, row_group_size=batch.num_rows)
                content.add(batch)
                num_rows += batch.num_rows
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        entry = FileEntry(rows=num_rows, bytes=path.stat().st_size, sha256=sha256_of(file))
    return entry, content.hexdigest()


def _require_all(connection: Connection, table: ArchivedTable, values: Mapping[str, Any], num_rows: int) -> None:
    """Raise ArchiveError where the stream gave fewer rows or more than there are."""
    counted = sum(
        count
        for each in ((table, EVENTS_OF_THE_JOB) if table.name == EVENTS_OF_THE_JOB.name else (table,))
        for (count,) in stream_rows(connection, each.count, values)
    )
    if counted != num_rows:
        raise ArchiveError(table.file_name, f"{num_rows} rows were read of {counted} in the database")


_MARK = """jsonb_build_object('id', j.id, 'submitted_at', (extract(epoch FROM j.submitted_at) * 1000000)::bigint)"""


def _marks(which: str) -> str:
    """The marks of other jobs, as ``o``."""
    return f"(SELECT coalesce(jsonb_agg({_MARK.replace('j.', 'o.')} ORDER BY o.id), '[]') FROM jobs o WHERE {which})"


_DESCRIBED = text(f"""
    SELECT {_MARK} AS job, j.name, j.state,
           (SELECT {_MARK.replace("j.", "o.")} FROM jobs o WHERE o.id = j.cloned_from) AS cloned_from,
           {_marks("o.cloned_from = j.id")} AS clones,
           {_marks("o.id IN (SELECT control_of FROM experiment_jobs WHERE job_id = j.id)")} AS control_of,
           {_marks("o.id IN (SELECT job_id FROM experiment_jobs WHERE control_of = j.id)")} AS controls
    FROM jobs j WHERE j.id = :job
""")


def _manifest(connection: Connection, job_id: int, tables: dict[str, FileEntry]) -> Manifest:
    row = connection.execute(_DESCRIBED, {"job": job_id}).one()
    return Manifest(
        format=FORMAT,
        version=metadata.version("specthink"),
        revision=current_revision(connection) or "",
        archived_at=now(),
        job=JobMark(**row.job),
        name=row.name,
        state=row.state,
        cloned_from=JobMark(**row.cloned_from) if row.cloned_from else None,
        clones=tuple(JobMark(**mark) for mark in row.clones),
        control_of=tuple(JobMark(**mark) for mark in row.control_of),
        controls=tuple(JobMark(**mark) for mark in row.controls),
        tables=tables,
    )


def _write_manifest(path: Path, manifest: Manifest) -> None:
    """After everything was checked: a folder without it is no archive."""
    path.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    sync(path)
