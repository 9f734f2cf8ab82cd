"""The statements that check whether a job's invariants hold. ``pipeline.db.invariants`` runs them.

Each statement gives one row per place where something is wrong: ``place``, ``what`` and, to list the same ones first
each time, ``position``. A transaction leaves nothing half done, so most statements hold at any moment; what holds at
the end only is asked of ended jobs only. Whole sets are compared; no rows are fetched.

What cannot be said in SQL is not said here: whether a policy would decide the same again is for ``specthink replay``.
"""

from __future__ import annotations

import datetime as dt

from pipeline.db.invariant_checks import answers, claims, events, rows, segments, tokens
from pipeline.jobs.config import FINAL_JOB_STATES, JOB_TRANSITIONS
from pipeline.problems.columns import USUAL_COLUMNS
from pipeline.results.promises import Invariant
from pipeline.samples import FINAL_STATES, RUNNABLE_STATE, TRANSITIONS, WRITING_STATE

MIN_ANSWER_CHARS = 8
"""Shorter answers are found everywhere by chance: "2" is in every date."""

MIN_HIDDEN_CHARS = 40
"""Shorter texts of a hidden column may be in a question by chance."""
TELLING_COLUMNS = "answer|solution|rationale|explanation|cot|canonical|test|gold|target|truth|proof|correct"
"""A pattern: lower-case names of columns that tell the answer or how to find it."""

CANCELLING = dt.timedelta(minutes=5)
"""A cancelled job's samples follow it in batches, a million in a minute or two; after so long none may be open."""

PARAMETERS: dict[str, object] = {
    "final_jobs": [state.value for state in FINAL_JOB_STATES],
    "final": [state.value for state in FINAL_STATES],
    "writing": [state.value for state in WRITING_STATE.values()],
    "runnable": [state.value for state in RUNNABLE_STATE.values()],
    "legal": [f"{start}>{end}" for start, end in TRANSITIONS],
    "legal_of_jobs": [f"{start}>{end}" for start, end in JOB_TRANSITIONS],
    "cancelling": CANCELLING,
    "answer_columns": list(USUAL_COLUMNS["answer"]),
    "min_answer_chars": MIN_ANSWER_CHARS,
    "min_hidden_chars": MIN_HIDDEN_CHARS,
    "telling_columns": TELLING_COLUMNS,
}
"""What the statements name beside ``job``, the job's id."""

CHECKS: dict[Invariant, tuple[str, ...]] = {
    Invariant.ROWS: rows.STATEMENTS,
    Invariant.SEGMENTS: segments.STATEMENTS,
    Invariant.CLAIMS: claims.STATEMENTS,
    Invariant.TOKENS: tokens.STATEMENTS,
    Invariant.EVENTS: events.STATEMENTS,
    Invariant.ANSWERS: answers.STATEMENTS,
}
"""The statements of each invariant, in the order in which they are run."""
