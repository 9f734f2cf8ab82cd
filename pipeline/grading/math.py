"""Mathematics: whether two answers mean the same. Shapes are compared here, formulas by math-verify."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version as version_of

from pipeline.errors import GradingError
from pipeline.grading.base import NOT_FOUND, Grade, shown, unscored
from pipeline.grading.extract import MAX_TEXT_CHARS, boxed_answer, last_boxed, normalise
from pipeline.grading.forms import plain_form
from pipeline.grading.formulas import FormulaComparison, parse_reference, parse_text
from pipeline.grading.notation import option_letter, split_option, without_modulus
from pipeline.grading.numbers import find_number
from pipeline.grading.sameness import same_shape
from pipeline.grading.shapes import read_shapes
from pipeline.grading.statements import find_stated, looks_finished

MAX_FORMULA_CHARS = 1_000
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,15}")
"""Longer answers are not parsed: the parser's time grows faster than the text (150 nested braces: 3 s)."""


@cache
def _math_version() -> str:
    return f"math/3+math-verify-{version_of('math-verify')}"


@dataclass(frozen=True, slots=True)
class MathGrader:
    r"""The last ``\boxed{}`` of the answer, else what its text states, else the formula that math-verify picks.

    Several boxes that are one answer count as one. math-verify gives up by a signal, so it works in a process's main
    thread only.
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
        return self._grade(answer_text, reference, is_finished=looks_finished(answer_text))

    def grade_finished(self, answer_text: str, reference: str | None) -> Grade:
        """Grade a text that its writer ended: its last formula is its answer, however it reads."""
        return self._grade(answer_text, reference, is_finished=True)

    def states_answer(self, answer_text: str) -> bool:
        return last_boxed(answer_text) is not None or find_stated(answer_text) is not None

    def check_reference(self, reference: str) -> None:
        """Raises GradingError for a reference that holds nothing to compare with, or is too long."""
        if _WHOLE_NUMBER.fullmatch(reference):  # as most are: nothing is left to ask
            return
        expected = plain_form(_bare_reference(reference))
        if not expected:
            raise GradingError("math-verify finds no formula in the reference answer")
        if find_number(expected) is None and len(expected) <= MAX_FORMULA_CHARS:
            parse_reference(expected, self.timeout_s)

    def _grade(self, answer_text: str, reference: str | None, *, is_finished: bool) -> Grade:
        boxed = boxed_answer(answer_text)
        if reference is None:
            return unscored(boxed)
        expected = _bare_reference(reference)
        if boxed is not None:
            return self._grade_formula(boxed, expected)
        text = answer_text[-MAX_TEXT_CHARS:]
        if (stated := find_stated(text)) is not None:
            return self._grade_statement(stated, expected)
        return self._grade_text(text, expected) if is_finished else NOT_FOUND

    def _grade_formula(self, predicted: str, expected: str, detail: str | None = None) -> Grade:
        if not predicted:
            return NOT_FOUND
        if normalise(predicted) == normalise(expected):
            return Grade(score=1.0, predicted_answer=shown(predicted), detail=detail)
        if len(predicted) > MAX_FORMULA_CHARS:
            too_long = f"longer than {MAX_FORMULA_CHARS} characters"
            return Grade(score=0.0, predicted_answer=shown(predicted), detail=too_long)
        comparison = FormulaComparison(timeout_s=self.timeout_s)
        is_right = _same_answer(expected, predicted, comparison)
        if not is_right and comparison.broke:
            detail = f"cannot be compared with the reference: {comparison.broke}"
        return Grade(score=float(is_right), predicted_answer=shown(predicted), detail=detail)

    def _grade_statement(self, stated: str, expected: str) -> Grade:
        """A statement may hold more words than the answer: then math-verify picks the formula in it."""
        grade = self._grade_formula(stated, expected, _NOT_BOXED)
        if grade.score or len(stated) > MAX_FORMULA_CHARS:
            return grade
        picked = self._grade_text(stated, expected)
        return picked if picked.score or picked.predicted_answer else grade

    def _grade_text(self, text: str, expected: str) -> Grade:
        formulas = parse_text(text, self.timeout_s)
        if not formulas:
            return NOT_FOUND
        predicted = next((part for part in reversed(formulas) if isinstance(part, str)), str(formulas[0]))
        return self._grade_formula(predicted, expected, _NOT_BOXED)


_NOT_BOXED = "the answer is not boxed"


def _same_answer(expected: str, predicted: str, comparison: FormulaComparison) -> bool:
    reference, answer = plain_form(expected), plain_form(predicted)
    if not reference:
        raise GradingError("math-verify finds no formula in the reference answer")
    if (bare := without_modulus(reference)) != reference and without_modulus(answer) == answer:
        reference = bare
    elif bare == reference:
        answer = without_modulus(answer)
    option, chosen = split_option(reference), split_option(answer)
    if option_letter(reference) and chosen is not None:
        return option_letter(reference) == chosen[0]
    if option is not None and chosen is None:
        letter = option_letter(answer)
        return letter == option[0] if letter else _same_answer(option[1], predicted, comparison)
    if chosen is not None and option is None:
        return _same_answer(expected, chosen[1], comparison)
    return any(
        same_shape(one, other, comparison.same) for one in read_shapes(reference) for other in read_shapes(answer)
    )


def _bare_reference(reference: str) -> str:
    """A reference may be a whole solution: its box counts, or what follows ``####`` (GSM8K)."""
    boxed = last_boxed(reference)
    expected = boxed if boxed is not None else reference.rpartition("####")[2].strip()
    if len(expected) > MAX_TEXT_CHARS:
        raise GradingError(f"the reference answer is longer than {MAX_TEXT_CHARS} characters")
    return expected
