"""Code: whether an answer passes the tests of its problem."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import ConfigurationError, GradingError
from pipeline.grading.base import NOT_FOUND, Grade, shown, unscored
from pipeline.grading.code.reading import find_code, has_code_block, readings
from pipeline.grading.code.sandbox import MAX_WALL_S, Outcome, Report, find_fault, run_program
from pipeline.settings import load_settings

_MUST_FAIL = "raise AssertionError"
_MUST_FAIL_WALL_S = 4.0


class CodeReference(BaseModel):
    """A code problem's reference answer, as JSON text: how an answer is tested, and one that passes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tests: str = Field(min_length=1)
    """Python that is run behind an answer, in its module; it raises where the answer is wrong."""
    entry_point: str = Field(pattern=r"^[A-Za-z_]\w*$")
    """The function that an answer must define."""
    prompt: str = ""
    """Python that the problem begins with and an answer may continue; "" where the problem is prose."""
    solution: str = ""
    """A right answer; it is run at submit. "" where none is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeGrader:
    """Takes the last fenced block, else the text as a continuation of the prompt, and runs the tests in a sandbox.

    isolate: False lets it run where the kernel gives no namespaces; then it reaches the network.
    """

    isolate: bool = True
    name: str = "code"
    version: str = "code/2"
    is_instant: bool = False

    def grade(self, answer_text: str, reference: str | None) -> Grade:
        if reference is None:
            return unscored(find_code(answer_text, ""))
        wanted = _parse(reference)
        code = find_code(answer_text, wanted.entry_point)
        if code is None:
            return NOT_FOUND
        reason = self._why_wrong(code, wanted)
        return Grade(score=float(reason is None), predicted_answer=shown(code), detail=reason)

    def states_answer(self, answer_text: str) -> bool:
        return has_code_block(answer_text)

    def check_reference(self, reference: str) -> None:
        """Run the solution. Raises GradingError where it does not pass, ConfigurationError where nothing can be run."""
        wanted = _parse(reference)
        if self.isolate and (fault := find_fault()) is not None:
            raise ConfigurationError(f"the grader 'code' runs every solution at submit: {fault}; {REMEDY}")
        if not wanted.solution:
            return
        report = self._run(wanted.solution, wanted)
        if report.outcome is not Outcome.PASSED:
            raise GradingError(f"its own solution does not pass its tests: {_told(report)}")

    def _why_wrong(self, code: str, wanted: CodeReference) -> str | None:
        """None where the code passes the tests, and does not pass what nothing can pass."""
        report = self._run(code, wanted)
        if report.outcome is not Outcome.PASSED:
            return _told(report)
        must_fail = wanted.model_copy(update={"tests": _MUST_FAIL})
        again = self._run(code, must_fail, wall_s=_MUST_FAIL_WALL_S)
        return "the code passes tests that must fail" if again.outcome is Outcome.PASSED else None

    def _run(self, code: str, wanted: CodeReference, *, wall_s: float = MAX_WALL_S) -> Report:
        answers = readings(code, prompt=wanted.prompt, entry_point=wanted.entry_point)
        return run_program(answers, wanted.tests, isolate=self.isolate, wall_s=wall_s)


REMEDY = (
    "it needs a kernel that lets this user make namespaces, or SPECTHINK_GRADING__CODE_WITHOUT_ISOLATION=true, with "
    "which code reaches the network and all that this user may read"
)


def make_code_grader() -> CodeGrader:
    """The grader as this machine's settings allow it."""
    return CodeGrader(isolate=not load_settings().grading.code_without_isolation)


def _parse(reference: str) -> CodeReference:
    try:
        return CodeReference.model_validate(json.loads(reference))
    except ValueError as error:
        told = error.errors()[0]["loc"] if isinstance(error, ValidationError) else "no JSON"
        raise GradingError(
            f"the reference answer is no JSON object of tests, entry_point, prompt and solution ({told})"
        ) from None


def _told(report: Report) -> str:
    match report.outcome:
        case Outcome.RAISED:
            return f"{report.where} raised {report.error}"
        case Outcome.TIMEOUT:
            return "timeout"
        case Outcome.FORGED:
            return "the code wrote a verdict of its own"
        case _:
            return "the process ended before the tests were through"
