"""Cues: the words that show what a reasoning sentence is about to do, and how they are found in streamed text.

A cue is matched as whole words (in scripts that have them: ``scripts``), case-folded, with any run of white space
between its words. Text comes token by token, so a cue may be split over tokens, and one at the end of the text so far
may not be certain yet: "wait" may go on as "waiting". It is certain once the next character shows, or once nothing more
can come.

A negated affirmation ("not confident") is no cue. A line that only states the final answer is an affirmation, as in the
paper, but no cue in a stream of text: no help is wanted there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, lru_cache
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from pipeline.policies.reading.cue_lists import ANSWER_CUES, named_lists
from pipeline.policies.reading.scripts import must_end, whole_words
from pipeline.policies.reading.surroundings import REACH, SENTENCE_START, is_negated, states_answer


class CueKind(StrEnum):
    """Which list a cue is on."""

    VERIFY = "verify"
    NEGATIVE = "negative"
    POSITIVE = "positive"


class SentenceClass(StrEnum):
    """What a sentence does, by its cues."""

    AFFIRMATION = "affirmation"  # more positive cues than others
    REFLECTION = "reflection"  # as many negative or verify cues, or more
    STATEMENT = "statement"  # no cue at all


_WHITE_SPACE = re.compile(r"\s{2,}|[^\S ]")


@lru_cache(maxsize=16_384)
def fold(text: str) -> str:
    """Case-folded, with one space for each run of white space, and straight apostrophes. Tokens come again and again:
    their forms are kept."""
    return _WHITE_SPACE.sub(" ", text.casefold().replace("’", "'"))


_USUAL = named_lists("en+zh")


class CueLists(BaseModel):
    """The cues, stored with the job; a name of ``cue_lists`` stands for its words.

    Default: "en+zh", the paper's and, because R1 and Qwen think in Chinese as well, what they are there. A text in
    English has no word of the latter.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    verify: tuple[str, ...] = _USUAL["verify"]
    negative: tuple[str, ...] = _USUAL["negative"]
    positive: tuple[str, ...] = _USUAL["positive"]

    @model_validator(mode="before")
    @classmethod
    def _resolve_names(cls, value: Any) -> Any:
        return named_lists(value) if isinstance(value, str) else value

    @field_validator("verify", "negative", "positive")
    @classmethod
    def _are_words(cls, cues: tuple[str, ...]) -> tuple[str, ...]:
        folded = tuple(fold(cue).strip() for cue in cues)
        for cue in folded:
            if not cue:
                raise ValueError("a blank text is no cue")
        return folded

    @model_validator(mode="after")
    def _are_distinct(self) -> CueLists:
        cues = [*self.verify, *self.negative, *self.positive]
        twice = sorted({cue for cue in cues if cues.count(cue) > 1})
        if twice:
            raise ValueError(f"cues named twice: {', '.join(twice)}")
        return self


PAPER_CUES = CueLists.model_validate("en")
"""Appendix of arXiv 2504.12329; the same in its released code."""


@dataclass(frozen=True, slots=True)
class Cue:
    """A cue that was found; words as in its list: folded, single spaces."""

    kind: CueKind
    words: str

    @property
    def sentence_class(self) -> SentenceClass:
        """The class it gives to a sentence whose first cue it is."""
        return SentenceClass.AFFIRMATION if self.kind is CueKind.POSITIVE else SentenceClass.REFLECTION


class CueFinder:
    """Finds the cues of the given kinds in text that is folded and has single spaces. Immutable."""

    def __init__(self, lists: CueLists, kinds: frozenset[CueKind] = frozenset(CueKind)) -> None:
        listed = {CueKind.VERIFY: lists.verify, CueKind.NEGATIVE: lists.negative, CueKind.POSITIVE: lists.positive}
        cues = [Cue(kind, words) for kind in CueKind if kind in kinds for words in listed[kind]]
        self._reach = max((len(cue.words) for cue in cues), default=0) + 1  # the longest, and the character before it
        self.memory = self._reach + (REACH if CueKind.POSITIVE in kinds else 0)
        """Characters of the text so far that can matter."""
        self._each = [_Pattern(number, cue) for number, cue in enumerate(cues)]
        longest_first = sorted((cue.words for cue in cues), key=len, reverse=True)
        self._longest = re.compile(f"(?=({_any_of(longest_first)}))")  # those that overlap, too
        self._within = {long: [each for each in self._each if long.startswith(each.words)] for long in longest_first}
        self._some = re.compile(_any_of(cue.words for cue in cues))
        # Most text has no other letters.
        self._some_ascii = re.compile(_any_of(cue.words for cue in cues if cue.words.isascii()))

    def find(self, text: str, since: int, *, ended: bool) -> Cue | None:
        """The cue that completes first in text[since:]; what stands before is known to hold none.

        ended: nothing follows, so that a cue at the very end is certain, too.
        """
        start = max(0, since - self._reach + 1)
        # Few texts hold the letters of any cue: one search for all of them spares the rest. Those that begin at a place
        # begin the longest one there.
        first = (self._some_ascii if text.isascii() else self._some).search(text, start)
        if first is None:
            return None
        ends = [
            (match.end(), each.number)
            for longest in set(self._longest.findall(text, first.start()))
            for each in self._within[longest]
            for match in each.pattern.finditer(text, start)
            if _is_new(match.end(), since, len(text), waits=each.waits, ended=ended)
            and not self._is_none(each.cue, text, match.start())
        ]
        return self._each[min(ends)[1]].cue if ends else None

    def count(self, text: str) -> int:
        """How many cues text holds, each occurrence counted."""
        folded = fold.__wrapped__(text)  # a whole sentence comes once
        return sum(
            not (each.cue.kind is CueKind.POSITIVE and is_negated(folded, match.start()))
            for each in self._each
            if each.words in folded
            for match in each.pattern.finditer(folded)
        )

    def _is_none(self, cue: Cue, text: str, start: int) -> bool:
        """Whether what stands before a cue at text[start:] takes its meaning away."""
        if cue.kind is not CueKind.POSITIVE:
            return False
        return is_negated(text, start) or (cue.words in ANSWER_CUES and states_answer(text, start))


class _Pattern:
    """How one cue is found. number: its place in the lists. waits: the character after it makes it certain."""

    __slots__ = ("cue", "number", "pattern", "waits", "words")

    def __init__(self, number: int, cue: Cue) -> None:
        self.number = number
        self.cue = cue
        self.words = cue.words
        self.waits = must_end(cue.words)
        self.pattern = re.compile(whole_words(cue.words))


def _any_of(words: Iterable[str]) -> str:
    """A pattern of several texts, whatever stands around them; of nothing where there are none."""
    return "|".join(map(re.escape, words)) or r"(?!)"


def _is_new(end: int, since: int, length: int, *, waits: bool, ended: bool) -> bool:
    """Whether the text from since to length makes a cue that ends there certain. waits: by the character after it."""
    return end >= since and (ended or end < length) if waits else end > since


class CueStream:
    """The cues of a text that comes token by token."""

    __slots__ = ("_finder", "_text")

    def __init__(self, finder: CueFinder, tail: str = "") -> None:
        """tail: as another stream's ``tail`` gave it, to go on from there."""
        self._finder = finder
        self._text = tail

    @property
    def tail(self) -> str:
        """The end of the text so far, as far as it can matter."""
        return self._text[-self._finder.memory :]

    def feed(self, text: str) -> Cue | None:
        """The first cue that text makes certain."""
        text = fold(text)
        if text[:1] == " " and self._text[-1:] == " ":
            text = text[1:]
        if not text:
            return None
        before = self._text if len(self._text) < 192 else self.tail  # a shorter string costs more to cut than to search
        self._text = before + text
        return self._finder.find(self._text, len(before), ended=False)

    def end(self) -> Cue | None:
        """The cue that is certain once nothing more comes."""
        return self._finder.find(self._text, len(self._text), ended=True)

    def begin_sentence(self) -> None:
        """Forget what came; a sentence begins here."""
        self._text = SENTENCE_START


@cache
def cue_finder(lists: CueLists, *kinds: CueKind) -> CueFinder:
    """The finder for these lists; of all kinds where none is named."""
    return CueFinder(lists, frozenset(kinds or CueKind))


def classify(text: str, lists: CueLists) -> SentenceClass:
    """The class of a complete sentence: positive cues counted against negative and verify cues."""
    positive = cue_finder(lists, CueKind.POSITIVE).count(text)
    negative = cue_finder(lists, CueKind.NEGATIVE, CueKind.VERIFY).count(text)
    if positive == negative == 0:
        return SentenceClass.STATEMENT
    return SentenceClass.AFFIRMATION if positive > negative else SentenceClass.REFLECTION


@dataclass(frozen=True, slots=True, kw_only=True)
class LooseReading:
    """A sentence read as the released code of arXiv 2504.12329 does: see ``read_loosely``."""

    sentence_class: SentenceClass
    cue: str
    """The first cue that speaks for the class, '' for a statement."""
    verify: str
    """The first verify cue, '' where there is none."""


def read_loosely(text: str, lists: CueLists) -> LooseReading:
    """Read a complete sentence by bare substrings, lower-cased, each occurrence counted: "check" is in "checkers"."""
    lowered = text.lower()
    others = (*lists.negative, *lists.verify)
    num_positive = sum(map(lowered.count, lists.positive))
    num_others = sum(map(lowered.count, others))
    verify = _first_substring(lowered, lists.verify)
    if num_positive == num_others == 0:
        return LooseReading(sentence_class=SentenceClass.STATEMENT, cue="", verify=verify)
    if num_positive > num_others:
        cue = _first_substring(lowered, lists.positive)
        return LooseReading(sentence_class=SentenceClass.AFFIRMATION, cue=cue, verify=verify)
    return LooseReading(sentence_class=SentenceClass.REFLECTION, cue=_first_substring(lowered, others), verify=verify)


def _first_substring(lowered: str, cues: tuple[str, ...]) -> str:
    found = [(lowered.find(cue), cue) for cue in cues if cue in lowered]
    return min(found, default=(0, ""))[1]
