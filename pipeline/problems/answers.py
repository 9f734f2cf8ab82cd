"""Reference answers: from what a file's answer column holds to one text, or several of which each is right."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pipeline.problems.choices import LETTERS, ChoiceAnswer
from pipeline.problems.columns import AnswerForm
from pipeline.problems.values import NumberText, parse_json, text_of, type_name

_LIST_FORMS = (AnswerForm.ONE_OF, AnswerForm.ALL_OF)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """answer: None where the row has none. others: further answers, each as right as that one."""

    answer: str | None = None
    others: tuple[str, ...] = ()


def read_answer(column: str, value: Any, form: AnswerForm | None) -> Reference:
    """A row's answer in its form, but for that of a multiple choice, which is left as the file has it.

    Raises ValueError for a list where nobody said what it means, and for a worked solution without its mark.
    """
    if form in _LIST_FORMS and type(value) is str and value.lstrip().startswith("["):
        value = parse_json(value)
    if isinstance(value, list):
        return _read_list(column, value, form)
    text = _text(column, value)
    if text is None or form not in (AnswerForm.HASHES, AnswerForm.BOXED):
        return Reference(answer=text)
    found = _after_hashes(text) if form is AnswerForm.HASHES else _last_boxed(text)
    if not found:
        mark = "#### before its answer" if form is AnswerForm.HASHES else r"\boxed{} around its answer"
        raise ValueError(f"{column!r} has no {mark}")
    return Reference(answer=found)


def _read_list(column: str, items: list[Any], form: AnswerForm | None) -> Reference:
    texts = [text for item in items if (text := _text(column, item)) is not None]
    if len(texts) > 1 and form not in _LIST_FORMS:
        raise ValueError(f"{column!r} is a list of {len(texts)} answers; say what it means: --answer-as one-of|all-of")
    if form is AnswerForm.ALL_OF:
        return Reference(answer=", ".join(texts) or None)
    return Reference(answer=texts[0] if texts else None, others=tuple(dict.fromkeys(texts[1:])))


def _text(column: str, value: Any) -> str | None:
    """None where it is missing or blank."""
    if value is None:
        return None
    if not isinstance(value, str | bool):
        raise ValueError(f"wrong type: {column!r} must be text or a number, not {type_name(value)}")
    text = text_of(value)
    return text if text.strip() else None


def _after_hashes(solution: str) -> str:
    """GSM8K writes thousands with a comma."""
    _, mark, answer = solution.rpartition("####")
    return re.sub(r"(?<=\d),(?=\d{3})", "", answer.strip()) if mark else ""


def _last_boxed(solution: str) -> str:
    r"""The content of the last ``\boxed{…}`` that is closed."""
    for start in reversed([match.end() for match in re.finditer(r"\\(?:boxed|fbox)\s*\{", solution)]):
        depth = 1
        for brace in re.finditer(r"\\.|[{}]", solution[start:], re.DOTALL):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                return solution[start : start + brace.start()].strip()
    return ""


def letter_of(answer: ChoiceAnswer, form: AnswerForm) -> str:
    """The letter of the choice that an answer means. Raises ValueError."""
    position = answer.choices.position(answer.text, form)
    if position is None:
        raise ValueError(
            f"its answer is none of its {len(answer.choices.texts)} choices, or fits two of them; "
            "--column choices= if they are none"
        )
    if position >= len(LETTERS):
        raise ValueError(f"its answer is choice {position + 1}, and there are letters for {len(LETTERS)}")
    return LETTERS[position]


def is_number(value: Any) -> bool:
    return isinstance(value, NumberText)
