"""The part that all engines share: requests in, results out, aborts, death, totals.

An engine has one thread of its own. A subclass says how that thread gets tokens, and calls ``_take`` with what came.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, TypeAlias, TypeVar

import structlog

from pipeline.errors import EngineDied, EngineError, PipelineError, PromptTooLong
from pipeline.samples import SegmentFinish
from workers.engine.base import Done, EngineInfo, EngineStats, GenerateRequest, GenerateResult, Sampling
from workers.engine.failures import one_line
from workers.engine.readings import LogprobRows
from workers.engine.running import DecodeStream, Running, Tally, newlines_before

log = structlog.get_logger()

T = TypeVar("T")
"""A request in the form that the subclass's core takes."""

Ended: TypeAlias = tuple[Running, SegmentFinish | PipelineError]

_JOIN_S = 10.0
"""How long close() waits for the step that is under way."""


class ThreadedEngine(ABC, Generic[T]):
    """The Engine protocol but for the core. The lock is never held while ``done`` runs: it may submit again."""

    def __init__(
        self,
        info: EngineInfo,
        decode_stream: Callable[[Sequence[int]], DecodeStream],
        *,
        name: str,
        max_model_len: int,
        max_in_flight: int,
        cache_tokens: int | None = None,
    ) -> None:
        """decode_stream: makes one for what follows some ids. name: the model's, for messages. cache_tokens: how many
        the KV cache holds."""
        self._name = name
        self._decode_stream = decode_stream
        self._info = info
        self._max_model_len = max_model_len
        self._max_in_flight = max_in_flight
        self._cache_tokens = cache_tokens
        self._changed = threading.Condition()  # guards everything below
        self._running: dict[str, Running] = {}  # by the core's id
        self._core_ids: dict[str, str] = {}  # by the caller's id
        self._num_submitted = 0
        self._death: EngineDied | None = None
        self._closed = False
        self._tally = Tally()
        self._num_scheduled = 0
        """Requests that the core works on, as of its last step."""
        self._cache_usage = 0.0
        self._thread = threading.Thread(target=self._run_until_death, name=f"engine {name}", daemon=True)

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def max_model_len(self) -> int:
        return self._max_model_len

    @property
    def max_in_flight(self) -> int:
        return self._max_in_flight

    def why_not(self, sampling: Sampling) -> str | None:
        return None

    def submit(self, request: GenerateRequest, done: Done) -> None:
        try:
            self._check(request)
            core_request = self._prepare(request)
        except PipelineError as error:
            done(error)
            return
        newlines = newlines_before(request, self._decode_stream)
        running = Running(request, done, self._decode_stream(request.prompt_ids), newlines=newlines)
        if request.written and running.go_on_from(request.written):
            done(running.result(SegmentFinish.WATCH))
            return
        refusal: PipelineError | None
        with self._changed:
            refusal = self._death
            if refusal is None:
                refusal = self._admit(core_request, running)
        if refusal is not None:
            done(refusal)

    def abort(self, request_id: str) -> None:
        with self._changed:
            core_id = self._core_ids.get(request_id)
            if core_id is None:
                return
            running = self._release(core_id)
            self._drop(core_id)
        self._deliver(running, SegmentFinish.WATCH)

    def written(self, request_id: str) -> Sequence[int] | None:
        with self._changed:  # with it, each token is one that the watcher lets pass
            core_id = self._core_ids.get(request_id)
            return None if core_id is None else tuple(self._running[core_id].token_ids)

    def stats(self) -> EngineStats:
        with self._changed:
            num_running = min(self._num_scheduled, len(self._running))
            return self._tally.stats(
                num_running=num_running,
                num_waiting=len(self._running) - num_running,
                cache_usage=self._cache_usage,
                cache_tokens=self._cache_tokens,
                prefill_s=self._prefill_s(
                    [len(r.request.context_ids) for r in self._running.values() if r.first_token_at is None]
                ),
                is_dead=self._death is not None,
            )

    def close(self) -> None:
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._death = self._death or EngineDied(self._name, "the engine was closed")
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(_JOIN_S)
        self._fail_all(self._death)
        self._shut_down()

    # A subclass's part

    @abstractmethod
    def _prepare(self, request: GenerateRequest) -> T:
        """The core's form of a request. Runs in the caller's thread. Raises PipelineError where it is refused."""

    @abstractmethod
    def _add(self, core_id: str, core_request: T) -> None:
        """Hand a request to the core. Called with the lock held. Raises PipelineError where it cannot be sent."""

    @abstractmethod
    def _drop(self, core_id: str) -> None:
        """Let the core forget a request. Called with the lock held."""

    @abstractmethod
    def _run(self) -> None:
        """The engine's thread. Returns once ``_death`` is set; raises where the core died."""

    @abstractmethod
    def _shut_down(self) -> None:
        """Free what the core holds."""

    def _prefill_s(self, prompt_lengths: Sequence[int]) -> float:
        """About how long a step may take because of prompts without a first token; 0.0 where that is unknown."""
        return 0.0

    # What a subclass calls

    def _take(
        self,
        running: Running,
        token_ids: Sequence[int],
        finish: SegmentFinish | None,
        rows: LogprobRows | None = None,
    ) -> Ended | None:
        """Add what a step wrote, without EOS. What ended, and how; None where the request goes on. rows: of what it
        drew, EOS included."""
        try:
            if running.take(token_ids, rows):
                return running, SegmentFinish.WATCH
        except Exception as error:  # a watcher's fault must not take the engine with it
            request_id = running.request.request_id
            log.exception("request not read along", model=self._name, request_id=request_id)
            return running, EngineError(self._name, f"request {request_id} could not be read along: {error!r}")
        return None if finish is None else (running, finish)

    def _release(self, core_id: str) -> Running:
        running = self._running.pop(core_id)
        del self._core_ids[running.request.request_id]
        return running

    def _deliver(self, running: Running, end: SegmentFinish | PipelineError) -> None:
        """Call done. Not with the lock held."""
        outcome = end if isinstance(end, PipelineError) else running.result(end)
        with self._changed:
            if isinstance(outcome, GenerateResult):
                self._tally.finished(outcome)
            else:
                self._tally.lost(running.num_generated_tokens)
        try:
            running.done(outcome)
        except Exception:
            log.exception("done failed", model=self._name, request_id=running.request.request_id)

    # Private

    def _check(self, request: GenerateRequest) -> None:
        if self._death is not None:
            raise self._death
        if not request.prompt_ids:
            raise EngineError(self._name, f"request {request.request_id} was refused: its prompt is empty")
        if len(request.context_ids) >= self._max_model_len:
            raise PromptTooLong(self._name, len(request.context_ids), self._max_model_len)

    def _admit(self, core_request: T, running: Running) -> PipelineError | None:
        """Hand a request to the core; what was wrong with it where that cannot be done."""
        request_id = running.request.request_id
        if request_id in self._core_ids:
            raise ValueError(f"request id {request_id!r} is in use")
        self._num_submitted += 1
        core_id = str(self._num_submitted)  # the core may still send tokens of an aborted request of the same name
        if not self._running:
            self._tally.wake()
        self._running[core_id] = running
        self._core_ids[request_id] = core_id
        try:
            self._add(core_id, core_request)
        except PipelineError as error:
            self._release(core_id)
            return error
        return None

    def _run_until_death(self) -> None:
        try:
            self._run()
        except Exception as error:
            log.exception("engine died", model=self._name)
            with self._changed:
                self._death = death = self._death or EngineDied(self._name, f"the engine died: {one_line(error)}")
            self._fail_all(death)

    def _fail_all(self, death: EngineDied) -> None:
        with self._changed:
            failed, self._running = list(self._running.values()), {}
            self._core_ids.clear()
        for running in failed:
            self._deliver(running, death)
