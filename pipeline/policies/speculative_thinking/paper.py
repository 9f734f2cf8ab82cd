"""Speculative Thinking as the paper describes it: the preset ``paper``.

Source: arXiv 2504.12329. Where the paper says nothing, its released code decides (cues match as bare substrings,
takeovers go on after the closing think tag, the end of either model ends the sample); where that one has no sensible
answer either (budgets), requests are clamped to what max_tokens leaves.

    small writes; the window_tokens tokens after each break are a sentence, whatever further breaks lie in them:
        a statement: small has simply gone on; its tokens stay
        else the sentence's break is where the large model takes over (a reflection is counted first):
            the count reaches the threshold (R3)  a fixed sentence is inserted, large writes n3; the count starts again
            a verify cue (R2)                     large writes n2
            else (R1)                             large writes n1; n2 where its own sentence has a verify cue
    then small goes on.

A sentence has one author: those of the large model end with its text at the latest, and what small writes in the middle
of one is none. After each break at most one reflective sentence counts, small's or the one that large wrote in its
place; in large's text a sentence that is no statement covers the breaks inside it. A break that ends the large model's
text is followed by a sentence of the small one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.breaks import BreakFinder
from pipeline.policies.protocol import SampleContext, Transition
from pipeline.policies.reading.cues import PAPER_CUES, CueLists, LooseReading, SentenceClass, read_loosely
from pipeline.policies.requests import Trigger
from pipeline.policies.speculative_thinking.rules import (
    INSTRUCT_OPENING,
    SHORT_TAKEOVERS,
    ReflectionState,
    VerifyingRules,
)
from pipeline.policies.turns import Count, PairPolicy, Tokens, Turn, fires, first_turn, whole_characters
from pipeline.samples import ModelRole, SegmentFinish
from pipeline.signals import Readings


class PaperRules(VerifyingRules):
    """Every number of the preset ``paper``.

    ``threshold`` counts the reflective sentences of the running text, those of small that are taken over included.
    """

    cues: CueLists = PAPER_CUES
    """Paper, appendix; the same in every configuration of the code."""
    window_tokens: Tokens = 20
    """Tokens after a break that make the sentence. Paper: "the next n1"; code: 20."""
    n3_step: Count = 0
    """Paper: n3 is fixed."""
    n3_max: Tokens = 125
    """Paper: n3 is fixed."""
    threshold_step: Count = 0
    """Not stated in the paper, which knows one threshold."""
    threshold_max: Tokens = 15
    """As the threshold."""
    inserted_sentence: Annotated[str, Field(min_length=1)] = "Let us check whether there are some wrong steps."
    """R3. Paper."""

    def build(self) -> PaperPolicy:
        return PaperPolicy(self)


class PaperSpec(PaperRules):
    """The preset ``paper``."""

    name: Literal["speculative-thinking"] = "speculative-thinking"
    preset: Literal["paper"] = "paper"


class PaperInstructSpec(PaperRules):
    """The preset ``paper`` for a small model that does not reason."""

    name: Literal["speculative-thinking"] = "speculative-thinking"
    preset: Literal["paper-instruct"] = "paper-instruct"
    opening_tokens: Count = INSTRUCT_OPENING
    """Paper."""
    every_break: bool = True
    """Paper."""


class _State(ReflectionState):
    """All that is stored of the policy with a sample."""

    newlines: int = 0
    """How many newlines the kept text ends with, two at most."""
    ages: tuple[int, ...] = ()
    """Tokens since each break whose sentence, one of the writer's, is not complete, oldest first."""
    texts: tuple[str, ...] = ()
    """The tokens since the oldest of these breaks."""


class PaperPolicy(PairPolicy[_State]):
    """The policy of a spec. Immutable."""

    _state_type = _State

    def __init__(self, spec: PaperRules) -> None:
        self._spec = spec

    def start(self, context: SampleContext) -> Transition:
        return first_turn(_State(**self._spec.first_state(context)))

    # The small model wrote.

    def _after_small(self, turn: Turn[_State]) -> Transition:
        watcher = self._watch_small(turn.context, turn.state)
        found = fires(watcher, turn.event) or (turn.event.finish is SegmentFinish.EOS and watcher.end())
        return self._take_over(turn, watcher) if found else turn.carry_on(watcher.sentences.fields)

    def _take_over(self, turn: Turn[_State], watcher: _DraftWatcher) -> Transition:
        keep, reading = max(0, watcher.break_at), watcher.reading
        is_reflection = reading is not None and reading.sentence_class is SentenceClass.REFLECTION
        reflections = turn.state.reflections + is_reflection
        breaks = BreakFinder(turn.state.newlines)
        for text in turn.texts[:keep]:
            breaks.feed(text)
        trigger, cue = _trigger(reading)
        if reflections >= turn.state.threshold and turn.remaining(keep, self._spec.check) >= 1:
            return self._check_all(turn, keep, breaks.newlines, cue)
        ages = () if is_reflection else (0,)  # the break's sentence counts once
        return turn.let_write(
            ModelRole.LARGE,
            trigger,
            {"reflections": reflections, "newlines": breaks.newlines, "ages": ages, "texts": ()},
            keep=keep,
            max_tokens=self._spec.n2,  # R1's are ended at n1 by the watcher
            cue=cue,
        )

    def _check_all(self, turn: Turn[_State], keep: int, newlines: int, cue: str) -> Transition:
        """R3: insert the sentence and let the large model look for wrong steps."""
        at_break = turn.state.model_copy(update={"newlines": newlines, "ages": (), "texts": ()})
        sentences = _Sentences(at_break, self._spec)
        sentences.feed(self._spec.check.text)
        return turn.let_write(
            ModelRole.LARGE,
            Trigger.TOO_MUCH_REFLECTION,
            sentences.fields | turn.state.after_check(self._spec),
            keep=keep,
            insert=[self._spec.check],
            max_tokens=turn.state.n3,
            cue=cue,
        )

    # The large model wrote.

    def _after_large(self, turn: Turn[_State]) -> Transition:
        watcher = self._watch_large(turn.context, turn.state)
        handed_back = watcher is not None and fires(watcher, turn.event)
        num_written = watcher.num_read if watcher is not None and handed_back else len(turn.texts)
        keep = whole_characters(turn.texts, num_written) or num_written
        reason = turn.why_over(keep, interrupted=handed_back)
        if reason is not None:
            return turn.end(reason, keep)
        sentences = _Sentences(turn.state, self._spec)
        readings = [*map(sentences.feed, turn.texts[:keep]), sentences.end()]
        reflections = sum(reading.sentence_class is SentenceClass.REFLECTION for reading in readings if reading)
        state = {
            "newlines": sentences.newlines,
            "ages": (0,) if sentences.at_break else (),
            "texts": (),
            "reflections": turn.state.reflections + reflections,
        }
        return turn.let_write(ModelRole.SMALL, Trigger.RESUME, state, keep=keep)

    # Watchers.

    def _watch_small(self, context: SampleContext, state: _State) -> _DraftWatcher:
        return _DraftWatcher(_Sentences(state, self._spec), every_break=self._spec.every_break)

    def _watch_large(self, context: SampleContext, state: _State) -> _TakeoverWatcher | None:
        return _TakeoverWatcher(self._spec) if state.trigger in SHORT_TAKEOVERS else None


class _Sentences:
    """Reads one author's text on and classifies the sentences that begin at its breaks.

    A sentence that is no statement covers the breaks inside it.
    """

    __slots__ = ("_breaks", "_cues", "_starts", "_texts", "_window_tokens", "at_break", "num_read", "start")

    def __init__(self, state: _State, spec: PaperRules) -> None:
        self.num_read = 0
        self.at_break = False
        """Whether the token read last ended with a break."""
        self.start = 0
        """Tokens before the sentence found last, negative where it began before the state."""
        self._cues = spec.cues
        self._window_tokens = spec.window_tokens
        self._breaks = BreakFinder(state.newlines)
        self._starts = [-age for age in state.ages]
        self._texts = list(state.texts)

    @property
    def newlines(self) -> int:
        return self._breaks.newlines

    @property
    def fields(self) -> dict[str, Any]:
        """The state's fields from which to read on."""
        ages = tuple(self.num_read - start for start in self._starts)
        return {"newlines": self.newlines, "ages": ages, "texts": tuple(self._texts)}

    def feed(self, text: str) -> LooseReading | None:
        """The sentence that this token completes, where it is no statement."""
        self.num_read += 1
        reading = None
        if self._starts:
            self._texts.append(text)
            if self.num_read - self._starts[0] >= self._window_tokens:
                reading = self._complete()
        self.at_break = self._breaks.feed(text)
        if self.at_break:
            self._starts.append(self.num_read)
        return reading

    def end(self) -> LooseReading | None:
        """The first sentence that the end of the writing completes, where one is no statement."""
        while self._starts:
            reading = self._complete()
            if reading is not None:
                return reading
        return None

    def _complete(self) -> LooseReading | None:
        """Close the oldest sentence; all where it is no statement."""
        self.start = self._starts.pop(0)
        reading = read_loosely("".join(self._texts), self._cues)
        if reading.sentence_class is not SentenceClass.STATEMENT:
            self._starts.clear()
        self._texts = self._texts[self._starts[0] - self.start :] if self._starts else []
        return None if reading.sentence_class is SentenceClass.STATEMENT else reading


class _DraftWatcher:
    """Ends the small model's request at the end of a sentence that is no statement, or at every break."""

    __slots__ = ("_every_break", "reading", "sentences")

    def __init__(self, sentences: _Sentences, *, every_break: bool) -> None:
        self.sentences = sentences
        self._every_break = every_break
        self.reading: LooseReading | None = None
        """Of the sentence; None where a break was enough."""

    @property
    def break_at(self) -> int:
        """After a True: tokens before the break's end; negative where that is before the state."""
        return self.sentences.num_read if self._every_break else self.sentences.start

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        reading = self.sentences.feed(text)
        if self._every_break:
            return self.sentences.at_break
        self.reading = reading
        return reading is not None

    def end(self) -> bool:
        """After the last token: whether the end of the text completes a sentence that is no statement."""
        if not self._every_break:
            self.reading = self.sentences.end()
        return self.reading is not None


class _TakeoverWatcher:
    """Ends the large model's request after n1 tokens, or after n2 where its first sentence has a verify cue."""

    __slots__ = ("_limit", "_spec", "_texts", "num_read")

    def __init__(self, spec: PaperRules) -> None:
        self.num_read = 0
        self._spec = spec
        self._limit = spec.n1
        self._texts: list[str] = []

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        self.num_read += 1
        window = min(self._spec.window_tokens, self._spec.n1)
        if self.num_read <= window:
            self._texts.append(text)
            if self.num_read == window and read_loosely("".join(self._texts), self._spec.cues).verify:
                self._limit = self._spec.n2
        return self.num_read >= self._limit


def _trigger(reading: LooseReading | None) -> tuple[Trigger, str]:
    """Why large takes over, and the words that say so."""
    if reading is None:
        return Trigger.EVERY_BREAK, ""
    if reading.verify:
        return Trigger.VERIFY, reading.verify
    return Trigger(reading.sentence_class), reading.cue
