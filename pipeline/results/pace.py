"""How fast a job goes, and how long it will take at that pace."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.results.reports import JobProgress

WINDOW_S = 10.0
"""Speeds are means over so long."""


class Speed:
    """The present growth of a running total, over the last window."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._seen: deque[tuple[float, float]] = deque()

    def add(self, now: float, total: float) -> None:
        self._seen.append((now, total))
        while len(self._seen) > 2 and self._seen[1][0] < now - self._window_s:
            self._seen.popleft()

    @property
    def grown(self) -> float:
        """By how much, within the window."""
        return self._seen[-1][1] - self._seen[0][1] if self._seen else 0.0

    @property
    def per_second(self) -> float | None:
        """None before two totals are known."""
        if len(self._seen) < 2:
            return None
        (start, first), (end, last) = self._seen[0], self._seen[-1]
        return (last - first) / (end - start) if end > start else None


def written(job: JobProgress) -> int:
    """Samples of which nothing more is written: complete, whether graded or not, or given up."""
    return job.finished + job.samples_done


def left_to_write(jobs: list[JobProgress]) -> int:
    """Samples that are still to be written."""
    return sum(job.samples_total - written(job) - job.cancelled for job in jobs)
