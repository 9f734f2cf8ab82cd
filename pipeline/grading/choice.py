"""Multiple choice: the letter that an answer names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.errors import GradingError
from pipeline.grading.base import NOT_FOUND, Grade, unscored
from pipeline.grading.extract import MAX_TEXT_CHARS, last_boxed

_WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mathbf|rm|bf)\b|[\s{}()\[\]$*]")
_LEADING_LETTER = re.compile(r"([A-Ja-j])(?![A-Za-z])")
# Possessive (*+, ++): what follows never begins with what they take, and giving it back again in every way that there
# is takes hours for "answer" and 20,000 spaces.
_STATED = re.compile(r"(?i:answer|choice|option)(?i:\s++is)?\s*+:?+[\s*$({\[]*+([A-J])(?![\w'])")
_BRACKETED = re.compile(r"\(([A-J])\)")
_STANDING_ALONE = re.compile(r"(?<![\w'\\])(?!A [a-z]|I [a-z])([A-J])(?![\w'])")  # neither "A dog" nor "I think"


@dataclass(frozen=True, slots=True)
class ChoiceGrader:
    r"""Takes the letter A to J from the last ``\boxed{}``, else "answer is (C)", else "(C)", else a letter alone."""

    name: str = "choice"
    version: str = "choice/1"
    is_instant: bool = False

    def grade(self, answer_text: str, reference: str | None) -> Grade:
        predicted = find_letter(answer_text)
        if reference is None:
            return unscored(predicted)
        expected = _leading_letter(reference)
        if expected is None:
            raise GradingError("the reference answer is not a letter from A to J; take another grader or other answers")
        if predicted is None:
            return NOT_FOUND
        return Grade(score=float(predicted == expected), predicted_answer=predicted)


def find_letter(text: str) -> str | None:
    """The chosen letter in upper case. A box decides alone, even where it holds no letter."""
    if (boxed := last_boxed(text)) is not None:
        return _leading_letter(boxed)
    for pattern in (_STATED, _BRACKETED, _STANDING_ALONE):
        if letters := pattern.findall(text[-MAX_TEXT_CHARS:]):
            return str(letters[-1])
    return None


def _leading_letter(text: str) -> str | None:
    bare = _WRAPPER.sub(" ", text).strip()
    match = _LEADING_LETTER.match(bare)
    return match[1].upper() if match else None
