"""The mechanics of turns: what every policy for a pair of models does besides its rules.

A ``PairPolicy`` reads its stored state, checks whose turn it is and calls ``_after_small`` or ``_after_large`` with a
``Turn``: the piece that was written, and the ways to go on from it. Requests are clamped here to what the sample's
budget leaves, takeovers are marked here, and a sample that has no room left ends here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Generic, TypeVar, assert_never

from pydantic import BaseModel, ConfigDict, Field

from pipeline.policies.protocol import PolicyState, Reading, SampleContext, Transition, Watcher
from pipeline.policies.requests import Answered, Ask, Event, Finish, Generate, Insert, Trigger, Written
from pipeline.samples import WRITING_ROLES, FinishReason, ModelRole, SegmentFinish
from pipeline.signals import Readings, Signal

Tokens = Annotated[int, Field(ge=1)]
"""A number of tokens in a spec."""
Count = Annotated[int, Field(ge=0)]
"""A number in a spec that may be none."""

NO_SIGNALS: frozenset[Signal] = frozenset()


class TurnState(BaseModel):
    """What is stored of a policy with a sample, at least: who writes now, how much was asked for, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: ModelRole
    max_tokens: int
    trigger: Trigger


StateT = TypeVar("StateT", bound=TurnState)


def first_turn(state: TurnState, signals: frozenset[Signal] = NO_SIGNALS) -> Transition:
    """The transition that begins a sample with this state."""
    then = Generate(role=state.role, max_tokens=state.max_tokens, trigger=state.trigger, signals=signals)
    return Transition(state=state.model_dump(mode="json"), then=then)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn(Generic[StateT]):
    """A piece that was written, with the state that asked for it; its methods say what comes of it.

    keep is the number of the piece's first tokens that stay.
    """

    context: SampleContext
    state: StateT
    event: Written

    @property
    def texts(self) -> tuple[str, ...]:
        return self.event.piece.texts

    def remaining(self, keep: int, *insert: Insert) -> int:
        """Output tokens that are left after what is kept and inserted; an inserted text counts as at its longest."""
        inserted = sum(most_tokens(sentence.text) for sentence in insert)
        return self.context.max_tokens - self.event.start_token - keep - inserted

    def why_over(self, keep: int, *, interrupted: bool = False) -> FinishReason | None:
        """Why the sample ends with this piece; None where it goes on. interrupted: by the policy itself, at keep."""
        remaining = self.remaining(keep)
        if interrupted:
            return FinishReason.LENGTH if remaining <= 0 else None
        return finish_reason(self.event, asked=self.state.max_tokens, remaining=remaining)

    def why_not_back(self, keep: int, *, handed_back: bool) -> FinishReason | None:
        """Why the sample ends with a takeover; None where small goes on, as after large's own end while it thinks."""
        ended = self.event.finish is SegmentFinish.EOS and bool(self.context.think_end)
        return self.why_over(keep, interrupted=handed_back or ended)

    def end(self, reason: FinishReason, keep: int, *insert: Insert) -> Transition:
        return Transition(state={}, keep=keep, insert=insert, then=Finish(reason=reason))

    def again(self, cue: str = "") -> Transition:
        """Nothing is kept, and the same is asked for once more."""
        return self.let_write(self.state.role, self.state.trigger, keep=0, max_tokens=self.state.max_tokens, cue=cue)

    def carry_on(self, update: Mapping[str, Any], *, signals: frozenset[Signal] = NO_SIGNALS) -> Transition:
        """Nothing interrupted the writer: the sample ends, or it goes on where its request was cut short."""
        keep = len(self.event.piece)
        reason = self.why_over(keep)
        if reason is not None:
            return self.end(reason, keep)
        return self.let_write(self.state.role, self.state.trigger, update, keep=keep, signals=signals)

    def let_write(
        self,
        role: ModelRole,
        trigger: Trigger,
        update: Mapping[str, Any] = MappingProxyType({}),
        *,
        keep: int,
        insert: Sequence[Insert] = (),
        max_tokens: int | None = None,
        room: int | None = None,
        cue: str = "",
        signals: frozenset[Signal] = NO_SIGNALS,
        reading: Reading | None = None,
    ) -> Transition:
        """Let a role write what comes next; end the sample where nothing is left for it.

        update: what changes in the policy's own state. max_tokens: at most so many; None: all that is left. room: what
        is left, where the policy knows better than ``remaining``. Large called in after small wrote is a takeover;
        large that writes on after itself is none, nor is its answer after the think phase.
        """
        room = self.remaining(keep, *insert) if room is None else room
        if room < 1:
            return self.end(FinishReason.LENGTH, keep, *insert)
        asked = {"role": role, "max_tokens": min(max_tokens or room, room), "trigger": trigger}
        state = self.state.model_copy(update=asked | dict(update))
        then = Generate(
            role=role,
            max_tokens=state.max_tokens,
            trigger=trigger,
            takes_over=self.state.role is ModelRole.SMALL and role is ModelRole.LARGE and trigger is not Trigger.ANSWER,
            cue=cue,
            signals=signals,
        )
        dumped = state.model_dump(mode="json")
        return Transition(state=dumped, keep=keep, insert=tuple(insert), then=then, reading=reading)


class PairPolicy(ABC, Generic[StateT]):
    """A policy of two models that write in turns. It asks for no asides; ``asking.AskingPolicy`` does. Immutable."""

    roles: ClassVar[frozenset[ModelRole]] = frozenset(WRITING_ROLES)
    _state_type: type[StateT]

    @property
    def asks(self) -> tuple[Ask, ...]:
        return ()

    @abstractmethod
    def start(self, context: SampleContext) -> Transition: ...

    def watcher(self, context: SampleContext, state: PolicyState) -> Watcher | None:
        stored = self._state_type.model_validate(state)
        watch = self._watch_small if stored.role is ModelRole.SMALL else self._watch_large
        return watch(context, stored)

    def advance(self, context: SampleContext, state: PolicyState, event: Event) -> Transition:
        stored = self._state_type.model_validate(state)
        turn = Turn(context=context, state=stored, event=written_by(stored.role, event))
        return self._after_small(turn) if stored.role is ModelRole.SMALL else self._after_large(turn)

    @abstractmethod
    def _watch_small(self, context: SampleContext, state: StateT) -> Watcher | None: ...

    @abstractmethod
    def _watch_large(self, context: SampleContext, state: StateT) -> Watcher | None: ...

    @abstractmethod
    def _after_small(self, turn: Turn[StateT]) -> Transition: ...

    @abstractmethod
    def _after_large(self, turn: Turn[StateT]) -> Transition: ...


def written_by(role: ModelRole, event: Event) -> Written:
    """The event, where it says that the model of this role wrote. Raises ValueError for any other."""
    match event:
        case Written(role=writer) if writer is role:
            return event
        case Written(role=writer):
            raise ValueError(f"the {role} model was to write, but {writer} did")
        case Answered():
            raise ValueError(f"the {role} model was to write, but an aside was answered")
        case _:
            assert_never(event)


def finish_reason(event: Written, *, asked: int, remaining: int) -> FinishReason | None:
    """Why the sample ends after a request that nothing interrupted; None where it goes on."""
    if event.finish is SegmentFinish.EOS:
        return FinishReason.EOS
    if remaining <= 0:
        return FinishReason.LENGTH
    if event.finish is SegmentFinish.LENGTH and len(event.piece) < asked:
        return FinishReason.CONTEXT  # the engine had no room for what was asked
    return None


def fires(watcher: Watcher, event: Written) -> bool:
    """Whether a watcher ends this piece: it reads it as it read the stream, and stops at the same token."""
    if not event.signals:
        return any(map(watcher.feed, event.piece.texts))
    return any(map(watcher.feed, event.piece.texts, readings_of(event)))


def readings_of(event: Written) -> Iterator[Readings]:
    """The readings of a piece, token by token."""
    names = tuple(event.signals)
    for values in zip(*event.signals.values(), strict=True):
        yield dict(zip(names, values, strict=True))


def whole_characters(texts: Sequence[str], num_tokens: int) -> int:
    """num_tokens or the next fewer tokens that end with a whole character.

    Tokens that leave a character unfinished add no text; bytes that belong to none show as U+FFFD.
    """
    while num_tokens and (not texts[num_tokens - 1] or texts[num_tokens - 1].endswith("\ufffd")):
        num_tokens -= 1
    return num_tokens


def most_tokens(text: str) -> int:
    """The most tokens a text can become: one for each byte, and a space that some tokenizers put before it."""
    return len(text.encode()) + 1
