"""Glimpse: the large model writes those steps whose first token the small model is uncertain about.

Source: GlimpRouter, arXiv 2601.05110, and its released code ("code"); "ours" is a choice made here. Its loop, once for
every step while the model thinks:

    entropy of small's first token here >= threshold:   large writes the step
    else                                                small does

The released code asks small for that token in a request of its own. Here it is read of what small writes anyway: the
first token after a break comes from exactly that distribution. So small is stopped only where large is called, and
throws one token away there. After large's step small's first token is read again, so that large may write several
steps in a row. Where large has nothing to say, small passes the place unread.

What the code does besides and this does not: it puts two newlines after a step that was cut, and it stops where two
steps in a row are equal (a guard does that here).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.policies.protocol import Reading, SampleContext
from pipeline.policies.reading.reader import Reader
from pipeline.policies.requests import Trigger
from pipeline.policies.specs import ThresholdRule
from pipeline.policies.step_delegation import text_reader
from pipeline.policies.thinking_steps import (
    Call,
    DraftWatcher,
    ThinkingStepsPolicy,
    ThinkingStepsSpec,
    ThinkingStepsState,
)
from pipeline.samples import ModelRole
from pipeline.signals import Readings, Signal


class GlimpseSpec(ThinkingStepsSpec):
    """Every number of the policy. The threshold does not carry over to another pair of models: take a quantile of
    FIRST_ENTROPY over the breaks of a pilot job; the paper advises that large writes 20 to 30 % of the steps."""

    name: Literal["glimpse"] = "glimpse"
    threshold: Annotated[float, Field(ge=0)] = 1.0
    """Entropy in nats, of the most likely first tokens, from which on large writes the step. Code: 1.0."""
    check_start: bool = True
    """Whether the very first token of the text is read, too. Code: it is."""

    def build(self) -> GlimpsePolicy:
        return GlimpsePolicy(self)

    @property
    def threshold_rule(self) -> ThresholdRule:
        return ThresholdRule(statistic=Signal.FIRST_ENTROPY.value, side="above")


class GlimpsePolicy(ThinkingStepsPolicy[ThinkingStepsState]):
    """The policy of a spec. Immutable."""

    _state_type = ThinkingStepsState
    _signals: ClassVar = frozenset({Signal.FIRST_ENTROPY})

    def __init__(self, spec: GlimpseSpec) -> None:
        super().__init__(spec)
        self._spec = spec

    def _first_state(self, role: ModelRole, max_tokens: int, trigger: Trigger) -> ThinkingStepsState:
        return ThinkingStepsState(role=role, max_tokens=max_tokens, trigger=trigger, is_open=self._spec.check_start)

    def _draft_watcher(self, context: SampleContext, state: ThinkingStepsState) -> DraftWatcher:
        reader = text_reader(context, state.text)
        return _FirstTokenWatcher(reader, state, ends_phase=self._ends_phase, threshold=self._spec.threshold)


class _FirstTokenWatcher(DraftWatcher):
    """Calls large in at an uncertain first token of a step."""

    __slots__ = ("_threshold",)

    def __init__(self, reader: Reader, state: ThinkingStepsState, *, ends_phase: bool, threshold: float) -> None:
        super().__init__(reader, state, ends_phase=ends_phase)
        self._threshold = threshold

    def _read(self, text: str, readings: Readings) -> Call | None:
        is_first, self.is_open = self.is_open, self.reader.at_break
        entropy = readings.get(Signal.FIRST_ENTROPY)
        if not is_first or entropy is None or entropy < self._threshold:
            return None
        reading = Reading(value=entropy, threshold=self._threshold, outcome="take_over")
        return Call(keep=self.reader.position - 1, trigger=Trigger.GLIMPSE, reading=reading)
