"""Guards: what ends a sample that has gone wrong, whatever its policy says."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.policies.reading.loops import LoopFinder
from pipeline.policies.turns import Tokens
from pipeline.samples import FinishReason, WritingRole


class LoopGuard(BaseModel):
    """Ends a sample as ``repetition`` where a piece of writing ends in the same block over and over.

    All numbers are ours: small models fail by looping, and a loop costs tokens up to the limit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["loops"] = "loops"
    role: WritingRole | None = None
    """Whose writing is watched; None: everybody's."""
    repeats: Annotated[int, Field(ge=2)] = 4
    """Equal blocks in a row that make a loop. Cautious: tables and lists repeat lines, seldom four times."""
    min_tokens: Annotated[int, Field(ge=16)] = 256
    """Least length of a loop, all its blocks together. Cautious: longer than a row of zeros or a rule."""
    max_block_tokens: Tokens = 512
    """Longest block that is recognised: a long paragraph."""

    @property
    def reason(self) -> FinishReason:
        return FinishReason.REPETITION

    def watcher(self) -> LoopFinder:
        """A watcher of one piece; the text before it does not matter."""
        return LoopFinder(num_repeats=self.repeats, min_tokens=self.min_tokens, max_block_tokens=self.max_block_tokens)
