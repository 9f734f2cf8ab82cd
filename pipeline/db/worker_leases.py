"""The statements about workers: register, renew, end. The lease's clock is the database's."""

from __future__ import annotations

import datetime as dt
import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import orjson
from sqlalchemy import Connection, text

from pipeline.errors import ConfigurationError, LeaseLost
from pipeline.segments import storable
from pipeline.workforce import WorkerEnd, WorkerKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What a worker says of itself when it starts."""

    kind: WorkerKind
    model: str | None
    engine_id: int | None
    host: str
    pid: int
    queue: str
    max_in_flight: int
    ttl: dt.timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerCounters:
    """Running totals of one worker's life; see the columns of workers."""

    num_in_flight: int = 0
    num_slots: int | None = None
    """Samples that its cache has room for now; None: max_in_flight."""
    tokens_generated: int = 0
    tokens_committed: int = 0
    tokens_dropped: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    num_drafts: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    refused_jobs: Mapping[int, str] = field(default_factory=dict)
    """Jobs that it cannot write, and why."""

    def since(self, earlier: WorkerCounters) -> WorkerCounters:
        """What came after an earlier reading."""
        return replace(self, **{name: getattr(self, name) - getattr(earlier, name) for name in _TOTALS})

    def closed(self) -> WorkerCounters:
        """As of the end of a life: what is not committed by then is dropped."""
        return replace(self, num_in_flight=0, tokens_dropped=self.tokens_generated - self.tokens_committed)


_TOTALS = (
    "tokens_generated", "tokens_committed", "tokens_dropped", "prompt_tokens", "cached_tokens", "num_drafts",
    "draft_tokens", "accepted_tokens",
)  # fmt: skip
"""What runs on through a process's life; the rest is of the moment."""
_SET_TOTALS = ", ".join(f"{name} = :{name}" for name in _TOTALS)
_SHOWN = 300
"""Characters of a reason that a heartbeat stores."""


def _values(worker_id: int, counters: WorkerCounters) -> dict[str, Any]:
    """Of a statement that stores counters."""
    refused = {str(job): _shown(reason) for job, reason in counters.refused_jobs.items()}
    return asdict(counters) | {"worker": worker_id, "refused_jobs": orjson.dumps(refused).decode()}


def _shown(reason: str) -> str:
    """The head of an error's text, in characters that Postgres can store: no heartbeat may fail because of it."""
    return storable(reason[:_SHOWN].encode(errors="replace").decode())


_PUT_ENGINE = text("""
    INSERT INTO engines (sha256, kind, version, model, model_fingerprint, vocabulary_sha256, settings, weights_sha256,
                         revision)
    VALUES (:sha256, :kind, :version, :model, :model_fingerprint, :vocabulary_sha256, CAST(:settings AS jsonb),
            :weights_sha256, :revision)
    ON CONFLICT DO NOTHING
""")


def put_engine(
    connection: Connection,
    *,
    kind: str,
    version: str,
    model: str,
    model_fingerprint: str,
    vocabulary_sha256: str,
    settings: dict[str, Any],
    weights_sha256: str | None = None,
    revision: str | None = None,
) -> int:
    """The id of the row with just this content, stored now if it is new."""
    content: dict[str, Any] = {
        "kind": kind,
        "version": version,
        "model": model,
        "model_fingerprint": model_fingerprint,
        "vocabulary_sha256": vocabulary_sha256,
        "settings": settings,
        "weights_sha256": weights_sha256,
        "revision": revision,
    }
    sha256 = hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()
    values = content | {"sha256": sha256, "settings": orjson.dumps(settings).decode()}
    connection.execute(_PUT_ENGINE, values)
    return int(connection.execute(text("SELECT id FROM engines WHERE sha256 = :sha256"), values).scalar_one())


_ANOTHER_OF_THE_NAME = text("""
    SELECT w.id, w.host FROM workers w JOIN engines e ON e.id = w.engine_id
    WHERE w.model = :model AND w.ended_at IS NULL AND w.expires_at > clock_timestamp()
      AND (e.model_fingerprint <> :model_fingerprint OR e.weights_sha256 <> :weights_sha256)
    ORDER BY w.id LIMIT 1
""")


def refuse_second_identity(
    connection: Connection, *, model: str, model_fingerprint: str, weights_sha256: str | None
) -> None:
    """Raises ConfigurationError where a live worker serves another model under this name.

    Weights that nobody could read are taken for the same. Of two workers that start in the same moment both are let in:
    the jobs that know their model's identity still go to the right one.
    """
    identity = {"model": model, "model_fingerprint": model_fingerprint, "weights_sha256": weights_sha256}
    other = connection.execute(_ANOTHER_OF_THE_NAME, identity).first()
    if other is not None:
        raise ConfigurationError(
            f"worker {other.id} on {other.host} serves another model as {model!r}: other weights, tokenizer "
            "or chat template; end it first, or give this one a name of its own with --name-served NAME"
        )


_LIVES = 1_000_000
"""Ids for each number that the database gives. See ``register_worker``."""
_REGISTER = text(f"""
    INSERT INTO workers (id, kind, model, engine_id, host, pid, queue, max_in_flight, expires_at)
    VALUES (nextval('workers_id_seq') * {_LIVES} + :drawn, :kind, :model, :engine_id, :host, :pid, :queue,
            :max_in_flight, clock_timestamp() + :ttl)
    RETURNING id
""")


def register_worker(connection: Connection, registration: Registration) -> int:
    """Begin a worker's life; returns its id.

    The last six digits are drawn. A database that is restored to an earlier moment gives its numbers once more, and no
    two lives may share an id: whatever a worker asks for under an id that this database does not know is refused.
    """
    values = {name: getattr(registration, name) for name in Registration.__dataclass_fields__}
    drawn = {"kind": registration.kind.value, "drawn": secrets.randbelow(_LIVES)}
    return int(connection.execute(_REGISTER, values | drawn).scalar_one())


_RENEW = text(f"""
    UPDATE workers SET renewed_at = clock_timestamp(), expires_at = clock_timestamp() + :ttl,
        num_in_flight = :num_in_flight, num_slots = :num_slots,
        {_SET_TOTALS}, refused_jobs = CAST(:refused_jobs AS jsonb)
    WHERE id = :worker AND ended_at IS NULL AND renewed_at >= coalesce(CAST(:since AS timestamptz), renewed_at)
    RETURNING renewed_at
""")


def renew_worker(
    connection: Connection,
    worker_id: int,
    *,
    ttl: dt.timedelta,
    counters: WorkerCounters,
    since: dt.datetime | None = None,
) -> dt.datetime:
    """Heartbeat: renew the lease and book the counters; returns when, by the database's clock.

    since: what the last heartbeat returned. A row that was renewed before that is of a database that was restored to an
    earlier moment: the life is over with the history that it was a part of.
    Raises LeaseLost when the lease was taken away. One that has run out can be renewed until upkeep takes it: whoever
    is first.
    """
    values = _values(worker_id, counters) | {"ttl": ttl, "since": since}
    renewed_at: dt.datetime | None = connection.execute(_RENEW, values).scalar_one_or_none()
    if renewed_at is None:
        raise LeaseLost(worker_id)
    return renewed_at


_FINALIZE_COUNTERS = text(f"""
    UPDATE workers SET num_in_flight = 0, {_SET_TOTALS}
    WHERE id = :worker AND ended_at IS NOT NULL
""")


def finalize_counters(connection: Connection, worker_id: int, counters: WorkerCounters) -> None:
    """Book the last counters of a life whose lease has lapsed. One that a restore has brought back lapses as it is: its
    counters are of the history that was undone."""
    connection.execute(_FINALIZE_COUNTERS, _values(worker_id, counters))


_SETTLE_LATE_TOKENS = text("""
    UPDATE workers SET tokens_committed = tokens_committed + :tokens, tokens_dropped = tokens_dropped - :tokens
    WHERE id = :worker
""")


def settle_late_tokens(connection: Connection, worker_id: int, *, tokens: int) -> None:
    """Count tokens of a closed row as committed that were taken for dropped: the commit's answer came too late."""
    connection.execute(_SETTLE_LATE_TOKENS, {"worker": worker_id, "tokens": tokens})


_END = text(f"""
    UPDATE workers SET ended_at = clock_timestamp(), end_reason = :reason,
        num_in_flight = 0, {_SET_TOTALS}
    WHERE id = :worker AND ended_at IS NULL
""")


def end_worker(
    connection: Connection, worker_id: int, counters: WorkerCounters, *, reason: WorkerEnd = WorkerEnd.STOPPED
) -> None:
    """Say goodbye; upkeep settles what is left. Idempotent."""
    connection.execute(_END, _values(worker_id, counters) | {"reason": reason.value})
