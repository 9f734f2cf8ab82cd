"""Mathematics: whether two formulas mean the same, by math-verify."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version as version_of
from typing import Any

from pipeline.errors import GradingError
from pipeline.grading.base import NOT_FOUND, Grade, shown, unscored
from pipeline.grading.extract import MAX_TEXT_CHARS, last_boxed, normalise

MAX_FORMULA_CHARS = 1_000
"""Longer answers are not parsed: the parser's time grows faster than the text (150 nested braces: 3 s)."""


@cache
def _math_version() -> str:
    return f"math/1+math-verify-{version_of('math-verify')}"


@dataclass(frozen=True, slots=True)
class MathGrader:
    r"""The last ``\boxed{}`` of the answer, else the formula or number in its text that math-verify picks.

    math-verify gives up by a signal, so it works in a process's main thread only.
    """

    timeout_s: int = 5
    """For each of: reading the answer, reading the reference, each comparison. math-verify's own default."""
    name: str = "math"

    @property
    def version(self) -> str:
        return _math_version()

    @property
    def is_instant(self) -> bool:
        return False

    def grade(self, answer_text: str, reference: str | None) -> Grade:
        boxed = last_boxed(answer_text)
        if reference is None:
            return unscored(boxed)
        expected = _bare_reference(reference)
        if len(expected) > MAX_TEXT_CHARS:
            raise GradingError(f"the reference answer is longer than {MAX_TEXT_CHARS} characters")
        if boxed is not None:
            return self._grade_formula(boxed, expected)
        return self._grade_text(answer_text[-MAX_TEXT_CHARS:], expected)

    def _grade_formula(self, predicted: str, expected: str) -> Grade:
        if not predicted:
            return NOT_FOUND
        if normalise(predicted) == normalise(expected):
            return Grade(score=1.0, predicted_answer=shown(predicted))
        if len(predicted) > MAX_FORMULA_CHARS:
            return Grade(
                score=0.0, predicted_answer=shown(predicted), detail=f"longer than {MAX_FORMULA_CHARS} characters"
            )
        formulas = _parse_answer(rf"\boxed{{{predicted}}}", self.timeout_s)
        return self._compare(expected, formulas, predicted=predicted, detail=None)

    def _grade_text(self, text: str, expected: str) -> Grade:
        formulas = _parse_answer(text, self.timeout_s)
        if not formulas:
            return NOT_FOUND
        predicted = next((part for part in reversed(formulas) if isinstance(part, str)), str(formulas[0]))
        return self._compare(expected, formulas, predicted=predicted, detail="the answer is not boxed")

    def _compare(self, expected: str, formulas: list[Any], *, predicted: str, detail: str | None) -> Grade:
        """A comparison that breaks on a model's formula is a wrong answer; one that takes too long raises GradingError.

        Errors are raised without their cause, whose message may hold the reference.
        """
        from math_verify import verify
        from math_verify.errors import TimeoutException

        reference = _parse_reference(expected, self.timeout_s)
        try:
            score = float(verify(reference, formulas, timeout_seconds=self.timeout_s, raise_on_error=True))
        except TimeoutException:
            raise GradingError("math-verify took too long to compare the answer with the reference") from None
        except MemoryError:
            raise GradingError("math-verify ran out of memory") from None
        except Exception as error:  # sympy raises anything on odd formulas
            score, detail = 0.0, f"cannot be compared with the reference: {type(error).__name__}"
        return Grade(score=score, predicted_answer=shown(predicted), detail=detail)


def _bare_reference(reference: str) -> str:
    """A reference may be a whole solution: its box counts, or what follows ``####`` (GSM8K)."""
    boxed = last_boxed(reference)
    return boxed if boxed is not None else reference.rpartition("####")[2].strip().strip("$").strip()


def _parse_answer(text: str, timeout_s: int) -> list[Any]:
    """The formulas in a model's text; none where math-verify cannot read it, or not in time."""
    from math_verify import parse
    from math_verify.errors import TimeoutException

    _quiet()
    try:
        formulas: list[Any] = parse(text, parsing_timeout=timeout_s)
    except (MemoryError, TimeoutException):  # outside of what math-verify guards itself
        return []
    except ValueError as error:
        raise GradingError(f"the math grader works in a process's main thread only: {error}") from error
    return formulas


def _parse_reference(expected: str, timeout_s: int) -> list[Any]:
    from math_verify import parse
    from math_verify.errors import TimeoutException

    try:
        formulas: list[Any] = parse(rf"\boxed{{{expected}}}", parsing_timeout=timeout_s, raise_on_error=True)
    except (Exception, TimeoutException) as error:  # math-verify passes on what its parts raise
        raise GradingError(f"math-verify cannot read the reference answer: {type(error).__name__}") from None
    if not formulas:
        raise GradingError("math-verify finds no formula in the reference answer")
    return formulas


def _quiet() -> None:
    """math-verify logs the texts it parses, and reference answers do not belong in a log."""
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
