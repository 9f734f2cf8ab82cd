"""Composition: a delegation, at most one exit, and guards make one policy.

Each part is pure and knows nothing of the others. ``Guarded`` and ``Exiting`` are policies around a policy; their state
holds its state. At one token the exit comes first, then the delegation, then the guards: a takeover that the exit makes
needless is dropped, and a takeover goes before a guard that would end the sample.

An exit acts while small writes in the think phase, and where small would go on after large. It closes the phase with
the job's own tag; from there one model writes the answer, and the delegation has no say. A model without think tags
has no phase to close: there an exit does nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from pipeline.policies.around import AroundPolicy, writer_of
from pipeline.policies.baselines import SingleModelPolicy
from pipeline.policies.protocol import Policy, PolicyState, SampleContext, Transition, Watcher
from pipeline.policies.reading.reader import Reader, TextState
from pipeline.policies.requests import Answered, Event, Finish, Generate, Insert, Take, Trigger, Written
from pipeline.policies.step_delegation import text_reader
from pipeline.policies.turns import most_tokens, readings_of, whole_characters
from pipeline.samples import FinishReason, ModelRole
from pipeline.signals import Readings, Signal


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


class Exit(Protocol):
    """Says where thinking has gone on long enough. Immutable."""

    @property
    def answer_role(self) -> ModelRole: ...

    @property
    def signals(self) -> frozenset[Signal]:
        """What is read of small's tokens for it."""
        ...

    def reader(self, num_tokens: int) -> Watcher:
        """A watcher of the think phase from that output token on: True where it may end after this token."""
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


class _ExitingState(BaseModel):
    """policy: of the delegation, in the think phase. text, num_tokens: of the kept text. asides: the texts, token by
    token, of those written after all of it, by their numbers. answer: of the answer's request, once the exit has closed
    the phase."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: PolicyState
    writer: ModelRole | None
    text: TextState = TextState()
    num_tokens: int = 0
    asides: dict[int, tuple[str, ...]] = {}
    answer: PolicyState | None = None


class Exiting(AroundPolicy):
    """A policy whose think phase an exit may end."""

    def __init__(self, policy: Policy, exit: Exit) -> None:
        super().__init__(policy)
        self._exit = exit
        self._answering = SingleModelPolicy(exit.answer_role, trigger=Trigger.ANSWER)

    @property
    def roles(self) -> frozenset[ModelRole]:
        return self._policy.roles | {self._exit.answer_role}

    def start(self, context: SampleContext) -> Transition:
        return self._wrap(context, self._policy.start(context), text=TextState(), num_tokens=0)

    def watcher(self, context: SampleContext, state: PolicyState) -> Watcher | None:
        stored = _ExitingState.model_validate(state)
        if stored.answer is not None:
            return self._answering.watcher(context, stored.answer)
        return either(self._policy.watcher(context, stored.policy), self._exit_watcher(context, stored))

    def advance(self, context: SampleContext, state: PolicyState, event: Event) -> Transition:
        stored = _ExitingState.model_validate(state)
        if stored.answer is not None:
            return self._answer(self._answering.advance(context, stored.answer, event))
        if isinstance(event, Written):
            stored = stored.model_copy(update={"num_tokens": event.start_token})
            place = _place(self._exit_watcher(context, stored), event)
            earlier = None if place is None else _place(self._policy.watcher(context, stored.policy), event)
            if place is not None and (earlier is None or earlier >= place):
                return self._close(context, event, whole_characters(event.piece.texts, place))
        return self._go_on(context, stored, event)

    def _go_on(self, context: SampleContext, state: _ExitingState, event: Event) -> Transition:
        """The delegation decides; the exit is asked once more where small would go on."""
        transition = self._policy.advance(context, state.policy, event)
        watcher = self._phase_watcher(context, state)
        kept = event.piece.texts[: transition.keep or 0]
        is_due = [watcher.feed(text) for text in kept][-1:] == [True]
        asides = state.asides | ({event.index: event.piece.texts} if isinstance(event, Answered) else {})
        for insert in transition.insert:
            for text in _inserted_texts(insert, asides):
                watcher.reader.feed(text)
        would_go_on = isinstance(event, Written) and writer_of(transition) is ModelRole.SMALL and not transition.insert
        if is_due and would_go_on:
            assert isinstance(event, Written)
            return self._close(context, event, len(kept))
        num_tokens = state.num_tokens + watcher.reader.position
        left = {} if kept or transition.insert else asides
        return self._wrap(context, transition, text=watcher.reader.state, num_tokens=num_tokens, asides=left)

    def _close(self, context: SampleContext, event: Written, keep: int) -> Transition:
        """Keep what was thought, put the closing tag after it, and have the answer written."""
        closing = Insert(text=f"\n{context.think_end}\n\n", trigger=Trigger.EXIT)
        room = context.max_tokens - event.start_token - keep - most_tokens(closing.text)
        if room < 1:
            return Transition(state={}, keep=keep, then=Finish(reason=FinishReason.LENGTH))
        return self._answer(replace(self._answering.ask(room), keep=keep, insert=(closing,)))

    def _answer(self, transition: Transition) -> Transition:
        if isinstance(transition.then, Finish):
            return transition
        state = _ExitingState(policy={}, writer=self._exit.answer_role, answer=transition.state)
        return replace(transition, state=state.model_dump(mode="json"))

    def _wrap(
        self,
        context: SampleContext,
        transition: Transition,
        *,
        text: TextState,
        num_tokens: int,
        asides: Mapping[int, tuple[str, ...]] = MappingProxyType({}),
    ) -> Transition:
        then = transition.then
        if isinstance(then, Finish):
            return transition
        writer = writer_of(transition)
        state = _ExitingState(
            policy=transition.state, writer=writer, text=text, num_tokens=num_tokens, asides=dict(asides)
        )
        if isinstance(then, Generate) and self._acts(context, state):
            then = replace(then, signals=then.signals | self._exit.signals)
        return replace(transition, state=state.model_dump(mode="json"), then=then)

    def _acts(self, context: SampleContext, state: _ExitingState) -> bool:
        return state.writer is ModelRole.SMALL and state.text.thinking and bool(context.think_end)

    def _exit_watcher(self, context: SampleContext, state: _ExitingState) -> _PhaseWatcher | None:
        return self._phase_watcher(context, state) if self._acts(context, state) else None

    def _phase_watcher(self, context: SampleContext, state: _ExitingState) -> _PhaseWatcher:
        return _PhaseWatcher(text_reader(context, state.text), self._exit.reader(state.num_tokens))


class _PhaseWatcher:
    """Feeds an exit's reader while the think phase goes on."""

    __slots__ = ("_exit", "reader")

    def __init__(self, reader: Reader, exit: Watcher) -> None:
        self.reader = reader
        self._exit = exit

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        self.reader.feed(text)
        return self.reader.thinking and self._exit.feed(text, readings)


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
