"""Random delegation: the control that shows whether the triggers of another policy matter.

The large model takes over at breaks of the small one's text drawn at random, otherwise as Speculative Thinking's preset
``improved`` hands over and back. Matched to that policy's rate, the two differ only in where the large model is called.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.policies.protocol import PolicyState, SampleContext, Transition, Watcher
from pipeline.policies.reading.cues import CueLists, cue_finder
from pipeline.policies.reading.handback import HandBack, HandBackFrom, HandBackWatcher
from pipeline.policies.reading.reader import Reader, TextState
from pipeline.policies.requests import Event, Finish, Generate, Trigger, Written
from pipeline.policies.speculative_thinking.rules import Tokens
from pipeline.policies.turns import finish_reason, whole_characters, written_by
from pipeline.samples import FinishReason, ModelRole, SegmentFinish
from pipeline.signals import Readings


class RandomDelegationSpec(BaseModel):
    """Every number of the control. All are ours; a fair control takes rate and tokens from the job it is for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["random"] = "random"
    rate: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Probability of a takeover at each break that small writes in the think phase. About the share of large's tokens
    in the paper's table, where most takeovers are as long as a step: 0.18 to 0.19."""
    tokens: Tokens = 20
    """Most tokens of a takeover. As n1 of Speculative Thinking."""
    handback: HandBack = "sentence"
    """Where a takeover ends. As Speculative Thinking's ``improved``."""
    handback_from: HandBackFrom = 0.5
    """Share of its tokens that a takeover has at least written before a sentence's end ends it. As ``improved``."""


def matched_rate(*, num_breaks: int, num_takeovers: int) -> float:
    """The rate at which random delegation calls the large model as often as another job's policy did.

    num_breaks: breaks that the small model wrote in the think phase of that job's kept text, those at which it was
        taken over included; a run of newlines is one break.
    num_takeovers: times it was taken over there; an opening is none.

    What is matched is how often the large model is called per break, in expectation and over the whole job. Not matched
    are where, which is what the control varies, and how much the large model writes each time: for that, set ``tokens``
    to what that job's takeovers were allowed. A rate is one at most: a policy that took over oftener than at every
    break cannot be matched by this control.

    Raises ValueError for counts that no job can have.
    """
    if num_breaks < 1 or num_takeovers < 0:
        raise ValueError(f"{num_takeovers} takeovers at {num_breaks} breaks give no rate: a break is needed")
    return min(1.0, num_takeovers / num_breaks)


class _State(BaseModel):
    """All that is stored of the policy with a sample."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: ModelRole
    """Who writes now, and below: how much was asked for and why."""
    max_tokens: int
    trigger: Trigger
    text: TextState = TextState()
    num_draws: int = 0
    """Breaks decided about so far."""


_NO_CUES = cue_finder(CueLists(verify=(), negative=(), positive=()))


class RandomDelegationPolicy:
    """The policy of a spec. Immutable."""

    def __init__(self, spec: RandomDelegationSpec) -> None:
        self._spec = spec

    @property
    def roles(self) -> frozenset[ModelRole]:
        return frozenset(ModelRole)

    def start(self, context: SampleContext) -> Transition:
        state = _State(role=ModelRole.SMALL, max_tokens=context.max_tokens, trigger=Trigger.START)
        return _go(state)

    def watcher(self, context: SampleContext, state: PolicyState) -> Watcher | None:
        stored = _State.model_validate(state)
        if stored.role is ModelRole.LARGE:
            return self._takeover_watcher(context, stored)
        return self._draft_watcher(context, stored) if stored.text.thinking else None

    def advance(self, context: SampleContext, state: PolicyState, event: Event) -> Transition:
        stored = _State.model_validate(state)
        event = written_by(stored.role, event)
        if event.role is ModelRole.SMALL:
            return self._after_draft(context, stored, event)
        return self._after_takeover(context, stored, event)

    def _after_draft(self, context: SampleContext, state: _State, event: Written) -> Transition:
        watcher = self._draft_watcher(context, state)
        is_drawn = any(map(watcher.feed, event.piece.texts))
        num_kept = watcher.reader.position
        remaining = context.max_tokens - event.start_token - num_kept
        if is_drawn:
            reason = FinishReason.LENGTH if remaining <= 0 else None
        else:
            reason = finish_reason(event, asked=state.max_tokens, remaining=remaining)
        if reason is not None:
            return _end(num_kept, reason)
        update = {"max_tokens": remaining, "text": watcher.reader.state, "num_draws": watcher.num_draws}
        if is_drawn:
            update |= {
                "role": ModelRole.LARGE,
                "max_tokens": min(self._spec.tokens, remaining),
                "trigger": Trigger.RANDOM,
            }
        return _go(state.model_copy(update=update), num_kept)

    def _after_takeover(self, context: SampleContext, state: _State, event: Written) -> Transition:
        watcher = self._takeover_watcher(context, state)
        handed_back = any(map(watcher.feed, event.piece.texts))
        num_kept = whole_characters(event.piece.texts, watcher.num_kept if handed_back else len(event.piece))
        remaining = context.max_tokens - event.start_token - num_kept
        reason = FinishReason.LENGTH if remaining <= 0 else None
        if not handed_back and (event.finish is not SegmentFinish.EOS or not context.think_end):
            reason = finish_reason(event, asked=state.max_tokens, remaining=remaining)
        if reason is not None:
            return _end(num_kept, reason)
        reader = self._reader(context, state)
        for text in event.piece.texts[:num_kept]:
            reader.feed(text)
        update = {"role": ModelRole.SMALL, "max_tokens": remaining, "trigger": Trigger.RESUME, "text": reader.state}
        return _go(state.model_copy(update=update), num_kept)

    def _reader(self, context: SampleContext, state: _State) -> Reader:
        return Reader(state.text, _NO_CUES, window_tokens=1, think_end=context.think_end)

    def _draft_watcher(self, context: SampleContext, state: _State) -> _DraftWatcher:
        return _DraftWatcher(self._reader(context, state), context, state, rate=self._spec.rate)

    def _takeover_watcher(self, context: SampleContext, state: _State) -> HandBackWatcher:
        spec = self._spec
        reader = self._reader(context, state)
        return HandBackWatcher(reader, limit=spec.tokens, handback=spec.handback, handback_from=spec.handback_from)


class _DraftWatcher:
    """Ends the small model's request at a break that is drawn; a run of newlines is one break."""

    __slots__ = ("_context", "_in_break", "_rate", "num_draws", "reader")

    def __init__(self, reader: Reader, context: SampleContext, state: _State, *, rate: float) -> None:
        self.reader = reader
        self.num_draws = state.num_draws
        self._context = context
        self._rate = rate
        self._in_break = state.text.at_break

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        self.reader.feed(text)
        begins = self.reader.at_break and not self._in_break
        if text:
            self._in_break = self.reader.at_break
        if not begins:
            return False
        self.num_draws += 1
        return _draw(self._context, self.num_draws) < self._rate


def _draw(context: SampleContext, number: int) -> float:
    """A number in [0, 1) that depends on (job seed, problem, sample index, number) alone."""
    source = f"{context.job_seed}/{context.sample_index}/{number}/{context.problem_id}"
    return int.from_bytes(hashlib.sha256(source.encode()).digest()[:7]) / 2**56


def _go(state: _State, keep: int | None = None) -> Transition:
    takes_over = state.role is ModelRole.LARGE
    then = Generate(role=state.role, max_tokens=state.max_tokens, trigger=state.trigger, takes_over=takes_over)
    return Transition(state=state.model_dump(mode="json"), keep=keep, then=then)


def _end(keep: int, reason: FinishReason) -> Transition:
    return Transition(state={}, keep=keep, then=Finish(reason=reason))
