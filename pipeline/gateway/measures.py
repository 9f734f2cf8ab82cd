"""What a gateway counts of its own requests, for its metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

_PARTS = ("files", "batches", "chat", "models")


class Measures:
    """Metrics of one gateway process; they begin at zero with it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "specthink_gateway_requests",
            "Requests that this gateway has answered.",
            ["part", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "specthink_gateway_request_seconds",
            "From a request to the beginning of its answer.",
            ["part"],
            registry=registry,
            buckets=(0.005, 0.02, 0.1, 0.5, 2, 10, 60, 600),
        )

    def answered(self, path: str, status: int, seconds: float) -> None:
        part = _part(path)
        self._requests.labels(part, f"{status // 100}xx").inc()
        self._seconds.labels(part).observe(seconds)


def _part(path: str) -> str:
    """What of the API a path belongs to; paths themselves are no labels, anybody can make up new ones."""
    _, _, under = path.partition("/v1/")
    name = under.partition("/")[0]
    return name if name in _PARTS else "other"
