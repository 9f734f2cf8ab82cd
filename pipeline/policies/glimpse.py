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

from typing import Annotated, Literal

from pydantic import Field

from pipeline.breaks import is_newlines
from pipeline.policies.protocol import Reading, SampleContext, Transition
from pipeline.policies.reading.handback import HandBackWatcher
from pipeline.policies.reading.reader import Reader, TextState
from pipeline.policies.requests import Trigger
from pipeline.policies.specs import PolicySpec, ThresholdRule
from pipeline.policies.step_delegation import StepPolicy, StepState, text_reader
from pipeline.policies.turns import NO_SIGNALS, Tokens, Turn, fires, first_turn
from pipeline.samples import ModelRole
from pipeline.signals import Readings, Signal


class GlimpseSpec(PolicySpec):
    """Every number of the policy. The threshold does not carry over to another pair of models: take a quantile of
    FIRST_ENTROPY over the breaks of a pilot job; the paper advises that large writes 20 to 30 % of the steps."""

    name: Literal["glimpse"] = "glimpse"
    threshold: Annotated[float, Field(ge=0)] = 1.0
    """Entropy in nats, of the most likely first tokens, from which on large writes the step. Code: 1.0."""
    step_tokens: Tokens = 512
    """Most tokens of one step of large. Code: 512."""
    check_start: bool = True
    """Whether the very first token of the text is read, too. Code: it is."""
    answer_role: ModelRole = ModelRole.SMALL
    """Who writes the answer after the think phase. Ours; code: large; a fork of it: small."""

    def build(self) -> GlimpsePolicy:
        return GlimpsePolicy(self)

    @property
    def threshold_rule(self) -> ThresholdRule:
        return ThresholdRule(statistic=Signal.FIRST_ENTROPY.value, side="above")


class _State(StepState):
    """All that is stored of the policy with a sample."""

    is_open: bool
    """Whether the next token that is no newline is the first of a step, and is to be looked at."""


class GlimpsePolicy(StepPolicy[_State]):
    """The policy of a spec. Immutable."""

    _state_type = _State

    def __init__(self, spec: GlimpseSpec) -> None:
        super().__init__(handback="break")
        self._spec = spec

    def start(self, context: SampleContext) -> Transition:
        first = _State(
            role=ModelRole.SMALL,
            max_tokens=context.max_tokens,
            trigger=Trigger.START,
            is_open=self._spec.check_start,
        )
        return first_turn(first, _signals(first.text))

    def _watch_small(self, context: SampleContext, state: _State) -> _FirstTokenWatcher | None:
        return self._draft_watcher(context, state) if state.text.thinking else None

    def _watch_large(self, context: SampleContext, state: _State) -> HandBackWatcher | None:
        return None if state.trigger is Trigger.ANSWER else super()._watch_large(context, state)

    def _after_small(self, turn: Turn[_State]) -> Transition:
        if not turn.state.text.thinking:
            return turn.carry_on({})
        watcher = self._draft_watcher(turn.context, turn.state)
        if not fires(watcher, turn.event):
            text = watcher.reader.state
            return turn.carry_on({"text": text, "is_open": watcher.is_open}, signals=_signals(text))
        if watcher.entropy is None:
            return self._answer(turn, watcher.reader.position, watcher.reader.state)
        return self._take_over(turn, watcher.reader.position - 1, watcher.entropy)

    def _take_over(self, turn: Turn[_State], keep: int, entropy: float) -> Transition:
        """Throw the uncertain token away and let large write the step."""
        reader = text_reader(turn.context, turn.state.text)
        for text in turn.texts[:keep]:
            reader.feed(text)
        return turn.let_write(
            ModelRole.LARGE,
            Trigger.GLIMPSE,
            {"text": reader.state, "is_open": False},
            keep=keep,
            max_tokens=self._spec.step_tokens,
            reading=Reading(value=entropy, threshold=self._spec.threshold, outcome="take_over"),
        )

    def _takeover_limit(self, context: SampleContext, state: _State) -> int:
        return self._spec.step_tokens

    def _after_large(self, turn: Turn[_State]) -> Transition:
        return turn.carry_on({}) if turn.state.trigger is Trigger.ANSWER else super()._after_large(turn)

    def _after_step(self, turn: Turn[_State], keep: int, text: TextState) -> Transition:
        if not text.thinking:
            return self._answer(turn, keep, text)
        update = {"text": text, "is_open": keep > 0 and text.at_break}  # large wrote nothing: the place is closed
        return turn.let_write(ModelRole.SMALL, Trigger.RESUME, update, keep=keep, signals=_signals(text))

    def _answer(self, turn: Turn[_State], keep: int, text: TextState) -> Transition:
        """The think phase is over: let the answer be written, undisturbed."""
        role = self._spec.answer_role
        trigger = Trigger.ANSWER if role is ModelRole.LARGE else Trigger.RESUME
        return turn.let_write(role, trigger, {"text": text, "is_open": False}, keep=keep)

    def _draft_watcher(self, context: SampleContext, state: _State) -> _FirstTokenWatcher:
        return _FirstTokenWatcher(text_reader(context, state.text), state, self._spec)


class _FirstTokenWatcher:
    """Ends the small model's request at an uncertain first token of a step; where large answers, also at the end of the
    think phase. A run of newlines is one break, whose step begins after the last of them."""

    __slots__ = ("_at_break", "_ends_phase", "_threshold", "entropy", "is_open", "reader")

    def __init__(self, reader: Reader, state: _State, spec: GlimpseSpec) -> None:
        self.reader = reader
        self.is_open = state.is_open
        self.entropy: float | None = None
        """Of the token that ended the request, where it was an uncertain one."""
        self._at_break = state.text.at_break
        self._threshold = spec.threshold
        self._ends_phase = spec.answer_role is ModelRole.LARGE

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        is_first, was_break = self.is_open, self._at_break
        self.reader.feed(text)
        self._at_break = self.reader.at_break
        if was_break and self._at_break and is_newlines(text):
            return False
        self.is_open = self._at_break
        entropy = (readings or {}).get(Signal.FIRST_ENTROPY)
        if is_first and entropy is not None and entropy >= self._threshold:
            self.entropy = entropy
            return True
        return self._ends_phase and not self.reader.thinking


def _signals(text: TextState) -> frozenset[Signal]:
    return frozenset({Signal.FIRST_ENTROPY}) if text.thinking else NO_SIGNALS
