"""Graders that look at nothing but the text: equality, and no grading at all."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from pipeline.grading.base import NOT_FOUND, Grade, shown, unscored
from pipeline.grading.extract import last_boxed, last_line, normalise
from pipeline.grading.statements import find_stated

_WRAPPED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf)\s*\{([^{}]*)\}")
_MARKS = re.compile(r"(?<![\w*`$])([*`$]{1,3}|_(?!_))(?=\S)(.{1,200}?)(?<=\S)\1(?![\w*`$])")
"""In pairs around what is marked: a sign in a program or before an amount of money is part of the answer."""
_ARTICLE = re.compile(r"^(?:the|an?)\s+")
_ENDS = " \t.,;:!?。，；：！？、\"'“”‘’「」『』()[]（）【】"


@dataclass(frozen=True, slots=True)
class ExactGrader:
    r"""The boxed answer, else what is stated, else the last line is the reference, but for marks around it and case."""

    name: str = "exact"
    version: str = "exact/3"
    is_instant: bool = True

    def grade(self, answer_text: str, reference: str | None) -> Grade:
        found = _candidates(answer_text)
        if reference is None:
            return unscored(found[0] if found else None)
        if not found:
            return NOT_FOUND
        expected = bare(reference)
        right = next((answer for answer in found if bare(answer) == expected), None)
        return Grade(score=float(right is not None), predicted_answer=shown(right if right is not None else found[0]))

    def states_answer(self, answer_text: str) -> bool:
        return last_boxed(answer_text) is not None or find_stated(answer_text) is not None


def _candidates(text: str) -> list[str]:
    """The one answer of a text, and the same with the sentence around it: the first that there is counts."""
    if boxed := last_boxed(text):
        return [boxed]
    line = last_line(text)
    if (stated := find_stated(text)) is not None:
        return [stated, *filter(None, [line])]
    return [line] if line else []


def bare(text: str) -> str:
    """One form for texts that differ in case, width, white space, and the marks around them."""
    text = unicodedata.normalize("NFKC", _WRAPPED.sub(r"\1", text))
    for _ in range(3):
        text = _MARKS.sub(r"\2", text)
    if text.count("**") == 1:  # the other one was before what is stated
        text = text.replace("**", "")
    plain = normalise(text).strip(_ENDS)
    return _ARTICLE.sub("", plain) or normalise(text)


@dataclass(frozen=True, slots=True)
class NoGrader:
    """Leaves samples unscored."""

    name: str = "none"
    version: str = "none/1"
    is_instant: bool = True

    def grade(self, answer_text: str, reference: str | None) -> Grade:
        return Grade(score=None, predicted_answer=shown(last_boxed(answer_text)))
