"""Whether two formulas mean the same: plain numbers by arithmetic, words as words, all else by math-verify."""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import GradingError
from pipeline.grading.forms import bare_letters
from pipeline.grading.numbers import find_number, same_number
from pipeline.grading.shapes import Shape
from pipeline.grading.units import Unit, without_unit

_BASES = {
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
    "twelve": 12,
    "sixteen": 16,
}
_BASED = re.compile(
    r"^\(?([0-9A-F]+)\)?\s*(?:_\s*\{?\s*(?:\\text\s*\{)?\s*\(?(\d+|[a-z]+)\)?\s*\}*"
    r"|(?:\\text\s*\{)?\s*\(?\s*(?:in\s+)?base[- ](\d+|[a-z]+)\s*\)?\s*\}?)$"
)
_WORDS = re.compile(r"^(?:\\text\s*\{[^{}]*\}|[A-Za-z][A-Za-z'-]{3,}|[A-Za-z]{2,}(?:[\s-]+[A-Za-z]+)+)$")
_DIGITS = 40
_EXACT, _ROUNDED = 1e-12, 1e-5
_POINTS = (0.7390851, 1.3247179, 2.2360679, 0.5671432, 3.1462643, 1.7320508)
"""For unknowns, in the order of their names: numbers without a pattern."""


@dataclass(slots=True)
class FormulaComparison:
    """Compares the formulas of one answer with those of one reference, in limited time."""

    timeout_s: int
    broke: str | None = None
    """The class of what sympy raised on a comparison, if it did."""
    _deadline: float = field(init=False)
    _parsed: dict[tuple[str, bool], list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import math_verify  # noqa: F401  # seconds at the first time, and no part of what a formula may take

        self._deadline = (
            time.monotonic() + 5 * self.timeout_s
        )  # the longest that a single formula takes: read two, compare three

    def same(self, reference: Shape, predicted: Shape) -> bool:
        """Whether two formulas mean the same. Raises GradingError where the reference cannot be read, or time is up."""
        if bare_letters(reference.text) == bare_letters(predicted.text):
            return True
        expected, expected_unit = without_unit(reference.text)
        found, found_unit = without_unit(predicted.text)
        if bare_letters(expected) == bare_letters(found) and _units_agree(expected_unit, found_unit):
            return True
        if (based := _same_based(expected, found)) is not None:
            return based
        return self._same_value(expected, found, expected_unit, found_unit)

    def _same_value(self, expected: str, found: str, expected_unit: Unit | None, found_unit: Unit | None) -> bool:
        one, other = find_number(expected), find_number(found)
        if one is not None and other is not None:
            return (
                same_number(*_in_one_unit(one, other, expected_unit, found_unit))
                if _units_fit(expected_unit, found_unit)
                else False
            )
        if not _units_agree(expected_unit, found_unit):
            return False
        if _WORDS.match(expected) or _WORDS.match(found):
            return False
        if re.fullmatch(r"\s*\d+\s*[a-zA-Z]\s*=.*", found) and "=" not in expected:
            return False  # 2x = 5 does not say that x is 5
        return self._verified(expected, found)

    def _verified(self, expected: str, found: str) -> bool:
        from math_verify import verify
        from math_verify.errors import TimeoutException

        formulas = self._parse(found, is_reference=False)
        references = self._parse(expected, is_reference=True)
        if time.monotonic() > self._deadline:
            raise GradingError("math-verify took too long to compare the answer with the reference")
        try:
            same = verify(references, formulas, timeout_seconds=self.timeout_s, raise_on_error=True)
            if same:
                return self._near(references[0], formulas[0])
            return bool(references and formulas) and self._same_complex(references[0], formulas[0])
        except TimeoutException:
            raise GradingError("math-verify took too long to compare the answer with the reference") from None
        except MemoryError:
            raise GradingError("math-verify ran out of memory") from None
        except Exception as error:  # sympy raises anything on odd formulas
            self.broke = type(error).__name__
            return False

    def _same_complex(self, reference: Any, formula: Any) -> bool:
        """Whether two values with no letter but i are the same complex number: i is a letter to math-verify."""
        from math_verify.utils import timeout
        from sympy import Expr, I, Symbol  # type: ignore[import-untyped]  # it has no types

        if not (isinstance(reference, Expr) and isinstance(formula, Expr)):
            return False
        names = {str(name): name for name in reference.free_symbols | formula.free_symbols}
        if set(names) != {"i"} or not isinstance(names["i"], Symbol):
            return False

        def distance() -> float:
            one, other = (value.doit().subs(names["i"], I).evalf(_DIGITS) for value in (reference, formula))
            return float(abs(one - other) / max(abs(one), abs(other), 1))

        try:
            return bool(timeout(timeout_seconds=self.timeout_s)(distance)() <= _EXACT)
        except (TypeError, ValueError, AttributeError, ArithmeticError, NotImplementedError):
            return False

    def _near(self, reference: Any, formula: Any) -> bool:
        """Whether two values that math-verify calls equal are so near: it takes 1/2^99 and 1/2^98 for nothing."""
        from math_verify.utils import timeout
        from sympy import Expr, Float

        if not (isinstance(reference, Expr) and isinstance(formula, Expr)):
            return True
        names = sorted(reference.free_symbols | formula.free_symbols, key=str)
        points = {name: _POINTS[index % len(_POINTS)] + index // len(_POINTS) for index, name in enumerate(names)}
        rounded = reference.has(Float) or formula.has(Float)

        def distance() -> float:
            one, other = (value.doit().subs(points).evalf(_DIGITS) for value in (reference, formula))
            size = max(abs(one), abs(other))
            return float(abs(one - other) / size) if size else 0.0

        try:
            apart = timeout(timeout_seconds=self.timeout_s)(distance)()
        except (TypeError, ValueError, AttributeError, ArithmeticError, NotImplementedError):
            return True  # no number: math-verify's word stands
        tolerance = _ROUNDED if rounded or names else _EXACT
        return not apart > tolerance or _is_percentage(reference, formula)

    def _parse(self, text: str, *, is_reference: bool) -> list[Any]:
        key = (text, is_reference)
        if key not in self._parsed:
            self._parsed[key] = (
                parse_reference(text, self.timeout_s) if is_reference else parse_answer(text, self.timeout_s)
            )
        return self._parsed[key]


def _is_percentage(reference: Any, formula: Any) -> bool:
    from math_verify.grader import get_pct_val

    return get_pct_val(reference) is not None or get_pct_val(formula) is not None


def _units_fit(one: Unit | None, other: Unit | None) -> bool:
    return one is None or other is None or one.kind == other.kind


def _units_agree(one: Unit | None, other: Unit | None) -> bool:
    return one is None or other is None or one == other


def _in_one_unit(one: Any, other: Any, unit: Unit | None, other_unit: Unit | None) -> tuple[Any, Any]:
    from dataclasses import replace

    if unit is None or other_unit is None or unit == other_unit:
        return one, other
    return replace(one, value=one.value * unit.scale), replace(other, value=other.value * other_unit.scale)


def _same_based(expected: str, found: str) -> bool | None:
    """Whether two numbers with their base are the same; None where neither has one.

    A reference in base 8 is met by its digits alone, since the problem has said the base; a decimal reference is not
    met by digits in base 8.
    """
    one, other = _based(expected), _based(found)
    if one is None and other is None:
        return None
    if one is not None and other is not None:
        return one == other
    if one is not None:
        return one[0] == found.replace(" ", "")
    assert other is not None
    return other[1] == 10 and other[0] == expected.replace(" ", "")


def _based(text: str) -> tuple[str, int] | None:
    match = _BASED.match(text)
    if match is None:
        return None
    base = match[2] or match[3]
    number = int(base) if base.isdigit() else _BASES.get(base)
    return (match[1].lstrip("0") or "0", number) if number is not None else None


def parse_answer(text: str, timeout_s: int) -> list[Any]:
    """The formula in a model's answer; none where math-verify cannot read it, or not in time."""
    return _parse(rf"\boxed{{{text}}}", timeout_s)


def parse_text(text: str, timeout_s: int) -> list[Any]:
    """The formulas in a model's text that math-verify picks."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig

    return _parse(text, timeout_s, [LatexExtractionConfig(), ExprExtractionConfig()])


def _as_written() -> list[Any]:
    """How math-verify reads one formula: without its list of units, to which c, m and s belong."""
    from latex2sympy2_extended import NormalizationConfig  # type: ignore[import-untyped]  # it has no types
    from math_verify import LatexExtractionConfig

    form = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all", equations=False
    )
    return [LatexExtractionConfig(boxed_match_priority=0, normalization_config=form)]


def _parse(text: str, timeout_s: int, how: list[Any] | None = None) -> list[Any]:
    from math_verify import parse
    from math_verify.errors import TimeoutException

    _quiet()
    try:
        formulas: list[Any] = parse(text, how or _as_written(), parsing_timeout=timeout_s)
    except (MemoryError, TimeoutException):  # outside of what math-verify guards itself
        return []
    except ValueError as error:
        raise GradingError(f"the math grader works in a process's main thread only: {error}") from error
    return formulas


def parse_reference(expected: str, timeout_s: int) -> list[Any]:
    """The formula of a reference. Raises GradingError, without its text, where math-verify cannot read it."""
    from math_verify import parse
    from math_verify.errors import TimeoutException

    _quiet()
    try:
        formulas: list[Any] = parse(
            rf"\boxed{{{expected}}}", _as_written(), parsing_timeout=timeout_s, raise_on_error=True
        )
    except (Exception, TimeoutException) as error:  # math-verify passes on what its parts raise
        raise GradingError(f"math-verify cannot read the reference answer: {type(error).__name__}") from None
    if not formulas:
        raise GradingError("math-verify finds no formula in the reference answer")
    return formulas


def _quiet() -> None:
    """math-verify logs the texts it parses, and reference answers do not belong in a log."""
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
