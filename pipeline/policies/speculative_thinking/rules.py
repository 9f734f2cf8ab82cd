"""What the presets of Speculative Thinking share: the numbers of rules R1 to R3, the opening, and R3's counter.

Source: arXiv 2504.12329 ("paper") and its released code ("code"); "ours" is a choice made here.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from pipeline.policies.protocol import SampleContext
from pipeline.policies.reading.cues import CueLists
from pipeline.policies.requests import Insert, Trigger
from pipeline.policies.specs import PolicySpec
from pipeline.policies.turns import Count, Tokens, TurnState
from pipeline.samples import ModelRole

INSTRUCT_OPENING = 100
"""Tokens that large writes first where small does not reason. Paper and code."""

SHORT_TAKEOVERS = frozenset({Trigger.REFLECTION, Trigger.AFFIRMATION, Trigger.EVERY_BREAK})
"""Triggers of takeovers of n1 tokens."""


class Rules(PolicySpec):
    """The numbers that every preset has. The defaults are the released code's; a preset overrides what differs."""

    cues: CueLists = CueLists()
    """Paper, appendix, and for Chinese what its words are there: ours."""
    n1: Tokens = 20
    """R1: most tokens of a takeover at a reflection or an affirmation. Code: 20; the paper speaks of a sentence."""
    n2: Tokens = 125
    """R2: most tokens of a takeover at a verify cue. Paper and code: 125."""
    n3: Tokens = 125
    """R3: most tokens after the inserted sentence, the first time. Paper and code: 125."""
    n3_step: Count = 25
    """R3: how much n3 grows each time. Code: 25; paper: not at all."""
    n3_max: Tokens = 200
    """R3: where n3 stops growing. Code: 200."""
    threshold: Tokens = 15
    """R3: reflective sentences until the large model checks all. Code: 15; paper: not stated."""
    threshold_step: Count = 5
    """R3: how much the threshold grows each time. Code: 5; paper: not stated."""
    threshold_max: Tokens = 30
    """R3: where the threshold stops growing. Code: 30."""
    inserted_sentence: Annotated[str, Field(min_length=1)] = "Let me check whether there are some wrong steps:"
    """R3. Code; the paper's begins "Let us" and ends with a full stop."""
    opening_tokens: Count = 0
    """Tokens that the large model writes first of all; 0: the small one begins. Paper and code: 100 where the small
    model does not reason, else none."""
    every_break: bool = False
    """Whether the large model takes over after every break, whatever the small one would say. Paper and code: where the
    small model does not reason."""

    @model_validator(mode="after")
    def _grows_upwards(self) -> Self:
        if self.n3 > self.n3_max or self.threshold > self.threshold_max:
            raise ValueError("n3 and threshold must not be above n3_max and threshold_max")
        return self

    def first_state(self, context: SampleContext, *, draft_tokens: int | None = None) -> dict[str, Any]:
        """The fields of every preset's first state: large's opening, or small's draft of draft_tokens at most."""
        opens = self.opening_tokens > 0
        return {
            "role": ModelRole.LARGE if opens else ModelRole.SMALL,
            "max_tokens": min(self.opening_tokens or draft_tokens or context.max_tokens, context.max_tokens),
            "trigger": Trigger.OPENING if opens else Trigger.START,
            "n3": self.n3,
            "threshold": self.threshold,
        }

    @property
    def check(self) -> Insert:
        """R3's sentence."""
        return Insert(text=self.inserted_sentence, trigger=Trigger.TOO_MUCH_REFLECTION)


class VerifyingRules(Rules):
    """Rules by which a verify cue in large's own text lets it write on, from n1 up to n2 tokens."""

    @model_validator(mode="after")
    def _verifying_is_longer(self) -> Self:
        if self.n1 > self.n2:
            raise ValueError("n2 must be at least n1: a verify cue lets the large model write on")
        return self


class ReflectionState(TurnState):
    """R3's counter and its numbers for the next time, as every preset stores them with a sample."""

    reflections: int = 0
    """Reflective sentences since the last R3."""
    n3: int
    threshold: int

    def after_check(self, rules: Rules) -> dict[str, int]:
        """These fields once R3 has applied: the count starts again, the numbers grow."""
        return {
            "reflections": 0,
            "n3": min(self.n3 + rules.n3_step, rules.n3_max),
            "threshold": min(self.threshold + rules.threshold_step, rules.threshold_max),
        }
