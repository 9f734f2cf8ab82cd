"""Mentor: at words drawn at random large says how it would go on, and small chooses between that and its own words.

Source: MentorCollab-free, arXiv 2602.05307, and its released code ("code"); "ours" is a choice made here. Its loop:

    w = small's next word
    not drawn:   w stays
    v = large's next word; v equal to w:   w stays
    small is asked which of two continuations leads to the right answer, its own next 16 tokens or large's;
    that one is put into the text

The code asks both models for every word anew. Here small writes on to the end of its continuation in one aside, and
large writes one aside where a word is drawn: it is both its next word and its continuation. Where the words are equal
the rest of small's aside is drawn on and nothing is written twice. So a consultation is two hand-overs, and one where
the words are equal. All of small's text is asides that are taken: it stays the very ids that small wrote, booked to
small, and a word is decided about without having been drawn a second time.

What the code does and this does not: the own continuation always stands first, so that a preference for a place in the
list goes unmeasured; a rate that is off by one; text that goes on past the answer; discarded continuations are in none
of its totals.

Fallbacks: small's own text stays where large writes no word, where both letters together have too little mass, and
where the context has no room for the question. Closing the think phase is left to small: a continuation that has no
words before the closing tag is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipeline.policies.asking import AskingPolicy, AskingState, end, why_ends, why_over
from pipeline.policies.draws import draw
from pipeline.policies.protocol import Reading, SampleContext, Transition, Watcher
from pipeline.policies.reading.labels import NO_ANSWER, MinMass, probabilities, rounded
from pipeline.policies.reading.reader import Reader, TextState
from pipeline.policies.reading.words import WordStarts
from pipeline.policies.requests import Answered, Ask, Take, Trigger
from pipeline.policies.specs import PolicySpec
from pipeline.policies.step_delegation import text_reader
from pipeline.policies.turns import Tokens, whole_characters
from pipeline.samples import FinishReason, ModelRole, SegmentFinish, WritingRole
from pipeline.signals import Readings

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE
DRAFT, MENTOR, CHOOSE = "draft", "mentor", "choose"
"""Purposes of asides."""
LETTERS = ("A", "B")
_PLACEHOLDER = re.compile(r"\{([AB])\}")


class MentorSpec(PolicySpec):
    """Every number of the policy."""

    name: Literal["mentor"] = "mentor"
    control_at = "word"
    rate: Annotated[float, Field(ge=0, le=1)] = 0.24
    """Probability that large is consulted at a word of small's. Code: 0.24 in one version, 0.04 in another (it says 25
    and 5 of 100, and leaves one out)."""
    chunk: Tokens = 16
    """Most tokens of a continuation; small's own has a whole character at its end. Code: 16; the paper finds that 4 to
    8 do."""
    chooser: Literal["small", "large", "own", "mentor"] = "small"
    """Who chooses between the two. Code: small. own and mentor: always that one, to tell what the choice is worth."""
    order: Literal["drawn", "fixed", "both"] = "drawn"
    """Which continuation stands first. drawn: either, ours. fixed: small's own, as in the code. both: asked in both
    orders, by the mean of the log-probabilities."""
    min_mass: MinMass = 0.5
    """Least probability of both letters together; below it nothing was chosen, and small's own text stays. Ours."""
    draft_tokens: Tokens = 128
    """Most tokens of small that wait for a word to be drawn before they are put into the text. Ours: some 90 words,
    while one in four is drawn; more would only be lost with a worker."""
    answer_role: WritingRole = ModelRole.SMALL
    """Who writes the answer after the think phase. Ours."""
    question: str = (
        "Your solution could go on in one of two ways, and only one of them is to be kept. Choose the one that leads "
        "to the right answer.\n\nContinuation A:\n{A}\n\nContinuation B:\n{B}"
    )
    """What the chooser is asked, in a user message; {A} and {B} are the continuations. Ours."""
    opening: str = "The better one is continuation"
    """How its reply begins, so that the letter is its next word. Ours."""

    @field_validator("question")
    @classmethod
    def _shows_both(cls, question: str) -> str:
        if sorted(_PLACEHOLDER.findall(question)) != list(LETTERS):
            raise ValueError("question must have {A} and {B} in it, each once")
        return question

    def build(self) -> MentorPolicy:
        return MentorPolicy(self)


class _State(AskingState):
    """All that is stored of the policy with a sample. What waits is small's text that is not put in yet."""

    num_draws: int = 0
    """Words of the kept text that were drawn about."""
    num_decided: int = 0
    """Words drawn about at which small's own stays, those that wait included."""
    after_space: bool = True
    """Whether the next token that is no white space begins a word."""
    waiting: tuple[tuple[int, int], ...] = ()
    """The asides that wait, with their numbers of tokens."""
    texts: tuple[str, ...] = ()
    """Their texts, token by token."""
    end: FinishReason | None = None
    """Why the text ends with what waits, where that stays; None: it goes on."""
    mentor: int = 0
    """Large's aside."""
    chunk: tuple[str, ...] = ()
    """The text of its continuation, token by token."""
    mentor_ended: bool = False
    """Whether large would end its text with it."""
    chosen: tuple[float, float] | None = None
    """With ``both``: probabilities of own and mentor in the first order."""


class MentorPolicy(AskingPolicy[_State]):
    """The policy of a spec. Immutable."""

    _state_type = _State

    def __init__(self, spec: MentorSpec) -> None:
        super().__init__(answer_role=spec.answer_role)
        self._spec = spec

    @property
    def asks(self) -> tuple[Ask, ...]:
        draft = Ask(role=SMALL, purpose=DRAFT, greedy=False)
        mentor = Ask(role=LARGE, purpose=MENTOR, greedy=False)
        is_asked = self._spec.chooser in tuple(ModelRole)
        return (draft, mentor, *([self._choice("x", "y", own_first=True)] if is_asked else []))

    def start(self, context: SampleContext) -> Transition:
        first = _State(role=SMALL, max_tokens=context.max_tokens, trigger=Trigger.START)
        return self._draft(first, context.max_tokens)

    def _watch_aside(self, context: SampleContext, state: _State) -> Watcher | None:
        if state.purpose == CHOOSE:
            return None
        reader = self._read_waiting(context, state)
        return reader if state.purpose == DRAFT else _PhaseWatcher(self._reader_at(context, state, reader.place))

    def _after_aside(self, context: SampleContext, state: _State, event: Answered) -> Transition:
        room = context.max_tokens - event.start_token
        match state.purpose:
            case purpose if purpose == DRAFT:
                return self._after_draft(context, state, event, room)
            case purpose if purpose == MENTOR:
                return self._after_mentor(context, state, event, room)
            case _:
                return self._after_choice(context, state, event, room)

    # Small writes.

    def _draft(
        self, state: _State, room: int, takes: Sequence[Take] = (), reading: Reading | None = None
    ) -> Transition:
        """Let small write on, with nothing waiting."""
        if room < 1:
            return end(FinishReason.LENGTH, insert=takes, reading=reading)
        ask = Ask(role=SMALL, purpose=DRAFT, max_tokens=min(room, self._spec.draft_tokens), greedy=False)
        return self._ask(state, ask, insert=takes, reading=reading)

    def _read_waiting(self, context: SampleContext, state: _State) -> _DraftWatcher:
        """A reader of small's text, up to what waits."""
        reader = _DraftWatcher(context, state, self._spec)
        for text in state.texts:
            reader.feed(text)
        return reader

    def _after_draft(self, context: SampleContext, state: _State, event: Answered, room: int) -> Transition:
        reader, texts = self._read_waiting(context, state), event.piece.texts
        stop = next((count for count, text in enumerate(texts, 1) if reader.feed(text)), None)
        num_tokens = len(texts) if stop is None else stop
        over = why_over(event, asked=state.max_tokens) if stop is None else None
        more = ((event.index, num_tokens),) if num_tokens else ()
        update = {"waiting": (*state.waiting, *more), "texts": (*state.texts, *texts[:num_tokens]), "end": over}
        return self._go_on(context, state.model_copy(update=update), room)

    def _go_on(self, context: SampleContext, state: _State, room: int) -> Transition:
        """What follows what waits: more of it, a consultation at the next word that is drawn, or it stays."""
        reader = self._read_waiting(context, state)
        missing = min(reader.num_missing, room - len(state.texts))
        if missing > 0 and state.end is None and reader.thinking:
            ask = Ask(role=SMALL, purpose=DRAFT, after=state.waiting, max_tokens=missing, greedy=False)
            return self._ask(state, ask)
        if reader.place is None:
            return self._stay(context, state, room)
        if not _shown(state.texts[reader.place :], context).split():
            return self._go_on(context, _decided(state, reader), room)
        max_tokens = min(self._spec.chunk, room - reader.place)
        after = tuple(_heads(state, reader.place))
        return self._ask(state, Ask(role=LARGE, purpose=MENTOR, after=after, max_tokens=max_tokens, greedy=False))

    # Large is consulted.

    def _reader_at(self, context: SampleContext, state: _State, place: int | None) -> Reader:
        """A reader of the text up to a place in what waits."""
        reader = text_reader(context, state.text)
        for text in state.texts[:place]:
            reader.feed(text)
        return reader

    def _after_mentor(self, context: SampleContext, state: _State, event: Answered, room: int) -> Transition:
        own = self._read_waiting(context, state)
        watcher, texts = _PhaseWatcher(self._reader_at(context, state, own.place)), event.piece.texts
        stop = next((count for count, text in enumerate(texts, 1) if watcher.feed(text)), None)
        chunk = texts[: whole_characters(texts, len(texts) if stop is None else stop)]
        words = _shown(chunk, context).split()
        if not words or words[0] == _shown(state.texts[own.place :], context).split()[0]:
            return self._go_on(context, _decided(state, own), room)
        ended = stop is None and event.finish is SegmentFinish.EOS
        state = state.model_copy(update={"mentor": event.index, "chunk": chunk, "mentor_ended": ended})
        match self._spec.chooser:
            case "own":
                return self._stay(context, state, room)
            case "mentor":
                return self._take_mentors(context, state, room)
            case _:
                return self._ask_choice(context, state, own)

    # One of two is chosen.

    def _choice(self, own: str, mentor: str, *, own_first: bool) -> Ask:
        shown = dict(zip(LETTERS, (own, mentor) if own_first else (mentor, own), strict=True))
        return Ask(
            role=ModelRole(self._spec.chooser),
            purpose=CHOOSE,
            question=_PLACEHOLDER.sub(lambda found: shown[found[1]], self._spec.question),
            turn=True,
            opening=self._spec.opening,
            labels=LETTERS,
        )

    def _is_own_first(self, context: SampleContext, state: _State, number: int) -> bool:
        """number: of the word that is decided about."""
        if self._spec.order == "drawn":
            return draw(context, f"order {number}") < 0.5
        return state.chosen is None

    def _ask_choice(self, context: SampleContext, state: _State, own: _DraftWatcher) -> Transition:
        texts = (state.texts[own.place :], state.chunk)
        shown = [_shown(part, context).strip() for part in texts]
        ask = self._choice(*shown, own_first=self._is_own_first(context, state, own.num_draws))
        after = tuple(_heads(state, own.place or 0))
        return self._ask(state, replace(ask, after=after))

    def _after_choice(self, context: SampleContext, state: _State, event: Answered, room: int) -> Transition:
        own = self._read_waiting(context, state)
        found = probabilities(event.labels)
        mass = rounded(sum(found.values()))
        if not found or not mass or mass < self._spec.min_mass:
            reading = Reading(value=mass, threshold=self._spec.min_mass, outcome=NO_ANSWER)
            return self._stay(context, state, room, reading)
        pair = (found["A"], found["B"])
        of_own, of_mentor = pair if self._is_own_first(context, state, own.num_draws) else pair[::-1]
        if self._spec.order == "both" and state.chosen is None:
            return self._ask_choice(context, state.model_copy(update={"chosen": (of_own, of_mentor)}), own)
        if state.chosen is not None:
            of_own, of_mentor = ((a * b) ** 0.5 for a, b in zip(state.chosen, (of_own, of_mentor), strict=True))
        value = rounded(of_mentor / (of_own + of_mentor)) if of_own + of_mentor else 0.5
        is_mentors = value > 0.5
        reading = Reading(value=value, threshold=0.5, outcome="mentor" if is_mentors else "own")
        return (self._take_mentors if is_mentors else self._stay)(context, state, room, reading)

    # What is put into the text.

    def _stay(self, context: SampleContext, state: _State, room: int, reading: Reading | None = None) -> Transition:
        """All that waits stays."""
        own = self._read_waiting(context, state)
        takes = [Take(index=index, num_tokens=num_tokens) for index, num_tokens in state.waiting]
        after, room = _put_in(state, own, state.texts, own.state), room - len(state.texts)
        if not own.thinking:
            return self._answer(after, room, insert=takes, reading=reading)
        if reason := why_ends(state.end, room):
            return end(reason, insert=takes, reading=reading)
        return self._draft(after, room, takes, reading)

    def _take_mentors(
        self, context: SampleContext, state: _State, room: int, reading: Reading | None = None
    ) -> Transition:
        """Large's continuation stands in the place of small's, behind the words before it."""
        own = self._read_waiting(context, state)
        place = own.place or 0
        reader = self._reader_at(context, state, place)
        for text in state.chunk:
            reader.feed(text)
        takes = [Take(index=index, num_tokens=num_tokens) for index, num_tokens in _heads(state, place)]
        takes.append(Take(index=state.mentor, num_tokens=len(state.chunk), takes_over=True))
        after = _put_in(state, own, (*state.texts[:place], *state.chunk), reader.state)
        room -= place + len(state.chunk)
        if not reader.thinking:
            return self._answer(after, room, insert=takes, reading=reading)
        if state.mentor_ended and not context.think_end:
            return end(FinishReason.EOS, insert=takes, reading=reading)
        return self._draft(after, room, takes, reading)


def _put_in(state: _State, own: _DraftWatcher, texts: Sequence[str], text: TextState) -> _State:
    """The state with these texts in the kept one, and nothing waiting."""
    written = "".join(texts)
    return state.model_copy(
        update={
            "text": text,
            "num_draws": own.num_draws,
            "num_decided": own.num_draws,
            "after_space": written[-1:].isspace() if written else state.after_space,
            "waiting": (),
            "texts": (),
            "end": None,
            "chunk": (),
            "mentor_ended": False,
            "chosen": None,
        }
    )


def _decided(state: _State, own: _DraftWatcher) -> _State:
    """The state where small's own word stays, and the words after it are drawn about."""
    return state.model_copy(update={"num_decided": own.num_draws})


def _heads(state: _State, num_tokens: int) -> Iterator[tuple[int, int]]:
    """The asides whose heads are the first tokens of what waits."""
    for index, length in state.waiting:
        if num_tokens > 0:
            yield index, min(length, num_tokens)
        num_tokens -= length


def _shown(texts: Sequence[str], context: SampleContext) -> str:
    """A continuation as it is shown and compared: without the closing tag."""
    text = "".join(texts)
    return text.partition(context.think_end)[0] if context.think_end else text


class _DraftWatcher:
    """Ends small's writing a continuation's length from a word that is drawn, at a whole character, or with the think
    phase.

    place: tokens before that word, None while none is drawn. num_draws: words drawn about, up to that one.
    """

    __slots__ = ("_context", "_num_decided", "_reader", "_spec", "_texts", "_words", "num_draws", "place")

    def __init__(self, context: SampleContext, state: _State, spec: MentorSpec) -> None:
        self.place: int | None = None
        self.num_draws = state.num_draws
        self._num_decided = state.num_decided
        self._context = context
        self._spec = spec
        self._reader = text_reader(context, state.text)
        self._texts: list[str] = []
        self._words = WordStarts(after_space=state.after_space)

    @property
    def thinking(self) -> bool:
        return self._reader.thinking

    @property
    def state(self) -> TextState:
        """What matters of the text so far."""
        return self._reader.state

    @property
    def num_missing(self) -> int:
        """Tokens that are lacking for a continuation from the place, and for a whole character at the end."""
        num_tokens = len(self._texts)
        lacking = 0 if self.place is None else self.place + self._spec.chunk - num_tokens
        return max(lacking, int(whole_characters(self._texts, num_tokens) < num_tokens))

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        begins_word = self._words.feed(text)
        self._reader.feed(text)
        if begins_word and self.place is None and self.thinking and self._is_drawn():
            self.place = whole_characters(self._texts, len(self._texts))
        self._texts.append(text)
        return not self.thinking or (self.place is not None and self.num_missing == 0)

    def _is_drawn(self) -> bool:
        self.num_draws += 1
        return self.num_draws > self._num_decided and draw(self._context, self.num_draws) < self._spec.rate


class _PhaseWatcher:
    """Ends large's continuation with the think phase."""

    __slots__ = ("_reader",)

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        self._reader.feed(text)
        return not self._reader.thinking
