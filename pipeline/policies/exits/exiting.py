"""A policy whose think phase an exit may end.

An exit acts while small writes in the think phase, and where small would go on after large. It closes the phase with
the job's own tag; from there one model writes the answer, and the delegation has no say. A model without think tags
has no phase to close: there an exit does nothing.

An exit may ask a trial first. The delegation then decides about the same piece as ever, but what it puts in and asks
for next is withheld until the trial is answered: an exit that accepts drops it, one that does not lets it happen. The
delegation never knows: its own asides have for it the numbers that they would have alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import repeat
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.policies.around import AroundPolicy, either, place_of_stop, writer_of
from pipeline.policies.baselines import SingleModelPolicy
from pipeline.policies.exits.numbering import Numbering
from pipeline.policies.exits.protocol import Exit, PhaseWatcher
from pipeline.policies.protocol import Policy, PolicyState, Reading, SampleContext, Transition, Watcher
from pipeline.policies.reading.reader import TextState
from pipeline.policies.requests import (
    Answered,
    Ask,
    Event,
    Finish,
    Generate,
    Insert,
    Take,
    Trigger,
    Written,
    request_from_json,
    request_to_json,
)
from pipeline.policies.step_delegation import text_reader
from pipeline.policies.turns import most_tokens, readings_of, whole_characters
from pipeline.samples import FinishReason, ModelRole, SegmentFinish


class _Withheld(BaseModel):
    """What the delegation decided at the place where a trial is asked. then: as ``request_to_json`` makes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    insert: tuple[Take | Insert, ...]
    then: dict[str, Any]
    writer: ModelRole | None


class _ExitingState(BaseModel):
    """policy: of the delegation, in the think phase. text, num_tokens: of the kept text. asides: the texts, token by
    token, of those written after all of it, by their numbers. answer: of the answer's request, once the exit has closed
    the phase. exit: what the exit remembers. trials: the numbers of its asides. withheld: while a trial is written.
    lets_pass: whether the exit does not end the next piece: the delegation threw away one that it had ended."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: PolicyState
    writer: ModelRole | None
    text: TextState = TextState()
    num_tokens: int = 0
    asides: dict[int, tuple[str, ...]] = {}
    answer: PolicyState | None = None
    exit: PolicyState = {}
    trials: tuple[int, ...] = ()
    withheld: _Withheld | None = None
    lets_pass: bool = False


class Exiting(AroundPolicy):
    """A policy whose think phase an exit may end."""

    def __init__(self, policy: Policy, exit: Exit) -> None:
        super().__init__(policy)
        self._exit = exit
        self._answering = SingleModelPolicy(exit.answer_role, trigger=Trigger.ANSWER)

    @property
    def roles(self) -> frozenset[ModelRole]:
        return self._policy.roles | {self._exit.answer_role} | {ask.role for ask in self._exit_asks}

    @property
    def asks(self) -> tuple[Ask, ...]:
        return (*self._policy.asks, *self._exit_asks)

    @property
    def _exit_asks(self) -> tuple[Ask, ...]:
        return () if self._exit.trial is None else (self._exit.trial.ask,)

    def start(self, context: SampleContext) -> Transition:
        return self._wrap(context, self._policy.start(context), _ExitingState(policy={}, writer=None))

    def watcher(self, context: SampleContext, state: PolicyState) -> Watcher | None:
        stored = _ExitingState.model_validate(state)
        if stored.answer is not None:
            return self._answering.watcher(context, stored.answer)
        if stored.withheld is not None and self._exit.trial is not None:
            return self._exit.trial.watcher()
        return either(self._policy.watcher(context, stored.policy), self._exit_watcher(context, stored))

    def advance(self, context: SampleContext, state: PolicyState, event: Event) -> Transition:
        stored = _ExitingState.model_validate(state)
        if stored.answer is not None:
            return self._answer(self._answering.advance(context, stored.answer, event))
        if stored.withheld is not None:
            return self._judge(context, stored, stored.withheld, event)
        if isinstance(event, Written):
            stored = stored.model_copy(update={"num_tokens": event.start_token})
            watcher = self._exit_watcher(context, stored)
            place = place_of_stop(watcher, event)
            earlier = None if place is None else place_of_stop(self._policy.watcher(context, stored.policy), event)
            if watcher is not None and place is not None and (earlier is None or earlier >= place):
                if self._exit.trial is None:
                    keep = whole_characters(event.piece.texts, place - watcher.exit.num_back)
                    return self._close(context, event, keep, watcher.exit.reading)
                return self._go_on(context, stored, _head(event, place), by_exit=earlier != place)
        return self._go_on(context, stored, event)

    def _go_on(
        self, context: SampleContext, state: _ExitingState, event: Event, *, by_exit: bool = False
    ) -> Transition:
        """The delegation decides; the exit is asked once more where small would go on. by_exit: whether the exit alone
        ended the piece."""
        numbering = Numbering(state.trials)
        transition = numbering.outward(self._policy.advance(context, state.policy, numbering.inward(event)))
        watcher = self._phase_watcher(context, state)
        kept = event.piece.texts[: transition.keep or 0]
        of_small = isinstance(event, Written) and event.signals and self._acts(context, state)
        readings = readings_of(event) if isinstance(event, Written) and of_small else repeat(None)
        is_due = [watcher.feed(text, read) for text, read in zip(kept, readings, strict=False)][-1:] == [True]
        asides = state.asides | ({event.index: event.piece.texts} if isinstance(event, Answered) else {})
        would_go_on = writer_of(transition) is ModelRole.SMALL and not transition.insert
        read = state.model_copy(
            update={
                "text": watcher.reader.state,
                "num_tokens": state.num_tokens + watcher.reader.position,
                "asides": asides if transition.insert or not kept else {},
                "exit": watcher.exit.state,
                "lets_pass": by_exit and len(kept) < len(event.piece),
            }
        )
        if is_due and isinstance(event, Written) and context.think_end:
            if self._exit.trial is None and would_go_on:
                return self._close(context, event, len(kept), watcher.exit.reading)
            by_small = event.role is ModelRole.SMALL
            if self._exit.trial is not None and (by_small or would_go_on) and self._has_room(context, read):
                return self._try(transition, read)
        return self._put_in(context, transition, read)

    def _put_in(self, context: SampleContext, transition: Transition, state: _ExitingState) -> Transition:
        """What the delegation decided, after its text is read. state: with the piece that was kept."""
        watcher = self._phase_watcher(context, state)
        for insert in transition.insert:
            for text in _inserted_texts(insert, state.asides):
                watcher.feed(text)
        update = {
            "text": watcher.reader.state,
            "num_tokens": state.num_tokens + watcher.reader.position,
            "asides": {} if transition.insert else state.asides,
            "exit": watcher.exit.state,
            "withheld": None,
        }
        return self._wrap(context, transition, state.model_copy(update=update))

    # The trial.

    def _try(self, transition: Transition, state: _ExitingState) -> Transition:
        """Ask the trial after the kept text, and withhold what the delegation decided. state: with the kept piece."""
        then = transition.then
        if isinstance(then, Finish) or self._exit.trial is None:
            return transition
        withheld = _Withheld(insert=transition.insert, then=request_to_json(then), writer=writer_of(transition))
        asking = state.model_copy(update={"policy": transition.state, "writer": None, "withheld": withheld})
        return replace(transition, state=asking.model_dump(mode="json"), insert=(), then=self._exit.trial.ask)

    def _judge(self, context: SampleContext, state: _ExitingState, withheld: _Withheld, event: Event) -> Transition:
        """End the think phase, or let what was withheld happen."""
        if not isinstance(event, Answered) or self._exit.trial is None:
            raise ValueError(f"the exit waits for its trial's answer, but got {type(event).__name__}")
        verdict = self._exit.trial.judge(state.exit, event)
        if verdict.accepts:
            closing, room = self._closing(context, state.num_tokens)
            return replace(self._answer(self._answering.ask(room)), insert=(closing,), reading=verdict.reading)
        left = {"exit": verdict.state, "trials": (*state.trials, event.index)}
        going_on = Transition(
            state=state.policy,
            insert=withheld.insert,
            then=request_from_json(withheld.then),
            reading=verdict.reading,
        )
        return self._put_in(context, going_on, state.model_copy(update=left))

    def _has_room(self, context: SampleContext, state: _ExitingState) -> bool:
        """Whether an answer could follow; state: with all of the kept text."""
        return self._closing(context, state.num_tokens)[1] >= 1

    # The end of the think phase.

    def _closing(self, context: SampleContext, num_tokens: int) -> tuple[Insert, int]:
        """The closing tag after so many output tokens, and what it leaves for the answer."""
        closing = Insert(text=f"\n{context.think_end}\n\n", trigger=Trigger.EXIT)
        return closing, context.max_tokens - num_tokens - most_tokens(closing.text)

    def _close(self, context: SampleContext, event: Written, keep: int, reading: Reading | None) -> Transition:
        """Keep what was thought, put the closing tag after it, and have the answer written."""
        closing, room = self._closing(context, event.start_token + keep)
        if room < 1:
            return Transition(state={}, keep=keep, then=Finish(reason=FinishReason.LENGTH))
        return replace(self._answer(self._answering.ask(room, keep)), insert=(closing,), reading=reading)

    def _answer(self, transition: Transition) -> Transition:
        if isinstance(transition.then, Finish):
            return transition
        state = _ExitingState(policy={}, writer=self._exit.answer_role, answer=transition.state)
        return replace(transition, state=state.model_dump(mode="json"))

    def _wrap(self, context: SampleContext, transition: Transition, state: _ExitingState) -> Transition:
        """state: but for the policy and who writes next."""
        then = transition.then
        if isinstance(then, Finish):
            return transition
        state = state.model_copy(update={"policy": transition.state, "writer": writer_of(transition)})
        if isinstance(then, Generate) and self._acts(context, state):
            then = replace(then, signals=then.signals | self._exit.signals)
        return replace(transition, state=state.model_dump(mode="json"), then=then)

    def _acts(self, context: SampleContext, state: _ExitingState) -> bool:
        return state.writer is ModelRole.SMALL and state.text.thinking and bool(context.think_end)

    def _exit_watcher(self, context: SampleContext, state: _ExitingState) -> PhaseWatcher | None:
        return self._phase_watcher(context, state) if self._acts(context, state) and not state.lets_pass else None

    def _phase_watcher(self, context: SampleContext, state: _ExitingState) -> PhaseWatcher:
        reader = self._exit.reader(context, state.exit, state.num_tokens)
        return PhaseWatcher(text_reader(context, state.text), reader)


def _head(event: Written, num_tokens: int) -> Written:
    """The same, as if the writing had been ended after so many tokens."""
    if num_tokens == len(event.piece):
        return event
    signals = {signal: values[:num_tokens] for signal, values in event.signals.items()}
    return replace(event, piece=event.piece.head(num_tokens), finish=SegmentFinish.WATCH, signals=signals)


def _inserted_texts(insert: Take | Insert, asides: Mapping[int, tuple[str, ...]]) -> tuple[str, ...]:
    match insert:
        case Insert(text=text):
            return (text,)
        case Take(index=index, num_tokens=num_tokens):
            if index not in asides:
                raise ValueError(
                    f"the policy takes aside {index}, but the text went on since it was written; beside an exit, take "
                    "an aside before anything else is kept or put in, or ask again"
                )
            return asides[index][:num_tokens]
