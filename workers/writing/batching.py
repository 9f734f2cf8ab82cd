"""Batches: one thread handles what many threads hand in; what comes while it handles some is handled together."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import structlog

log = structlog.get_logger()

_T = TypeVar("_T")
_P = TypeVar("_P")

_POLL_S = 0.01
"""Poll interval while waiting for a batch to fill."""


class Batcher(Generic[_T, _P]):
    """A thread that prepares each thing that is handed in, and calls ``handle`` with many of them together.

    prepare: called with each thing as it comes, in a pause too; what comes while ``handle`` runs is prepared after it.
        None: there is nothing to handle.
    most: in one call of handle. pause_s: after a call with more than one thing the next one begins so long after its
        beginning, so that calls are fuller when much is handed in; one at a time is never held up. enough: once so many
        are prepared, the next one begins at once.
    on_failure: called when one of the two raises, which ends the thread.
    """

    def __init__(
        self,
        name: str,
        handle: Callable[[list[_P]], None],
        *,
        prepare: Callable[[_T], _P | None],
        most: int,
        pause_s: float,
        enough: int | None = None,
        on_failure: Callable[[], None],
    ) -> None:
        self._handle = handle
        self._prepare = prepare
        self._most = most
        self._pause_s = pause_s
        self._enough = min(enough or most, most)
        self._on_failure = on_failure
        self._items: queue.SimpleQueue[_T | None] = queue.SimpleQueue()
        self._prepared: deque[_P] = deque()
        self._is_closed = False
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
            log.exception("worker's thread failed", thread=self._thread.name)
            self._on_failure()

    def _handle_until_closed(self) -> None:
        not_before = 0.0
        while not self._is_closed or self._prepared:
            self._prepare_what_waits()
            if not self._prepared:
                continue
            left = not_before - time.monotonic()
            if left > 0 and self._may_become_fuller():
                time.sleep(min(left, _POLL_S))
                continue
            begun = time.monotonic()
            num_handled = self._handle_group()
            not_before = begun + self._pause_s if num_handled > 1 else 0.0

    def _prepare_what_waits(self) -> None:
        """Prepare what has been handed in by now; wait for something where nothing is prepared."""
        num_items = self._items.qsize()
        if num_items == 0 and not self._prepared:
            num_items = 1  # to wait for
        for _ in range(num_items):
            item = self._items.get()
            if item is None:
                self._is_closed = True
                return
            prepared = self._prepare(item)
            if prepared is not None:
                self._prepared.append(prepared)

    def _may_become_fuller(self) -> bool:
        return len(self._prepared) < self._enough and not self._is_closed

    def _handle_group(self) -> int:
        """How many were handled."""
        size = min(self._most, len(self._prepared))
        self._handle([self._prepared.popleft() for _ in range(size)])
        return size
