"""Which columns of a file become which part of a problem: as named, else the usual ones."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any

from pipeline.problems.values import parse_json
from pipeline.texts import printable


class AnswerForm(StrEnum):
    """How the answer column says the reference answer; it is told apart by the choices where nothing is named."""

    LETTER = "letter"  # of the right choice
    LABEL = "label"  # of the right choice, as the file labels its choices
    INDEX0 = "index0"  # of the right choice, the first is 0
    INDEX1 = "index1"  # of the right choice, the first is 1
    FIRST = "first"  # the right choice stands before the wrong ones
    TEXT = "text"  # of the right choice; without choices, the answer itself
    HASHES = "hashes"  # what follows the last #### of a worked solution
    BOXED = "boxed"  # the last \boxed{} of a worked solution
    ONE_OF = "one-of"  # a list, each of which is right
    ALL_OF = "all-of"  # a list, all of which are asked for


OF_CHOICES = (AnswerForm.LETTER, AnswerForm.LABEL, AnswerForm.INDEX0, AnswerForm.INDEX1, AnswerForm.FIRST)
"""What says nothing where there are no choices."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnNames:
    """Names of columns, where the usual ones do not fit; None: the usual ones that the file has; '': none at all.

    A name may be dotted to reach into a value, as in "reward_model.ground_truth", and several may be joined, as in
    "Body+Question" and, for choices, "A+B+C+D". answer_as: how to read the answer.
    """

    problem: str | None = None
    answer: str | None = None
    id: str | None = None
    subject: str | None = None
    level: str | None = None
    choices: str | None = None
    answer_as: AnswerForm | None = None


PARTS = ("problem", "answer", "id", "subject", "level", "choices")

USUAL_COLUMNS = {
    "problem": (
        "problem", "question", "prompt", "input", "messages", "conversations", "conversation", "question_content",
        "query", "instruction",
    ),
    "answer": (
        "answer", "target", "final_answer", "answerkey", "answer_key", "answer_letter", "correct_answer", "correct",
        "golden", "gold", "ground_truth", "reward_model.ground_truth", "solution",
    ),
    "id": ("id", "unique_id", "problem_idx", "question_id", "task_id", "uuid", "record_id", "problem_id"),
    "subject": ("subject", "category", "subfield", "discipline", "domain", "problem_type", "field", "type"),
    "level": ("level", "difficulty"),
    "choices": ("choices", "options"),
}  # fmt: skip
"""By precedence; upper and lower case are the same, and so are a blank and an underscore."""
_BEFORE_QUESTION = ("instruction", "context", "passage", "body")
"""Usual columns that stand before the question where a file has them: without them it cannot be answered."""
_LETTERED = re.compile(r"(option|choice|op|)([a-j])")


@dataclass(frozen=True, slots=True)
class Column:
    """One column, or a place in its value. path: what follows the column's name, by key."""

    name: str
    path: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ".".join((self.name, *self.path))

    def of(self, values: dict[str, Any]) -> Any:
        """The value of a row there, None where it has none."""
        value = values.get(self.name)
        for key in self.path:
            value = _inside(value, key)
        return None if value == "" else value


def _inside(value: Any, key: str) -> Any:
    """What a value has under a key; JSON in a text is looked into."""
    if type(value) is str and value.lstrip()[:1] in ("{", "["):
        try:
            value = parse_json(value)
        except ValueError:
            return None
    if isinstance(value, dict):
        return value.get(key)
    if isinstance(value, list) and key.isdigit() and int(key) < len(value):
        return value[int(key)]
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The columns of a file by what they are for; empty where a problem has no such part."""

    problem: tuple[Column, ...]
    answer: tuple[Column, ...] = ()
    id: tuple[Column, ...] = ()
    subject: tuple[Column, ...] = ()
    level: tuple[Column, ...] = ()
    choices: tuple[Column, ...] = ()
    answer_as: AnswerForm | None = None
    has_usual_id: bool = False

    @property
    def shown(self) -> frozenset[str]:
        """Columns that are in the problem as a whole, so that nothing of them needs another place."""
        parts = (*self.problem, *self.choices, *self.id, *self.subject, *self.level)
        return frozenset(column.name for column in parts if not column.path)

    @property
    def used(self) -> frozenset[str]:
        parts = (*self.problem, *self.answer, *self.id, *self.subject, *self.level, *self.choices)
        return frozenset(column.name for column in parts)


def resolve_columns(given: ColumnNames, present: Sequence[str]) -> Layout:
    """The file's column for each part of a problem. present: in the order of the file. Raises ValueError."""
    found = {part: _resolve(part, getattr(given, part), present) for part in PARTS}
    if not found["problem"]:
        usual = ", ".join(map(repr, USUAL_COLUMNS["problem"]))
        raise ValueError(
            f"missing problem: none of the columns {usual}; name the column that holds it: {_list(present)}"
        )
    if found["answer"] and given.answer is None:
        taken = {column.name for part in ("problem", "choices") for column in found[part]}
        found["answer"] = () if found["answer"][0].name in taken else found["answer"]
    _refuse_repeated(found)
    if given.answer_as is not None:
        _require_use(given.answer_as, found)
    return Layout(**found, answer_as=given.answer_as, has_usual_id=given.id is None)


def _resolve(part: str, given: str | None, present: Sequence[str]) -> tuple[Column, ...]:
    if given == "":
        return ()
    if given is not None:
        return tuple(find_column(name, present, part) for name in _split(given, present))
    usual = _find_usual(USUAL_COLUMNS[part], present)
    if part == "problem" and usual:
        before = (_find_usual((name,), present) for name in _BEFORE_QUESTION)
        return (*(column for column in before if column and column != usual), usual)
    if part == "choices" and not usual:
        return _lettered(present)
    return (usual,) if usual else ()


def _split(given: str, present: Collection[str]) -> list[str]:
    """A column may have a plus sign in its own name."""
    return [given] if given in present else [name.strip() for name in given.split("+")]


def find_column(name: str, present: Sequence[str], part: str) -> Column:
    """The column of a name that may be dotted. Raises ValueError with the columns there are."""
    if name in present:
        return Column(name)
    root, *path = name.split(".")
    if path and root in present:
        return Column(root, tuple(path))
    raise ValueError(f"no column {name!r}, which was named for the {part}; the columns are {_list(present)}")


def _find_usual(usual: Sequence[str], present: Sequence[str]) -> Column | None:
    for name in usual:
        root, *path = name.split(".")
        matches = [column for column in present if column.lower().replace(" ", "_") == root]
        if matches:
            return Column(root if root in matches else matches[0], tuple(path))
    return None


def _lettered(present: Sequence[str]) -> tuple[Column, ...]:
    """Columns A, B, C … or "option_a", "opa" and the like, from A on without a gap."""
    by_letter: dict[str, str] = {}
    for name in present:
        match = _LETTERED.fullmatch(re.sub(r"[^a-z]", "", name.lower()))
        if match and len(name) <= len("option_a"):
            by_letter.setdefault(match[2], name)
    letters = "abcdefghij"
    count = next((index for index, letter in enumerate(letters) if letter not in by_letter), len(letters))
    return tuple(Column(by_letter[letter]) for letter in letters[:count]) if count > 1 else ()


def _require_use(form: AnswerForm, found: dict[str, tuple[Column, ...]]) -> None:
    """Raises ValueError for a form of answers that the file has not."""
    if not found["answer"]:
        raise ValueError(f"--answer-as {form}: no column is the answer; name it by --column answer=COLUMN")
    if form in OF_CHOICES and not found["choices"]:
        raise ValueError(
            f"--answer-as {form} is of choices, and no column has them; name it by --column choices=COLUMN"
        )


def _refuse_repeated(found: dict[str, tuple[Column, ...]]) -> None:
    """An id may be joined of what is used besides, and an answer stand among the choices."""
    taken = [str(column) for part in ("problem", "answer", "subject", "level") for column in found[part]]
    if len(found["id"]) == 1:
        taken += map(str, found["id"])
    repeated = sorted({name for name in taken if taken.count(name) > 1})
    if repeated:
        raise ValueError(f"one column is named for two parts of a problem: {', '.join(repeated)}")


def _list(present: Iterable[str], most: int = 20) -> str:
    names = list(present)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(printable(name, most=40)) for name in islice(names, most)) + more
