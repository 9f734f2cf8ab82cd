"""How many samples a worker's KV cache has room for: what it says of itself with each heartbeat.

A sample is worth admitting while the contexts of all that are in the pipeline fit in the cache, also of those that are
away with the other model: else they push each other out, and each is computed again when it comes back.
"""

from __future__ import annotations

from collections import deque

from workers.engine.base import EngineStats, GenerateResult

_FILL = 0.9
"""Share of the cache to be filled on average: contexts differ, and what has no room is taken from a running request."""
_REMEMBERED = 256
"""Requests whose contexts are remembered."""


class CacheRoom:
    """Watches the contexts of one engine's requests. Touched by one thread at a time."""

    def __init__(self, *, max_in_flight: int, ahead: float) -> None:
        """ahead: samples that are admitted per slot."""
        self._max_in_flight = max_in_flight
        self._ahead = ahead
        self._ended: deque[tuple[int, int]] = deque(maxlen=_REMEMBERED)
        """Of each request the tokens of its prompt, and those it wrote."""

    def ended(self, result: GenerateResult) -> None:
        """A request ended."""
        self._ended.append((result.num_prompt_tokens, result.num_generated_tokens))

    def num_slots(self, stats: EngineStats) -> int:
        """Slots to be filled, from 1 to max_in_flight.

        The mean context is that of the last requests while they ran, or of those that run now, whichever is larger: at
        the start nothing has ended yet, and long texts are seen before their end.
        """
        mean = max(self._mean_of_ended(), _mean_of_running(stats))
        if not stats.cache_tokens or not mean:
            return self._max_in_flight
        return max(1, min(self._max_in_flight, int(_FILL * stats.cache_tokens / mean / self._ahead)))

    def _mean_of_ended(self) -> float:
        """Over the tokens they wrote: who writes longer is in the cache for longer."""
        written = sum(wrote for _, wrote in self._ended)
        return sum(wrote * (given + wrote / 2) for given, wrote in self._ended) / written if written else 0.0


def _mean_of_running(stats: EngineStats) -> float:
    used = stats.cache_usage * (stats.cache_tokens or 0)
    return used / stats.num_running if stats.num_running else 0.0
