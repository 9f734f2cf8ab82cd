"""What came of a judge."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """How many samples a judge's job judged to what, and how many of their grades are new.

    num_unreadable: the judge wrote no verdict that can be read, or failed: these samples stay unscored, as grading
        errors. num_unanswered: samples that had no answer to judge. num_redrawn: samples whose text is another one than
        was judged; they keep their grades.
    """

    judge_id: int
    num_correct: int
    num_incorrect: int
    num_unreadable: int
    num_unanswered: int
    num_redrawn: int
    num_changed: int
