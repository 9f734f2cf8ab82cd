"""The promises about a job's stored rows. ``pipeline.db.invariants`` checks them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Invariant(StrEnum):
    """A promise about what is stored of a job."""

    ROWS = "rows"
    SEGMENTS = "segments"
    CLAIMS = "claims"
    TOKENS = "tokens"
    EVENTS = "events"
    ANSWERS = "answers"


INVARIANTS: dict[Invariant, str] = {
    Invariant.ROWS: (
        "Every problem has each of its samples once, an ended job has no open one, a graded sample has a grade, the "
        "verdicts of its judges are grades, and every line of its batch has its answer or its error."
    ),
    Invariant.SEGMENTS: (
        "A sample's segments and asides are 0 to n-1 without a gap, ids and text agree, and the steps of a complete "
        "one are its output."
    ),
    Invariant.CLAIMS: (
        "Every segment and aside was written under one claim of the event log that its worker held until it committed."
    ),
    Invariant.TOKENS: (
        "Tokens add up: a segment is what it kept and discarded, a sample its segments and asides, a job its samples, "
        "a worker what it committed; takeovers are the segments that take over."
    ),
    Invariant.EVENTS: (
        "Every change of state is legal and in the event log, without a gap, from the first state to the present one."
    ),
    Invariant.ANSWERS: (
        "Reference answers are in no other place than their own table and the prompts of judges that say so, and "
        "hidden columns nowhere that generating workers read."
    ),
}
"""A sentence for each."""

MAX_SHOWN = 20
"""Violations of one invariant that are listed; the rest is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One place where an invariant does not hold.

    where: e.g. "sample 12, segment 3". what: what is wrong there, in words; the last one of an invariant may count
    those that are not listed.
    """

    invariant: Invariant
    where: str
    what: str
