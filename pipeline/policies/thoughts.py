"""Whether a sample has a think phase, as far as only its text can tell.

A policy around a policy. A job says how its texts mark the think phase; a text that never opens it, or closes it at
once, has none. The policy inside is then told that there is no phase: it reads all that follows, and the large model's
end of turn ends it. Once the text has begun with a thought, this part is gone: the state is that of the policy inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pydantic import BaseModel, ConfigDict

from pipeline.policies.around import AroundPolicy
from pipeline.policies.protocol import PolicyState, SampleContext, Transition, Watcher
from pipeline.policies.reading.beginning import read_beginning
from pipeline.policies.requests import Answered, Event, Finish, Insert, Take, Written
from pipeline.samples import Piece
from pipeline.signals import Readings


class _Beginning(BaseModel):
    """Stored where the text has not begun with a thought. inner: of the policy inside. has_thoughts: None while the
    text does not say; head: what matters of it until then."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inner: PolicyState
    head: str = ""
    has_thoughts: bool | None = None
    asides: dict[int, tuple[str, ...]] = {}


class AsThought(AroundPolicy):
    """A policy that is told how the text itself begins."""

    def start(self, context: SampleContext) -> Transition:
        return _stored(
            self._policy.start(context), _Beginning(inner={}, has_thoughts=None if context.think_end else True)
        )

    def watcher(self, context: SampleContext, state: PolicyState) -> Watcher | None:
        stored = _read(state)
        if stored is None:
            return self._policy.watcher(context, state)
        if stored.has_thoughts is not None:
            return self._policy.watcher(_told(context, stored.has_thoughts), stored.inner)
        watchers = {has: self._policy.watcher(_told(context, has), stored.inner) for has in (True, False)}
        return _UndecidedWatcher(_BeginningReader(context, stored.head), watchers) if any(watchers.values()) else None

    def advance(self, context: SampleContext, state: PolicyState, event: Event) -> Transition:
        stored = _read(state)
        if stored is None:
            return self._policy.advance(context, state, event)
        if stored.has_thoughts is not None:
            told = _told(context, stored.has_thoughts)
            return _stored(self._policy.advance(told, stored.inner, event), stored)
        texts = event.piece.texts if isinstance(event, Written) else ()
        reader = _BeginningReader(context, stored.head)
        plain = [reader.feed(text) for text in texts]
        if isinstance(event, Written) and reader.has_thoughts is False:
            event = replace(event, piece=Piece(token_ids=event.piece.token_ids, texts=tuple(plain)))
        transition = self._policy.advance(_told(context, reader.has_thoughts), stored.inner, event)
        asides = stored.asides | ({event.index: event.piece.texts} if isinstance(event, Answered) else {})
        kept = _BeginningReader(context, stored.head)
        for text in (*texts[: transition.keep or 0], *_put_in(transition, asides)):
            kept.feed(text)
        left = asides if kept.has_thoughts is None else {}
        return _stored(transition, kept.state.model_copy(update={"asides": left}))


class _BeginningReader:
    """Reads the beginning of a text token by token."""

    __slots__ = ("_context", "_head", "has_thoughts")

    def __init__(self, context: SampleContext, head: str) -> None:
        self._context = context
        self._head = head
        self.has_thoughts: bool | None = None

    @property
    def state(self) -> _Beginning:
        return _Beginning(
            inner={}, head=self._head if self.has_thoughts is None else "", has_thoughts=self.has_thoughts
        )

    def feed(self, text: str) -> str:
        """What a policy reads of it where the text has no thoughts: nothing before the answer's first word."""
        if self.has_thoughts is not None:
            return text
        self._head, self.has_thoughts = read_beginning(self._context, self._head, text)
        if self.has_thoughts is None:
            return ""
        return text if self.has_thoughts else self._head


class _UndecidedWatcher:
    """Waits for the text to say whether it has thoughts, and then asks the watcher for such a text."""

    __slots__ = ("_read", "_reader", "_watcher", "_watchers")

    def __init__(self, reader: _BeginningReader, watchers: Mapping[bool, Watcher | None]) -> None:
        """watchers: by whether the text has thoughts."""
        self._reader = reader
        self._watchers = watchers
        self._watcher: Watcher | None = None
        self._read: list[tuple[str, str, Readings | None]] = []

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        if self._reader.has_thoughts is not None:
            return self._watcher is not None and self._watcher.feed(text, readings)
        self._read.append((text, self._reader.feed(text), readings))
        has_thoughts = self._reader.has_thoughts
        watcher = self._watcher = None if has_thoughts is None else self._watchers[has_thoughts]
        if watcher is None:
            return False
        return any(watcher.feed(whole if has_thoughts else plain, read) for whole, plain, read in self._read)


def _told(context: SampleContext, has_thoughts: bool | None) -> SampleContext:
    """What the policy inside is told; while nothing is known, what the job says."""
    return replace(context, think_start="", think_end="") if has_thoughts is False else context


def _put_in(transition: Transition, asides: Mapping[int, tuple[str, ...]]) -> list[str]:
    """The texts that the policy puts in."""
    texts = []
    for part in transition.insert:
        match part:
            case Insert(text=text):
                texts.append(text)
            case Take(index=index, num_tokens=num_tokens):
                texts.append("".join(asides[index][:num_tokens]))
    return texts


def _stored(transition: Transition, beginning: _Beginning) -> Transition:
    if beginning.has_thoughts or isinstance(transition.then, Finish):
        return transition
    state = beginning.model_copy(update={"inner": transition.state})
    return replace(transition, state={"think_phase": state.model_dump(mode="json")})


def _read(state: PolicyState) -> _Beginning | None:
    """None: the text has begun with a thought, and the state is that of the policy inside."""
    return _Beginning.model_validate(state["think_phase"]) if state.keys() == {"think_phase"} else None
