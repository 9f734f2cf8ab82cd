"""Waiting until a number of things have happened."""

from __future__ import annotations

import threading


class Latch:
    """Opens when a number of things have happened; while some have not, more may be added. Thread-safe."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._lock = threading.Lock()
        self._open = threading.Event()
        if count == 0:
            self._open.set()

    def add(self) -> None:
        """One thing more must happen."""
        with self._lock:
            self._left += 1

    def count_down(self) -> None:
        """One thing has happened."""
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self._open.set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Returns when it opens; False where it did not in time."""
        return self._open.wait(timeout_s)
