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
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.policies.drafted_steps import (
    DRAFT,
    LARGE,
    SMALL,
    DraftedState,
    DraftedStepsPolicy,
    DraftedStepsSpec,
    Judge,
    Verdict,
    no_answer,
    verdict,
)
from pipeline.policies.protocol import Reading, Transition
from pipeline.policies.reading.labels import MinMass, probabilities, rounded
from pipeline.policies.requests import Answered, Ask
from pipeline.samples import ModelRole

DIGITS = tuple("0123456789")
SELF_CHECK = "self_check"
"""Purpose of asides; a judgement's is its judge's name."""


class _Spec(DraftedStepsSpec):
    """What both judges have. The thresholds do not carry over to another pair of models: take a quantile of the
    judgements of a pilot job."""

    name: Literal["specreason"] = "specreason"

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
            return no_answer(mass, self._spec.min_mass)
        if self._spec.score == "digit":
            score = float(max(found, key=lambda digit: found[digit]))
        else:
            score = rounded(sum(int(digit) * found[digit] for digit in found) / mass)
        return verdict(score >= threshold, score, threshold)


class _Doubt:
    """Reads how likely a word of doubt is to come next."""

    def __init__(self, spec: DoubtedSpec) -> None:
        self._words = spec.words

    def ask(self, role: ModelRole, purpose: str) -> Ask:
        return Ask(role=role, purpose=purpose or "doubt", labels=self._words, labels_begin=True)

    def read(self, event: Answered, threshold: float) -> Verdict:
        if not event.labels:  # the context had no room for the token
            return no_answer(0.0, threshold)
        doubt = rounded(sum(probabilities(event.labels).values()))
        return verdict(doubt < threshold, doubt, threshold)


class _State(DraftedState):
    """All that is stored of the policy with a sample."""

    checked: int = 0
    """The step that small judges itself."""


class SpecReasonPolicy(DraftedStepsPolicy[_State]):
    """The policy of a spec. Immutable."""

    _state_type = _State
    _fresh: ClassVar[Mapping[str, Any]] = {**DraftedStepsPolicy._fresh, "checked": 0}

    def __init__(self, spec: _Spec) -> None:
        super().__init__(spec)
        self._judge = spec.judge()
        self._limit, self._own_limit = spec.limits

    @property
    def asks(self) -> tuple[Ask, ...]:
        own = () if self._own_limit is None else (self._judge.ask(SMALL, SELF_CHECK),)
        return (Ask(role=SMALL, purpose=DRAFT, greedy=False), *own, self._judge.ask(LARGE, ""))

    def _judge_draft(self, state: _State, room: int) -> Transition:
        everything = state.model_copy(update={"unsure": tuple(range(len(state.steps)))})
        if self._own_limit is None:
            return self._review(everything)
        return self._check(state, 0)

    def _after_judging(self, state: _State, event: Answered, room: int) -> Transition:
        if state.purpose == SELF_CHECK:
            return self._after_self_check(state, event, room)
        return self._after_judgement(state, event, room)

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

    def _after_judgement(self, state: _State, event: Answered, room: int) -> Transition:
        verdict = self._judge.read(event, self._limit)
        if not verdict.accepts:
            return self._take_over(state, state.unsure[0], room, verdict.reading)
        state = state.model_copy(update={"unsure": state.unsure[1:]})
        if state.unsure:
            return self._review(state, verdict.reading)
        return self._accept(state, room, verdict.reading)
