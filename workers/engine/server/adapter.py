"""A server behind the Engine protocol: requests by HTTP, each a stream of its own.

The server schedules and caches; here requests wait by priority while it takes no more. What it may do to us is in
``workers.engine.server.errors``. Nothing of it fails a sample but its own refusal: a request that was not begun waits,
a stream that breaks off gives its sample back (EngineAway), to go on from what is stored of it.
"""

from __future__ import annotations

import asyncio
import heapq
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple, TypeAlias

import structlog

from pipeline.chat.model import ChatModel
from pipeline.errors import EngineAway, EngineError, EngineRefused, EngineUnavailable, PipelineError
from pipeline.samples import SegmentFinish
from pipeline.settings import EngineSettings
from workers.engine.base import EngineInfo, EngineStats, GenerateRequest
from workers.engine.failures import one_line
from workers.engine.running import Running
from workers.engine.server.client import ServerClient
from workers.engine.server.completions import PATH, Chunk, read_event, request_body
from workers.engine.server.errors import (
    ServerAway,
    ServerError,
    ServerFaulty,
    ServerForbids,
    ServerOverloaded,
    ServerRefuses,
)
from workers.engine.server.finding import FoundServer
from workers.engine.server.patience import Throttle, delays
from workers.engine.threaded import Ended, ThreadedEngine

log = structlog.get_logger()

_LOOK_S = 0.1
"""How often the engine's thread looks whether it is to end, and whether something has waited for too long."""
_STUCK_S = 10.0
"""The engine's thread has not looked for so long: it is stuck, and the worker may say that its engine stalls."""
_START_S = 30.0
_WATCH_S = 10.0
ANOTHER = "server has another model now: start this worker again"


class Prepared(NamedTuple):
    """A request as the server takes it."""

    priority: int
    body: bytes


_Entry: TypeAlias = tuple[int, int, str, bytes]
"""priority, order of arrival, core id, body"""


class _Stream(NamedTuple):
    entry: _Entry
    task: asyncio.Task[None]


class ServerEngine(ThreadedEngine[Prepared]):
    """One model of one server. Made by ``load_server``."""

    def __init__(
        self, name: str, info: EngineInfo, chat: ChatModel, server: FoundServer, settings: EngineSettings
    ) -> None:
        super().__init__(
            info,
            chat.decode_stream,
            name=name,
            max_model_len=server.max_model_len,
            max_in_flight=settings.max_in_flight,
        )
        self._server = server
        self._url = settings.server.url or ""
        self._api_key = settings.server.api_key
        self._silent_for_s = settings.stall_after_s
        self._give_back_after_s = settings.server.give_back_after_s
        self._eos_ids = chat.eos_ids
        self._waiting: list[_Entry] = []  # a heap; guarded by the lock
        self._looked_at = time.monotonic()
        # Touched by the engine's thread alone:
        self._client: ServerClient
        self._loop: asyncio.AbstractEventLoop
        self._streams: dict[str, _Stream] = {}
        self._taken: set[str] = set()
        """Those of the streams that the server works on, or keeps in its queue."""
        self._throttle = Throttle(settings.max_in_flight)
        self._paused_until = 0.0
        self._away: asyncio.Task[None] | None = None
        """Waits for the server to come back."""
        self._heard_at = 0.0
        """When a token came last, or the first of the streams began."""
        started = threading.Event()
        self._on_start: Callable[[], None] = started.set
        self._thread.start()
        if not started.wait(_START_S):
            raise EngineError(name, "its thread did not start")

    def stats(self) -> EngineStats:
        """Silence of the server is waited for here, and no fault of the requests: only this thread can stall."""
        stuck_for_s = time.monotonic() - self._looked_at
        return replace(super().stats(), last_token_age_s=stuck_for_s if stuck_for_s > _STUCK_S else 0.0)

    # Callers' threads.

    def _prepare(self, request: GenerateRequest) -> Prepared:
        wanted = request.num_logprobs or 0
        if wanted > self._server.abilities.num_logprobs:
            raise EngineRefused(
                self._name,
                f"the server gives log-probabilities of {self._server.abilities.num_logprobs} tokens, and the policy "
                f"reads {wanted} (vLLM: --max-logprobs)",
            )
        return Prepared(request.priority, request_body(request, self._server.abilities, self._eos_ids))

    def _add(self, core_id: str, core_request: Prepared) -> None:
        heapq.heappush(self._waiting, (core_request.priority, int(core_id), core_id, core_request.body))
        self._call(self._send_waiting)

    def _drop(self, core_id: str) -> None:
        self._call(self._cancel, core_id)

    def _call(self, action: Callable[..., None], *arguments: str) -> None:
        with suppress(RuntimeError):  # the loop has ended, and with it all requests
            self._loop.call_soon_threadsafe(action, *arguments)

    # The engine's thread.

    def _run(self) -> None:
        asyncio.run(self._live())

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with ServerClient(self._url, self._api_key) as self._client:
            self._on_start()
            watch = self._loop.create_task(self._watch_model())
            try:
                while self._death is None:
                    self._look_around()
                    await asyncio.sleep(_LOOK_S)
            finally:
                tasks = [watch, *(stream.task for stream in self._streams.values())]
                tasks += [self._away] if self._away else []
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _shut_down(self) -> None:
        with self._changed:
            self._waiting.clear()

    def _cancel(self, core_id: str) -> None:
        """Closing the connection ends the request on the server."""
        if stream := self._streams.get(core_id):
            stream.task.cancel()

    def _send_waiting(self) -> None:
        """Send what waits, the most urgent first, as far as the server takes more."""
        if self._away is not None or time.monotonic() < self._paused_until:
            return
        with self._changed:
            while self._waiting and len(self._streams) < self._throttle.limit:
                self._send(heapq.heappop(self._waiting))
            self._num_scheduled = len(self._streams)

    def _send(self, entry: _Entry) -> None:
        core_id = entry[2]
        running = self._running.get(core_id)
        if running is None:
            return  # aborted while it waited
        now = time.monotonic()
        running.scheduled_at = now
        if not self._streams:
            self._heard_at = now
        task = self._loop.create_task(self._write(entry))
        self._streams[core_id] = _Stream(entry, task)
        task.add_done_callback(lambda ended: self._stream_ended(core_id, ended))

    def _stream_ended(self, core_id: str, task: asyncio.Task[None]) -> None:
        self._taken.discard(core_id)
        if core_id in self._streams and self._streams[core_id].task is task:
            del self._streams[core_id]
        with self._changed:
            self._num_scheduled = len(self._streams)
        self._send_waiting()

    async def _write(self, entry: _Entry) -> None:
        """One request, until it has ended or has to wait again."""
        core_id = entry[2]
        end: Ended | None
        try:
            async with self._client.stream(PATH, entry[3]) as events:
                self._taken.add(core_id)
                self._throttle.accepted()
                end = await self._read(core_id, events)
            self._throttle.ended()
        except ServerError as error:
            end = await self._after(error, entry)
        except Exception as error:
            log.exception("stream not read", model=self._name)
            end = self._ended(core_id, EngineError(self._name, f"its stream could not be read: {one_line(error)}"))
        if end is not None:
            self._deliver(*end)

    async def _read(self, core_id: str, events: AsyncIterator[bytes]) -> Ended | None:
        """How the request ended; None where nobody wants it any more.

        After the last token the server may say how much of the prompt it had.
        """
        finish: SegmentFinish | None = None
        try:
            async for data in events:
                self._heard_at = time.monotonic()
                chunk = read_event(data)
                if chunk is None:
                    break
                with self._changed:
                    running = self._running.get(core_id)
                    if running is None:
                        return None
                    end = self._take_chunk(running, chunk)
                    if end is not None:
                        self._release(core_id)
                        return end
                finish = finish or chunk.finish
        except ServerError:
            if finish is None:
                raise
        if finish is None:
            raise ServerAway("its stream broke off")
        return self._ended(core_id, finish)

    def _take_chunk(self, running: Running, chunk: Chunk) -> Ended | None:
        """Called with the lock held. None: the request goes on, or only its numbers are still to come."""
        if chunk.prompt_ids is not None and list(chunk.prompt_ids) != list(running.request.context_ids):
            return running, EngineRefused(self._name, "the server has read other ids than it was given")
        if chunk.num_cached_tokens is not None:
            running.num_cached_tokens = chunk.num_cached_tokens
        if chunk.token_ids and running.first_token_at is None:
            running.first_token_at = time.monotonic()
        running.num_generated_tokens += len(chunk.token_ids)
        self._tally.generated(len(chunk.token_ids))
        kept = chunk.token_ids[:-1] if chunk.finish is SegmentFinish.EOS else chunk.token_ids
        return self._take(running, kept, None, chunk.rows)

    def _ended(self, core_id: str, end: SegmentFinish | PipelineError) -> Ended | None:
        """What to deliver; None where the request was aborted meanwhile."""
        with self._changed:
            return (self._release(core_id), end) if core_id in self._running else None

    # What becomes of a request that the server did not carry out.

    async def _after(self, error: ServerError, entry: _Entry) -> Ended | None:
        """None: the request waits, or nobody wants it any more."""
        core_id = entry[2]
        match error:
            case ServerOverloaded():
                self._pause(error)
                return self._hold(entry)
            case ServerRefuses():
                return self._ended(core_id, EngineRefused(self._name, f"the server refused the request: {error}"))
            case ServerFaulty() if await self._client.is_well():
                return self._ended(core_id, EngineUnavailable(self._name, f"the server failed at the request: {error}"))
        self._wait_for_server(error)
        return self._hold(entry, broke=core_id in self._taken)

    def _hold(self, entry: _Entry, *, broke: bool = False) -> Ended | None:
        """A request without a token waits; what was begun goes back, since another noise would follow here.

        broke: the server went away while it had the request. One that the server dies of must not come for ever: its
        sample's tries are counted while it has no token.
        """
        core_id = entry[2]
        with self._changed:
            running = self._running.get(core_id)
            if running is None:
                return None
            gone = "the server went away while it wrote"
            if running.num_generated_tokens:
                return self._release(core_id), EngineAway(self._name, gone, tuple(running.token_ids))
            if broke:
                return self._release(core_id), EngineUnavailable(self._name, f"{gone}, before the first token")
            heapq.heappush(self._waiting, entry)
            return None

    def _pause(self, error: ServerOverloaded) -> None:
        """Of many that are turned away at once the first one counts."""
        now, running = time.monotonic(), len(self._taken)
        if now < self._paused_until:
            return
        pause_s = self._throttle.overloaded(running, error.retry_after_s)
        log.warning("server overloaded", url=self._url, reason=str(error), running=running, pause_s=round(pause_s, 1))
        self._paused_until = now + pause_s

    def _wait_for_server(self, error: ServerError) -> None:
        if self._away is None:
            log.warning("server away", url=self._url, reason=str(error))
            self._away = self._loop.create_task(self._come_back())

    async def _come_back(self) -> None:
        """Look at the server until it is there, and is the one that it was."""
        for delay in delays():
            await asyncio.sleep(delay)
            try:
                if self._server.is_still(await self._client.models()):
                    break
                log.error(ANOTHER, url=self._url)
            except ServerForbids as error:
                log.error("server does not let this worker in", url=self._url, reason=str(error))
            except ServerError as error:
                log.info("server still away", url=self._url, reason=str(error))
        log.info("server is back", url=self._url)
        self._away, self._throttle = None, Throttle(self._max_in_flight)
        self._send_waiting()

    async def _watch_model(self) -> None:
        """A server that was started anew between two requests may have another model under the same name."""
        while True:
            await asyncio.sleep(_WATCH_S)
            with suppress(ServerError):
                if self._away is None and not self._server.is_still(await self._client.models()):
                    self._wait_for_server(ServerAway(ANOTHER))

    # Now and then.

    def _look_around(self) -> None:
        now = self._looked_at = time.monotonic()
        if self._streams and now - self._heard_at > self._silent_for_s:
            self._end_silence()
        if self._paused_until and now >= self._paused_until:
            self._paused_until = 0.0
            self._send_waiting()
        if self._away is not None or (self._paused_until and not self._streams):
            self._give_back(now - self._give_back_after_s)

    def _end_silence(self) -> None:
        """No stream brings anything: ask anew, once the server says that it works."""
        self._wait_for_server(ServerAway(f"no token came for {self._silent_for_s:.0f} s"))
        for entry, task in list(self._streams.values()):
            task.cancel()
            if (end := self._hold(entry)) is not None:
                self._deliver(*end)

    def _give_back(self, submitted_before: float) -> None:
        """Let others of the model write what has waited for long."""
        with self._changed:
            late = [
                entry
                for entry in self._waiting
                if (running := self._running.get(entry[2])) is None or running.submitted_at < submitted_before
            ]
            if not late:
                return
            self._waiting = [entry for entry in self._waiting if entry not in late]
            heapq.heapify(self._waiting)
            released = [self._release(entry[2]) for entry in late if entry[2] in self._running]
        for running in released:
            self._deliver(running, EngineAway(self._name, "its server takes nothing", tuple(running.token_ids)))
