"""Reads the verdict of a judge: a model that was asked whether an answer is correct.

Only the judge's own words behind its thoughts count, and of these only a line that says nothing else: what it quotes of
the answer that it judges is none, and a text that was cut has none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.errors import GradingError
from pipeline.grading.base import Grade
from pipeline.grading.ends import Ending
from pipeline.grading.extract import answer_part, is_thinking

CORRECT, INCORRECT = "correct", "incorrect"
_MAX_LINE_CHARS = 80
"""Of a line with a verdict, marks around it included."""
_VERDICT = re.compile(rf"[\s*_#-]*verdict[\s*_]*:[\s*_]*({CORRECT}|{INCORRECT})[\s*_.!]*", re.IGNORECASE)


def read_verdict(text: str) -> str | None:
    """The last line that is a verdict and nothing else; None where there is none. Quoted lines (``> …``) are none."""
    for line in reversed(text.splitlines()):
        if len(line) <= _MAX_LINE_CHARS and (found := _VERDICT.fullmatch(line)):
            return found[1].lower()
    return None


@dataclass(frozen=True, slots=True)
class VerdictGrader:
    """The score of a judge's sample is 1 where its verdict is "correct", 0 for "incorrect". It has no reference."""

    name: str = "verdict"
    version: str = "verdict/1"
    is_instant: bool = True

    def grade(self, answer_text: str, reference: str | None) -> Grade:
        verdict = read_verdict(answer_text)
        if verdict is None:
            raise GradingError("the judge's text has no line with a verdict alone")
        return Grade(score=float(verdict == CORRECT), predicted_answer=verdict)

    def grade_ended(self, output: str, ending: Ending) -> Grade:
        """Of a whole output. Raises GradingError where it has no verdict that can be read."""
        how = f" ({ending.finish_reason})" if ending.finish_reason is not None else ""
        if is_thinking(output, start=ending.think_start, end=ending.think_end, opened=ending.think_opened):
            raise GradingError(f"the judge's text ended inside its think phase{how}")
        if ending.is_cut:
            raise GradingError(f"the judge's text was cut{how}")
        return self.grade(answer_part(output, end=ending.think_end), None)
