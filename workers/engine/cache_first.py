"""An engine whose cached contexts go first, and are not pushed out by what waits.

vLLM begins what waits by priority and age. Where the contexts of all samples do not fit in its cache, each then pushes
out the one that is needed next, and all of them are computed again for a few tokens: a short cache is worth nothing.
Here what is cached is begun before what is not, which waits outside while the cache is needed (bench/NOTES.md, "a cache
that is short", has what it is worth). SGLang orders by the longest cached prefix in the same way (arXiv 2312.07104).
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from workers.engine.base import (
    Done,
    Engine,
    EngineInfo,
    EngineStats,
    GenerateRequest,
    GenerateResult,
    Sampling,
)
from workers.engine.contexts import Contexts

LEAST_AT_WORK = 4
"""So many requests are handed on, whatever is cached."""
CACHED_BEFORE = 10
"""What a cached context takes off its request's priority: more than any two priorities differ by."""


class _Held(NamedTuple):
    """A request that waits here, as the heap orders it."""

    priority: int
    order: int
    request: GenerateRequest
    done: Done
    since: float


class CacheFirst:
    """The Engine protocol, by another engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()  # guards everything below; never held while the engine or ``done`` is called
        self._contexts = Contexts(cache_tokens=engine.stats().cache_tokens)
        self._waiting: list[_Held] = []
        """A heap; what was aborted is still in it."""
        self._held: dict[str, _Held] = {}
        """What waits here, by request id."""
        self._handed: set[str] = set()
        """Requests on their way to the engine."""
        self._aborted: set[str] = set()
        """Those of them that were aborted meanwhile."""
        self._num_submitted = 0
        self._is_handing_on = False

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    @property
    def max_model_len(self) -> int:
        return self._engine.max_model_len

    @property
    def max_in_flight(self) -> int:
        return self._engine.max_in_flight

    def why_not(self, sampling: Sampling) -> str | None:
        return self._engine.why_not(sampling)

    def submit(self, request: GenerateRequest, done: Done) -> None:
        request_id = request.request_id
        with self._lock:
            if request_id in self._held or self._contexts.is_inside(request_id):
                raise ValueError(f"request id {request_id!r} is in use")
            is_cached = self._contexts.come(request.context)
            if is_cached:
                request = replace(request, priority=request.priority - CACHED_BEFORE)
                self._enter(request)
            else:
                self._num_submitted += 1
                held = _Held(request.priority, self._num_submitted, request, done, time.monotonic())
                heapq.heappush(self._waiting, held)
                self._held[request_id] = held
        if is_cached:
            self._hand_on(request, done)
        else:
            self._hand_on_what_has_room()

    def abort(self, request_id: str) -> None:
        with self._lock:
            held = self._held.pop(request_id, None)
            if held is not None:
                self._enter(held.request)
                self._aborted.add(request_id)
            elif request_id in self._handed:
                self._aborted.add(request_id)
                return
        if held is not None:  # the engine knows what it gives for a request that it never began
            self._hand_on(held.request, held.done)
        else:
            self._engine.abort(request_id)

    def written(self, request_id: str) -> Sequence[int] | None:
        return self._engine.written(request_id)

    def stats(self) -> EngineStats:
        stats = self._engine.stats()
        with self._lock:
            return replace(stats, num_waiting=stats.num_waiting + len(self._held))

    def close(self) -> None:
        self._engine.close()
        with self._lock:
            left = list(self._held)
        for request_id in left:
            self.abort(request_id)

    def _enter(self, request: GenerateRequest) -> None:
        """Note that it goes to the engine. Called with the lock held."""
        self._contexts.enter(request.request_id, request.context, _num_tokens(request))
        self._handed.add(request.request_id)

    def _hand_on(self, request: GenerateRequest, done: Done, since: float | None = None) -> None:
        """since: when it was submitted, where it waited here."""
        waited = 0.0 if since is None else time.monotonic() - since

        def ended(outcome: GenerateResult | Exception) -> None:
            num_written = len(outcome.piece) - len(request.written) if isinstance(outcome, GenerateResult) else 0
            with self._lock:
                num_tokens = _num_tokens(request) + num_written
                self._contexts.leave(request.request_id, request.context, num_tokens, num_written)
            try:
                done(_later(outcome, waited) if isinstance(outcome, GenerateResult) and waited else outcome)
            finally:
                self._hand_on_what_has_room()

        self._engine.submit(request, ended)
        with self._lock:
            self._handed.discard(request.request_id)
            is_aborted = request.request_id in self._aborted
            self._aborted.discard(request.request_id)
        if is_aborted:
            self._engine.abort(request.request_id)

    def _hand_on_what_has_room(self) -> None:
        """One at a time: an engine that died answers while it is given a request, and that would call this again."""
        while True:
            with self._lock:
                held = None if self._is_handing_on else self._take_first()
                if held is None:
                    return
                self._is_handing_on = True
                self._enter(held.request)
            try:
                self._hand_on(held.request, held.done, held.since)
            finally:
                with self._lock:
                    self._is_handing_on = False

    def _take_first(self) -> _Held | None:
        """The first of what waits, if it may be begun. Called with the lock held."""
        while self._waiting:
            first = self._waiting[0]
            if self._held.get(first.request.request_id) is first:
                is_idle = self._contexts.num_inside < LEAST_AT_WORK
                if not is_idle and not self._contexts.has_room(_num_tokens(first.request)):
                    return None
                del self._held[first.request.request_id]
                return heapq.heappop(self._waiting)
            heapq.heappop(self._waiting)  # aborted
        return None


def _num_tokens(request: GenerateRequest) -> int:
    """What it goes on after."""
    return len(request.prompt_ids) + len(request.written)


def _later(result: GenerateResult, seconds: float) -> GenerateResult:
    """A result of a request that waited before it came to the engine."""
    return replace(
        result,
        queue_seconds=result.queue_seconds + seconds,
        first_token_seconds=result.first_token_seconds + seconds,
        total_seconds=result.total_seconds + seconds,
    )
