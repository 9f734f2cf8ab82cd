"""Cues: the words that show what a reasoning sentence is about to do, and how they are found in streamed text.

A cue is matched as whole words, case-folded, with any run of white space between its words. Text comes token by
token, so a cue may be split over tokens, and one at the end of the text so far is not certain yet: "wait" may go on
as "waiting". It is certain once the next character shows, or once nothing more can come.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, lru_cache

from pydantic import BaseModel, ConfigDict, field_validator, model_validator


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


class CueLists(BaseModel):
    """The cues, stored with the job. Defaults: appendix of arXiv 2504.12329, the same in its released code."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verify: tuple[str, ...] = ("verify", "think again", "recap", "check")
    negative: tuple[str, ...] = ("wait", "alternatively", "hold on", "another")
    positive: tuple[str, ...] = ("yeah", "yes", "final answer", "confident")

    @field_validator("verify", "negative", "positive")
    @classmethod
    def _are_words(cls, cues: tuple[str, ...]) -> tuple[str, ...]:
        folded = tuple(" ".join(cue.casefold().split()) for cue in cues)
        for cue in folded:
            if not re.fullmatch(r"\w+(?: \w+)*", cue):
                raise ValueError(f"{cue!r} is no cue: give one or more words of letters and digits")
        return folded

    @model_validator(mode="after")
    def _are_distinct(self) -> CueLists:
        cues = [*self.verify, *self.negative, *self.positive]
        twice = sorted({cue for cue in cues if cues.count(cue) > 1})
        if twice:
            raise ValueError(f"cues named twice: {', '.join(twice)}")
        return self


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
        self.memory = max((len(cue.words) for cue in cues), default=0) + 1
        """Characters of the text so far that can matter: the longest cue and the character before it."""
        self._each = [(cue, re.compile(_whole_words(re.escape(cue.words)))) for cue in cues]
        alternatives = "|".join(re.escape(cue.words) for cue in cues)
        self._any = re.compile(_whole_words(f"(?:{alternatives})") if cues else r"(?!)")

    def find(self, text: str, since: int, *, ended: bool) -> Cue | None:
        """The cue that completes first in text[since:]; what stands before is known to hold none.

        ended: nothing follows, so that a cue at the very end is certain, too.
        """
        start = max(0, since - self.memory + 1)
        if self._any.search(text, start) is None:
            return None
        ends = (
            (match.end(), cue)
            for cue, pattern in self._each
            for match in pattern.finditer(text, start)
            if match.end() >= since and (ended or match.end() < len(text))
        )
        return min(ends, key=lambda end: end[0], default=(0, None))[1]

    def count(self, text: str) -> int:
        """How many cues text holds, each occurrence counted."""
        folded = fold.__wrapped__(text)  # a whole sentence comes once
        return sum(len(pattern.findall(folded)) for _, pattern in self._each)


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
        before = self._text if len(self._text) < 64 else self.tail  # a shorter string costs more to cut than to search
        self._text = before + text
        return self._finder.find(self._text, len(before), ended=False)

    def end(self) -> Cue | None:
        """The cue that is certain once nothing more comes."""
        return self._finder.find(self._text, len(self._text), ended=True)

    def reset(self) -> None:
        self._text = ""


_WHITE_SPACE = re.compile(r"\s{2,}|[^\S ]")


@lru_cache(maxsize=16_384)
def fold(text: str) -> str:
    """Case-folded, with one space for each run of white space. Tokens come again and again: their forms are kept."""
    return _WHITE_SPACE.sub(" ", text.casefold())


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


def _whole_words(pattern: str) -> str:
    return rf"(?<!\w){pattern}(?!\w)"
