"""The math grader on pairs of reference and answer: what was reported as graded wrongly, and what else people write."""

from __future__ import annotations

import pytest

from pipeline.errors import GradingError
from pipeline.grading import make_grader
from tests.unit.grading.math_pairs import OTHERS, REPORTED, Pair

_TEXT = "TEXT "


def _output(answer: str) -> str:
    if answer.startswith(_TEXT):
        return answer.removeprefix(_TEXT).replace(r"\n", "\n") if "\\n\\n" in answer else answer.removeprefix(_TEXT)
    return rf"So the answer is $\boxed{{{answer}}}$."


def _wrong(pairs: tuple[Pair, ...]) -> list[tuple[Pair, object]]:
    """The pairs that are graded otherwise, with their grades."""
    found = []
    for pair in pairs:
        reference, answer, right = pair
        try:
            score: object = make_grader("math").grade(_output(answer), reference).score
        except GradingError as error:
            score = str(error)
        if score != float(right):
            found.append((pair, score))
    return found


@pytest.mark.parametrize("issue", REPORTED)
def test_what_was_reported_is_graded_as_it_should_be(issue: str) -> None:
    assert _wrong(REPORTED[issue]) == []


@pytest.mark.parametrize("start", range(0, len(OTHERS), 20))
def test_pairs_are_graded_as_they_should_be(start: int) -> None:
    assert _wrong(OTHERS[start : start + 20]) == []


def test_table_is_large_and_has_wrong_pairs() -> None:
    pairs = [*OTHERS, *(pair for pairs in REPORTED.values() for pair in pairs)]
    assert len(pairs) == len(set(pairs)) >= 300
    assert sum(not right for _, _, right in pairs) >= 100
