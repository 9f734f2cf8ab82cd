"""Steps that small drafts and others judge before they stay; large writes those that do not.

What ``specreason``, ``rsd`` and ``specsearch`` share. They differ in who judges, and by what.

Small's drafts are asides: several steps can be drafted before they are judged, and a step that stays is in the text as
the ids that small wrote. A step that is thrown away is booked to small. Small drafts nothing: large writes the step.
Large has nothing to write either: small's next step stays unjudged.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from pipeline.policies.asking import AskingPolicy, AskingState, end, why_ends, why_over
from pipeline.policies.protocol import Reading, SampleContext, Transition, Watcher
from pipeline.policies.reading.handback import HandBackWatcher
from pipeline.policies.reading.labels import NO_ANSWER, rounded
from pipeline.policies.reading.reader import Reader, TextState
from pipeline.policies.requests import Answered, Ask, Take, Trigger
from pipeline.policies.specs import PolicySpec
from pipeline.policies.step_delegation import StepPolicy, text_reader
from pipeline.policies.turns import Tokens, Turn, whole_characters
from pipeline.samples import FinishReason, ModelRole, WritingRole
from pipeline.signals import Readings

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE
DRAFT = "draft"
"""Purpose of small's asides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a judgement says of a step."""

    accepts: bool
    reading: Reading


class Judge(Protocol):
    """How a step is judged. Immutable."""

    def ask(self, role: ModelRole, purpose: str) -> Ask: ...

    def read(self, event: Answered, threshold: float) -> Verdict: ...


def no_answer(value: float, threshold: float) -> Verdict:
    """There is no judgement: the step does not stay. value: the mass of the labels."""
    reading = Reading(value=rounded(value), threshold=threshold, outcome=NO_ANSWER)
    return Verdict(accepts=False, reading=reading)


def verdict(accepts: bool, value: float, threshold: float) -> Verdict:
    outcome = "accept" if accepts else "reject"
    return Verdict(accepts=accepts, reading=Reading(value=value, threshold=threshold, outcome=outcome))


class DraftedStepsSpec(PolicySpec):
    """What all of them have."""

    steps_per_review: Annotated[int, Field(ge=1)] = 1
    """Steps that small drafts before they are judged. Papers: 1. More save hand-overs; what follows a step that is not
    accepted is thrown away."""
    step_tokens: Tokens = 512
    """Most tokens of one step, of either model. Code: 512."""
    first_steps: Annotated[int, Field(ge=0)] = 0
    """Steps that large writes before small's first draft. An option of the paper's, too; off by default."""
    answer_role: WritingRole = ModelRole.SMALL
    """Who writes the answer after the think phase. Ours; code: whoever writes the step in which it comes."""


class DraftedStep(BaseModel):
    """A step of a draft: its tokens and those before it in the draft, how many of these are judged, and what matters of
    the text with it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_tokens: int
    num_judged: int
    text: TextState
    is_blank: bool = False
    """Nothing of it could be read by a judge."""


class DraftedState(AskingState):
    """All that is stored of such a policy with a sample, at least."""

    first_steps: int = 0
    """Steps of the opening that are left, the one that is being written included."""
    is_closed: bool = False
    """Large had nothing to write at this place: what small writes stays unjudged, up to the end of a step."""
    draft: int = 0
    """The aside that is judged."""
    steps: tuple[DraftedStep, ...] = ()
    """Its steps."""
    end: FinishReason | None = None
    """Why the text ends with the draft, where that stays; None: it goes on."""
    unsure: tuple[int, ...] = ()
    """Steps that are yet to be judged; the first of them is."""


DraftedStateT = TypeVar("DraftedStateT", bound=DraftedState)


class DraftedStepsPolicy(AskingPolicy[DraftedStateT], StepPolicy[DraftedStateT]):
    """Drafts, has drafts judged, takes what stays, and lets large write what does not. Immutable."""

    _fresh: ClassVar[Mapping[str, Any]] = {"first_steps": 0, "steps": (), "end": None, "unsure": ()}
    """Of a state before a draft."""

    def __init__(self, numbers: DraftedStepsSpec) -> None:
        AskingPolicy.__init__(self, answer_role=numbers.answer_role)
        StepPolicy.__init__(self, handback="break")
        self._numbers = numbers

    def start(self, context: SampleContext) -> Transition:
        first = self._first_state(context)
        if first.first_steps:
            return self._let_write(first, LARGE, Trigger.OPENING, min(self._numbers.step_tokens, context.max_tokens))
        return self._draft(first, context.max_tokens)

    def _first_state(self, context: SampleContext) -> DraftedStateT:
        return self._state_type(
            role=LARGE,
            max_tokens=context.max_tokens,
            trigger=Trigger.OPENING,
            first_steps=self._numbers.first_steps,
        )

    @abstractmethod
    def _judge_draft(self, state: DraftedStateT, room: int) -> Transition:
        """Have the steps of a draft judged. room: output tokens that are left."""

    @abstractmethod
    def _after_judging(self, state: DraftedStateT, event: Answered, room: int) -> Transition:
        """What an aside other than a draft says."""

    # Small drafts.

    def _draft(
        self,
        state: DraftedStateT,
        room: int,
        *,
        keep: int | None = None,
        insert: tuple[Take, ...] = (),
        reading: Reading | None = None,
    ) -> Transition:
        if room < 1:
            return end(FinishReason.LENGTH, keep=keep, insert=insert, reading=reading)
        max_tokens = min(room, self._numbers.step_tokens * self._num_steps(state))
        ask = Ask(role=SMALL, purpose=DRAFT, max_tokens=max_tokens, greedy=False)
        state = state.model_copy(update=self._fresh)
        return self._ask(state, ask, keep=keep, insert=insert, reading=reading)

    def _num_steps(self, state: DraftedStateT) -> int:
        return 1 if state.is_closed else self._numbers.steps_per_review

    def _watch_aside(self, context: SampleContext, state: DraftedStateT) -> Watcher | None:
        return self._draft_watcher(context, state) if state.purpose == DRAFT else None

    def _draft_watcher(self, context: SampleContext, state: DraftedStateT) -> _DraftWatcher:
        return _DraftWatcher(text_reader(context, state.text), num_steps=self._num_steps(state))

    def _after_aside(self, context: SampleContext, state: DraftedStateT, event: Answered) -> Transition:
        room = context.max_tokens - event.start_token
        if state.purpose == DRAFT:
            return self._after_draft(self._read_draft(context, state, event), room, is_judged=not state.is_closed)
        return self._after_judging(state, event, room)

    def _read_draft(self, context: SampleContext, state: DraftedStateT, event: Answered) -> DraftedStateT:
        """The state with the steps of the draft."""
        watcher, texts = self._draft_watcher(context, state), event.piece.texts
        is_interrupted = any(map(watcher.feed, texts))
        ends = list(watcher.ends)
        whole = whole_characters(texts, len(texts)) or len(texts)
        if not is_interrupted and whole > (ends[-1] if ends else 0):
            ends.append(whole)
        steps, reader, read = [], text_reader(context, state.text), 0
        for place in ends:
            for text in texts[read:place]:
                reader.feed(text)
            after = reader.state
            judged = place if after.thinking else _before(texts[:place], context.think_end)
            blank = is_blank(texts[read:judged], context)
            steps.append(DraftedStep(num_tokens=place, num_judged=judged, text=after, is_blank=blank))
            read = place
        over = None if is_interrupted else why_over(event, asked=state.max_tokens)
        update = {"draft": event.index, "steps": tuple(steps), "end": over}
        return state.model_copy(update=update | {"is_closed": state.is_closed and not watcher.ends})

    def _after_draft(self, state: DraftedStateT, room: int, *, is_judged: bool) -> Transition:
        if not state.steps:
            if state.end is FinishReason.CONTEXT or not is_judged:
                return end(state.end or FinishReason.EOS)
            return self._take_over(state, 0, room)
        if not is_judged:
            return self._accept(state, room)
        return self._judge_draft(state, room)

    def _on_step(self, ask: Ask, state: DraftedStateT, index: int) -> Ask:
        judged = state.steps[index].num_judged
        after = ((state.draft, judged),) if judged else ()
        return replace(ask, after=after)

    # What becomes of the draft.

    def _accept(self, state: DraftedStateT, room: int, reading: Reading | None = None) -> Transition:
        """The whole draft stays."""
        last = state.steps[-1]
        take, room = (Take(index=state.draft, num_tokens=last.num_tokens),), room - last.num_tokens
        after = state.model_copy(update={"text": last.text})
        if not last.text.thinking:
            return self._answer(after, room, insert=take, reading=reading)
        if reason := why_ends(state.end, room):
            return end(reason, insert=take, reading=reading)
        return self._draft(after, room, insert=take, reading=reading)

    def _take_over(self, state: DraftedStateT, index: int, room: int, reading: Reading | None = None) -> Transition:
        """Large writes a step in its place; those before it stay."""
        before = state.steps[index - 1] if index else None
        take = (Take(index=state.draft, num_tokens=before.num_tokens),) if before else ()
        room -= before.num_tokens if before else 0
        after = state.model_copy(update={"text": before.text if before else state.text, "end": None})
        limit = min(room, self._numbers.step_tokens)
        return self._let_write(after, LARGE, Trigger.REJECTED, limit, insert=take, reading=reading, takes_over=True)

    def _watch_large(self, context: SampleContext, state: DraftedStateT) -> HandBackWatcher | None:
        if state.trigger is Trigger.ANSWER:
            return None
        return self._handback_watcher(context, state, limit=self._numbers.step_tokens)

    def _after_large(self, turn: Turn[DraftedStateT]) -> Transition:
        is_answer = turn.state.trigger is Trigger.ANSWER
        return turn.carry_on({}) if is_answer else StepPolicy._after_large(self, turn)

    def _after_step(self, turn: Turn[DraftedStateT], keep: int, text: TextState) -> Transition:
        room, left = turn.remaining(keep), turn.state.first_steps - 1
        state = turn.state.model_copy(update={"text": text})
        if not text.thinking:
            return self._answer(state, room, keep=keep)
        if left > 0 and keep > 0:
            return self._open(state.model_copy(update={"first_steps": left}), room, keep=keep)
        is_closed = keep == 0 and state.trigger is Trigger.REJECTED
        return self._draft(state.model_copy(update={"is_closed": is_closed}), room, keep=keep)

    def _open(
        self, state: DraftedStateT, room: int, *, keep: int | None = None, reading: Reading | None = None
    ) -> Transition:
        """Let large write the next step of the opening."""
        if room < 1:
            return end(FinishReason.LENGTH, keep=keep, reading=reading)
        limit = min(room, self._numbers.step_tokens)
        return self._let_write(state, LARGE, Trigger.OPENING, limit, keep=keep, reading=reading)


class _DraftWatcher:
    """Ends a draft after so many steps, or with the think phase. A run of newlines is one break.

    ends: tokens up to the end of each step that was found.
    """

    __slots__ = ("_num_steps", "ends", "reader")

    def __init__(self, reader: Reader, *, num_steps: int) -> None:
        self.ends: list[int] = []
        self.reader = reader
        self._num_steps = num_steps

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        self.reader.feed(text)
        is_over = not self.reader.thinking
        if self.reader.ends_step or is_over:
            self.ends.append(self.reader.position)
        return is_over or len(self.ends) == self._num_steps


def is_blank(texts: Sequence[str], context: SampleContext) -> bool:
    """Whether a judge could read nothing in a piece: white space, or the tag that opens the thoughts."""
    text = "".join(texts)
    return not (text.replace(context.think_start, "") if context.think_start else text).strip()


def _before(texts: tuple[str, ...], tag: str) -> int:
    """Tokens before the one in which the closing tag begins: judged is what was thought, not that it ends there."""
    place, length = "".join(texts).rfind(tag), 0
    for count, text in enumerate(texts):
        length += len(text)
        if length > place:
            return count
    return len(texts)
