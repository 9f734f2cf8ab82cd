"""Stop strings: texts that end a sample outside its thoughts, and are no part of it.

A policy around a policy. A stop string ends the writing of the role that it is for, wherever its tokens are split, and
also where its beginning was written before: what an earlier piece has of it stays. Inside an open think phase nothing
is looked for, and of asides nothing is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import BaseModel, ConfigDict

from pipeline.policies.around import AroundPolicy, either, writer_of
from pipeline.policies.protocol import Policy, PolicyState, SampleContext, Transition, Watcher
from pipeline.policies.requests import Answered, Event, Finish, Insert, Take, Trigger, Written
from pipeline.policies.turns import most_tokens, whole_characters
from pipeline.samples import FinishReason, ModelRole
from pipeline.signals import Readings

Stops = Mapping[ModelRole, tuple[str, ...]]
"""The stop strings of each role."""
_Asides = Mapping[int, tuple[str, ...]]
"""The texts of asides, token by token, by their numbers."""


class ReadText(BaseModel):
    """What matters of the text so far. thinking: whether it ends in an open think phase. tail: its end, in which a tag
    or a stop string may begin."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    thinking: bool
    tail: str = ""

    @classmethod
    def empty(cls, context: SampleContext) -> ReadText:
        return cls(thinking=bool(context.think_end) and context.think_opened)


class StopFinder:
    """Finds the first stop string outside the thoughts; a watcher of one piece."""

    __slots__ = ("_end_tag", "_longest", "_num_read", "_read", "_start_tag", "_stops", "begins_at", "tail", "thinking")

    def __init__(self, context: SampleContext, text: ReadText, stops: Iterable[str], *, longest: int) -> None:
        """longest: characters of the longest stop string of any role."""
        self.begins_at: int | None = None
        """Where the stop string begins, in characters of the piece; negative: before it."""
        self.thinking = text.thinking
        self.tail = text.tail
        self._stops = tuple(stops)
        self._start_tag, self._end_tag = (context.think_start, context.think_end) if context.think_end else ("", "")
        self._longest = max(longest, len(self._start_tag), len(self._end_tag))
        self._num_read = 0

    @property
    def state(self) -> ReadText:
        return ReadText(thinking=self.thinking, tail=self.tail)

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        self._num_read += len(text)
        unread, num_old = self.tail + text, len(self.tail)
        while True:
            mark = self._end_tag if self.thinking else self._start_tag
            at = unread.find(mark) if mark else -1
            stop = -1 if self.thinking else self._find_stop(unread, num_old)
            if stop >= 0 and (at < 0 or stop <= at):
                self.begins_at = self._num_read - (len(unread) - stop)
                return True
            if at < 0:
                self.tail = unread[max(0, len(unread) - self._longest + 1) :]
                return False
            self.thinking = not self.thinking
            unread, num_old = unread[at + len(mark) :], max(0, num_old - at - len(mark))

    def _find_stop(self, text: str, num_old: int) -> int:
        """Where the first one begins that the text behind num_old characters completes; -1 where there is none."""
        places = (text.find(stop, max(0, num_old - len(stop) + 1)) for stop in self._stops)
        return min((place for place in places if place >= 0), default=-1)


@dataclass(frozen=True, slots=True)
class _End:
    """Where a stop string ends a piece: after num_read tokens. keep: tokens before it; head: what the token after those
    has before it."""

    num_read: int
    keep: int
    head: str


class _State(BaseModel):
    """inner: of the policy inside. writer: who writes now, None while an aside is written. text: the kept one. asides:
    the texts, token by token, of those written after all of it, by their numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inner: PolicyState
    writer: ModelRole | None
    text: ReadText
    asides: dict[int, tuple[str, ...]] = {}


class Stopping(AroundPolicy):
    """A policy whose samples end at stop strings."""

    def __init__(self, policy: Policy, stops: Stops) -> None:
        super().__init__(policy)
        self._stops = stops
        self._longest = max(len(stop) for of_role in stops.values() for stop in of_role)

    def start(self, context: SampleContext) -> Transition:
        transition = self._policy.start(context)
        return self._wrap(transition, self._read_on(context, ReadText.empty(context), (), transition.insert, {}), {})

    def watcher(self, context: SampleContext, state: PolicyState) -> Watcher | None:
        stored = _State.model_validate(state)
        inner = self._policy.watcher(context, stored.inner)
        if stored.writer is None or not self._stops[stored.writer]:
            return inner
        return either(inner, self._finder(context, stored.text, stored.writer))

    def advance(self, context: SampleContext, state: PolicyState, event: Event) -> Transition:
        stored = _State.model_validate(state)
        texts: Sequence[str] = ()
        if isinstance(event, Written):
            texts = event.piece.texts
            end = self._find_end(context, stored, event)
            if end is not None and not self._is_ended(context, stored.inner, event, end.num_read - 1):
                return _finish(context, event, end)
        transition = self._policy.advance(context, stored.inner, event)
        kept = texts[: transition.keep or 0]
        asides = stored.asides | ({event.index: event.piece.texts} if isinstance(event, Answered) else {})
        text = self._read_on(context, stored.text, kept, transition.insert, asides)
        return self._wrap(transition, text, {} if kept or transition.insert else asides)

    def _finder(self, context: SampleContext, text: ReadText, role: ModelRole | None) -> StopFinder:
        """role: whose stop strings are looked for; None: nobody's, the text is only followed."""
        stops = () if role is None else self._stops[role]
        return StopFinder(context, text, stops, longest=self._longest)

    def _find_end(self, context: SampleContext, state: _State, event: Written) -> _End | None:
        finder, texts = self._finder(context, state.text, state.writer), event.piece.texts
        num_read = next((count for count, text in enumerate(texts, 1) if finder.feed(text)), None)
        if num_read is None or finder.begins_at is None:
            return None
        place, rest = 0, max(0, finder.begins_at)
        while len(texts[place]) <= rest and place < num_read - 1:
            rest -= len(texts[place])
            place += 1
        keep = whole_characters(texts, place)
        return _End(num_read=num_read, keep=keep, head=texts[place][:rest])

    def _read_on(
        self,
        context: SampleContext,
        text: ReadText,
        kept: Iterable[str],
        put_in: Sequence[Take | Insert],
        asides: _Asides,
    ) -> ReadText:
        """The text with what is kept of a piece. Behind what the policy puts in, a stop string begins anew."""
        finder = self._finder(context, text, None)
        for written in kept:
            finder.feed(written)
        for part in put_in:
            for put in (part.text,) if isinstance(part, Insert) else asides.get(part.index, ())[: part.num_tokens]:
                finder.feed(put)
        return finder.state.model_copy(update={"tail": ""}) if put_in else finder.state

    def _wrap(self, transition: Transition, text: ReadText, asides: _Asides) -> Transition:
        if isinstance(transition.then, Finish):
            return transition
        state = _State(inner=transition.state, writer=writer_of(transition), text=text, asides=dict(asides))
        return replace(transition, state=state.model_dump(mode="json"))


def _finish(context: SampleContext, event: Written, end: _End) -> Transition:
    """End the sample before the stop string; what its first token has before it is put in as text of its own.

    Where the budget may have no room for that, the whole token stays: no text is lost.
    """
    keep = end.keep
    insert: tuple[Insert, ...] = ()
    if end.head and most_tokens(end.head) <= context.max_tokens - event.start_token - keep:
        insert = (Insert(text=end.head, trigger=Trigger.STOP),)
    elif end.head:
        keep += 1
    return Transition(state={}, keep=keep, insert=insert, then=Finish(reason=FinishReason.STOP))
