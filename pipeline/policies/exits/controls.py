"""Controls: exits that know nothing of the text. One that does not beat them at the same length is worth nothing."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

from pydantic import Field

from pipeline.policies.exits.protocol import Token
from pipeline.policies.exits.spec import ExitSpec
from pipeline.policies.protocol import PolicyState, Reading, SampleContext
from pipeline.policies.turns import Tokens
from pipeline.samples import ModelRole, WritingRole


class CutExit(ExitSpec):
    """Ends the think phase at a fixed number of tokens: the control that every cleverer exit has to beat."""

    name: Literal["cut"] = "cut"
    thinking_tokens: Tokens
    """Output tokens, all authors together, after which small thinks no further. No default: it is the wanted length.
    A takeover that is under way is not cut; a text that policies insert counts once the next piece is written."""
    answer_role: WritingRole = ModelRole.SMALL
    """Who writes the answer. Ours."""

    def reader(self, context: SampleContext, state: PolicyState, num_tokens: int) -> _TokenCounter:
        return _TokenCounter(num_tokens, self.thinking_tokens)


class _TokenCounter:
    """Counts a text's tokens on, up to a limit."""

    num_back = 0
    reading: Reading | None = None

    def __init__(self, num_tokens: int, limit: int) -> None:
        self._limit = limit
        self._num_tokens = num_tokens

    @property
    def state(self) -> PolicyState:
        return {}

    def feed(self, token: Token) -> bool:
        self._num_tokens += 1
        return self._num_tokens >= self._limit


class RandomExit(ExitSpec):
    """Ends the think phase at breaks that are drawn: the control of exits that end it at breaks."""

    name: Literal["random"] = "random"
    rate: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Probability at each break. Ours; one in 50 steps of about 40 tokens is 2,000 tokens. A fair control takes it from
    the job it is for."""
    answer_role: WritingRole = ModelRole.SMALL
    """Who writes the answer. Ours."""

    def reader(self, context: SampleContext, state: PolicyState, num_tokens: int) -> _BreakDrawer:
        return _BreakDrawer(context, state.get("num_breaks", 0), self.rate)


class _BreakDrawer:
    """Draws for each break of the think phase; breaks are numbered through the text."""

    num_back = 0
    reading: Reading | None = None

    def __init__(self, context: SampleContext, num_breaks: int, rate: float) -> None:
        self._context = context
        self._num_breaks = num_breaks
        self._rate = rate

    @property
    def state(self) -> PolicyState:
        return {"num_breaks": self._num_breaks}

    def feed(self, token: Token) -> bool:
        if not token.ends_step:
            return False
        self._num_breaks += 1
        drawn = _draw(self._context, self._num_breaks)
        self.reading = Reading(value=drawn, threshold=self._rate, outcome="exit") if drawn < self._rate else None
        return self.reading is not None


def _draw(context: SampleContext, number: int) -> float:
    """A number in [0, 1) by (job seed, problem, sample index, number) alone, and apart from random delegation's."""
    source = f"exit/{context.job_seed}/{context.sample_index}/{number}/{context.problem_id}"
    return int.from_bytes(hashlib.sha256(source.encode()).digest()[:7]) / 2**56
