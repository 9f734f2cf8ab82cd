"""Ends what does not end in time, so that a benchmark prints what it has."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class OutOfTime(BaseException):
    """The time is up. No Exception: nothing that waits and tries again may take it for a fault of its own."""


class Clock:
    """Counts down from its making. seconds: until what is measured ends; what is left to do then is to clean up."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds; negative once they are over."""
        return self._deadline - time.monotonic()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Raise OutOfTime in this block, in whatever it waits for, once the time is over. For the main thread alone."""
        if self.left() <= 0:
            raise OutOfTime
        before = signal.signal(signal.SIGALRM, _ring)
        signal.setitimer(signal.ITIMER_REAL, self.left())
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def _ring(number: int, frame: FrameType | None) -> None:
    raise OutOfTime
