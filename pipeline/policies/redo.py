"""Redo: the large model writes those steps again whose tokens look wrong.

A statistic of the log-probabilities with which small drew the tokens of a step is compared with a threshold once the
step is complete. Beyond it the step is thrown away, and large writes it. One rule, two presets:

    redo        ours: large writes again what small was unsure of (its least likely token is below the threshold)
    redo:trig   TrigReason, arXiv 2604.14847: large writes again what small was too sure of ("overconfidence")

TrigReason's loop, by the paper ("paper"; its code is not to be had):

    large writes the first n steps
    too large a share of a small step's tokens has a perplexity below 1.05: large writes that step instead
    words of hesitation in k small steps in a row: large writes the next m steps

Which sign is right is a property of the pair. On the demo pair sure tokens mark right steps, against the paper: take
the sign, too, from a pilot job, not from here.

A step is judged where small wrote all of it in one piece, from a break to a break, in the think phase: only that can be
taken back whole. The break counts among its tokens; newlines that lengthen a break belong to no step. A step that the
end of the text or of the think phase cuts is not judged. Where large has nothing to say, small writes the step once
more, and that stays.

What the paper leaves open is ours: k, that words of hesitation are whole words, that the hesitating step itself stays,
and that every takeover starts the count anew. STEER (arXiv 2511.06190) judges a step by small's largest raw logits and
a mixture fitted per pool; ``mean_logprob`` with a quantile for a threshold is a stand-in for it, and no more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, assert_never

from pydantic import Field

from pipeline.policies.protocol import Reading, SampleContext
from pipeline.policies.reading.cues import CueFinder, CueStream, Words, words_finder
from pipeline.policies.reading.reader import Reader
from pipeline.policies.requests import Trigger
from pipeline.policies.step_delegation import text_reader
from pipeline.policies.thinking_steps import (
    Call,
    DraftWatcher,
    ThinkingStepsPolicy,
    ThinkingStepsSpec,
    ThinkingStepsState,
)
from pipeline.policies.turns import Count, Tokens
from pipeline.samples import ModelRole
from pipeline.signals import DIGITS, Readings, Signal

Statistic: TypeAlias = Literal["confident_share", "min_logprob", "mean_logprob"]
"""confident_share: share of the step's tokens with a perplexity below ``confident_below_perplexity``. min_logprob:
log-probability of its least likely token. mean_logprob: mean of its tokens' log-probabilities."""


class RedoSpec(ThinkingStepsSpec):
    """Every number of the rule. The threshold does not carry over to another pair of models: take a quantile of the
    statistic over the steps of a pilot job, and the side on which wrong answers are."""

    name: Literal["redo"] = "redo"
    statistic: Statistic = "min_logprob"
    """What is taken of a step's tokens. Ours; paper: confident_share. confident_share: share of the tokens that are
    confident. min_logprob: the least log-probability of a token. mean_logprob: the mean."""
    side: Literal["above", "below"] = "below"
    """On which side of the threshold large writes the step again; at the threshold itself it does not. Ours; paper:
    above."""
    threshold: float = -1.35
    """What the statistic is compared with. Ours: what suited the demo pair."""
    confident_below_perplexity: Annotated[float, Field(gt=1)] = 1.05
    """Perplexity below which a token is confident. Paper: 1.05."""
    min_step_tokens: Tokens = 5
    """A step of fewer tokens is not judged by its statistic. Ours: a mean of three tokens says little."""
    hesitation: Words = ("wait", "hmm", "alternatively")
    """Words of hesitation. Paper, as far as they are known."""
    streak: Count = 0
    """Steps of small in a row, with a word of hesitation each, after which large writes; 0: never. Ours; the paper does
    not state its number."""
    rescue_steps: Tokens = 1
    """Steps that large then writes. Paper: 1."""

    def build(self) -> RedoPolicy:
        return RedoPolicy(self)

    def of_step(self, logprobs: Sequence[float]) -> float:
        """The statistic of a step's tokens, rounded as readings are: what is stored is what decided."""
        match self.statistic:
            case "confident_share":
                least = -math.log(self.confident_below_perplexity)
                value = sum(logprob > least for logprob in logprobs) / len(logprobs)
            case "min_logprob":
                value = min(logprobs)
            case "mean_logprob":
                value = math.fsum(logprobs) / len(logprobs)
            case _:
                assert_never(self.statistic)
        return round(value, DIGITS)

    def calls(self, value: float) -> bool:
        """Whether large writes a step of that statistic again."""
        return value > self.threshold if self.side == "above" else value < self.threshold


class TrigSpec(RedoSpec):
    """The preset ``trig``: TrigReason's three triggers. Paper, with R1-Distill-Qwen-1.5B and QwQ-32B."""

    preset: Literal["trig"] = "trig"
    statistic: Statistic = "confident_share"
    """What is taken of a step's tokens. Paper."""
    side: Literal["above", "below"] = "above"
    """On which side of the threshold large writes the step again; at the threshold itself it does not. Paper."""
    threshold: float = 0.85
    """What the statistic is compared with. Paper: 0.85 for R1-Distill-Qwen-1.5B, 0.75 for Qwen3-0.6B."""
    first_steps: Count = 20
    """Steps that large writes first of all; 0: small begins. Paper: 20."""
    streak: Count = 3
    """Steps of small in a row, with a word of hesitation each, after which large writes; 0: never. Ours; the paper does
    not state its number."""


class _State(ThinkingStepsState):
    """All that is stored of the policy with a sample."""

    streak: int = 0
    """Steps of small in a row that had a word of hesitation."""


class RedoPolicy(ThinkingStepsPolicy[_State]):
    """The policy of a spec. Immutable."""

    _state_type = _State
    _signals: ClassVar = frozenset({Signal.LOGPROB})

    def __init__(self, spec: RedoSpec) -> None:
        super().__init__(spec)
        self._spec = spec
        self._hesitation = words_finder(spec.hesitation) if spec.streak else None

    def _first_state(self, role: ModelRole, max_tokens: int, trigger: Trigger) -> _State:
        return _State(role=role, max_tokens=max_tokens, trigger=trigger, is_open=True)

    def _num_steps(self, trigger: Trigger) -> int:
        return self._spec.rescue_steps if trigger is Trigger.HESITATION else super()._num_steps(trigger)

    def _draft_watcher(self, context: SampleContext, state: _State) -> DraftWatcher:
        reader = text_reader(context, state.text)
        return _StepWatcher(reader, state, self._spec, self._hesitation, ends_phase=self._ends_phase)


class _StepWatcher(DraftWatcher):
    """Calls large in at the break that ends a step beyond the threshold, or the last of several that hesitate."""

    __slots__ = ("_begin", "_hesitation", "_logprobs", "_spec", "_streak", "_whole", "_word")

    def __init__(
        self, reader: Reader, state: _State, spec: RedoSpec, hesitation: CueFinder | None, *, ends_phase: bool
    ) -> None:
        super().__init__(reader, state, ends_phase=ends_phase)
        self._spec = spec
        self._hesitation = CueStream(hesitation) if hesitation else None
        self._streak = state.streak
        self._whole = False
        """Whether all of the step that is being read is in this piece, and is to be judged."""
        self._begin = 0
        self._logprobs: list[float] = []
        self._word = ""
        """The first word of hesitation in the step so far."""

    @property
    def update(self) -> Mapping[str, Any]:
        return {"is_open": self.is_open, "streak": self._streak}

    def _read(self, text: str, readings: Readings) -> Call | None:
        if self.is_open:
            self._begin_step()
        self.is_open = self.reader.at_break
        logprob = readings.get(Signal.LOGPROB)
        if logprob is not None:
            self._logprobs.append(logprob)
        if self._hesitation is not None and not self._word:
            cue = self._hesitation.feed(text)
            self._word = cue.words if cue else ""
        return self._judge() if self.is_open and self._whole else None

    def _begin_step(self) -> None:
        self._whole = True
        self._begin = self.reader.position - 1
        self._logprobs.clear()
        self._word = ""
        if self._hesitation is not None:
            self._hesitation.begin_sentence()

    def _judge(self) -> Call | None:
        """Whether the step that has just ended calls large in."""
        spec = self._spec
        if self._logprobs and len(self._logprobs) >= spec.min_step_tokens:
            value = spec.of_step(self._logprobs)
            if spec.calls(value):
                trigger = Trigger.OFFLOAD if spec.side == "above" else Trigger.REDO
                return self._call(self._begin, trigger, value, spec.threshold)
        self._streak = self._streak + 1 if self._word else 0
        if 0 < spec.streak <= self._streak:
            return self._call(self.reader.position, Trigger.HESITATION, self._streak, spec.streak, cue=self._word)
        return None

    def _call(self, keep: int, trigger: Trigger, value: float, threshold: float, *, cue: str = "") -> Call:
        reading = Reading(value=float(value), threshold=float(threshold), outcome=trigger.value)
        return Call(keep=keep, trigger=trigger, reading=reading, cue=cue, update={"streak": 0})
