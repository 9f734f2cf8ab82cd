"""How many samples a worker's KV cache has room for: what it says of itself with each heartbeat.

A sample is worth admitting while the contexts of all that are in the pipeline fit in the cache, also of those that are
away with the other model: else they push each other out, and each is computed again when it comes back.
"""

from __future__ import annotations

from collections import deque

from workers.engine.base import EngineStats, GenerateResult

_REMEMBERED = 256
"""Requests whose contexts are remembered."""


class CacheRoom:
    """Watches the contexts of one engine's requests. Touched by one thread at a time."""

    def __init__(self, *, max_in_flight: int, ahead: float) -> None:
        """ahead: samples that are admitted per slot."""
        self._max_in_flight = max_in_flight
        self._ahead = ahead
        self._contexts: deque[int] = deque(maxlen=_REMEMBERED)

    def ended(self, result: GenerateResult) -> None:
        """A request ended with this context."""
        self._contexts.append(result.num_prompt_tokens + len(result.piece))

    def num_slots(self, stats: EngineStats) -> int:
        """Slots to be filled, from 1 to max_in_flight.

        The mean context is that of the last requests as they ended, or of those that run, whichever is larger: at the
        start nothing has ended yet, and long texts are seen before their end.
        """
        mean = self._mean_context(stats)
        if not stats.cache_tokens or not mean:
            return self._max_in_flight
        return max(1, min(self._max_in_flight, int(stats.cache_tokens / mean / self._ahead)))

    def _mean_context(self, stats: EngineStats) -> float:
        ended = sum(self._contexts) / len(self._contexts) if self._contexts else 0.0
        used = stats.cache_usage * (stats.cache_tokens or 0)
        return max(ended, used / stats.num_running if stats.num_running else 0.0)
