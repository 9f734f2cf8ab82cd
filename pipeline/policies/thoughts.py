"""Whether a sample has a think phase, as far as only its text can tell.

A policy around a policy. A job says how its texts mark the think phase; a text that never opens it, or closes it at
once, has none. The policy inside is then told that there is no phase: it reads the whole text, and the large model's
end of turn ends it. Once the text has begun with a thought, this part is gone: the state is that of the policy inside.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import BaseModel, ConfigDict

from pipeline.policies.protocol import Policy, PolicyState, SampleContext, Transition, Watcher
from pipeline.policies.reading.beginning import read_beginning
from pipeline.policies.requests import Answered, Ask, Event, Finish, Insert, Take
from pipeline.samples import ModelRole
from pipeline.signals import Readings


class _Beginning(BaseModel):
    """Stored where the text has not begun with a thought. inner: of the policy inside. has_thoughts: None while the
    text does not say; head: what matters of it until then."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inner: PolicyState
    head: str = ""
    has_thoughts: bool | None = None


class AsThought:
    """A policy that is told how the text itself begins."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @property
    def roles(self) -> frozenset[ModelRole]:
        return self._policy.roles

    @property
    def asks(self) -> tuple[Ask, ...]:
        return self._policy.asks

    def start(self, context: SampleContext) -> Transition:
        return _stored(
            self._policy.start(context), _Beginning(inner={}, has_thoughts=None if context.think_end else True)
        )

    def watcher(self, context: SampleContext, state: PolicyState) -> Watcher | None:
        stored = _read(state)
        if stored.has_thoughts is not None:
            return self._policy.watcher(_told(context, stored.has_thoughts), stored.inner)
        thinking = self._policy.watcher(context, stored.inner)
        plain = self._policy.watcher(_told(context, False), stored.inner)
        return _UndecidedWatcher(context, stored.head, thinking, plain) if thinking or plain else None

    def advance(self, context: SampleContext, state: PolicyState, event: Event) -> Transition:
        stored = _read(state)
        if stored.has_thoughts is not None:
            told = _told(context, stored.has_thoughts)
            return _stored(self._policy.advance(told, stored.inner, event), stored)
        texts = () if isinstance(event, Answered) else event.piece.texts
        _, has_thoughts = read_beginning(context, stored.head, "".join(texts))
        transition = self._policy.advance(_told(context, has_thoughts), stored.inner, event)
        kept = "".join((*texts[: transition.keep or 0], *_put_in(transition, event)))
        head, has_thoughts = read_beginning(context, stored.head, kept)
        return _stored(
            transition, _Beginning(inner={}, head=head if has_thoughts is None else "", has_thoughts=has_thoughts)
        )


class _UndecidedWatcher:
    """Asks the watcher that reads thoughts until the text says that there are none, then the other one."""

    __slots__ = ("_context", "_has_thoughts", "_head", "_plain", "_thinking")

    def __init__(self, context: SampleContext, head: str, thinking: Watcher | None, plain: Watcher | None) -> None:
        self._context = context
        self._head = head
        self._thinking = thinking
        self._plain = plain
        self._has_thoughts: bool | None = None

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        if self._has_thoughts is None:
            self._head, self._has_thoughts = read_beginning(self._context, self._head, text)
        thinking = self._has_thoughts is not False and _feed(self._thinking, text, readings)
        plain = self._has_thoughts is not True and _feed(self._plain, text, readings)
        return plain if self._has_thoughts is False else thinking


def _feed(watcher: Watcher | None, text: str, readings: Readings | None) -> bool:
    return watcher is not None and watcher.feed(text, readings)


def _told(context: SampleContext, has_thoughts: bool | None) -> SampleContext:
    """What the policy inside is told; while nothing is known, what the job says."""
    return replace(context, think_start="", think_end="") if has_thoughts is False else context


def _put_in(transition: Transition, event: Event) -> list[str]:
    """The texts that the policy puts in; an earlier aside than the one just answered adds nothing here."""
    texts = []
    for part in transition.insert:
        match part:
            case Insert(text=text):
                texts.append(text)
            case Take(index=index, num_tokens=num_tokens):
                if isinstance(event, Answered) and event.index == index:
                    texts.append(event.piece.head(num_tokens).text)
    return texts


def _stored(transition: Transition, beginning: _Beginning) -> Transition:
    if beginning.has_thoughts or isinstance(transition.then, Finish):
        return transition
    state = beginning.model_copy(update={"inner": transition.state})
    return replace(transition, state={"think_phase": state.model_dump(mode="json")})


def _read(state: PolicyState) -> _Beginning:
    if state.keys() != {"think_phase"}:
        return _Beginning(inner=state, has_thoughts=True)
    return _Beginning.model_validate(state["think_phase"])
