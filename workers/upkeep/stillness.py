"""How long something that is stored has stayed as it is, by this process's own clock.

Times of the database's clock do not say how long anything took: that clock may be set ahead or back meanwhile. This
clock never jumps, and counts no time in which nobody looked.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Stillness(Generic[T]):
    """Looks at things again and again, and adds up for how long each has been seen as it is."""

    def __init__(self, *, longest_gap_s: float) -> None:
        """longest_gap_s: what the time between two looks counts at most. It was longer where the database was away or
        this process stood still, and then nothing could change, or did so unseen."""
        self._longest_gap_s = longest_gap_s
        self._looked_at = time.monotonic()
        self._seen_s: dict[T, float] = {}

    def look(self, things: Iterable[T]) -> dict[T, float]:
        """For how many seconds each of these has been seen so far; 0 for one that is new or was another a look ago."""
        now = time.monotonic()
        passed = min(now - self._looked_at, self._longest_gap_s)
        self._seen_s = {thing: self._seen_s[thing] + passed if thing in self._seen_s else 0.0 for thing in things}
        self._looked_at = now
        return dict(self._seen_s)
