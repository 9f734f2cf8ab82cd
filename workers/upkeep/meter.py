"""Counts what upkeep does in this process: rounds, rescues, messages sent again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager

from prometheus_client import Counter, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_ROUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class UpkeepMeter(Collector):
    """Counters of one upkeep worker, 0 while it stands by; in no registry until somebody serves them."""

    def __init__(self) -> None:
        self._rounds = Histogram(
            "specthink_upkeep_round_seconds", "What a round of all duties took.", registry=None, buckets=_ROUNDS_S
        )
        self._rescues = Counter("specthink_rescues", "Samples taken back from workers that were gone.", registry=None)
        self._blamed = Counter(
            "specthink_samples_blamed", "Samples set aside because workers died with them.", registry=None
        )
        self._republished = Counter(
            "specthink_samples_republished", "Samples whose message was sent again.", registry=None
        )
        self._failures = Counter("specthink_upkeep_duty_failures", "Duties that broke in a round.", registry=None)

    def measure_round(self) -> AbstractContextManager[object]:
        return self._rounds.time()

    def settled(self, *, rescued: int, failed: int) -> None:
        self._rescues.inc(rescued)
        self._blamed.inc(failed)

    def republished(self, number: int) -> None:
        self._republished.inc(number)

    def duty_failed(self) -> None:
        self._failures.inc()

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        for family in (self._rounds, self._rescues, self._blamed, self._republished, self._failures):
            yield from family.collect()
