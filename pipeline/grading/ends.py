"""How a text ended, and what that makes of its answer: one that was cut off, or is still thought, has stated none."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipeline.errors import GradingError
from pipeline.grading.base import Grade, Grader, grade_any
from pipeline.grading.extract import answer_part, is_thinking
from pipeline.samples import ENDED, CutSamples, FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How one text ended. think_start, think_end: the job's tags; '' without a think phase, None where unknown.

    think_opened: whether the prompt had opened the think phase, so that the text began inside.
    """

    finish_reason: FinishReason | None = None
    think_start: str | None = None
    think_end: str | None = None
    think_opened: bool = False

    @property
    def is_cut(self) -> bool:
        return self.finish_reason is not None and self.finish_reason not in ENDED


def grade_output(
    grader: Grader,
    output: str,
    references: Sequence[str | None],
    *,
    ending: Ending,
    cut_samples: CutSamples = CutSamples.WRONG,
    choices: Sequence[str] = (),
) -> Grade:
    """Grade a whole output by the best of several references, each of which is right.

    choices: the problem's, for a grader with a method ``with_choices``. A grader with a method ``grade_ended`` gets the
    whole output and how it ended. Raises GradingError where the grader breaks, or gives a score that is no number from
    0 to 1.
    """
    if (grade_ended := getattr(grader, "grade_ended", None)) is not None:
        return checked(grade_ended(output, ending), grader)
    if choices and (knowing := getattr(grader, "with_choices", None)) is not None:
        grader = knowing(choices)
    if (reason := why_no_answer(grader, output, ending)) is not None:
        return _without_answer(references, ending, cut_samples, reason)
    text = answer_part(output, end=ending.think_end)
    best = grade_any(_Finished(grader) if ending.finish_reason in ENDED else grader, text, references)
    return checked(best, grader)


def why_no_answer(grader: Grader, output: str, ending: Ending) -> str | None:
    """Why a text has stated no answer; None where it has, or may have."""
    if is_thinking(output, start=ending.think_start, end=ending.think_end, opened=ending.think_opened):
        return "the text ended inside its think phase"
    if ending.is_cut and not _states_answer(grader, answer_part(output, end=ending.think_end)):
        return "the text was cut before it stated an answer"
    return None


def checked(grade: Grade, grader: Grader) -> Grade:
    """A grade whose score may be stored. Raises GradingError for one that is no number from 0 to 1."""
    if not isinstance(grade, Grade):
        raise GradingError(f"the grader {grader.name!r} gave {type(grade).__name__} instead of a Grade")
    score = grade.score
    if score is None:
        return grade
    try:
        number = float(score)
    except (TypeError, ValueError):
        raise GradingError(
            f"the grader {grader.name!r} gave a score that is no number: {type(score).__name__}"
        ) from None
    if math.isnan(number) or not 0.0 <= number <= 1.0:
        raise GradingError(f"the grader {grader.name!r} gave the score {number}; a score is from 0 to 1")
    return replace(grade, score=number)


class _Finished:
    """A grader that is told that the text's writer has ended it, where that makes a difference to it."""

    def __init__(self, grader: Grader) -> None:
        self.name, self.version, self.is_instant = grader.name, grader.version, grader.is_instant
        self._grade: Callable[[str, str | None], Grade] = getattr(grader, "grade_finished", grader.grade)

    def grade(self, answer_text: str, reference: str | None) -> Grade:
        return self._grade(answer_text, reference)


def _without_answer(references: Sequence[str | None], ending: Ending, cut_samples: CutSamples, reason: str) -> Grade:
    if all(reference is None for reference in references):
        return Grade(score=None, predicted_answer=None, detail=f"no reference answer; {reason}")
    how = f" ({ending.finish_reason})" if ending.finish_reason is not None else ""
    leave_out = ending.is_cut and cut_samples is CutSamples.UNSCORED
    return Grade(score=None if leave_out else 0.0, predicted_answer=None, detail=f"no answer: {reason}{how}")


def _states_answer(grader: Grader, text: str) -> bool:
    """Whether a text that was cut has stated its answer before; a grader of somebody's own may say so itself."""
    states = getattr(grader, "states_answer", None)
    return True if states is None else bool(states(text))
