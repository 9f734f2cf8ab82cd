"""The exporter: one process asks the database every few seconds, and answers every scrape from what it found."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from pydantic import SecretStr
from sqlalchemy import Engine

from pipeline.db.metrics import Fleet, read_fleet
from pipeline.db.session import transaction
from pipeline.errors import PipelineError
from pipeline.metrics.families import families
from pipeline.metrics.queues import queue_lengths

log = structlog.get_logger()

CONTENT_TYPE = CONTENT_TYPE_LATEST


class FleetCollector(Collector):
    """Metrics of all jobs and workers, read again no sooner than refresh_s after the last time."""

    def __init__(
        self,
        read: Callable[[], Fleet],
        *,
        count_queues: Callable[[Iterable[str]], dict[str, int] | None] = lambda names: None,
        refresh_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """read: raises PipelineError where the database cannot be asked. count_queues: messages by queue; None: the
        broker does not answer."""
        self._read = read
        self._count_queues = count_queues
        self._refresh_s = refresh_s
        self._clock = clock
        self._lock = threading.Lock()
        self._read_at: float | None = None
        self._found: list[Metric] = []
        self._totals = RisingTotals()

    def describe(self) -> Iterable[Metric]:
        """Nothing: a registry need not ask the database to take this in."""
        return []

    def collect(self) -> Iterator[Metric]:
        with self._lock:  # scrapes that come meanwhile wait for the answer of the first
            now = self._clock()
            if self._read_at is None or now - self._read_at >= self._refresh_s:
                self._found, self._read_at = list(self._refresh()), now
            yield from self._found

    def _refresh(self) -> Iterator[Metric]:
        """What is known now; nothing of before where the database is away: old numbers look like new ones."""
        began = self._clock()
        up = GaugeMetricFamily("specthink_database_up", "Whether the database answered the exporter.")
        try:
            fleet = self._read()
        except PipelineError as error:
            log.warning("no metrics", reason=str(error))
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield from map(self._totals.risen, families(fleet))
        yield from self._queues(fleet)
        yield GaugeMetricFamily(
            "specthink_refresh_seconds", "What the last refresh of these took.", value=self._clock() - began
        )
        yield GaugeMetricFamily("specthink_refreshed_timestamp_seconds", "When these were read.", value=time.time())

    def _queues(self, fleet: Fleet) -> Iterator[Metric]:
        messages = GaugeMetricFamily("specthink_queue_messages", "Messages in the broker's queues.", labels=["queue"])
        for name, number in (self._count_queues(fleet.queues) or {}).items():
            messages.add_metric([name], number)
        yield messages


class RisingTotals:
    """Makes counters of sums that may fall, as a retry or a removed job makes them: only what they rise by counts.

    To Prometheus a counter that falls has begun again at zero, so that all of its value would be new.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[str, ...], float] = {}
        self._totals: dict[tuple[str, ...], float] = {}

    def risen(self, metric: Metric) -> Metric:
        """The same metric; a counter with totals that never fell since the first time."""
        if metric.type == "counter":
            metric.samples = [sample._replace(value=self._total(sample)) for sample in metric.samples]
        return metric

    def _total(self, sample: Sample) -> float:
        key = (sample.name, *(part for label in sorted(sample.labels.items()) for part in label))
        last = self._last.get(key)
        self._last[key] = sample.value
        self._totals[key] = sample.value if last is None else self._totals[key] + max(0.0, sample.value - last)
        return self._totals[key]


def make_registry(
    db_engine: Engine, redis_url: SecretStr | None = None, *, refresh_s: float = 10.0
) -> CollectorRegistry:
    """The fleet's metrics as a registry; nothing is asked before the first scrape. redis_url: also queue lengths.

    db_engine: as a login that may what a monitor may.
    """

    def read() -> Fleet:
        with transaction(db_engine) as connection:
            return read_fleet(connection)

    def count_queues(names: Iterable[str]) -> dict[str, int] | None:
        return None if redis_url is None else queue_lengths(redis_url, names)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(FleetCollector(read, count_queues=count_queues, refresh_s=refresh_s))
    return registry


def render(registry: CollectorRegistry) -> bytes:
    """The answer to a scrape, of type CONTENT_TYPE."""
    return generate_latest(registry)
