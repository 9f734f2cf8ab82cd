"""Measures what a writer does: how long samples wait for it, and how long its requests take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_WAITS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
_SEGMENTS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


class Meter(Collector):
    """Histograms of one writer, in no registry until somebody serves them. Thread-safe."""

    def __init__(self, role: str) -> None:
        handover = Histogram(
            "specthink_handover_seconds",
            "From when a sample could be claimed to its claim here.",
            ["role"],
            registry=None,
            buckets=_WAITS_S,
        )
        segment = Histogram(
            "specthink_segment_seconds",
            "From handing a request to the engine to its end.",
            ["role"],
            registry=None,
            buckets=_SEGMENTS_S,
        )
        self._families = (handover, segment)
        self._handover, self._segment = handover.labels(role), segment.labels(role)

    def claimed(self, wait_s: float | None) -> None:
        """wait_s: None where it is not known since when the sample waited."""
        if wait_s is not None:
            self._handover.observe(wait_s)

    def wrote(self, total_s: float) -> None:
        self._segment.observe(total_s)

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            yield from family.collect()
