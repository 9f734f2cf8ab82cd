"""The choices of a multiple choice in the shapes that sets are published in, and which of them an answer means."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.problems.columns import AnswerForm, Column
from pipeline.problems.values import parse_json, text_of, type_name

LETTERS = "ABCDEFGHIJ"
MIN_ROWS_TELLING = 20
"""So many indexes without a 0 do not count from 0: of four choices each, one row in 300 files would be so by chance."""
_LETTER = re.compile(r"\(?([A-Ja-j])\)?[.:)]?")
_WHOLE = re.compile(r"(\d+)(?:\.0+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """texts: without letters that the file writes before them. labels: as the file names them; () where it does not."""

    texts: tuple[str, ...]
    labels: tuple[str, ...] = ()

    def position(self, answer: str, form: AnswerForm) -> int | None:
        """Which choice an answer means; None where it means none, or more than one."""
        answer = answer.strip()
        match form:
            case AnswerForm.LETTER:
                letter = _LETTER.fullmatch(answer)
                return self._within(LETTERS.index(letter[1].upper())) if letter else None
            case AnswerForm.LABEL:
                return self.labels.index(answer) if self.labels.count(answer) == 1 else None
            case AnswerForm.INDEX0 | AnswerForm.INDEX1:
                number = _WHOLE.fullmatch(answer)
                return self._within(int(number[1]) - (form is AnswerForm.INDEX1)) if number else None
            case AnswerForm.FIRST:
                return 0
            case AnswerForm.TEXT:
                texts = [text.strip() for text in self.texts]
                bare = answer if answer in texts else _bare(answer)
                return texts.index(bare) if texts.count(bare) == 1 else None
        return None

    def _within(self, index: int) -> int | None:
        return index if 0 <= index < len(self.texts) else None


def read_choices(columns: Sequence[Column], values: dict[str, Any]) -> Choices | None:
    """The choices of a row; None where it has none. Raises ValueError for a value that is no list of choices."""
    if len(columns) == 1:
        value = columns[0].of(values)
        return None if value is None else _read_value(str(columns[0]), value)
    texts = [column.of(values) for column in columns]
    while texts and texts[-1] is None:
        texts.pop()
    if not texts:
        return None
    if None in texts:
        raise ValueError(f"{str(columns[texts.index(None)])!r} is empty, and a later choice is not")
    return Choices(texts=_texts(str(columns[0]), texts))


def _read_value(name: str, value: Any) -> Choices | None:
    value = _parsed(name, value)
    if value in ([], {}):
        return None
    match value:
        case {"text": list(texts), "label": list(labels)} if len(texts) == len(labels):
            return Choices(texts=_texts(name, texts), labels=_texts(name, labels))
        case {"text": list(texts)} if len(value) == 1:
            return Choices(texts=_unlettered(_texts(name, texts)))
        case dict():
            return Choices(texts=_texts(name, list(value.values())), labels=tuple(value))
        case [dict(), *_]:
            return _read_objects(name, value)
        case list():
            return Choices(texts=_unlettered(_texts(name, value)))
    raise ValueError(f"{name!r} must be a list of choices, not {type_name(value)}; --column choices= does without them")


def _read_objects(name: str, items: list[Any]) -> Choices:
    """``[{"label": "A", "text": "red"}, …]``, whatever the two keys are called."""
    keys = [*items[0]] if isinstance(items[0], dict) else []
    text_key = next((key for key in ("text", "content", "value", "answer", "choice") if key in keys), None)
    label_key = next((key for key in ("label", "key", "id", "letter") if key in keys), None)
    if text_key is None or not all(isinstance(item, dict) and text_key in item for item in items):
        raise ValueError(f"{name!r} holds objects without a text; name one as in --column choices={name}.text")
    texts = _texts(name, [item[text_key] for item in items])
    return Choices(texts=texts, labels=_texts(name, [item.get(label_key) for item in items]) if label_key else ())


def _parsed(name: str, value: Any) -> Any:
    """CSV writes a list as text: in JSON, or as Python shows it."""
    if type(value) is not str or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return parse_json(value)
    except ValueError as error:
        if re.search(r"""['"]\s+['"]""", value) and "," not in value:
            told = "is an array as numpy shows it, whose texts cannot be told apart; write it as JSON"
            raise ValueError(f"{name!r} {told}") from error
        try:
            return ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise ValueError(f"{name!r} starts like a list: {error}") from error


def _texts(name: str, values: Sequence[Any]) -> tuple[str, ...]:
    for value in values:
        if not isinstance(value, str | bool | int | float):
            raise ValueError(f"{name!r} must hold texts, not {type_name(value)}")
    return tuple(text_of(value) for value in values)


def _unlettered(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Without "A)", "B." and so on, where each choice begins with its own letter."""
    if len(texts) > 1 and all(_starts_with(text, letter) for text, letter in zip(texts, LETTERS, strict=False)):
        return tuple(_bare(text) for text in texts)
    return texts


def _starts_with(text: str, letter: str) -> bool:
    return re.match(rf"\s*\(?{letter}\s*[).:]", text) is not None


def _bare(text: str) -> str:
    return re.sub(r"^\s*\(?[A-J]\s*[).:]\s*", "", text)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceAnswer:
    """A row's answer as the file has it, and its choices. is_number: the file has a number there."""

    text: str
    choices: Choices
    is_number: bool


_FORMS = (AnswerForm.LETTER, AnswerForm.INDEX0, AnswerForm.INDEX1, AnswerForm.TEXT)
_NAMES = {
    AnswerForm.LETTER: "letters",
    AnswerForm.LABEL: "labels",
    AnswerForm.INDEX0: "numbers from 0",
    AnswerForm.INDEX1: "numbers from 1",
    AnswerForm.TEXT: "texts of choices",
}


def settle_form(answers: Sequence[ChoiceAnswer], column: str) -> AnswerForm:
    """How a file says which choice is right, told apart by all of its rows; the best where none fits them all.

    Raises ValueError where two readings fit and differ.
    """
    if all(_position(each, AnswerForm.LABEL) is not None for each in answers):
        return AnswerForm.LABEL
    positions = {form: [_position(each, form) for each in answers] for form in _FORMS}
    fitting = [form for form in _FORMS if None not in positions[form]]
    if not fitting:
        return max(_FORMS, key=lambda form: sum(place is not None for place in positions[form]))
    if all(positions[form] == positions[fitting[0]] for form in fitting):
        return fitting[0]
    if fitting == [AnswerForm.INDEX0, AnswerForm.INDEX1] and _may_count_from_0(answers):
        return AnswerForm.INDEX0
    told = " or as ".join(_NAMES[form] for form in fitting)
    raise ValueError(f"the answers in {column!r} can be read as {told}; say which: --answer-as {'|'.join(fitting)}")


def _position(answer: ChoiceAnswer, form: AnswerForm) -> int | None:
    return answer.choices.position(answer.text, form)


def _may_count_from_0(answers: Sequence[ChoiceAnswer]) -> bool:
    """Published sets count from 0; a large one has a 0 then."""
    return all(each.is_number for each in answers) and len(answers) < MIN_ROWS_TELLING
