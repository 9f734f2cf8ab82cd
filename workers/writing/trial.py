"""The trial: one sample that has the engine to itself, because three workers in a row died with it.

From the claim of such a sample on the worker claims nothing more. What it writes already ends, or is handed back after
TRIAL_DRAIN_S; then the sample is written, alone. Messages that come meanwhile go to other workers; where there is none
they wait until the trial is over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from pipeline.db.claims import ClaimedSample
from workers.writing.job_setup import JobSetup
from workers.writing.latch import Latch

TRIAL_DRAIN_S = 20.0
"""Time for the other requests of an engine to end before a trial; as long as a worker drains that is told to stop."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A claimed sample that waits until the engine has nothing else."""

    sample: ClaimedSample
    setup: JobSetup
    latch: Latch

    @property
    def claim(self) -> tuple[int, int]:
        """sample id and epoch"""
        return self.sample.sample_id, self.sample.epoch


class Trial(Generic[_T]):
    """The one trial of a writer, if there is any. Thread-safe: the claimer opens it, the recorder goes on with it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._claim: tuple[int, int] | None = None
        self._waiting: Waiting | None = None
        self._opened_at = 0.0
        self._aside: list[_T] = []

    @property
    def is_open(self) -> bool:
        """A sample waits to be alone, or is."""
        return self._claim is not None

    @property
    def waiting(self) -> Waiting | None:
        """The sample, until it is begun."""
        return self._waiting

    @property
    def has_waited_long(self) -> bool:
        """What else is written had its time to end."""
        return time.monotonic() - self._opened_at > TRIAL_DRAIN_S

    def open(self, waiting: Waiting) -> None:
        """From now on the worker claims nothing more."""
        with self._lock:
            self._claim, self._waiting, self._opened_at = waiting.claim, waiting, time.monotonic()

    def begin(self) -> None:
        """The sample goes to the engine."""
        self._waiting = None

    def put_aside(self, calls: Sequence[_T]) -> bool:
        """Keep some messages until the trial is over; False: there is none."""
        with self._lock:
            if self._claim is None:
                return False
            self._aside += calls
            return True

    def take_aside(self) -> list[_T]:
        """What was put aside: the caller hands it in again."""
        with self._lock:
            aside, self._aside = self._aside, []
            return aside

    def end(self, claim: tuple[int, int]) -> list[_T]:
        """Over, if this was its claim; what was put aside."""
        with self._lock:
            if self._claim != claim:
                return []
            self._claim = self._waiting = None
            aside, self._aside = self._aside, []
            return aside
