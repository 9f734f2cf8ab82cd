"""Batches: one thread handles what many threads hand in, and while it handles some, the next gather."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import structlog

log = structlog.get_logger()

_T = TypeVar("_T")

_POLL_S = 0.01
"""Poll interval while waiting for a batch to fill."""


class Batcher(Generic[_T]):
    """A thread that calls ``handle`` with what was handed in since its last call, in that order.

    most: in one call. pause_s: after a call with more than one thing the next one begins so long after its beginning,
    so that calls are fuller when much is handed in; one at a time is never held up. enough: once so many wait, the next
    one begins at once. on_failure: called when handle raises, which ends the thread.
    """

    def __init__(
        self,
        name: str,
        handle: Callable[[list[_T]], None],
        *,
        most: int,
        pause_s: float,
        enough: int | None = None,
        on_failure: Callable[[], None],
    ) -> None:
        self._handle = handle
        self._most = most
        self._pause_s = pause_s
        self._enough = min(enough or most, most)
        self._poll_s = pause_s if enough is None else _POLL_S
        self._on_failure = on_failure
        self._items: queue.SimpleQueue[_T | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: _T) -> None:
        """Hand something in. Thread-safe; returns at once."""
        self._items.put(item)

    def close(self, timeout_s: float) -> None:
        """End the thread once all that was handed in is handled."""
        self._items.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            self._handle_until_closed()
        except Exception:  # without this thread nothing is done any more: better no worker than a deaf one
            log.exception(f"{self._thread.name} failed")
            self._on_failure()

    def _handle_until_closed(self) -> None:
        not_before = 0.0
        while (first := self._items.get()) is not None:
            while (left := not_before - time.monotonic()) > 0 and self._items.qsize() + 1 < self._enough:
                time.sleep(min(left, self._poll_s))
            begun = time.monotonic()
            group, is_last = self._gather(first)
            self._handle(group)
            not_before = begun + self._pause_s if len(group) > 1 else 0.0
            if is_last:
                return

    def _gather(self, first: _T) -> tuple[list[_T], bool]:
        """What waits; True where nothing will come any more."""
        group = [first]
        while len(group) < self._most:
            try:
                following = self._items.get_nowait()
            except queue.Empty:
                break
            if following is None:
                return group, True
            group.append(following)
        return group, False
