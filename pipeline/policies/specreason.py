"""SpecReason: small drafts a step, large judges it, and writes the step itself where it does not like it.

Source: SpecReason, arXiv 2504.07891, and its released code ("code"); "ours" is a choice made here. Its loop, once for
every step while the model thinks:

    step = small's next step
    score = large's digit for it, from 0 to 9
    score >= threshold:   the step stays
    else                  large writes the step, and never sees the one that was thrown away

Two judges, each a preset. ``rating`` is the paper's: large is asked, in a message of its own, for one digit. ``doubt``
is ours: large is asked nothing; the probability that it would go on with a word of doubt is read of its next token.
That costs no tokens of a question, and needs no model that follows instructions.

What the code does and this does not: judge's tokens and thrown away steps are in none of its totals; it takes the
closing think tag out of a step, so that thinking may never end; it ends a trace at the word "boxed"; it takes the
most likely digit for the score, where ours takes the mean of the digits by their probabilities.

Small's drafts are asides: several steps can be drafted before large is called (``steps_per_review``), and a step that
stays is in the text as the ids that small wrote. A step that is thrown away is booked to small.

Fallbacks. Large's digits have too little mass, or its context has no room for the question: the step is not accepted,
as with the code's score of 0. Small drafts nothing: large writes the step. Large has nothing to write either: small's
next step stays unjudged. Judges of which no words are among the most likely ones do not doubt.

Source of ``self_check``: ConfSpec, arXiv 2602.18447 (its prompt and numbers are not published).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.breaks import is_newlines
from pipeline.policies.asking import AskingPolicy, AskingState, end, why_over
from pipeline.policies.protocol import Reading, SampleContext, Transition, Watcher
from pipeline.policies.reading.handback import HandBackWatcher
from pipeline.policies.reading.labels import MinMass, probabilities, rounded
from pipeline.policies.reading.reader import Reader, TextState
from pipeline.policies.requests import Answered, Ask, Take, Trigger
from pipeline.policies.specs import PolicySpec
from pipeline.policies.step_delegation import StepPolicy, text_reader
from pipeline.policies.turns import Tokens, Turn, whole_characters
from pipeline.samples import FinishReason, ModelRole
from pipeline.signals import Readings

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE
DIGITS = tuple("0123456789")
DRAFT, SELF_CHECK = "draft", "self_check"
"""Purposes of asides; a judgement's is its judge's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a judgement says of a step."""

    accepts: bool
    reading: Reading


class Judge(Protocol):
    """How a step is judged. Immutable."""

    def ask(self, role: ModelRole, purpose: str) -> Ask: ...

    def read(self, event: Answered, threshold: float) -> Verdict: ...


class _Spec(PolicySpec):
    """What both judges have. The thresholds do not carry over to another pair of models: take a quantile of the
    judgements of a pilot job."""

    name: Literal["specreason"] = "specreason"
    steps_per_review: Annotated[int, Field(ge=1)] = 1
    """Steps that small drafts before large judges them. Paper: 1. More save hand-overs; what follows a step that is not
    accepted is thrown away."""
    step_tokens: Tokens = 512
    """Most tokens of one step, of either model. Code: 512."""
    first_steps: Annotated[int, Field(ge=0)] = 0
    """Steps that large writes before small's first draft. An option of the paper's, too; off by default."""
    answer_role: ModelRole = SMALL
    """Who writes the answer after the think phase. Ours; code: whoever writes the step in which it comes."""

    @abstractmethod
    def judge(self) -> Judge:
        raise NotImplementedError

    @property
    @abstractmethod
    def limits(self) -> tuple[float, float | None]:
        """What large's judgement is compared with, and small's own; None: small does not judge itself."""
        raise NotImplementedError

    def build(self) -> SpecReasonPolicy:
        return SpecReasonPolicy(self)


class RatedSpec(_Spec):
    """Large rates each step by one digit, from 0 to 9."""

    preset: Literal["rating"] = "rating"
    threshold: Annotated[float, Field(ge=0, le=9)] = 7.0
    """Least score at which a step stays. Paper and code: 7 for every judge. What a digit means differs from model to
    model: the mean score of the same texts was from 1.9 to 8.9 with four judges (arXiv 2604.14847)."""
    score: Literal["expected", "digit"] = "expected"
    """expected: mean of the digits by their probabilities, ours: a digit alone knows ten scores. digit: the most likely
    one, the code's default."""
    min_mass: MinMass = 0.5
    """Least probability of all ten digits together; below it there is no score, and the step does not stay. Ours."""
    self_check: Annotated[float, Field(ge=0, le=9)] | None = None
    """Least score by small itself at which a step stays without large. Idea: ConfSpec, whose number is not published;
    off by default."""
    question: Annotated[str, Field(min_length=1)] = (
        "Judge the last step of this solution, and that step alone: is it correct, and does it follow from the "
        "problem and the steps before it? Do not judge how it is written or how much it helps. Reply with a single "
        "digit from 0 (certainly wrong) to 9 (certainly right)."
    )
    """What the judge is asked, in a user message. Ours."""
    opening: str = 'The digit for the last step is "'
    """How its reply begins, so that the digit is its next token. Ours; it ends with a mark, because in some
    vocabularies a space before a digit is a token of its own."""

    def judge(self) -> Judge:
        return _Rating(self)

    @property
    def limits(self) -> tuple[float, float | None]:
        return self.threshold, self.self_check


class DoubtedSpec(_Spec):
    """A step does not stay where large would go on with a word of doubt. Ours."""

    preset: Literal["doubt"] = "doubt"
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Probability of a word of doubt from which on a step does not stay. Ours: doubt is likelier than not."""
    words: tuple[str, ...] = ("Wait", "But", "Hmm", "Alternatively")
    """First words of doubt. Ours, from the cues of Speculative Thinking and what R1 models write; a word counts by its
    first token, and two words need two of them in each model's vocabulary."""
    self_check: Annotated[float, Field(gt=0, le=1)] | None = None
    """Probability of small's own doubt below which a step stays without large. Idea: ConfSpec; off by default."""

    @model_validator(mode="after")
    def _check_words(self) -> DoubtedSpec:
        if not self.words or "" in self.words or len(set(self.words)) < len(self.words):
            raise ValueError("words must be one word or more, each once")
        return self

    def judge(self) -> Judge:
        return _Doubt(self)

    @property
    def limits(self) -> tuple[float, float | None]:
        return self.threshold, self.self_check


class _Rating:
    """Asks for a digit."""

    def __init__(self, spec: RatedSpec) -> None:
        self._spec = spec

    def ask(self, role: ModelRole, purpose: str) -> Ask:
        spec = self._spec
        return Ask(
            role=role,
            purpose=purpose or "rate",
            question=spec.question,
            turn=True,
            opening=spec.opening,
            labels=DIGITS,
        )

    def read(self, event: Answered, threshold: float) -> Verdict:
        found = probabilities(event.labels)
        mass = sum(found.values())
        if rounded(mass) < self._spec.min_mass or not mass:
            return Verdict(accepts=False, reading=_no_answer(mass, self._spec.min_mass))
        if self._spec.score == "digit":
            score = float(max(found, key=lambda digit: found[digit]))
        else:
            score = rounded(sum(int(digit) * found[digit] for digit in found) / mass)
        return _verdict(score >= threshold, score, threshold)


class _Doubt:
    """Reads how likely a word of doubt is to come next."""

    def __init__(self, spec: DoubtedSpec) -> None:
        self._words = spec.words

    def ask(self, role: ModelRole, purpose: str) -> Ask:
        return Ask(role=role, purpose=purpose or "doubt", labels=self._words, labels_begin=True)

    def read(self, event: Answered, threshold: float) -> Verdict:
        if not event.labels:  # the context had no room for the token
            return Verdict(accepts=False, reading=_no_answer(0.0, threshold))
        doubt = rounded(sum(probabilities(event.labels).values()))
        return _verdict(doubt < threshold, doubt, threshold)


def _no_answer(value: float, threshold: float) -> Reading:
    return Reading(value=rounded(value), threshold=threshold, outcome="no answer")


def _verdict(accepts: bool, value: float, threshold: float) -> Verdict:
    outcome = "accept" if accepts else "reject"
    return Verdict(accepts=accepts, reading=Reading(value=value, threshold=threshold, outcome=outcome))


class _Step(BaseModel):
    """A step of a draft: its tokens and those before it in the draft, how many of these are judged, and what matters of
    the text with it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_tokens: int
    num_judged: int
    text: TextState


class _State(AskingState):
    """All that is stored of the policy with a sample."""

    first_steps: int = 0
    """Steps of the opening that are left, the one that is being written included."""
    is_closed: bool = False
    """Large had nothing to write at this place: what small writes stays unjudged, up to the end of a step."""
    draft: int = 0
    """The aside that is judged."""
    steps: tuple[_Step, ...] = ()
    """Its steps."""
    end: FinishReason | None = None
    """Why the text ends with the draft, where that stays; None: it goes on."""
    checked: int = 0
    """The step that small judges itself."""
    unsure: tuple[int, ...] = ()
    """Steps that large has to judge; it judges the first of them."""


class SpecReasonPolicy(AskingPolicy[_State], StepPolicy[_State]):
    """The policy of a spec. Immutable."""

    _state_type = _State

    def __init__(self, spec: _Spec) -> None:
        AskingPolicy.__init__(self, answer_role=spec.answer_role)
        StepPolicy.__init__(self, handback="break")
        self._spec = spec
        self._judge = spec.judge()
        self._limit, self._own_limit = spec.limits

    @property
    def asks(self) -> tuple[Ask, ...]:
        own = () if self._own_limit is None else (self._judge.ask(SMALL, SELF_CHECK),)
        return (Ask(role=SMALL, purpose=DRAFT, greedy=False), *own, self._judge.ask(LARGE, ""))

    def start(self, context: SampleContext) -> Transition:
        spec = self._spec
        first = _State(role=LARGE, max_tokens=context.max_tokens, trigger=Trigger.OPENING, first_steps=spec.first_steps)
        if spec.first_steps:
            return self._let_write(first, LARGE, Trigger.OPENING, min(spec.step_tokens, context.max_tokens))
        return self._draft(first, context.max_tokens)

    # Small drafts.

    def _draft(
        self,
        state: _State,
        room: int,
        *,
        keep: int | None = None,
        insert: tuple[Take, ...] = (),
        reading: Reading | None = None,
    ) -> Transition:
        if room < 1:
            return end(FinishReason.LENGTH, keep=keep, insert=insert, reading=reading)
        max_tokens = min(room, self._spec.step_tokens * self._num_steps(state))
        ask = Ask(role=SMALL, purpose=DRAFT, max_tokens=max_tokens, greedy=False)
        state = state.model_copy(update={"first_steps": 0, "steps": (), "end": None, "checked": 0, "unsure": ()})
        return self._ask(state, ask, keep=keep, insert=insert, reading=reading)

    def _num_steps(self, state: _State) -> int:
        return 1 if state.is_closed else self._spec.steps_per_review

    def _watch_aside(self, context: SampleContext, state: _State) -> Watcher | None:
        return self._draft_watcher(context, state) if state.purpose == DRAFT else None

    def _draft_watcher(self, context: SampleContext, state: _State) -> _DraftWatcher:
        return _DraftWatcher(text_reader(context, state.text), state.text, num_steps=self._num_steps(state))

    def _after_aside(self, context: SampleContext, state: _State, event: Answered) -> Transition:
        room = context.max_tokens - event.start_token
        if state.purpose == DRAFT:
            return self._after_draft(self._read_draft(context, state, event), room, is_judged=not state.is_closed)
        if state.purpose == SELF_CHECK:
            return self._after_self_check(state, event, room)
        return self._after_judgement(state, event, room)

    def _read_draft(self, context: SampleContext, state: _State, event: Answered) -> _State:
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
            steps.append(_Step(num_tokens=place, num_judged=judged, text=after))
            read = place
        over = None if is_interrupted else why_over(event, asked=state.max_tokens)
        update = {"draft": event.index, "steps": tuple(steps), "end": over}
        return state.model_copy(update=update | {"is_closed": state.is_closed and not watcher.ends})

    def _after_draft(self, state: _State, room: int, *, is_judged: bool) -> Transition:
        if not state.steps:
            if state.end is FinishReason.CONTEXT or not is_judged:
                return end(state.end or FinishReason.EOS)
            return self._take_over(state, 0, room)
        if not is_judged:
            return self._accept(state, room)
        everything = state.model_copy(update={"unsure": tuple(range(len(state.steps)))})
        if self._own_limit is None:
            return self._review(everything)
        return self._check(state.model_copy(update={"unsure": ()}), 0)

    # Judgements.

    def _check(self, state: _State, checked: int, reading: Reading | None = None) -> Transition:
        """Let small judge a step of its own."""
        ask = self._on_step(self._judge.ask(SMALL, SELF_CHECK), state, checked)
        return self._ask(state.model_copy(update={"checked": checked}), ask, reading=reading)

    def _after_self_check(self, state: _State, event: Answered, room: int) -> Transition:
        assert self._own_limit is not None
        verdict = self._judge.read(event, self._own_limit)
        if not verdict.accepts:
            state = state.model_copy(update={"unsure": (*state.unsure, state.checked)})
        if state.checked + 1 < len(state.steps):
            return self._check(state, state.checked + 1, verdict.reading)
        if state.unsure:
            return self._review(state, verdict.reading)
        return self._accept(state, room, verdict.reading)

    def _review(self, state: _State, reading: Reading | None = None) -> Transition:
        """Let large judge the first step that nobody was sure of."""
        return self._ask(state, self._on_step(self._judge.ask(LARGE, ""), state, state.unsure[0]), reading=reading)

    def _on_step(self, ask: Ask, state: _State, index: int) -> Ask:
        judged = state.steps[index].num_judged
        after = ((state.draft, judged),) if judged else ()
        return replace(ask, after=after)

    def _after_judgement(self, state: _State, event: Answered, room: int) -> Transition:
        verdict = self._judge.read(event, self._limit)
        if not verdict.accepts:
            return self._take_over(state, state.unsure[0], room, verdict.reading)
        state = state.model_copy(update={"unsure": state.unsure[1:]})
        if state.unsure:
            return self._review(state, verdict.reading)
        return self._accept(state, room, verdict.reading)

    # What becomes of the draft.

    def _accept(self, state: _State, room: int, reading: Reading | None = None) -> Transition:
        """The whole draft stays."""
        last = state.steps[-1]
        take, room = (Take(index=state.draft, num_tokens=last.num_tokens),), room - last.num_tokens
        after = state.model_copy(update={"text": last.text})
        if not last.text.thinking:
            return self._answer(after, room, insert=take, reading=reading)
        if state.end is FinishReason.EOS or (state.end is not None and room > 0):
            return end(state.end, insert=take, reading=reading)
        return self._draft(after, room, insert=take, reading=reading)

    def _take_over(self, state: _State, index: int, room: int, reading: Reading | None = None) -> Transition:
        """Large writes a step in its place; those before it stay."""
        before = state.steps[index - 1] if index else None
        take = (Take(index=state.draft, num_tokens=before.num_tokens),) if before else ()
        room -= before.num_tokens if before else 0
        after = state.model_copy(update={"text": before.text if before else state.text, "end": None})
        limit = min(room, self._spec.step_tokens)
        return self._let_write(after, LARGE, Trigger.REJECTED, limit, insert=take, reading=reading, takes_over=True)

    def _watch_large(self, context: SampleContext, state: _State) -> HandBackWatcher | None:
        return None if state.trigger is Trigger.ANSWER else StepPolicy._watch_large(self, context, state)

    def _after_large(self, turn: Turn[_State]) -> Transition:
        is_answer = turn.state.trigger is Trigger.ANSWER
        return turn.carry_on({}) if is_answer else StepPolicy._after_large(self, turn)

    def _takeover_limit(self, context: SampleContext, state: _State) -> int:
        return self._spec.step_tokens

    def _after_step(self, turn: Turn[_State], keep: int, text: TextState) -> Transition:
        room, left = turn.remaining(keep), turn.state.first_steps - 1
        state = turn.state.model_copy(update={"text": text})
        if not text.thinking:
            return self._answer(state, room, keep=keep)
        if left > 0 and keep > 0:
            after = state.model_copy(update={"first_steps": left})
            if room < 1:
                return end(FinishReason.LENGTH, keep=keep)
            return self._let_write(after, LARGE, Trigger.OPENING, min(room, self._spec.step_tokens), keep=keep)
        is_closed = keep == 0 and state.trigger is Trigger.REJECTED
        return self._draft(state.model_copy(update={"is_closed": is_closed}), room, keep=keep)


class _DraftWatcher:
    """Ends a draft after so many steps, or with the think phase. A run of newlines is one break.

    ends: tokens up to the end of each step that was found.
    """

    __slots__ = ("_at_break", "_num_steps", "ends", "reader")

    def __init__(self, reader: Reader, text: TextState, *, num_steps: int) -> None:
        self.ends: list[int] = []
        self.reader = reader
        self._num_steps = num_steps
        self._at_break = text.at_break

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        self.reader.feed(text)
        is_over = not self.reader.thinking
        begins = self.reader.at_break and not (self._at_break and is_newlines(text))
        if text:
            self._at_break = self.reader.at_break
        if begins or is_over:
            self.ends.append(self.reader.position)
        return is_over or len(self.ends) == self._num_steps


def _before(texts: tuple[str, ...], tag: str) -> int:
    """Tokens before the one in which the closing tag begins: judged is what was thought, not that it ends there."""
    place, length = "".join(texts).rfind(tag), 0
    for count, text in enumerate(texts):
        length += len(text)
        if length > place:
            return count
    return len(texts)
