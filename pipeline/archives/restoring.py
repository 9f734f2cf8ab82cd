"""Restores an archived job into a database: the one that it comes from, or another. All of it, or nothing.

The job keeps its id. Other ids are kept where they are free (``pipeline.archives.ids``); a problem set and an engine
that the database has with the same content are used, and so is a worker's life that it still knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DataError, IntegrityError

from pipeline.archives.checking import check, read_batches
from pipeline.archives.ids import IdMap, Ids, can_keep, choose_ids
from pipeline.archives.manifest import Manifest
from pipeline.archives.tables import TABLES, ArchivedTable, postgres_type
from pipeline.archives.values import copied_values
from pipeline.db.faults import first_line
from pipeline.db.removal import require_ended
from pipeline.db.session import copy_rows, transaction
from pipeline.errors import ArchiveError, JobError

if TYPE_CHECKING:
    import pyarrow

_BY_NAME = {table.name: table for table in TABLES}
_REFERENCES = {
    "problem_set_id": "problem_sets", "problem_id": "problems", "sample_id": "samples", "engine_id": "engines",
    "worker_id": "workers", "holder_id": "workers", "small_worker_id": "workers", "large_worker_id": "workers",
    "judge_worker_id": "workers",
}  # fmt: skip
"""The table whose id a column has."""


def restore_job(db_engine: Engine, folder: Path) -> Manifest:
    """Check an archive whole, then store its job. Upkeep counts its totals and rollups; views are right meanwhile.

    Raises ArchiveError where the archive is damaged or of a newer format, and where the database has a job of its id.
    """
    manifest = check(folder)
    _pass_over_ids(db_engine, manifest.job.id)
    try:
        with transaction(db_engine) as connection:
            _Restoring(connection, folder, manifest).run()
    except IntegrityError as error:
        if isinstance(error.orig, psycopg.errors.UniqueViolation):
            why = f"the database has rows of its own with the same ids ({error.orig.diag.constraint_name}): try again"
            raise ArchiveError(folder, why) from error
        constraint = getattr(getattr(error.orig, "diag", None), "constraint_name", "a constraint")
        raise ArchiveError(folder, f"its rows do not fit together: {constraint} refuses them") from error
    except DataError as error:
        raise ArchiveError(folder, f"its rows cannot be stored: {first_line(error.orig or error)}") from error
    return manifest


_IS_AHEAD = """
    FROM pg_sequences
    WHERE schemaname = 'public' AND sequencename = 'jobs_id_seq' AND coalesce(last_value, 0) < :job
"""


def _pass_over_ids(db_engine: Engine, job_id: int) -> None:
    """See that the database gives this id to no other job. The lock keeps out whoever takes the next id."""
    with transaction(db_engine) as connection:
        if connection.execute(text(f"SELECT {_IS_AHEAD}"), {"job": job_id}).first() is not None:
            connection.execute(text("LOCK TABLE jobs IN SHARE ROW EXCLUSIVE MODE"))
            connection.execute(text(f"SELECT setval('jobs_id_seq', :job) {_IS_AHEAD}"), {"job": job_id})


class _Restoring:
    """One restore, in one transaction."""

    def __init__(self, connection: Connection, folder: Path, manifest: Manifest) -> None:
        self._connection = connection
        self._folder = folder
        self._manifest = manifest
        self._maps: dict[str, IdMap] = {}
        self._new_workers: list[int] = []

    def run(self) -> None:
        job = {"job": self._manifest.job.id}
        if self._connection.execute(text("SELECT FROM jobs WHERE id = :job"), job).first() is not None:
            why = f"the database has a job {self._manifest.job.id} already: it is this one, or another of that number"
            raise ArchiveError(self._folder, why)
        if self._only_row("jobs")["id"] != self._manifest.job.id:
            raise ArchiveError(self._folder / "jobs.parquet", f"it is not of job {self._manifest.job.id}")
        self._store_problems()
        self._store_engines()
        self._store_workers()
        self._copy("jobs", replace={"cloned_from": self._present(self._manifest.cloned_from)})
        self._store_rows_of_experiments()
        samples = self._ids("samples")
        self._maps["samples"] = choose_ids(self._connection, "samples", samples)
        self._copy("samples")
        for name in ("segments", "segment_parts", "asides", "signals", "steps", "grades"):
            self._copy(name)
        self._store_events()
        self._require_whole(len(samples))
        self._connection.execute(text("SELECT create_rollups(:job)"), job)
        for clone in self._manifest.clones:
            if self._present(clone):
                self._connection.execute(_IS_CLONE, job | {"clone": clone.id})
        self._book_tokens()

    def _present(self, mark: Any) -> int | None:
        """The id of a job of the archive's database, where this one has that very job."""
        if mark is None:
            return None
        found = self._connection.execute(_PRESENT, mark.model_dump()).scalar()
        return None if found is None else int(found)

    def _batches(self, name: str) -> Iterator[pyarrow.RecordBatch]:
        return read_batches(self._folder, _BY_NAME[name])

    def _rows(self, name: str) -> list[dict[str, Any]]:
        """Of a small table."""
        names = _BY_NAME[name].names
        sent = (map(copied_values, batch.columns) for batch in self._batches(name))
        return [dict(zip(names, row, strict=True)) for columns in sent for row in zip(*columns, strict=True)]

    def _only_row(self, name: str) -> dict[str, Any]:
        rows = self._rows(name)
        if len(rows) != 1:
            raise ArchiveError(self._folder / _BY_NAME[name].file_name, f"it has {len(rows)} rows instead of one")
        return rows[0]

    def _ids(self, name: str) -> Ids:
        found = [batch.column("id").to_numpy() for batch in self._batches(name)]
        ids: Ids = np.concatenate(found) if found else np.zeros(0, np.int64)
        if np.any(np.diff(ids) <= 0):
            raise ArchiveError(self._folder / _BY_NAME[name].file_name, "its ids are not ascending")
        return ids

    def _copy(self, name: str, *, without: str = "", replace: Mapping[str, Any] | None = None) -> None:
        """Store the rows of a file. without: a column that the database fills. replace: values for whole columns."""
        table = _BY_NAME[name]
        names = [column for column in table.names if column != without]
        statement = f"""COPY {name} ({", ".join(f'"{column}"' for column in names)}) FROM STDIN"""
        for batch in self._batches(name):
            columns = [
                [replace[column]] * batch.num_rows if replace and column in replace
                else copied_values(self._mapped(table, column, batch.column(column)))
                for column in names
            ]  # fmt: skip
            copy_rows(self._connection, statement, zip(*columns, strict=True))

    def _mapped(self, table: ArchivedTable, name: str, column: pyarrow.Array) -> pyarrow.Array:
        of = table.name if name == "id" else _REFERENCES.get(name)
        if of not in self._maps:
            return column
        try:
            return self._maps[of].apply(column)
        except KeyError as error:
            path = self._folder / table.file_name
            raise ArchiveError(path, f"its {name} {error} is in no row of {_BY_NAME[of].file_name}") from None

    def _store_problems(self) -> None:
        given = self._only_row("problem_sets")
        problems = self._ids("problems")
        found = self._connection.execute(_SET_ID, given).scalar()
        if found is None:
            self._maps["problem_sets"] = choose_ids(self._connection, "problem_sets", self._ids("problem_sets"))
            self._maps["problems"] = choose_ids(self._connection, "problems", problems)
            for name in ("problem_sets", "problems", "reference_answers", "hidden_columns"):
                self._copy(name)
            return
        ids = self._connection.execute(_PROBLEM_IDS, {"set": found}).scalars()
        there: Ids = np.fromiter(ids, np.int64)
        if len(there) != len(problems):
            why = f"it has {len(problems)} problems, the same set in the database has {len(there)}"
            raise ArchiveError(self._folder / "problems.parquet", why)
        self._maps["problem_sets"] = IdMap.of({given["id"]: found})
        self._maps["problems"] = IdMap(problems, there)

    def _store_engines(self) -> None:
        ids = {}
        for row in self._rows("engines"):
            put = _insert("engines", row.keys() - {"id"}, "ON CONFLICT (sha256) DO NOTHING")
            self._connection.execute(text(put), row)
            by_content = text("SELECT id FROM engines WHERE sha256 = :sha256")
            ids[row["id"]] = int(self._connection.execute(by_content, row).scalar_one())
        self._maps["engines"] = IdMap.of(ids)

    def _store_workers(self) -> None:
        """Lives that the database knows are used; the others come as ended ones, whatever they were at the archive."""
        ids = {}
        for row in self._rows("workers"):
            known = self._connection.execute(_LIFE, row).first()
            if known is not None and known.is_same:
                ids[row["id"]] = row["id"]
                continue
            stored = dict(row)
            if known is not None:
                stored["id"] = int(self._connection.execute(_NEW_LIFE).scalar_one())
            if row["engine_id"] is not None:
                stored["engine_id"] = self._maps["engines"].of_one(row["engine_id"])
            if row["ended_at"] is None:
                stored |= {"ended_at": row["expires_at"], "end_reason": "lapsed"}
            stored["settled_at"] = row["settled_at"] or stored["ended_at"]
            self._connection.execute(text(_insert("workers", stored.keys())), stored)
            self._new_workers.append(stored["id"])
            ids[row["id"]] = stored["id"]
        self._maps["workers"] = IdMap.of(ids)

    def _store_rows_of_experiments(self) -> None:
        """Its rows, but for one that was submitted again under its name meanwhile; and what is a control of what, as
        far as both jobs are there."""
        marks = {mark.id: mark for mark in self._manifest.control_of}
        put = _insert("experiment_jobs", _BY_NAME["experiment_jobs"].names, "ON CONFLICT DO NOTHING")
        for row in self._rows("experiment_jobs"):
            self._connection.execute(_EXPERIMENT, row)
            self._connection.execute(text(put), row | {"control_of": self._present(marks.get(row["control_of"]))})
        for control in self._manifest.controls:
            if self._present(control):
                self._connection.execute(_IS_CONTROL, {"job": self._manifest.job.id, "control": control.id})

    def _store_events(self) -> None:
        """With their own ids where all of them are free; else with new ones, in the order of the file."""
        batches = (batch.column("id").to_numpy() for batch in self._batches("events"))
        are_kept = all(can_keep(self._connection, "events", ids) for ids in batches)
        self._copy("events", without="" if are_kept else "id")

    def _require_whole(self, num_samples: int) -> None:
        """Raise ArchiveError where a sample is of another job, or the job would go on here."""
        found = self._connection.execute(_NUM_SAMPLES, {"job": self._manifest.job.id}).scalar_one()
        if found != num_samples:
            path = self._folder / _BY_NAME["samples"].file_name
            raise ArchiveError(path, f"{num_samples - found} of its {num_samples} samples are of another job")
        try:
            require_ended(self._connection, self._manifest.job.id)
        except JobError as error:
            raise ArchiveError(self._folder, str(error)) from error

    def _book_tokens(self) -> None:
        """Count the job's tokens with the workers that generated them: their books hold with it as without it."""
        values = {"job": self._manifest.job.id, "new": self._new_workers}
        self._connection.execute(_BOOK, values)


_PRESENT = text("""
    SELECT id FROM jobs WHERE id = :id AND (extract(epoch FROM submitted_at) * 1000000)::bigint = :submitted_at
""")
_IS_CLONE = text("UPDATE jobs SET cloned_from = :job WHERE id = :clone AND cloned_from IS NULL")
_EXPERIMENT = text("INSERT INTO experiments (name) VALUES (:experiment) ON CONFLICT DO NOTHING")
_IS_CONTROL = text("""
    UPDATE experiment_jobs c SET control_of = :job
    WHERE c.job_id = :control AND c.control_of IS NULL
      AND EXISTS (SELECT FROM experiment_jobs r WHERE r.experiment = c.experiment AND r.job_id = :job)
""")
_SET_ID = text("SELECT id FROM problem_sets WHERE content_sha256 = :content_sha256")
_PROBLEM_IDS = text("SELECT id FROM problems WHERE problem_set_id = :set ORDER BY position")
_LIFE = text("""
    SELECT (w.kind, w.host, w.pid, w.started_at) = (:kind, :host, :pid, CAST(:started_at AS timestamptz)) AS is_same
    FROM workers w WHERE w.id = :id
""")
_NEW_LIFE = text("SELECT nextval('workers_id_seq') * 1000000 + floor(random() * 1000000)::bigint")
_NUM_SAMPLES = text("SELECT count(*) FROM samples WHERE job_id = :job")
# In the order of their ids, as a removal and a retry lock them.
_BOOK = text("""
    WITH written AS (
        SELECT p.worker_id, sum(p.tokens_generated)::bigint AS tokens
        FROM (
            SELECT g.worker_id, g.tokens_generated FROM segments g JOIN samples s ON s.id = g.sample_id
            WHERE s.job_id = :job
            UNION ALL
            SELECT a.worker_id, a.tokens_generated FROM asides a JOIN samples s ON s.id = a.sample_id
            WHERE s.job_id = :job
        ) p GROUP BY p.worker_id
    ),
    locked AS (
        SELECT w.id FROM workers w
        WHERE w.id IN (SELECT worker_id FROM written) OR w.id = ANY(:new) ORDER BY w.id FOR NO KEY UPDATE
    )
    UPDATE workers w SET tokens_withdrawn = greatest(0, CASE
        WHEN w.id = ANY(:new) THEN w.tokens_committed - coalesce(written.tokens, 0)
        ELSE w.tokens_withdrawn - coalesce(written.tokens, 0) END)
    FROM locked LEFT JOIN written ON written.worker_id = locked.id WHERE w.id = locked.id
""")


def _insert(table: str, names: Iterable[str], more: str = "") -> str:
    """An INSERT of one row."""
    columns = {column.name: column for column in _BY_NAME[table].columns}
    listed = sorted(names)
    kinds = [postgres_type(columns[name]) for name in listed]
    values = ", ".join(f"CAST(:{name} AS {kind})" for name, kind in zip(listed, kinds, strict=True))
    return f"INSERT INTO {table} ({', '.join(listed)}) VALUES ({values}) {more}"
