"""The statements of requests that are answered online: each is a problem of a job that was stored for some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from pipeline.batches import Caller

ABANDONED_S = 5.0
"""Somebody who waits says so more often than this; after so long the answer is for whoever asks the same again."""
KEPT_S = 600.0
"""For so long an answer that nobody waits for is worked on, and kept for whoever asks the same again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredChat:
    """A request that was stored: the job and the problem that answer it, and the model as it calls it."""

    id: str
    external_id: str
    job_id: int
    model: str


_INSERT = text("""
    INSERT INTO chat_requests (id, external_id, owner_id, request_sha256, job_id, model)
    VALUES (:id, :external_id, :owner, :request_sha256, :job, :model)
""")


def insert_chat(connection: Connection, chat: StoredChat, *, owner: Caller, request_sha256: str) -> None:
    values = {
        "id": chat.id, "external_id": chat.external_id, "owner": owner.key_id, "request_sha256": request_sha256,
        "job": chat.job_id, "model": chat.model,
    }  # fmt: skip
    connection.execute(_INSERT, values)


_TAKE = text("""
    UPDATE chat_requests SET waited_at = clock_timestamp()
    WHERE id = (
        SELECT c.id FROM chat_requests c JOIN jobs j ON j.id = c.job_id
        WHERE c.request_sha256 = :request_sha256 AND c.owner_id IS NOT DISTINCT FROM :owner
          AND c.delivered_at IS NULL AND j.state <> 'cancelled'
          AND c.created_at > clock_timestamp() - make_interval(secs => :kept_s)
          AND c.waited_at < clock_timestamp() - make_interval(secs => :abandoned_s)
        ORDER BY c.created_at LIMIT 1 FOR UPDATE OF c SKIP LOCKED)
    RETURNING id, external_id, job_id, model
""")


def take_abandoned(connection: Connection, caller: Caller, request_sha256: str, *, is_retry: bool) -> StoredChat | None:
    """A request just like this one that nobody waits for any more; its answer is the caller's now.

    is_retry: the client says that it asks again, so that its earlier wait is over however short ago it was.
    """
    values = {
        "request_sha256": request_sha256, "owner": caller.key_id, "kept_s": KEPT_S,
        "abandoned_s": 0.0 if is_retry else ABANDONED_S,
    }  # fmt: skip
    row = connection.execute(_TAKE, values).mappings().first()
    return None if row is None else StoredChat(**row)


_WAIT = text("UPDATE chat_requests SET waited_at = clock_timestamp() WHERE id = ANY(:ids)")
_LEAVE = text("UPDATE chat_requests SET waited_at = '-infinity' WHERE id = :id AND delivered_at IS NULL")
_DELIVER = text("UPDATE chat_requests SET delivered_at = clock_timestamp() WHERE id = :id")
_PROGRESS = text("""
    SELECT c.id, bool_and(s.ended_at IS NOT NULL OR s.state = 'finished') AS is_done,
           sum(s.num_segments)::integer AS num_segments
    FROM chat_requests c JOIN jobs j ON j.id = c.job_id
    JOIN problems p ON p.problem_set_id = j.problem_set_id AND p.external_id = c.external_id
    JOIN samples s ON s.job_id = j.id AND s.problem_id = p.id
    WHERE c.id = ANY(:ids) GROUP BY c.id
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatProgress:
    """How far an answer is."""

    id: str
    is_done: bool
    num_segments: int


def keep_waiting(connection: Connection, ids: Sequence[str]) -> None:
    """Say of some requests that somebody waits for them."""
    connection.execute(_WAIT, {"ids": list(ids)})


def leave(connection: Connection, chat_id: str) -> None:
    """Say that nobody waits any more: whoever asks the same gets this answer."""
    connection.execute(_LEAVE, {"id": chat_id})


def mark_delivered(connection: Connection, chat_id: str) -> None:
    connection.execute(_DELIVER, {"id": chat_id})


def select_chat_progress(connection: Connection, ids: Sequence[str]) -> list[ChatProgress]:
    return [ChatProgress(**row) for row in connection.execute(_PROGRESS, {"ids": list(ids)}).mappings()]


_FORGOTTEN = text("""
    SELECT j.id FROM jobs j
    WHERE j.state IN ('running', 'paused') AND EXISTS (SELECT FROM chat_requests c WHERE c.job_id = j.id)
      AND NOT EXISTS (
          SELECT FROM chat_requests c WHERE c.job_id = j.id AND c.delivered_at IS NULL
            AND greatest(c.waited_at, c.created_at) > clock_timestamp() - make_interval(secs => :kept_s))
    ORDER BY j.id LIMIT 20
""")


def forgotten_jobs(connection: Connection) -> list[int]:
    """Jobs at work for requests that nobody has waited for in a long time."""
    return list(connection.execute(_FORGOTTEN, {"kept_s": KEPT_S}).scalars())
