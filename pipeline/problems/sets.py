"""Problems and problem sets: values, their content's hash, and what the database can keep of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.errors import ProblemSetError
from pipeline.problems.columns import AnswerForm
from pipeline.problems.values import check_text, text_of, to_plain
from pipeline.texts import printable

SHOWN = ("choices", "turns")
"""Metadata that prompt templates show."""

MAX_ID_CHARS = 500
"""Longest id of a problem: Postgres keeps it in an index, whose entries have 2,704 bytes at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One question.

    external_id: the file's id, else its 0-based row as text; unique in its set, 500 characters at most.
    answer: the reference answer as it was written (a number keeps its form); None: no reference.
    metadata: what a prompt template may show beside the prompt, as plain JSON values, and what was named to be kept;
        those who generate can read it. ``choices`` is a multiple choice's list of texts, ``turns`` the messages before
        the prompt.
    also_accepted: further reference answers, each as right as ``answer``.
    hidden: all other columns that have a value; graders and people read them, those who generate cannot.
    """

    external_id: str
    prompt: str
    answer: str | None = field(default=None, repr=False)  # kept out of logs and tracebacks
    also_accepted: tuple[str, ...] = field(default=(), repr=False)
    subject: str | None = None
    level: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    hidden: dict[str, Any] = field(default_factory=dict, repr=False)

    def as_shown(self) -> Problem:
        """What those who generate can read of it."""
        return Problem(external_id=self.external_id, prompt=self.prompt, metadata=self.metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetReading:
    """How a file was read: the columns of each part of a problem as a person names them; None: it has none.

    ignored: columns that are hidden from those who generate. binary: columns with bytes, which are not stored.
    """

    problem: str
    answer: str | None = None
    answer_as: AnswerForm | None = None
    choices: str | None = None
    id: str | None = None
    subject: str | None = None
    level: str | None = None
    ignored: tuple[str, ...] = ()
    binary: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemSet:
    """A named list of problems; its version is the hash of its content, the same whatever the file's format.

    source: the file it was read from; places: where in it each problem stands, e.g. "line 3"; reading: how it
    was read. All empty for a set that comes from elsewhere. origin: of a set of a hub, where it is there.
    """

    name: str
    content_sha256: str
    problems: tuple[Problem, ...] = field(repr=False)
    source: str = field(default="", compare=False)
    places: tuple[str, ...] = field(default=(), compare=False, repr=False)
    reading: SetReading | None = field(default=None, compare=False)
    origin: dict[str, str] | None = field(default=None, compare=False)

    @property
    def num_references(self) -> int:
        return sum(problem.answer is not None for problem in self.problems)

    @property
    def has_choices(self) -> bool:
        return any("choices" in problem.metadata for problem in self.problems)

    def place(self, index: int) -> str:
        """Where a problem stands, for a person."""
        return self.places[index] if self.places else f"problem {self.problems[index].external_id!r}"


def hide_columns(problem: Problem, keep: Collection[str] = ()) -> Problem:
    """The problem with those metadata hidden that no prompt template shows and nobody named to be kept."""
    shown = {name: value for name, value in problem.metadata.items() if name in SHOWN or name in keep}
    others = {name: value for name, value in problem.metadata.items() if name not in shown}
    return replace(problem, metadata=shown, hidden={**problem.hidden, **others}) if others else problem


def content_sha256(problems: Iterable[Problem]) -> str:
    """A hash of all problems and answers in order.

    What those who generate can read is part of it. CSV has text only, so other columns count in their text form: the
    level 3 and the level "3" are the same content.
    """
    content = ContentHash()
    for problem in problems:
        content.add(problem)
    return content.hexdigest()


class ContentHash:
    """``content_sha256`` of problems that come one by one."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256(b"specthink problem set 1\n")

    def add(self, problem: Problem) -> None:
        shown, hidden = (
            sorted((key, text_of(value)) for key, value in columns.items())
            for columns in (problem.metadata, problem.hidden)
        )
        record = [problem.external_id, problem.prompt, problem.answer, problem.subject, problem.level, shown]
        more = [part for part in (hidden, list(problem.also_accepted)) if part]
        self._digest.update(json.dumps(record + more, separators=(",", ":")).encode() + b"\n")

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def check_storable(problem_set: ProblemSet, *, max_faults: int = 10) -> None:
    """Refuse a set made by hand that the database cannot keep. Raises ProblemSetError with the first faults."""
    faults: list[str] = []
    seen: set[str] = set()
    try:
        check_text(problem_set.name)
    except ValueError as error:
        faults.append(f"its name: {error}")
    for problem in problem_set.problems:
        try:
            _check_problem(problem, seen)
        except (TypeError, ValueError) as error:
            faults.append(f"problem {printable(problem.external_id, most=40)!r}: {error}")
        if len(faults) >= max_faults:
            break
    if faults:
        raise ProblemSetError(printable(problem_set.source or problem_set.name), [printable(fault) for fault in faults])


def _check_problem(problem: Problem, seen: set[str]) -> None:
    if problem.external_id in seen:
        raise ValueError("its id occurs twice")
    seen.add(problem.external_id)
    _check_id(problem.external_id)
    for text in (
        problem.external_id,
        problem.prompt,
        problem.answer,
        problem.subject,
        problem.level,
        *problem.also_accepted,
    ):
        check_text(text or "")
    for columns in (problem.metadata, problem.hidden):
        to_plain(columns)
        json.dumps(columns, allow_nan=False)


def _check_id(external_id: str) -> None:
    if len(external_id) > MAX_ID_CHARS:
        raise ValueError(f"an id of {len(external_id)} characters; {MAX_ID_CHARS} is the limit")


def check_prompt_lengths(
    problem_set: ProblemSet, lengths: Iterable[int], max_tokens: int, *, max_faults: int = 10
) -> None:
    """Refuse the set if a prompt has more than max_tokens tokens, which must leave room for the output.

    lengths: of each problem's prompt, in their order; not read further than the last fault that is told. Raises
    ProblemSetError with the first faults.
    """
    faults: list[str] = []
    for index, num_tokens in enumerate(lengths):
        if num_tokens > max_tokens:
            place = problem_set.place(index)
            faults.append(f"{place}: the prompt has {num_tokens} tokens, the model takes {max_tokens} at most")
        if len(faults) == max_faults:
            break
    if faults:
        raise ProblemSetError(problem_set.source or problem_set.name, faults)
