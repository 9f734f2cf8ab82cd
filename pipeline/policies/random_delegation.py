"""Random delegation: the control that shows whether the triggers of another policy matter.

The large model takes over at places of the small one's text drawn at random, and hands back as the policy it is the
control of. Matched to that policy's rate, the two differ only in where the large model is called. The places are
breaks. The control of a policy that takes over at nearly every break draws tokens instead: at breaks it would be that
policy. The control of one that calls at words draws words: the takeover stands in the place of a word that is drawn.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.policies.draws import draw
from pipeline.policies.protocol import SampleContext, Transition
from pipeline.policies.reading.handback import HandBack, HandBackFrom, HandBackWatcher
from pipeline.policies.reading.reader import Reader, TextState
from pipeline.policies.reading.words import WordStarts
from pipeline.policies.requests import Trigger
from pipeline.policies.specs import PolicySpec
from pipeline.policies.step_delegation import StepPolicy, StepState, text_reader
from pipeline.policies.turns import Turn, fires, first_turn, whole_characters
from pipeline.samples import ModelRole
from pipeline.signals import Readings


class RandomDelegationSpec(PolicySpec):
    """Every number of the control. All are ours; a fair control takes rate and tokens from the job it is for."""

    name: Literal["random"] = "random"
    at: Literal["break", "token", "word"] = "break"
    """What is drawn: breaks that small writes in the think phase, tokens that end a whole character there, or words."""
    rate: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Probability of a takeover at each of them. About the share of large's tokens in the paper's table, where most
    takeovers are as long as a step: 0.18 to 0.19."""
    tokens: Annotated[float, Field(ge=1)] = 20
    """Most tokens of a takeover, their mean where it is no whole number: 2.5 is 2 and 3 in turn, which of them
    first is drawn. As n1 of Speculative Thinking."""
    handback: HandBack = "sentence"
    """Where a takeover ends. As Speculative Thinking's ``improved``; "break" as ``glimpse``."""
    handback_from: HandBackFrom = 0.5
    """Share of its tokens that a takeover has at least written before a sentence's end ends it. As ``improved``."""
    opening_tokens: Annotated[float, Field(ge=0)] = 0
    """Most tokens that large writes first of all, their mean where it is no whole number; 0: small begins. As
    ``opening_tokens`` of Speculative Thinking."""

    def build(self) -> RandomDelegationPolicy:
        return RandomDelegationPolicy(self)


class _State(StepState):
    """All that is stored of the policy with a sample."""

    num_draws: int = 0
    """Places decided about so far."""
    num_takeovers: int = 0
    """Takeovers begun so far."""
    after_space: bool = True
    """Whether the kept text ends with white space, or is empty."""
    is_passed: bool = False
    """Whether large had nothing to say where the kept text ends: a place there is not drawn again."""


class RandomDelegationPolicy(StepPolicy[_State]):
    """The policy of a spec. Immutable."""

    _state_type = _State

    def __init__(self, spec: RandomDelegationSpec) -> None:
        super().__init__(handback=spec.handback, handback_from=spec.handback_from)
        self._spec = spec

    def start(self, context: SampleContext) -> Transition:
        opening = min(self._opening(context), context.max_tokens)
        if opening:
            return first_turn(_State(role=ModelRole.LARGE, max_tokens=opening, trigger=Trigger.OPENING))
        return first_turn(_State(role=ModelRole.SMALL, max_tokens=context.max_tokens, trigger=Trigger.START))

    def _watch_small(self, context: SampleContext, state: _State) -> _DraftWatcher | None:
        return self._draft_watcher(context, state) if state.text.thinking else None

    def _after_small(self, turn: Turn[_State]) -> Transition:
        watcher = self._draft_watcher(turn.context, turn.state)
        is_drawn = fires(watcher, turn.event)
        if not is_drawn:
            return turn.carry_on(self._read(turn, len(turn.texts), watcher.reader.state, watcher.num_draws))
        keep = watcher.num_kept
        update = self._read(turn, keep, self._text_of(turn, keep, watcher), watcher.num_draws)
        update["num_takeovers"] = turn.state.num_takeovers + 1
        limit = self._limit(turn.context, turn.state.num_takeovers + 1)
        return turn.let_write(ModelRole.LARGE, Trigger.RANDOM, update, keep=keep, max_tokens=limit)

    def _after_step(self, turn: Turn[_State], keep: int, text: TextState) -> Transition:
        update = self._read(turn, keep, text, turn.state.num_draws)
        update["is_passed"] = keep == 0
        return turn.let_write(ModelRole.SMALL, Trigger.RESUME, update, keep=keep)

    def _text_of(self, turn: Turn[_State], keep: int, watcher: _DraftWatcher) -> TextState:
        """The state of the text with the first tokens of a piece."""
        if keep == watcher.reader.position:
            return watcher.reader.state
        reader = text_reader(turn.context, turn.state.text)
        for text in turn.texts[:keep]:
            reader.feed(text)
        return reader.state

    @staticmethod
    def _read(turn: Turn[_State], keep: int, text: TextState, num_draws: int) -> dict[str, Any]:
        kept = "".join(turn.texts[:keep])
        after_space = kept[-1].isspace() if kept else turn.state.after_space
        is_passed = turn.state.is_passed and keep == 0
        return {"text": text, "num_draws": num_draws, "after_space": after_space, "is_passed": is_passed}

    def _opening(self, context: SampleContext) -> int:
        """Tokens of the sample's opening: their mean, rounded up or down as drawn for the sample."""
        return math.floor(self._spec.opening_tokens + draw(context, 0))

    def _limit(self, context: SampleContext, number: int) -> int:
        """Most tokens of a sample's takeover of that number, from 1: they sum up to the mean times the number, rounded
        up or down as drawn for the sample, so that few takeovers have that mean, too."""
        tokens, drawn = self._spec.tokens, draw(context, 0)
        return math.floor(number * tokens + drawn) - math.floor((number - 1) * tokens + drawn)

    def _watch_large(self, context: SampleContext, state: _State) -> HandBackWatcher:
        is_opening = state.trigger is Trigger.OPENING
        limit = self._opening(context) if is_opening else self._limit(context, state.num_takeovers)
        return self._handback_watcher(context, state, limit=limit)

    def _draft_watcher(self, context: SampleContext, state: _State) -> _DraftWatcher:
        return _DraftWatcher(text_reader(context, state.text), context, state, self._spec)


class _DraftWatcher:
    """Ends the small model's request at a place that is drawn; a run of newlines is one break. num_kept: tokens before
    that place."""

    __slots__ = ("_context", "_is_passed", "_spec", "_texts", "_words", "num_draws", "num_kept", "reader")

    def __init__(self, reader: Reader, context: SampleContext, state: _State, spec: RandomDelegationSpec) -> None:
        self.reader = reader
        self.num_draws = state.num_draws
        self._context = context
        self._spec = spec
        self._is_passed = state.is_passed
        self._texts: list[str] = []
        self._words = WordStarts(after_space=state.after_space)
        self.num_kept = 0

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        self.reader.feed(text)
        self._texts.append(text)
        if not self._is_place(text):
            return False
        self.num_kept = self.reader.position
        if self._spec.at == "word":
            self.num_kept = whole_characters(self._texts, self.num_kept - 1)
        if self._is_passed and self.num_kept == 0:
            return False
        self.num_draws += 1
        return draw(self._context, self.num_draws) < self._spec.rate

    def _is_place(self, text: str) -> bool:
        """Whether the token that was read last ends a place that may be drawn; of words, whether it begins one."""
        if self._spec.at == "word":
            return self._words.feed(text) and self.reader.thinking
        if self._spec.at == "token":
            return self.reader.thinking and whole_characters((text,), 1) == 1
        return self.reader.ends_step
