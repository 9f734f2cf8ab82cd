"""The statements of uploaded files. Their bytes lie in rows of 1 MiB: no more than one of them is ever in memory."""

from __future__ import annotations

import io
from collections.abc import Generator, Iterator
from typing import IO, Any

from sqlalchemy import Connection, text
from typing_extensions import Buffer

from pipeline.batches import ERRORS_PREFIX, OUTPUT_PREFIX, Caller, StoredFile
from pipeline.db.session import stream_rows

PART_BYTES = 2**20

_INSERT_FILE = text("""
    INSERT INTO files (id, owner_id, purpose, filename, num_bytes, sha256, request_sha256, idempotency_key, expires_at)
    VALUES (:id, :owner, :purpose, :filename, :num_bytes, :sha256, :request_sha256, :idempotency_key,
            clock_timestamp() + make_interval(secs => CAST(:expires_after_s AS float8)))
    RETURNING created_at, expires_at
""")
_INSERT_PART = text("INSERT INTO file_parts (file_id, part, data) VALUES (:file, :part, :data)")


def insert_file(
    connection: Connection,
    content: IO[bytes],
    *,
    file_id: str,
    owner: Caller,
    purpose: str,
    filename: str,
    num_bytes: int,
    sha256: str,
    request_sha256: str,
    idempotency_key: str | None,
    expires_after_s: int | None,
) -> StoredFile:
    """Store a file with its content, read from where it is at."""
    values = {
        "id": file_id, "owner": owner.key_id, "purpose": purpose, "filename": filename, "num_bytes": num_bytes,
        "sha256": sha256, "request_sha256": request_sha256, "idempotency_key": idempotency_key,
        "expires_after_s": expires_after_s,
    }  # fmt: skip
    row = connection.execute(_INSERT_FILE, values).one()
    for number, data in enumerate(iter(lambda: content.read(PART_BYTES), b"")):
        connection.execute(_INSERT_PART, {"file": file_id, "part": number, "data": data})
    return StoredFile(
        id=file_id,
        purpose=purpose,
        filename=filename,
        num_bytes=num_bytes,
        created_at=row.created_at,
        expires_at=row.expires_at,
        sha256=sha256,
    )


# A batch's own files are no rows: they are made of its samples whenever somebody reads them.
_OF_BATCHES = """
    SELECT '{prefix}' || substr(b.id, 7) AS id, b.owner_id, 'batch_output' AS purpose,
           b.id || '_{kind}.jsonl' AS filename, b.{kind}_bytes AS num_bytes, e.at AS created_at,
           e.at + make_interval(secs => b.output_expires_s) AS expires_at, NULL AS sha256, b.id AS batch_id,
           {is_errors} AS is_errors
    FROM batches b CROSS JOIN LATERAL (SELECT coalesce(b.completed_at, b.expired_at, b.cancelled_at) AS at) e
    WHERE e.at IS NOT NULL AND b.{lines} > 0 AND b.{kind}_deleted_at IS NULL
"""
_FILES = f"""
    SELECT id, owner_id, purpose, filename, num_bytes, created_at, expires_at, sha256, NULL AS batch_id,
           false AS is_errors
    FROM files WHERE deleted_at IS NULL
    UNION ALL {_OF_BATCHES.format(prefix=OUTPUT_PREFIX, kind="output", is_errors="false", lines="num_completed")}
    UNION ALL {_OF_BATCHES.format(prefix=ERRORS_PREFIX, kind="error", is_errors="true", lines="num_failed")}
"""
_COLUMNS = "id, purpose, filename, num_bytes, created_at, expires_at, sha256, batch_id, is_errors"
_MINE = "(:all OR owner_id IS NOT DISTINCT FROM :owner)"
_THERE = "(expires_at IS NULL OR expires_at > clock_timestamp())"
_GET_FILE = text(f"SELECT {_COLUMNS} FROM ({_FILES}) f WHERE id = :id AND {_MINE} AND {_THERE}")
_PAGE = f"""
    SELECT {_COLUMNS} FROM ({_FILES}) f
    WHERE {_MINE} AND {_THERE} AND (CAST(:purpose AS text) IS NULL OR purpose = :purpose)
      AND (CAST(:after AS text) IS NULL OR (created_at, id) {{side}} (CAST(:at AS timestamptz), CAST(:after AS text)))
    ORDER BY created_at {{order}}, id {{order}} LIMIT :limit
"""
_PAGES = {
    "desc": text(_PAGE.format(side="<", order="DESC")),
    "asc": text(_PAGE.format(side=">", order="ASC")),
}


def _scope(caller: Caller) -> dict[str, Any]:
    return {"all": caller.sees_all, "owner": caller.key_id}


def find_file(connection: Connection, caller: Caller, file_id: str) -> StoredFile | None:
    """A file of the caller's own; None: there is none of this name that the caller may see."""
    row = connection.execute(_GET_FILE, {"id": file_id, **_scope(caller)}).mappings().first()
    return None if row is None else StoredFile(**row)


def page_of_files(
    connection: Connection, caller: Caller, *, after: StoredFile | None, limit: int, order: str, purpose: str | None
) -> list[StoredFile]:
    """The files that follow one, or the first ones. order: asc or desc, by when they were made."""
    values = {
        "purpose": purpose, "limit": limit, "after": after and after.id, "at": after and after.created_at,
        **_scope(caller),
    }  # fmt: skip
    return [StoredFile(**row) for row in connection.execute(_PAGES[order], values).mappings()]


_FIND_REPEATED = """
    SELECT id, request_sha256 FROM {table}
    WHERE owner_id IS NOT DISTINCT FROM :owner
      AND (idempotency_key = :key AND created_at > clock_timestamp() - interval '24 hours'
           OR CAST(:key AS text) IS NULL AND :is_retry AND request_sha256 = :request_sha256
              AND created_at > clock_timestamp() - interval '10 minutes')
    ORDER BY created_at DESC LIMIT 1
"""
_REPEATED = {table: text(_FIND_REPEATED.format(table=table)) for table in ("files", "batches")}
_LOCK_REQUEST = text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")


def find_repeated(
    connection: Connection, table: str, caller: Caller, *, idempotency_key: str | None, request_sha256: str,
    is_retry: bool,
) -> tuple[str, bool] | None:  # fmt: skip
    """What an earlier sending of this request has made: its id, and whether it was the same request.

    None: this is the first, and another sending waits until this transaction has ended. idempotency_key: the client's;
    is_retry: the client says that it asks again.
    """
    connection.execute(_LOCK_REQUEST, {"name": f"{table} {caller.key_id} {idempotency_key or request_sha256}"})
    values = {
        "owner": caller.key_id, "key": idempotency_key, "request_sha256": request_sha256, "is_retry": is_retry,
    }  # fmt: skip
    row = connection.execute(_REPEATED[table], values).first()
    return None if row is None else (row.id, row.request_sha256 == request_sha256)


_IN_USE = text("""
    SELECT id FROM batches
    WHERE (input_file_id = :file OR answers_file_id = :file)
      AND coalesce(completed_at, failed_at, expired_at, cancelled_at) IS NULL LIMIT 1
""")
_LOCK_FILE = text("SELECT id FROM files WHERE id = :file AND deleted_at IS NULL FOR UPDATE")
_MARK_DELETED = text("UPDATE files SET deleted_at = clock_timestamp() WHERE id = :file")
_DROP_PARTS = text("DELETE FROM file_parts WHERE file_id = :file")
_DELETE_OF_BATCH = {
    False: text("UPDATE batches SET output_deleted_at = clock_timestamp() WHERE id = :batch"),
    True: text("UPDATE batches SET error_deleted_at = clock_timestamp() WHERE id = :batch"),
}


def delete_file(connection: Connection, file: StoredFile) -> str | None:
    """Delete a file's content; returns the open batch that needs it, and deletes nothing then."""
    if file.batch_id is not None:
        connection.execute(_DELETE_OF_BATCH[file.is_errors], {"batch": file.batch_id})
        return None
    connection.execute(_LOCK_FILE, {"file": file.id})
    batch: str | None = connection.execute(_IN_USE, {"file": file.id}).scalar()
    if batch is None:
        connection.execute(_MARK_DELETED, {"file": file.id})
        connection.execute(_DROP_PARTS, {"file": file.id})
    return batch


_EXPIRED = text("""
    SELECT id FROM files f WHERE deleted_at IS NULL AND expires_at < clock_timestamp()
      AND NOT EXISTS (SELECT FROM batches b WHERE (b.input_file_id = f.id OR b.answers_file_id = f.id)
                      AND coalesce(completed_at, failed_at, expired_at, cancelled_at) IS NULL)
    ORDER BY id LIMIT 10 FOR UPDATE SKIP LOCKED
""")


def delete_expired(connection: Connection) -> int:
    """Delete the content of files whose time has come and which no open batch needs; returns of how many."""
    ids = list(connection.execute(_EXPIRED).scalars())
    for file_id in ids:
        connection.execute(_MARK_DELETED, {"file": file_id})
        connection.execute(_DROP_PARTS, {"file": file_id})
    return len(ids)


_PARTS = "SELECT data FROM file_parts WHERE file_id = %(file)s ORDER BY part"


def stream_parts(connection: Connection, file_id: str) -> Generator[bytes]:
    """A file's content, piece by piece. Nothing else may be asked on this connection meanwhile."""
    for (data,) in stream_rows(connection, _PARTS, {"file": file_id}):
        yield bytes(data)


def open_parts(parts: Iterator[bytes]) -> IO[bytes]:
    """Pieces of a file to read line by line; one of them is in memory."""
    return io.BufferedReader(_Parts(parts), buffer_size=2**16)


class _Parts(io.RawIOBase):
    """Pieces of bytes as a file."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        if not self._rest:
            self._rest = memoryview(next(self._parts, b""))
        size = min(len(view), len(self._rest))
        view[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size
