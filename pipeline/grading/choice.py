"""Multiple choice: the letter that an answer names, or the choice whose text it says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.errors import GradingError
from pipeline.grading.base import NOT_FOUND, Grade, shown, unscored
from pipeline.grading.characters import plain_characters
from pipeline.grading.exact import bare
from pipeline.grading.extract import MAX_TEXT_CHARS, last_boxed
from pipeline.grading.forms import plain_form
from pipeline.grading.numbers import find_number, same_number
from pipeline.grading.statements import find_stated, looks_finished

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
    r"|(?:答案|选项|(?<!不)选择?|正确选项|答え|正解|정답)[^A-Za-z\n。]{0,12}?([A-Z])(?![A-Za-z])"
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
_FURTHER = re.compile(
    r"(?:[\s*_)\]}.\\]*+(?:,|;|/|&|、|，|\b(?:and|or)\b|和|或|与)[\s,*_(\[{\\]*+(?:(?:and|or)\s+)?+(?:text\{|mathrm\{)?+\(?([A-Z])(?![\w'’]))"
)
_ENDS = re.compile(r"[\s*_)\]}$\"'`\\]*+(?:[.。!;]|$)", re.MULTILINE)
_SEVERAL = re.compile(r"[A-Z](?:(?:\s*(?:,|;|/|&|、|，|和|或|与)\s*|\s+)(?:(?:and|or)\s+)?[A-Z])+|[A-Z]{2,}")
_CONCLUDES = re.compile(r"(?i:\b(?:so|thus|hence|therefore|must[ \t]+be|it[ \t]+is|it's)\b)[\s:,*_(]*[A-Z](?![\w'’])")
_STATED_RUN = re.compile(rf"(?:{_NOUN}\s*+{_IS}|答案[是为:：]?)[\s:*_(]*+([A-Z]{{2,10}})(?![\w'’])")
_OPTION_LINE = re.compile(r"^[\s*_#>]*\(?([A-Z])(?:[).:][\s*_)]+\S.*|[).:*_\s]*)$")
_REFUSED = re.compile(r"(?i:\bnot|n't|isn't|wrong|incorrect|never|cannot\s+be|eliminate[sd]?)[\s*_(\[:]*$")
_OPTION = re.compile(r"(?i:option|choice)[ \t]*+[*_(\[]*+([A-Z])(?![\w'’])")
_BRACKETED = re.compile(r"\(([A-Z])\)")
_STANDING_ALONE = re.compile(r"(?<![\w'\\])(?!A [a-z]|I [a-z]|I')([A-J])(?![\w'])")  # neither "A dog" nor "I think"


@dataclass(frozen=True, slots=True)
class ChoiceGrader:
    r"""Takes the letter of the last ``\boxed{}``, else of the last statement, else the last letter that stands out.

    A box or a statement may say the text of a choice instead of its letter. One that fits two choices says none.
    """

    choices: tuple[str, ...] = ()
    """Texts of the problem's choices, where they are known."""
    name: str = "choice"
    version: str = "choice/4"
    is_instant: bool = False

    def with_choices(self, choices: Sequence[str]) -> ChoiceGrader:
        """The same grader for a problem with these choices."""
        return replace(self, choices=tuple(choices))

    def grade(self, answer_text: str, reference: str | None) -> Grade:
        predicted = find_letter(answer_text, self.choices)
        if reference is None:
            return unscored(predicted)
        expected = _several(reference) or _leading_letter(reference) or _letter_of_index(reference)
        if expected is None:
            raise GradingError("the reference answer is not a letter from A to Z; take another grader or other answers")
        if predicted is None:
            return NOT_FOUND
        return Grade(score=float(predicted == expected), predicted_answer=shown(predicted))

    def states_answer(self, answer_text: str) -> bool:
        text = _plain(answer_text)
        stated = find_stated_letter(text) is not None or _letter_by_text(answer_text, self.choices) is not None
        return stated or looks_finished(answer_text)


def find_letter(text: str, choices: Sequence[str] = ()) -> str | None:
    """The chosen letter in upper case: of a box, else of a statement, else the last that stands alone.

    Several letters that are said together are one answer: "A, C". choices: their texts; a box or a statement that says
    one of them means its letter.
    """
    written, text = text, _plain(text)
    stated = _letter_by_text(written, choices) or find_stated_letter(text)
    if stated is not None:
        return stated
    if last_boxed(text) is not None:
        return None  # a box holds what was answered, and it names no choice
    if (first := _first_line(text)) is not None:
        return first
    for pattern in (_OPTION, _BRACKETED, _STANDING_ALONE):
        if letters := [match[1] for match in pattern.finditer(text) if not _is_refused(text, match)]:
            return str(letters[-1])
    lines = [line for line in text.splitlines() if line.strip()]
    short = _leading_letter(lines[-1]) if lines and len(lines[-1].strip()) <= 4 else None
    return short or (_letter_in_line(written, choices) if lines else None)


def _letter_by_text(text: str, choices: Sequence[str]) -> str | None:
    """The letter of the choice whose text a box holds, or a statement says; None where that is none, or two."""
    text = text[-MAX_TEXT_CHARS:]
    boxed = last_boxed(text)
    said = boxed if boxed is not None else find_stated(text)
    if not choices or said is None or bare(said).upper() in {*LETTERS[: len(choices)]}:
        return None  # one letter is the letter of a choice, not its text
    said = said.replace(r"\%", "%")
    for form in (bare, plain_form):
        if fitting := [index for index, choice in enumerate(choices) if form(choice) == form(said) != ""]:
            return _letter_at(fitting)
    number = find_number(plain_form(said))
    if number is None:
        return None
    numbers = [find_number(plain_form(choice)) for choice in choices]
    return _letter_at([index for index, one in enumerate(numbers) if one is not None and same_number(one, number)])


def _letter_in_line(text: str, choices: Sequence[str]) -> str | None:
    """The letter of the one choice whose text stands in the last line, and is not refused there."""
    line = bare([line for line in text[-MAX_TEXT_CHARS:].splitlines() if line.strip()][-1])
    found: list[tuple[int, int, int]] = []
    for index, choice in enumerate(choices):
        if (said := bare(choice)) and (match := re.search(rf"(?<!\w){re.escape(said)}(?!\w)", line)):
            if _is_refused(line, match):
                return None
            found.append((match.start(), match.end(), index))
    whole = [one for one in found if not any(_holds(other, one) for other in found)]
    return _letter_at([index for _, _, index in whole])


def _holds(outer: tuple[int, int, int], inner: tuple[int, int, int]) -> bool:
    """Whether a longer choice says a shorter one with it: "dark blue" says "blue"."""
    return outer[0] <= inner[0] and inner[1] <= outer[1] and outer[1] - outer[0] > inner[1] - inner[0]


def _letter_at(positions: Sequence[int]) -> str | None:
    return LETTERS[positions[0]] if len(positions) == 1 and positions[0] < len(LETTERS) else None


def find_stated_letter(text: str) -> str | None:
    """The letter that a text says is its answer, not one that it mentions."""
    for marked in (*_TAG.findall(text)[-1:], last_boxed(text)):
        if marked is not None and (letter := _several(marked) or _leading_letter(marked)) is not None:
            return letter
    found = [
        (match.start(), _with_further(text, match))
        for pattern in (_STATED, _IS_RIGHT)
        for match in pattern.finditer(text)
        if not _is_refused(text, match)
    ]
    found += [
        (match.start(), letters) for match in _STATED_RUN.finditer(text) if (letters := _several(match[1])) is not None
    ]
    return max(found)[1] if found else None


def _with_further(text: str, match: re.Match[str]) -> str:
    """The letter of a statement, with those that it names beside it: "A or B", "A, C and D."."""
    letters = [next(letter for letter in match.groups() if letter).upper()]
    if match.end() and text[match.start() : match.end()].rstrip()[-1:] not in (*letters, letters[0].lower(), ")"):
        return letters[0]  # more of the statement follows the letter
    end, links = match.end(), ""
    while (further := _FURTHER.match(text, end)) is not None:
        letters.append(further[1])
        links += further[0]
        end = further.end()
    if len(letters) > 1 and (re.search(r"\bor\b|或", links) or _ENDS.match(text, end)):
        return ", ".join(sorted(set(letters)))
    return letters[0]


def _several(text: str) -> str | None:
    """Several letters and nothing else, in the order of the alphabet: ACD, "A, C", "C and A"; None for other texts."""
    bare = _WRAPPER.sub(" ", plain_characters(text).translate(_CYRILLIC)).strip()
    if not _SEVERAL.fullmatch(bare):
        return None
    letters = re.findall("[A-Z]", re.sub(r"\b(?:and|or)\b", " ", bare))
    is_run = re.fullmatch("[A-Z]+", bare) is not None
    if is_run and letters != sorted(set(letters)):
        return None  # a word
    return ", ".join(sorted(set(letters)))


def _first_line(text: str) -> str | None:
    """The letter that a text begins with, where no other line begins with one: "B. green", and why."""
    lines = [line for line in text.splitlines() if line.strip()]
    found = [match for line in lines if (match := _OPTION_LINE.match(line)) is not None]
    is_first = len(lines) > 1 and len(found) == 1 and found[0].string == lines[0]
    if not is_first or lines[0].rstrip().endswith("?") or _CONCLUDES.search(text, len(lines[0])):
        return None
    return found[0][1]


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
