"""Multiple choice: the letter that an answer names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.errors import GradingError
from pipeline.grading.base import NOT_FOUND, Grade, shown, unscored
from pipeline.grading.characters import plain_characters
from pipeline.grading.extract import MAX_TEXT_CHARS, last_boxed
from pipeline.grading.statements import looks_finished

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_CYRILLIC = str.maketrans("АВСЕНКМОРТХ", "ABCEHKMOPTX")
_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathsf|mathit|boxed|fbox|rm|bf)\b|\\[()\[\],; ]"
    r"|[\s{}()\[\]$*_`\"'.:<>|]"
)
_LEADING_LETTER = re.compile(r"([A-Za-z])(?![A-Za-z])")
_NAMED_LETTER = re.compile(r"(?i:option|choice|answer)\s*:?\s*([A-Za-z])(?![A-Za-z])")
_SKIP = r"[\s*_$({\[<\"'`\\]*+(?:(?:text|textbf|mathbf|mathrm|boxed)\{\(?+)*+[\s*_$({\[\"'`]*+"
_NOUN = r"(?i:(?:answer|choice|option|alternative|letter)s?+)"
_IS = r"(?i:is|are|would[ \t]++be|must[ \t]++be|should[ \t]++be|will[ \t]++be|:|=|->|→)"
_FILL = (
    r"(?i:therefore|thus|then|clearly|option|choice|letter|answer|indeed|definitely|statement|just|simply|only"
    r"|most[ \t]++likely|probably)"
)
_LETTER = r"(?:\(?([A-Z])\)?|\(([a-z])\)|([a-z])(?=[\s*_$)}\]\"'`]*+(?:[.)]|$)))(?![\w'’])"
_CHOOSES = r"(?i:\b(?:choose|choosing|pick|select|chose|go[ \t]++with))[ \t]++"
_RIGHT = r"(?i:correct|right|best|final|answer|true)"
# Possessive (*+, ++): what follows never begins with what they take, and giving it back again in every way that there
# is takes hours for "answer" and 20,000 spaces.
_STATED = re.compile(
    rf"{_NOUN}(?:[*_]++)?(?:[ \t]++(?i:to|for|of)[ \t][^.\n:]{{0,80}}?)?\s*+(?:{_IS}[*_]*+\s*+:?+)"
    rf"(?:[ \t]*+{_FILL}(?![A-Za-z])[ \t]*+:?+)*+{_SKIP}{_LETTER}"
    r"|(?:答案|选项|选择|正确选项)[^A-Za-z\n。]{0,12}?([A-Z])(?![A-Za-z])"
    rf"|{_CHOOSES}(?i:(?:the[ \t]++)?(?:answer|option|choice|letter)[ \t]++)?+{_SKIP}{_LETTER}"
    rf"|{_NOUN}\s++{_SKIP}([A-Z])(?![\w'’])\s*+[*_)]*+\s*+(?i:is|as|would[ \t]++be)\s++"
    rf"(?i:the[ \t]++|my[ \t]++|therefore[ \t]++|thus[ \t]++)*+{_RIGHT}",
    re.MULTILINE,
)
_IS_RIGHT = re.compile(
    r"(?<![\w'\\])\(?([A-Z])\)?[*_]*+[ \t]++(?i:is)[ \t]++(?i:the[ \t]++)?+"
    r"(?i:(?:correct|right|best|final)[ \t]*+(?i:answer|choice|option|one)?+|answer)(?!\w)"
)
_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_REFUSED = re.compile(r"(?i:\bnot|n't|isn't|wrong|incorrect|never|cannot\s+be|eliminate[sd]?)[\s*_(\[:]*$")
_OPTION = re.compile(r"(?i:option|choice)[ \t]*+[*_(\[]*+([A-Z])(?![\w'’])")
_BRACKETED = re.compile(r"\(([A-Z])\)")
_STANDING_ALONE = re.compile(r"(?<![\w'\\])(?!A [a-z]|I [a-z]|I')([A-J])(?![\w'])")  # neither "A dog" nor "I think"


@dataclass(frozen=True, slots=True)
class ChoiceGrader:
    r"""Takes the letter of the last ``\boxed{}``, else of the last statement, else the last letter that stands out."""

    name: str = "choice"
    version: str = "choice/2"
    is_instant: bool = False

    def grade(self, answer_text: str, reference: str | None) -> Grade:
        predicted = find_letter(answer_text)
        if reference is None:
            return unscored(predicted)
        expected = _leading_letter(reference) or _letter_of_index(reference)
        if expected is None:
            raise GradingError("the reference answer is not a letter from A to Z; take another grader or other answers")
        if predicted is None:
            return NOT_FOUND
        return Grade(score=float(predicted == expected), predicted_answer=shown(predicted))

    def states_answer(self, answer_text: str) -> bool:
        return find_stated_letter(_plain(answer_text)) is not None or looks_finished(answer_text)


def find_letter(text: str) -> str | None:
    """The chosen letter in upper case: of a box, else of a statement, else the last that stands alone."""
    text = _plain(text)
    if (stated := find_stated_letter(text)) is not None:
        return stated
    if last_boxed(text) is not None:
        return None  # a box holds what was answered, and it names no choice
    for pattern in (_OPTION, _BRACKETED, _STANDING_ALONE):
        if letters := [match[1] for match in pattern.finditer(text) if not _is_refused(text, match)]:
            return str(letters[-1])
    lines = [line for line in text.splitlines() if line.strip()]
    return _leading_letter(lines[-1]) if lines and len(lines[-1].strip()) <= 4 else None


def find_stated_letter(text: str) -> str | None:
    """The letter that a text says is its answer, not one that it mentions."""
    for marked in (*_TAG.findall(text)[-1:], last_boxed(text)):
        if marked is not None and (letter := _leading_letter(marked)) is not None:
            return letter
    found = [
        (match.start(), next(letter for letter in match.groups() if letter).upper())
        for pattern in (_STATED, _IS_RIGHT)
        for match in pattern.finditer(text)
        if not _is_refused(text, match)
    ]
    return max(found)[1] if found else None


def _is_refused(text: str, match: re.Match[str]) -> bool:
    return _REFUSED.search(text[max(0, match.start() - 30) : match.start()]) is not None


def _plain(text: str) -> str:
    return plain_characters(text[-MAX_TEXT_CHARS:]).translate(_CYRILLIC)


def _leading_letter(text: str) -> str | None:
    bare = _WRAPPER.sub(" ", plain_characters(text).translate(_CYRILLIC)).strip()
    match = _NAMED_LETTER.match(bare) or _LEADING_LETTER.match(bare)
    return match[1].upper() if match else None


def _letter_of_index(text: str) -> str | None:
    """The letter for an index from 0, as MMLU writes its answers."""
    return LETTERS[int(text)] if re.fullmatch(r"\s*[0-9]\s*", text) else None
