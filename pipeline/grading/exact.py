"""Graders that look at nothing but the text: equality, and no grading at all."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.grading.base import NOT_FOUND, Grade, shown, unscored
from pipeline.grading.extract import last_boxed, last_line, normalise


@dataclass(frozen=True, slots=True)
class ExactGrader:
    r"""The boxed answer, else the last line, equals the reference but for case and white space."""

    name: str = "exact"
    version: str = "exact/1"
    is_instant: bool = True

    def grade(self, answer_text: str, reference: str | None) -> Grade:
        predicted = last_boxed(answer_text) or last_line(answer_text)
        if reference is None:
            return unscored(predicted)
        if predicted is None:
            return NOT_FOUND
        return Grade(score=float(normalise(predicted) == normalise(reference)), predicted_answer=shown(predicted))


@dataclass(frozen=True, slots=True)
class NoGrader:
    """Leaves samples unscored."""

    name: str = "none"
    version: str = "none/1"
    is_instant: bool = True

    def grade(self, answer_text: str, reference: str | None) -> Grade:
        return Grade(score=None, predicted_answer=shown(last_boxed(answer_text)))
