"""Trial answers: the think phase ends where a model, asked for its answer there and then, is sure of it.

Sources: DEER, arXiv 2504.15895, and its released code ("DEER"); Dynasor-CoT, arXiv 2412.20993, and its code
("Dynasor"); "ours" is a choice made here. At a place the model goes on, on a side branch, after a heading and the
beginning of a box; what it writes there is an aside, which never becomes part of the text:

    sure enough, and the last ``agree`` answers are equal:   end the think phase, let the answer be written
    else                                                    go on as if nothing had been asked

What is done otherwise than in DEER. It asks before a word of hesitation, "Wait", and puts the word back afterwards.
Here a place is always at a break that stays in the text: the one that ends the step of hesitation. To ask before the
word, it would have to be thrown away and drawn again, and fewer hesitations than the model's own would remain. DEER
draws trials at temperature 1 in one script and takes the most likely tokens in another: here always these, so that
repeated runs agree. A trial of one token divides by zero there; here it is no answer. An end of the text inside the
thought is replaced by "Wait" there; here it ends the sample, as without an exit. Its thinking budget is the exit
``cut`` here.

What is done otherwise than in Dynasor. Its trials run beside the writing and come one piece late; here the writing
waits for the answer. It asks every so many tokens, here after so many steps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.policies.exits.protocol import Token, Trial, Verdict
from pipeline.policies.exits.spec import ExitSpec
from pipeline.policies.protocol import PolicyState, Reading, SampleContext, Watcher
from pipeline.policies.reading.cues import CueKind, CueLists, CueStream, Words, cue_finder
from pipeline.policies.requests import Answered, Ask
from pipeline.policies.turns import Tokens
from pipeline.samples import ModelRole, SegmentFinish, WritingRole
from pipeline.signals import Readings, Signal

INDUCER = "**Final Answer**\n\n\\boxed"
"""What stands before a trial answer. The brace is left to the model: it is the token that the confidence leaves out."""

Count = Annotated[int, Field(ge=1)]


class TrialExit(ExitSpec):
    """What exits with a trial answer share."""

    at: Literal["hesitation", "step"] = "step"
    every_steps: Count = 8
    hesitations: Words = ("wait", "alternatively")
    inducer: Annotated[str, Field(min_length=1)] = INDUCER
    trial_tokens: Tokens = 20
    by: WritingRole = ModelRole.SMALL
    confidence: Annotated[float, Field(ge=0, lt=1)] = 0.0
    mean: Literal["arithmetic", "geometric"] = "arithmetic"
    agree: Count = 1
    doubts: Words = ()
    max_trials: Count = 10
    answer_role: WritingRole = ModelRole.SMALL

    @property
    def trial(self) -> Trial:
        return TrialAnswer(self)

    def reader(self, context: SampleContext, state: PolicyState, num_tokens: int) -> _PlaceFinder:
        return _PlaceFinder(self, TrialState.model_validate(state))


class DeerExit(TrialExit):
    """A trial answer that the small model is sure of. On a model that is sure of everything it ends every thought
    early: compare with ``cut`` first."""

    name: Literal["deer"] = "deer"
    at: Literal["hesitation", "step"] = "hesitation"
    """Where a trial is asked: at the end of a step that began with a hesitation, or after ``every_steps`` steps. DEER:
    before the word of hesitation."""
    every_steps: Count = 8
    """Steps from one trial to the next, for at = "step". Ours."""
    hesitations: Words = ("wait", "alternatively")
    """Words of hesitation, within the first 16 tokens of a step. DEER: "Wait", or "Alternatively", anywhere."""
    inducer: Annotated[str, Field(min_length=1)] = INDUCER
    """What stands before the trial. DEER: a heading and the beginning of a box; for questions whose answer is no
    formula a sentence that asks for it. Without a box the answer is the line that follows."""
    trial_tokens: Tokens = 20
    """Most tokens of a trial; one that is not complete by then is no answer. DEER: 20, and it would count."""
    by: WritingRole = ModelRole.SMALL
    """Who tries. DEER: the one model there is."""
    confidence: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """The mean probability of the trial's tokens, but its first, has to be above; 0: whatever it is. DEER: 0.95."""
    mean: Literal["arithmetic", "geometric"] = "arithmetic"
    """How the mean is taken. DEER: arithmetic; for Qwen3 models geometric."""
    agree: Count = 1
    """So many trials in a row have to be sure, with equal answers. DEER: 1."""
    doubts: Words = ()
    """A trial with one of these words is no answer. DEER: none."""
    max_trials: Count = 10
    """Most trials of a sample. DEER: 10."""
    answer_role: WritingRole = ModelRole.SMALL
    """Who writes the answer. Ours."""


class AgreementExit(TrialExit):
    """Equal trial answers in a row, however sure the model is of each."""

    name: Literal["agreement"] = "agreement"
    at: Literal["hesitation", "step"] = "step"
    """Where a trial is asked, as in ``deer``. Dynasor: every 64 tokens."""
    every_steps: Count = 2
    """Steps from one trial to the next. Ours: two steps have about the 64 tokens of Dynasor's middle setting."""
    hesitations: Words = ("wait", "alternatively")
    """Words of hesitation, for at = "hesitation". As ``deer``."""
    inducer: Annotated[str, Field(min_length=1)] = INDUCER
    """What stands before the trial. As ``deer``."""
    trial_tokens: Tokens = 20
    """Most tokens of a trial. Dynasor: 20."""
    by: WritingRole = ModelRole.SMALL
    """Who tries. Dynasor: the one model there is."""
    confidence: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """As in ``deer``; 0: whatever it is. Dynasor: none."""
    mean: Literal["arithmetic", "geometric"] = "arithmetic"
    """As in ``deer``."""
    agree: Count = 3
    """So many answers in a row have to be equal. Dynasor: 8, 5, 3 or 2."""
    doubts: Words = ("wait", "hold", "but", "okay", "no", "hmm")
    """A trial with one of these words is no answer. Dynasor."""
    max_trials: Count = 64
    """Most trials of a sample. Ours; Dynasor: no limit."""
    answer_role: WritingRole = ModelRole.SMALL
    """Who writes the answer. Ours."""


class LargeExtractExit(TrialExit):
    """The large model tries the answer on what the small one thought. Each trial costs a hand-over each way, and the
    large model reads the whole text once."""

    name: Literal["large-extract"] = "large-extract"
    at: Literal["hesitation", "step"] = "step"
    """Where a trial is asked, as in ``deer``. Ours."""
    every_steps: Count = 16
    """Steps from one trial to the next. Ours: hand-overs cost."""
    hesitations: Words = ("wait", "alternatively")
    """Words of hesitation, for at = "hesitation". As ``deer``."""
    inducer: Annotated[str, Field(min_length=1)] = INDUCER
    """What stands before the trial. As ``deer``."""
    trial_tokens: Tokens = 20
    """Most tokens of a trial. As ``deer``."""
    by: WritingRole = ModelRole.LARGE
    """Who tries. Ours."""
    confidence: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """As in ``deer``."""
    mean: Literal["arithmetic", "geometric"] = "arithmetic"
    """As in ``deer``."""
    agree: Count = 1
    """So many trials in a row have to be sure, with equal answers. As ``deer``."""
    doubts: Words = ()
    """A trial with one of these words is no answer. As ``deer``."""
    max_trials: Count = 10
    """Most trials of a sample. As ``deer``."""
    answer_role: WritingRole = ModelRole.SMALL
    """Who writes the answer. Ours."""


class TrialState(BaseModel):
    """What is remembered of a sample. num_steps: that ended since the last trial. num_trials: asked so far. answer: of
    the last trial, '' where it was none. num_equal: trials in a row with that answer, the last one among them.
    begun: tokens of the step so far, as far as a word of hesitation may come in them. tail: the end of these tokens'
    text. hesitates: whether the step began with a hesitation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_steps: int = 0
    num_trials: int = 0
    answer: str = ""
    num_equal: int = 0
    begun: int | None = None
    tail: str = ""
    hesitates: bool = False


WINDOW_TOKENS = 16
"""A step begins with a hesitation where the word is within so many tokens. Ours."""


class _PlaceFinder:
    """Finds the breaks where a trial is due. One that cannot be asked where it is due is asked at the next break."""

    num_back = 0
    reading: Reading | None = None

    def __init__(self, spec: TrialExit, state: TrialState) -> None:
        self._spec = spec
        self._stored = state
        self._num_steps = state.num_steps
        self._begun = state.begun
        self._hesitates = state.hesitates
        self._looks = spec.at == "hesitation"
        lists = CueLists(verify=spec.hesitations, negative=(), positive=())
        self._cues = CueStream(cue_finder(lists, CueKind.VERIFY), state.tail)

    @property
    def state(self) -> PolicyState:
        is_open = self._begun is not None
        return self._stored.model_copy(
            update={
                "num_steps": self._num_steps,
                "begun": self._begun,
                "tail": self._cues.tail if is_open else "",
                "hesitates": self._hesitates,
            }
        ).model_dump(mode="json")

    def feed(self, token: Token) -> bool:
        if self._looks:
            self._look_for_hesitation(token)
        if not token.ends_step:
            return False
        self._num_steps += 1
        if self._stored.num_trials >= self._spec.max_trials:
            return False
        return self._hesitates if self._looks else self._num_steps >= self._spec.every_steps

    def _look_for_hesitation(self, token: Token) -> None:
        if token.begins_step:
            self._begun = 0
            self._cues.begin_sentence()
        if self._begun is None:
            return
        self._begun += 1
        cue = self._cues.feed(token.text)
        if cue is None and (token.ends_step or self._begun >= WINDOW_TOKENS):
            cue, self._begun = self._cues.end(), None
        if cue is not None:
            self._hesitates, self._begun = True, None


class TrialAnswer:
    """The trial of an exit. Immutable."""

    def __init__(self, spec: TrialExit) -> None:
        self._spec = spec

    @property
    def ask(self) -> Ask:
        return Ask(
            role=self._spec.by,
            purpose="trial",
            question=self._spec.inducer,
            max_tokens=self._spec.trial_tokens,
            signals=frozenset({Signal.LOGPROB}),
        )

    def watcher(self) -> Watcher:
        return _AnswerWatcher(self._spec.inducer)

    def judge(self, state: PolicyState, event: Answered) -> Verdict:
        stored = TrialState.model_validate(state)
        num_tokens = _num_answer_tokens(self._spec.inducer, event.piece.texts)
        text = "".join(event.piece.texts[:num_tokens])
        answer = read_answer(self._spec.inducer, text, ended=event.finish is SegmentFinish.EOS) or ""
        sureness = confidence(event.signals.get(Signal.LOGPROB, ())[:num_tokens], self._spec.mean)
        if not self._is_sure(sureness) or _has_word(text, self._spec.doubts):
            answer = ""
        num_equal = 0 if not answer else stored.num_equal + 1 if answer == stored.answer else 1
        accepts = num_equal >= self._spec.agree
        left = TrialState(num_trials=stored.num_trials + 1, answer=answer, num_equal=num_equal)
        reading = self._reading(sureness, num_equal, "exit" if accepts else "go_on")
        return Verdict(accepts=accepts, state=left.model_dump(mode="json"), reading=reading)

    def _is_sure(self, sureness: float | None) -> bool:
        return self._spec.confidence == 0 or (sureness is not None and sureness > self._spec.confidence)

    def _reading(self, sureness: float | None, num_equal: int, outcome: str) -> Reading | None:
        """The confidence, where one is asked for; else how many answers are equal."""
        if self._spec.confidence == 0:
            return Reading(value=num_equal, threshold=self._spec.agree, outcome=outcome)
        if sureness is None:
            return None
        return Reading(value=sureness, threshold=self._spec.confidence, outcome=outcome)


class _AnswerWatcher:
    """Ends a trial where its answer is complete."""

    def __init__(self, inducer: str) -> None:
        self._inducer = inducer
        self._text = ""

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        self._text += text
        return read_answer(self._inducer, self._text, ended=False) is not None


def _num_answer_tokens(inducer: str, texts: Sequence[str]) -> int:
    """Tokens up to where the answer is complete, all where it is not: an engine may have written on."""
    watcher = _AnswerWatcher(inducer)
    return next((count for count, text in enumerate(texts, 1) if watcher.feed(text)), len(texts))


def confidence(logprobs: Sequence[float | None], mean: Literal["arithmetic", "geometric"]) -> float | None:
    """The mean probability of all tokens but the first; None where there is no other, or one has no probability.

    Rounded to 5 decimals like every reading.
    """
    rest = [logprob for logprob in logprobs[1:] if logprob is not None]
    if not rest or len(rest) < len(logprobs) - 1:
        return None
    if mean == "geometric":
        return round(math.exp(math.fsum(rest) / len(rest)), 5)
    return round(math.fsum(map(math.exp, rest)) / len(rest), 5)


_BOX = "\\boxed"


def read_answer(inducer: str, text: str, *, ended: bool) -> str | None:
    """The answer of a trial, in one form for texts that differ in case and white space only; None where there is none.

    A box where the inducer begins one; else the first line. ended: the model ended its text.
    """
    if _BOX in inducer:
        return _form(_boxed(inducer[inducer.rindex(_BOX) + len(_BOX) :] + text))
    line, newline, _ = text.lstrip().partition("\n")
    return _form(line) if newline or ended else None


def _form(answer: str | None) -> str | None:
    """NUL is left out: a sample's state cannot hold it."""
    return None if answer is None else "".join(answer.replace("\0", "").casefold().split())


def _boxed(text: str) -> str | None:
    """What the braces hold that a text begins with; None where they are not closed. Escaped ones do not count."""
    text = text.lstrip()
    if not text.startswith("{"):
        return None
    depth = 0
    for brace in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0 and brace[0] == "}":
            return text[1 : brace.start()]
    return None


def _has_word(text: str, words: Sequence[str]) -> bool:
    return any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in words)
