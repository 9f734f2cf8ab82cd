"""Chat requests that wait for their answers: each becomes a problem of a job, and one thread looks after all of them.

Requests that come within a moment and ask in the same way are one job. Whoever goes away leaves the answer to the next
one who asks just the same: a client that has lost patience asks again, and the work goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection, Engine

from pipeline.batches import Caller
from pipeline.client import MAX_PRIORITY, Client
from pipeline.db import job_control, submissions
from pipeline.db.gateway import chats, keys
from pipeline.db.gateway.chats import StoredChat
from pipeline.db.session import transaction
from pipeline.errors import PipelineError, ServiceUnavailable
from pipeline.gateway.errors import ApiError
from pipeline.gateway.preparing import make_submission
from pipeline.gateway.requests import Asked
from pipeline.jobs.readiness import make_ready
from pipeline.problems import ProblemSet, content_sha256
from pipeline.settings import GatewaySettings

log = logging.getLogger(__name__)

POLL_S = 0.1
SAY_S = 2.0
"""So often it is stored that somebody waits."""
_SEEDS = 2**31


@dataclass(kw_only=True, eq=False)
class Waiting:
    """A request that waits. seen: segments at the last look; changed: set, in its own loop, where there is news."""

    asked: Asked
    caller: Caller
    request_sha256: str
    is_retry: bool
    loop: asyncio.AbstractEventLoop
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    chat: StoredChat | None = None
    error: ApiError | PipelineError | None = None
    is_done: bool = False
    is_gone: bool = False
    seen: int = 0

    def tell(self) -> None:
        self.loop.call_soon_threadsafe(self.changed.set)


class Desk:
    """Stores requests, and tells each of them when there is something new of its answer."""

    def __init__(self, db_engine: Engine, client: Client, settings: GatewaySettings) -> None:
        self._db_engine = db_engine
        self._client = client
        self._settings = settings
        self._lock = threading.Lock()
        self._new: list[tuple[float, Waiting]] = []
        self._waiting: dict[str, Waiting] = {}
        self._woken = threading.Event()
        self._stopped = threading.Event()
        self._said_at = 0.0
        self._thread = threading.Thread(target=self._run, name="gateway answers chats", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def put(self, waiting: Waiting) -> None:
        """Take a request in. Raises ApiError where too many wait."""
        with self._lock:
            if len(self._new) + len(self._waiting) >= self._settings.max_waiting:
                raise ApiError(
                    429,
                    "Too many requests wait here; come again.",
                    code="too_many_waiting",
                    headers={"retry-after": "5"},
                )
            self._new.append((time.monotonic(), waiting))
        self._woken.set()

    def leave(self, waiting: Waiting) -> None:
        """Nobody waits for it any more. One that is just being stored is left as soon as it is."""
        with self._lock:
            waiting.is_gone = True
            self._new = [(at, other) for at, other in self._new if other is not waiting]
        self._woken.set()

    def deliver(self, waiting: Waiting) -> None:
        """Its answer was given."""
        assert waiting.chat is not None
        with self._lock:
            self._waiting.pop(waiting.chat.id, None)
        with transaction(self._db_engine) as connection:
            chats.mark_delivered(connection, waiting.chat.id)

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._woken.wait(self._pause_s())
            self._woken.clear()
            for work in (self._store_due, self._look):
                self._attempt(work)

    def _pause_s(self) -> float | None:
        """Until the next look, or until the oldest new request has waited for others; None: until somebody comes."""
        with self._lock:
            if not self._new and not self._waiting:
                return None
            due = [at + self._settings.collect_s - time.monotonic() for at, _ in self._new[:1]]
        return max(0.0, min([POLL_S, *due]))

    def _attempt(self, work: Callable[[], None]) -> None:
        """Nothing may end this thread."""
        try:
            work()
        except PipelineError as error:
            log.warning("gateway: %s", error)
            self._stopped.wait(1)
        except Exception:
            log.exception("gateway: looking after chats broke")
            self._stopped.wait(1)

    # Storing

    def _store_due(self) -> None:
        """All that have waited long enough for others like them, with those others."""
        with self._lock:
            due = time.monotonic() - self._settings.collect_s
            ways = {waiting.asked.settings for at, waiting in self._new if at <= due}
            taken = [waiting for _, waiting in self._new if waiting.asked.settings in ways]
            self._new = [(at, waiting) for at, waiting in self._new if waiting.asked.settings not in ways]
        groups: dict[str, list[Waiting]] = {}
        for waiting in taken:
            groups.setdefault(waiting.asked.settings, []).append(waiting)
        for group in groups.values():
            self._store(group)

    def _store(self, group: list[Waiting]) -> None:
        try:
            with transaction(self._db_engine) as connection:
                fresh = [waiting for waiting in group if not self._joined(connection, waiting)]
                for job in apart(fresh):
                    self._store_job(connection, job)
        except (ApiError, PipelineError) as error:
            for waiting in group:
                waiting.chat, waiting.error = None, error
                waiting.tell()
            return
        except Exception:
            for waiting in group:
                waiting.chat, waiting.error = None, ServiceUnavailable("the request could not be stored")
                waiting.tell()
            raise
        with self._lock:
            self._waiting |= {waiting.chat.id: waiting for waiting in group if waiting.chat is not None}
        for waiting in group:
            waiting.tell()

    def _joined(self, connection: Connection, waiting: Waiting) -> bool:
        """Whether an answer is under way that somebody has asked for in just this way, and waits for no more."""
        waiting.chat = chats.take_abandoned(
            connection, waiting.caller, waiting.request_sha256, is_retry=waiting.is_retry
        )
        return waiting.chat is not None

    def _store_job(self, connection: Connection, group: list[Waiting]) -> None:
        """One job for all of them."""
        first = group[0].asked
        ids = [f"chatcmpl-{secrets.token_hex(12)}" for _ in group]
        saved = keys.find_alias(connection, first.model)
        submission = make_submission(
            first, saved, {}, seed=secrets.randbelow(_SEEDS), name=f"chat: {first.model}"[:200]
        )
        external_ids = [question_id(waiting.asked) or chat_id for waiting, chat_id in zip(group, ids, strict=True)]
        problems = tuple(
            replace(waiting.asked.problem, external_id=external_id)
            for waiting, external_id in zip(group, external_ids, strict=True)
        )
        made = ProblemSet(name="chat", content_sha256=content_sha256(problems), problems=problems)
        ready = make_ready(submission.model_copy(update={"problems": made}))
        (job_id,) = submissions.insert_ready(connection, [ready])
        job_control.set_priority(connection, job_id, MAX_PRIORITY)
        for waiting, chat_id, external_id in zip(group, ids, external_ids, strict=True):
            waiting.chat = StoredChat(id=chat_id, external_id=external_id, job_id=job_id, model=waiting.asked.model)
            chats.insert_chat(connection, waiting.chat, owner=waiting.caller, request_sha256=waiting.request_sha256)

    # Looking

    def _look(self) -> None:
        """Tell those of whose answers more is written than at the last look; forget those that have gone."""
        with self._lock:
            gone = [name for name, one in self._waiting.items() if one.is_gone]
            for name in gone:
                del self._waiting[name]
            waiting = dict(self._waiting)
        if not waiting and not gone:
            return
        with transaction(self._db_engine) as connection:
            for name in gone:
                chats.leave(connection, name)
            if time.monotonic() - self._said_at > SAY_S:
                chats.keep_waiting(connection, list(waiting))
                self._said_at = time.monotonic()
            progress = chats.select_chat_progress(connection, list(waiting))
        for found in progress:
            one = waiting[found.id]
            if found.is_done or found.num_segments > one.seen:
                one.seen, one.is_done = found.num_segments, found.is_done
                one.tell()


def question_id(asked: Asked) -> str | None:
    """The external id of a question that names a seed: noise is drawn by it, and the same question is to have the same.

    None: the request names no seed.
    """
    if "seed" not in asked.options:
        return None
    return f"seeded-{content_sha256([replace(asked.problem, external_id='')])[:32]}"


def apart(group: Sequence[Waiting]) -> list[list[Waiting]]:
    """The same requests, in as few jobs that none has a question twice."""
    jobs: list[list[Waiting]] = []
    seen: dict[str, int] = {}
    for waiting in group:
        name = question_id(waiting.asked)
        turn = 0 if name is None else seen.get(name, 0)
        if name is not None:
            seen[name] = turn + 1
        jobs.extend([] for _ in range(turn + 1 - len(jobs)))
        jobs[turn].append(waiting)
    return jobs


def make_waiting(asked: Asked, caller: Caller, request_sha256: str, *, is_retry: bool) -> Waiting:
    """A request of the loop that runs here."""
    return Waiting(
        asked=asked,
        caller=caller,
        request_sha256=request_sha256,
        is_retry=is_retry,
        loop=asyncio.get_running_loop(),
    )
