"""What a worker process tells Prometheus of itself (SPECTHINK_METRICS__PORT); what is stored, the exporter tells."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

import structlog
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline.db.worker_leases import WorkerCounters
from pipeline.metrics import serve
from pipeline.settings import MetricsSettings
from workers.engine.base import EngineStats

log = structlog.get_logger()

_LABELS = ("kind", "model")


def serve_worker_metrics(settings: MetricsSettings) -> CollectorRegistry:
    """Serve the process's own metrics for as long as it lives, and what is registered here later; nobody asks where
    the settings name no port.

    Call it before anything expensive. Raises ConfigurationError where none of the ports is free.
    """
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    if settings.port:
        served = serve(registry, settings.address, settings.port, num_ports=settings.num_ports)
        log.info("metrics served", address=settings.address, port=served.port, pid=os.getpid())
    return registry


class WriterCollector(Collector):
    """The engine of a small or large worker, and its samples, as they are when they are asked for."""

    def __init__(
        self, kind: str, model: str, stats: Callable[[], EngineStats], counters: Callable[[], WorkerCounters]
    ) -> None:
        self._labels = [kind, model]
        self._stats = stats
        self._counters = counters

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        counters, stats = self._counters(), self._stats()
        totals: dict[str, tuple[float, str]] = {
            "specthink_engine_generated_tokens": (stats.num_generated_tokens, "Tokens that the engine generated."),
            "specthink_engine_prompt_tokens": (stats.num_prompt_tokens, "Tokens of prompts that it was given."),
            "specthink_engine_cached_tokens": (stats.num_cached_tokens, "Of these, found in its prefix cache."),
            "specthink_engine_drafts": (stats.num_drafts, "Steps of a request for which tokens were drafted."),
            "specthink_engine_draft_tokens": (stats.num_draft_tokens, "Tokens in these drafts."),
            "specthink_engine_accepted_tokens": (stats.num_accepted_tokens, "Of these, accepted by the model."),
            "specthink_engine_committed_tokens": (counters.tokens_committed, "Generated tokens that were stored."),
            "specthink_engine_dropped_tokens": (counters.tokens_dropped, "Generated tokens that nobody kept."),
        }
        for name, (value, text) in totals.items():
            yield self._filled(CounterMetricFamily(name, text, labels=_LABELS), value)
        levels: dict[str, tuple[float, str]] = {
            "specthink_engine_running_requests": (stats.num_running, "Requests that the engine works on."),
            "specthink_engine_waiting_requests": (stats.num_waiting, "Requests that wait inside the engine."),
            "specthink_engine_cache_usage": (stats.cache_usage, "Share of the KV cache in use, 0 to 1."),
            "specthink_engine_last_token_age_seconds": (
                stats.last_token_age_s, "Since any request got a token; 0 while nothing runs."),
            "specthink_engine_in_flight": (counters.num_in_flight, "Samples that the worker holds."),
            "specthink_engine_slots": (counters.num_slots or 0, "Samples that its cache has room for now."),
        }  # fmt: skip
        for name, (value, text) in levels.items():
            yield self._filled(GaugeMetricFamily(name, text, labels=_LABELS), value)

    def _filled(self, family: CounterMetricFamily | GaugeMetricFamily, value: float) -> Metric:
        family.add_metric(self._labels, value)
        return family
