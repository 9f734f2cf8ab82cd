"""Which contexts an engine's prefix cache holds, as far as can be told from what went in and came out."""

from __future__ import annotations

from collections import OrderedDict

_REMEMBERED = 4096
"""Contexts that are remembered, cached or not."""
_RECENT = 256
"""Requests over which is counted how many of what they left is needed again."""


class Contexts:
    """Those that the engine works on, those it has cached, and those it had. Its caller locks.

    vLLM forgets the one that was left longest ago where it needs room for those that it works on.
    """

    def __init__(self, *, cache_tokens: int | None) -> None:
        """cache_tokens: how many the cache holds; None: nobody knows, and it is taken for large."""
        self._cache_tokens = cache_tokens
        self._inside: dict[str, float] = {}
        """Tokens that each request is expected to end with, by its id."""
        self._inside_tokens = 0.0
        self._cached: OrderedDict[int, int] = OrderedDict()
        """Tokens of each context that is cached, the one that was left last at the end."""
        self._cached_tokens = 0
        self._lost: OrderedDict[int, None] = OrderedDict()
        """Those that are cached no more."""
        self._num_left = 0.0
        self._num_back = 0.0
        self._num_written = 0.0

    @property
    def num_inside(self) -> int:
        """Requests that the engine has."""
        return len(self._inside)

    def is_inside(self, request_id: str) -> bool:
        return request_id in self._inside

    def come(self, context: int | None) -> bool:
        """A request for it was submitted; whether it is cached."""
        is_cached = context in self._cached
        self._num_back += is_cached or context in self._lost
        return is_cached

    def has_room(self, num_tokens: int) -> bool:
        """Whether one of so many tokens that is not cached may be begun.

        What is cached and needed again keeps its place, but for half of the cache: more is not kept free for it, since
        an engine that works on little has nothing of its cache.
        """
        if self._cache_tokens is None:
            return True
        left = self._cache_tokens if self._lost else self._cached_tokens
        kept = min(left * self._share_back, self._cache_tokens / 2)
        return self._inside_tokens + num_tokens + self._mean_written <= self._cache_tokens - kept

    def enter(self, request_id: str, context: int | None, num_tokens: int) -> None:
        """A request goes to the engine. num_tokens: what it goes on after."""
        if context is not None:
            self._cached_tokens -= self._cached.pop(context, 0)
            self._lost.pop(context, None)
        self._inside[request_id] = num_tokens + self._mean_written
        self._inside_tokens += self._inside[request_id]
        self._forget()

    def leave(self, request_id: str, context: int | None, num_tokens: int, num_written: int) -> None:
        """The engine is done with it. num_tokens: its context, with the num_written that it wrote."""
        self._inside_tokens -= self._inside.pop(request_id)
        if context is None:
            return
        self._count(num_written)
        self._cached_tokens += num_tokens - self._cached.pop(context, 0)
        self._cached[context] = num_tokens
        self._forget()

    def _forget(self) -> None:
        """What was left longest ago has no room beside what the engine works on."""
        while self._cached and self._is_over():
            lost, tokens = self._cached.popitem(last=False)
            self._cached_tokens -= tokens
            self._lost[lost] = None
        while len(self._lost) > _REMEMBERED:
            self._lost.popitem(last=False)

    def _is_over(self) -> bool:
        if self._cache_tokens is None:
            return len(self._cached) > _REMEMBERED
        return self._cached_tokens + self._inside_tokens > self._cache_tokens

    def _count(self, num_written: int) -> None:
        kept = 1 - 1 / _RECENT
        self._num_left = kept * self._num_left + 1
        self._num_back *= kept
        self._num_written = kept * self._num_written + num_written

    @property
    def _share_back(self) -> float:
        """Of the contexts that were left, those that were needed again."""
        return min(1.0, self._num_back / self._num_left) if self._num_left else 0.0

    @property
    def _mean_written(self) -> float:
        return self._num_written / self._num_left if self._num_left else 0.0
