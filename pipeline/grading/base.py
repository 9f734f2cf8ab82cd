"""What a grader is and what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

MAX_SHOWN_CHARS = 1_000
"""Longest predicted answer that is stored; the grade itself is of the whole answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """score: in [0, 1]; None: unscored. predicted_answer: None where none was found. detail: one line for a person."""

    score: float | None
    predicted_answer: str | None
    detail: str | None = None


class Grader(Protocol):
    """Stateless; the same texts give the same grade."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str:
        """Changes whenever a grade may; stored with each grade."""
        ...

    @property
    def is_instant(self) -> bool:
        """Whether no text can make it slow or end its process: then nobody has to note that it begins."""
        ...

    def grade(self, answer_text: str, reference: str | None) -> Grade:
        """Grade an output's answer part (see ``answer_part``) against a reference answer.

        No reference: unscored. No answer found: 0.0. Raises GradingError where the grader itself breaks, or cannot
        read the reference; never for what a model wrote.
        """
        ...


_PROBE = r"\boxed{0}"


def check_reference(grader: Grader, reference: str) -> None:
    """Have a grader read a reference answer. Raises GradingError where it cannot.

    A grader may have a method ``check_reference`` for it; any other grades some answer against it.
    """
    check = getattr(grader, "check_reference", None)
    if check is not None:
        check(reference)
    else:
        grader.grade(_PROBE, reference)


def grade_any(grader: Grader, answer_text: str, references: Sequence[str | None]) -> Grade:
    """The best grade against several references, each of which is right."""
    grades = [grader.grade(answer_text, reference) for reference in references]
    return max(grades, key=lambda grade: -1.0 if grade.score is None else grade.score)


def shown(answer: str | None) -> str | None:
    """The answer as it is stored: shortened, and without NUL, which Postgres cannot keep."""
    return answer.replace("\0", "\ufffd")[:MAX_SHOWN_CHARS] if answer is not None else None


def unscored(predicted_answer: str | None) -> Grade:
    return Grade(score=None, predicted_answer=shown(predicted_answer), detail="no reference answer")


NOT_FOUND = Grade(score=0.0, predicted_answer=None, detail="no answer found")
