"""Makes the reference answers of code problems from the columns in which such sets are published."""

from __future__ import annotations

import re
from dataclasses import replace
from enum import StrEnum
from typing import Any, assert_never

from pipeline.grading.code import CodeReference
from pipeline.grading.code.reading import defines
from pipeline.problems import Problem


class CodeForm(StrEnum):
    """How a set says how its answers are tested."""

    HUMANEVAL = "humaneval"  # prompt, canonical_solution, test with a function check, entry_point
    MBPP = "mbpp"  # text, code, test_list, and test_setup_code or test_imports where there are any


def with_tests(problem: Problem, form: CodeForm) -> Problem:
    """The problem with tests and solution as its reference answer. Raises ValueError for a column that is missing."""
    match form:
        case CodeForm.HUMANEVAL:
            reference = _humaneval(problem)
        case CodeForm.MBPP:
            reference = _mbpp(problem)
            problem = replace(problem, prompt=f"{problem.prompt}\n\n{_signature(reference)}")
        case _:
            assert_never(form)
    return replace(problem, answer=reference.model_dump_json())


def as_worked(problem: Problem) -> Problem:
    """The problem with the code that solves it as its answer, for an example; without one where that is not known."""
    try:
        reference = CodeReference.model_validate_json(problem.answer or "")
    except ValueError:
        return replace(problem, answer=None)
    whole = reference.solution if defines(reference.solution, reference.entry_point) else ""
    code = whole or reference.prompt + reference.solution
    return replace(problem, answer=f"```python\n{code.strip()}\n```" if reference.solution else None)


def _humaneval(problem: Problem) -> CodeReference:
    entry_point = _text(problem, "entry_point")
    return CodeReference(
        prompt=problem.prompt,
        solution=_text(problem, "canonical_solution"),
        tests=f"{_text(problem, 'test')}\n\ncheck({entry_point})\n",
        entry_point=entry_point,
    )


def _mbpp(problem: Problem) -> CodeReference:
    solution = _text(problem, "code").replace("\r\n", "\n")
    tests = [str(test) for test in _list(problem, "test_list")]
    defined = re.findall(r"^def\s+(\w+)", solution, re.MULTILINE)
    tested = [name for name in defined if re.search(rf"\b{name}\s*\(", "\n".join(tests))]
    if not tested:
        raise ValueError("no function of 'code' is called in 'test_list'")
    before = [*map(str, _list(problem, "test_imports")), str(problem.hidden.get("test_setup_code", ""))]
    return CodeReference(tests="\n".join([*before, *tests]), solution=solution, entry_point=tested[-1])


def _signature(reference: CodeReference) -> str:
    """What an answer must be called: the problem's text does not say it, and its tests are hidden."""
    first = re.search(rf"^def\s+{reference.entry_point}\s*\(.*?\)", reference.solution, re.MULTILINE | re.DOTALL)
    assert first is not None  # the entry point was found by such a line
    return f"The function is to be defined as `{' '.join(first[0].split())}`."


def _text(problem: Problem, column: str) -> str:
    value = problem.hidden.get(column, problem.metadata.get(column))
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{column!r} is missing or no text")
    return value


def _list(problem: Problem, column: str) -> list[Any]:
    value = problem.hidden.get(column, [])
    if not isinstance(value, list):
        raise ValueError(f"{column!r} is no list")
    return value
