"""Delegation with asides: what the policies share whose small model is looked at before its text stays.

Small writes asides, another aside says what becomes of them, and ``Take`` puts them into the text: by their author, as
the very ids that were generated. Only large's own steps and the answer are written into the text at once.

What watches a text that is being written (an exit, a guard, a stop string in the think phase) does not see asides.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

from pipeline.policies.protocol import PolicyState, Reading, SampleContext, Transition, Watcher
from pipeline.policies.requests import Answered, Ask, Event, Finish, Generate, Insert, Take, Trigger, Written
from pipeline.policies.step_delegation import StepState
from pipeline.policies.turns import PairPolicy, Turn
from pipeline.samples import FinishReason, ModelRole, SegmentFinish


class AskingState(StepState):
    """All that is stored of such a policy with a sample, at least."""

    purpose: str = ""
    """Of the aside that is being written; '' while the text is."""


AskingStateT = TypeVar("AskingStateT", bound=AskingState)


class AskingPolicy(PairPolicy[AskingStateT]):
    """Sends answers to ``_after_aside`` and what was written to ``_after_large`` and ``_after_small``. Immutable."""

    def __init__(self, *, answer_role: ModelRole) -> None:
        self._answer_role = answer_role

    def watcher(self, context: SampleContext, state: PolicyState) -> Watcher | None:
        stored = self._state_type.model_validate(state)
        return self._watch_aside(context, stored) if stored.purpose else super().watcher(context, state)

    def advance(self, context: SampleContext, state: PolicyState, event: Event) -> Transition:
        stored = self._state_type.model_validate(state)
        if not stored.purpose:
            return super().advance(context, state, event)
        if isinstance(event, Written) or event.role is not stored.role:
            raise ValueError(f"the {stored.role} model was to write an aside ({stored.purpose}), but {event} came")
        return self._after_aside(context, stored, event)

    @abstractmethod
    def _watch_aside(self, context: SampleContext, state: AskingStateT) -> Watcher | None: ...

    @abstractmethod
    def _after_aside(self, context: SampleContext, state: AskingStateT, event: Answered) -> Transition: ...

    def _watch_small(self, context: SampleContext, state: AskingStateT) -> Watcher | None:
        return None

    def _watch_large(self, context: SampleContext, state: AskingStateT) -> Watcher | None:
        return None

    def _after_small(self, turn: Turn[AskingStateT]) -> Transition:
        """What is written into the text, and not taken from asides, is the answer."""
        return turn.carry_on({})

    def _after_large(self, turn: Turn[AskingStateT]) -> Transition:
        return turn.carry_on({})

    def _ask(
        self,
        state: AskingStateT,
        ask: Ask,
        *,
        keep: int | None = None,
        insert: Sequence[Take | Insert] = (),
        reading: Reading | None = None,
    ) -> Transition:
        asked = {"role": ask.role, "max_tokens": ask.max_tokens, "purpose": ask.purpose}
        dumped = state.model_copy(update=asked).model_dump(mode="json")
        return Transition(state=dumped, keep=keep, insert=tuple(insert), then=ask, reading=reading)

    def _let_write(
        self,
        state: AskingStateT,
        role: ModelRole,
        trigger: Trigger,
        max_tokens: int,
        *,
        keep: int | None = None,
        insert: Sequence[Take | Insert] = (),
        reading: Reading | None = None,
        takes_over: bool = False,
    ) -> Transition:
        asked: dict[str, Any] = {"role": role, "max_tokens": max_tokens, "trigger": trigger}
        dumped = state.model_copy(update=asked | {"purpose": ""}).model_dump(mode="json")
        then = Generate(takes_over=takes_over, **asked)
        return Transition(state=dumped, keep=keep, insert=tuple(insert), then=then, reading=reading)

    def _answer(
        self,
        state: AskingStateT,
        room: int,
        *,
        keep: int | None = None,
        insert: Sequence[Take | Insert] = (),
        reading: Reading | None = None,
    ) -> Transition:
        """The think phase is over: let the answer be written, undisturbed. room: output tokens that are left."""
        if room < 1:
            return end(FinishReason.LENGTH, keep=keep, insert=insert, reading=reading)
        role = self._answer_role
        trigger = Trigger.ANSWER if role is ModelRole.LARGE else Trigger.RESUME
        return self._let_write(state, role, trigger, room, keep=keep, insert=insert, reading=reading)


def end(
    reason: FinishReason,
    *,
    keep: int | None = None,
    insert: Sequence[Take | Insert] = (),
    reading: Reading | None = None,
) -> Transition:
    return Transition(state={}, keep=keep, insert=tuple(insert), then=Finish(reason=reason), reading=reading)


def why_over(event: Answered, *, asked: int) -> FinishReason | None:
    """Why the text ends where an aside is taken that nothing interrupted; None where it goes on."""
    match event.finish:
        case SegmentFinish.EOS:
            return FinishReason.EOS
        case SegmentFinish.LENGTH if len(event.piece) < asked:
            return FinishReason.CONTEXT  # the engine had no room for what was asked
        case _:
            return None


def why_ends(over: FinishReason | None, room: int) -> FinishReason | None:
    """Why the text ends with a draft that stays whole; None where it goes on, or has no room to.

    over: as ``why_over`` found it. room: tokens that the sample has left behind the draft.
    """
    return over if over is FinishReason.EOS or room > 0 else None
