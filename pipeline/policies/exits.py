"""Exits: when a sample has thought enough. An exit closes the think phase; then the answer is written."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from pipeline.policies.turns import NO_SIGNALS, Tokens
from pipeline.samples import ModelRole
from pipeline.signals import Readings, Signal


class CutExit(BaseModel):
    """Ends the think phase at a fixed number of tokens: the control that every cleverer exit has to beat."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["cut"] = "cut"
    thinking_tokens: Tokens
    """Output tokens, all authors together, after which small thinks no further. No default: it is the wanted length.
    A takeover that is under way is not cut; a text that policies insert counts once the next piece is written."""
    answer_role: ModelRole = ModelRole.SMALL
    """Who writes the answer. Ours."""

    @property
    def signals(self) -> frozenset[Signal]:
        return NO_SIGNALS

    def reader(self, num_tokens: int) -> _TokenCounter:
        return _TokenCounter(num_tokens, self.thinking_tokens)


class _TokenCounter:
    """Counts a text's tokens on, up to a limit."""

    __slots__ = ("_limit", "_num_tokens")

    def __init__(self, num_tokens: int, limit: int) -> None:
        self._num_tokens = num_tokens
        self._limit = limit

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        self._num_tokens += 1
        return self._num_tokens >= self._limit
