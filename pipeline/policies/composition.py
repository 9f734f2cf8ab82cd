"""Composition: a delegation, at most one exit, and guards make one policy.

Each part is pure and knows nothing of the others. ``Guarded`` and ``Exiting`` are policies around a policy; their state
holds its state. At one token the exit comes first, then the delegation, then the guards: a takeover that the exit makes
needless is dropped, and a takeover goes before a guard that would end the sample.

An exit acts while small writes in the think phase, and where small would go on after large. It closes the phase with
the job's own tag; from there one model writes the answer, and the delegation has no say. A model without think tags
has no phase to close: there an exit does nothing.

An exit may ask a trial first. The delegation then decides about the same piece as ever, but what it puts in and asks
for next is withheld until the trial is answered: an exit that accepts drops it, one that does not lets it happen. The
delegation never knows: its own asides have for it the numbers that they would have alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from pipeline.policies.around import AroundPolicy, writer_of
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
from pipeline.signals import Readings


class Guard(Protocol):
    """Ends a sample for a fault in one piece of writing. Immutable."""

    @property
    def role(self) -> ModelRole | None:
        """Whose writing is watched; None: everybody's."""
        ...

    @property
    def reason(self) -> FinishReason: ...

    @property
    def min_tokens(self) -> int:
        """A piece of fewer tokens is never ended."""
        ...

    def watcher(self) -> Watcher:
        """A watcher of one piece; what it has read up to its True is kept."""
        ...


def compose(policy: Policy, *, exit: Exit | None = None, guards: Iterable[Guard] = ()) -> Policy:
    """A policy with an exit and guards around it; the very policy where there are none."""
    composed = policy if exit is None else Exiting(policy, exit)
    for guard in guards:
        composed = Guarded(composed, guard)
    return composed


class _EitherWatcher:
    """Ends a request where the first of two watchers does."""

    __slots__ = ("_first", "_second")

    def __init__(self, first: Watcher, second: Watcher) -> None:
        self._first = first
        self._second = second

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        return self._first.feed(text, readings) or self._second.feed(text, readings)


def either(first: Watcher | None, second: Watcher | None) -> Watcher | None:
    """The watcher that there is; of two, one that ends a request where the first of them does."""
    if first is None or second is None:
        return first or second
    return _EitherWatcher(first, second)


def _place(watcher: Watcher | None, event: Written) -> int | None:
    """After how many tokens of a piece the watcher ends it, None where it does not."""
    if watcher is None:
        return None
    readings = readings_of(event) if event.signals else (None for _ in event.piece.texts)
    tokens = enumerate(zip(event.piece.texts, readings, strict=True), 1)
    return next((count for count, (text, read) in tokens if watcher.feed(text, read)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _GuardedState:
    """policy: of the policy inside. writer: who writes now, None while an aside is written."""

    policy: PolicyState
    writer: ModelRole | None

    @classmethod
    def read(cls, state: PolicyState) -> _GuardedState:
        """As it is stored. Raises ValueError for any other."""
        if state.keys() != {"policy", "writer"}:
            raise ValueError(f"no state of a policy with a guard: {state!r}")
        policy, writer = state["policy"], state["writer"]
        return cls(policy=policy, writer=None if writer is None else ModelRole(writer))


class Guarded(AroundPolicy):
    """A policy that a guard watches over."""

    def __init__(self, policy: Policy, guard: Guard) -> None:
        super().__init__(policy)
        self._guard = guard

    def start(self, context: SampleContext) -> Transition:
        return self._wrap(self._policy.start(context))

    def watcher(self, context: SampleContext, state: PolicyState) -> Watcher | None:
        stored = _GuardedState.read(state)
        inner = self._policy.watcher(context, stored.policy)
        return either(inner, self._guard.watcher() if self._watches(stored.writer) else None)

    def advance(self, context: SampleContext, state: PolicyState, event: Event) -> Transition:
        stored = _GuardedState.read(state)
        if isinstance(event, Written) and self._watches(stored.writer) and len(event.piece) >= self._guard.min_tokens:
            place = _place(self._guard.watcher(), event)
            if place is not None and not self._is_ended(context, stored.policy, event, place):
                return Transition(state={}, keep=place, then=Finish(reason=self._guard.reason))
        return self._wrap(self._policy.advance(context, stored.policy, event))

    def _watches(self, writer: ModelRole | None) -> bool:
        return writer is not None and self._guard.role in (None, writer)

    def _wrap(self, transition: Transition) -> Transition:
        if isinstance(transition.then, Finish):
            return transition
        return replace(transition, state={"policy": transition.state, "writer": writer_of(transition)})


class _Withheld(BaseModel):
    """What the delegation decided at the place where a trial is asked. then: as ``request_to_json`` makes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    insert: tuple[Take | Insert, ...]
    then: dict[str, Any]
    writer: ModelRole | None


class _ExitingState(BaseModel):
    """policy: of the delegation, in the think phase. text, num_tokens: of the kept text. asides: the texts, token by
    token, of those written after all of it, by their numbers. answer: of the answer's request, once the exit has closed
    the phase. exit: what the exit remembers. trials: the numbers of its asides. withheld: while a trial is written."""

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
            place = _place(watcher, event)
            earlier = None if place is None else _place(self._policy.watcher(context, stored.policy), event)
            if watcher is not None and place is not None and (earlier is None or earlier >= place):
                if self._exit.trial is None:
                    keep = whole_characters(event.piece.texts, place - watcher.exit.num_back)
                    return self._close(context, event, keep, watcher.exit.reading)
                event = _head(event, place)
        return self._go_on(context, stored, event)

    def _go_on(self, context: SampleContext, state: _ExitingState, event: Event) -> Transition:
        """The delegation decides; the exit is asked once more where small would go on."""
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
        return self._phase_watcher(context, state) if self._acts(context, state) else None

    def _phase_watcher(self, context: SampleContext, state: _ExitingState) -> PhaseWatcher:
        reader = self._exit.reader(context, state.exit, state.num_tokens)
        return PhaseWatcher(text_reader(context, state.text), reader, at_break=state.text.at_break)


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
