"""Whose context an engine's prefix cache still holds, and so whose request goes first.

vLLM begins what waits by priority and age; where the contexts of all samples do not fit in its cache, each then pushes
out the one that is needed next, and all are computed again for a few tokens. With what is cached before what is not,
those that are there stay until their samples are complete (bench/NOTES.md, "a cache that is short").
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from pipeline.policies.requests import Ask
from workers.writing.active import ActiveSample

_REMEMBERED = 16
"""Samples per slot that are remembered of a cache whose size nobody knows."""


class CachedContexts:
    """What an engine was given and still holds, as far as can be told from here. Thread-safe.

    vLLM forgets the context that was left longest ago, where it needs room for those that it works on.
    """

    def __init__(self, *, max_in_flight: int, cache_tokens: int | None) -> None:
        """cache_tokens: how many the engine's cache holds; None: nobody knows."""
        self._lock = threading.Lock()
        self._max_in_flight = max_in_flight
        self._cache_tokens = cache_tokens
        self._inside: dict[str, int] = {}
        """Tokens of each request that the engine has, by its id."""
        self._inside_tokens = 0
        self._left: OrderedDict[int, int] = OrderedDict()
        """Tokens of each sample that was there and is cached, by its id; the last that left is the last."""
        self._left_tokens = 0

    def enter(self, request_id: str, sample_id: int, num_tokens: int) -> bool:
        """A request goes to the engine; whether its sample's context is cached. num_tokens: of what it goes on
        after."""
        with self._lock:
            self._inside[request_id] = num_tokens
            self._inside_tokens += num_tokens
            return sample_id in self._left

    def leave(self, request_id: str, sample_id: int, num_tokens: int) -> None:
        """The engine is done with it. num_tokens: those it wrote, too; 0 where it failed."""
        with self._lock:
            self._inside_tokens -= self._inside.pop(request_id)
            self._left_tokens += num_tokens - self._left.pop(sample_id, 0)
            if num_tokens:
                self._left[sample_id] = num_tokens
            while self._left and self._is_over():
                _, num_forgotten = self._left.popitem(last=False)
                self._left_tokens -= num_forgotten

    def _is_over(self) -> bool:
        if self._cache_tokens is None:
            return len(self._left) > _REMEMBERED * self._max_in_flight
        return self._left_tokens + self._running_tokens() > self._cache_tokens

    def _running_tokens(self) -> float:
        """About those of the requests that the engine works on: what waits there has no room yet."""
        return self._inside_tokens * min(1.0, self._max_in_flight / len(self._inside)) if self._inside else 0.0


def priority(active: ActiveSample, *, is_cached: bool) -> int:
    """The place of a sample's request among those that wait in the engine; the lower goes first.

    What is cached, then what this model wrote of before, then what another one has begun, then what is new: who is
    further on ends sooner and frees its place. Of each kind asides come first, which are short.
    """
    if is_cached:
        rank = 0
    elif active.was_here:
        rank = 1
    else:
        rank = 2 if active.is_begun else 3
    return 2 * rank - isinstance(active.request, Ask)
