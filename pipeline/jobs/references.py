"""Whether the problems of a job can be graded: its grader reads every reference answer before anything is stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from pipeline.errors import ConfigurationError, ProblemSetError
from pipeline.grading.checking import find_faults
from pipeline.problems import Problem, ProblemSet, SetReading
from pipeline.problems.columns import USUAL_COLUMNS

UNGRADED = "none"
"""The grader of a job whose samples are left unscored."""
WITHOUT_REFERENCES = (UNGRADED, "verdict")
"""The graders that read no reference answer."""
MAX_FAULTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSet:
    """A problem set that the database has. read: gives its first problems, so many, without reference answers."""

    id: int
    name: str
    size: int
    num_references: int
    has_choices: bool
    read: Callable[[int], tuple[Problem, ...]]


def check_references(problems: ProblemSet | StoredSet, num_problems: int, grader: str) -> None:
    """Refuse problems that this grader cannot grade.

    A stored set's references were read when it was stored, and cannot be read by who submits now; only that there are
    any is known. Raises ProblemSetError with the first faults, ConfigurationError where no problem has a reference.
    """
    if grader in WITHOUT_REFERENCES:
        return
    if isinstance(problems, StoredSet):
        if problems.num_references == 0:
            raise ConfigurationError(_none_at_all(problems.size, None))
        return
    used = problems.problems[:num_problems]
    if all(problem.answer is None for problem in used):
        raise ConfigurationError(_none_at_all(len(used), problems.reading))
    faults = _find_faults(used, grader, problems.place)
    if faults:
        raise ProblemSetError(problems.source or problems.name, faults)


def _none_at_all(num_problems: int, reading: SetReading | None) -> str:
    told = f"none of the {num_problems:,} problems has a reference answer"
    if reading is not None:
        looked = f"the column {reading.answer!r}" if reading.answer else f"columns {', '.join(USUAL_COLUMNS['answer'])}"
        others = f"; there are also {', '.join(reading.ignored)}" if reading.ignored else ""
        told += f" (looked in {looked}{others})"
    return f"{told}; name its column with --column answer=COLUMN, or leave samples unscored with --grader none"


def _find_faults(problems: Sequence[Problem], grader: str, place: Callable[[int], str]) -> list[str]:
    """The first references that the grader cannot read, each with its place. An answer is read once, and never told."""
    by_answer = {answer: None for problem in problems for answer in _references(problem)}
    reasons = dict(zip(by_answer, find_faults(grader, list(by_answer)), strict=True))
    faults = (
        f"{place(index)}: the grader {grader!r} cannot read its reference answer: {reason}"
        for index, problem in enumerate(problems)
        for answer in _references(problem)
        if (reason := reasons[answer])
    )
    return list(islice(faults, MAX_FAULTS))


def _references(problem: Problem) -> tuple[str, ...]:
    return () if problem.answer is None else (problem.answer, *problem.also_accepted)


def notes_on(problems: ProblemSet | StoredSet) -> Iterator[str]:
    """What was found in the problems, in sentences."""
    if isinstance(problems, StoredSet):
        yield f"{problems.num_references:,} of {problems.size:,} problems have a reference answer"
        return
    if problems.origin:
        yield f"{len(problems.problems):,} problems of {problems.source}"
    reading = problems.reading
    told = f"{problems.num_references:,} of {len(problems.problems):,} problems have a reference answer"
    if reading is None:
        yield told
        return
    column = f" (column {reading.answer}{_form(reading)})" if reading.answer else ""
    ignored = f"; ignored: {', '.join(reading.ignored)}" if reading.ignored else ""
    yield f"{told}{column}{ignored}"
    if reading.choices:
        yield f"choices are from {reading.choices}"
    if reading.binary:
        yield f"not stored, because they hold bytes: {', '.join(reading.binary)}"


def _form(reading: SetReading) -> str:
    return f", read as {reading.answer_as.value}" if reading.answer_as else ""
