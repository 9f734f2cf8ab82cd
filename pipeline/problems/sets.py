"""Problems and problem sets, and how the rows of a file become one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

from pipeline.errors import ProblemSetError
from pipeline.problems.files import (
    MAX_FILE_BYTES,
    MAX_LINE_BYTES,
    Fault,
    NumberText,
    Row,
    UnreadableFile,
    check_text,
    footprint,
    read_rows,
    to_plain,
    type_name,
    unit_name,
)
from pipeline.texts import printable

SHOWN = ("choices",)
"""Metadata that prompt templates show."""

MAX_ID_CHARS = 500
"""Longest id of a problem: Postgres keeps it in an index, whose entries have 2,704 bytes at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One question.

    external_id: the file's id, else its 0-based row as text; unique in its set, 500 characters at most.
    answer: the reference answer as it was written (a number keeps its form); None: no reference.
    metadata: what a prompt template may show beside the prompt, as plain JSON values, and what was named to be kept;
        those who generate can read it. ``choices`` is a multiple choice's list of texts.
    hidden: all other columns that have a value; graders and people read them, those who generate cannot.
    """

    external_id: str
    prompt: str
    answer: str | None = field(default=None, repr=False)  # kept out of logs and tracebacks
    subject: str | None = None
    level: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    hidden: dict[str, Any] = field(default_factory=dict, repr=False)

    def as_shown(self) -> Problem:
        """What those who generate can read of it."""
        return Problem(external_id=self.external_id, prompt=self.prompt, metadata=self.metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemSet:
    """A named list of problems; its version is the hash of its content, the same whatever the file's format.

    source: the file it was read from; places: where in it each problem stands, e.g. "line 3". Both empty for a set
    that comes from elsewhere.
    """

    name: str
    content_sha256: str
    problems: tuple[Problem, ...] = field(repr=False)
    source: str = field(default="", compare=False)
    places: tuple[str, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnNames:
    """Names of columns, where the usual ones do not fit; None: the first of the usual ones that the file has."""

    problem: str | None = None
    answer: str | None = None
    id: str | None = None
    subject: str | None = None
    level: str | None = None


USUAL_COLUMNS = {
    "problem": ("problem", "question", "prompt", "input"),
    "answer": ("answer", "target", "solution"),
    "id": ("id", "unique_id"),
    "subject": ("subject",),
    "level": ("level",),
}
"""By precedence; upper and lower case are the same."""


_ROW_BYTES = 500
"""What a row takes besides its values, with the problem that it becomes and its place."""


def load_problem_set(
    path: str | PathLike[str],
    *,
    name: str | None = None,
    columns: ColumnNames | None = None,
    keep: Collection[str] = (),
    max_faults: int = 10,
    max_bytes: int = MAX_FILE_BYTES,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> ProblemSet:
    """Read a .jsonl, .ndjson, .csv or .parquet file; name: the file's base name where none is given.

    keep: columns that those who generate may read, besides the prompt and its choices; all others are hidden from them.
    A link to a regular file is followed. max_bytes: the largest file; its rows may take three times as much in memory.
    Raises ProblemSetError with the first max_faults faults: a file with any fault is refused whole.
    """
    file = Path(path)
    entries = read_rows(file, max_file_bytes=max_bytes, max_line_bytes=max_line_bytes)
    try:
        rows, faults = _collect(entries, max_faults, max_memory=3 * max_bytes)
    except UnreadableFile as error:
        raise ProblemSetError(printable(str(file)), [printable(str(error))]) from error
    problems: tuple[Problem, ...] = ()
    if rows:
        problems, row_faults = _make_problems(rows, columns or ColumnNames(), unit_name(file), max_faults)
        problems = tuple(hide_columns(problem, keep) for problem in problems)
        faults = sorted([*faults, *row_faults], key=lambda fault: fault.number or 0)
    elif not faults:
        faults = [Fault(number=None, reason="empty: it holds no problem")]
    if faults:
        told = [_describe(fault, unit_name(file)) for fault in faults[:max_faults]]
        raise ProblemSetError(printable(str(file)), told)
    return ProblemSet(
        name=name or printable(file.stem),
        content_sha256=content_sha256(problems),
        problems=problems,
        source=printable(str(file)),
        places=tuple(f"{unit_name(file)} {row.number}" for row in rows),
    )


def hide_columns(problem: Problem, keep: Collection[str] = ()) -> Problem:
    """The problem with those metadata hidden that no prompt template shows and nobody named to be kept."""
    shown = {name: value for name, value in problem.metadata.items() if name in SHOWN or name in keep}
    others = {name: value for name, value in problem.metadata.items() if name not in shown}
    return replace(problem, metadata=shown, hidden={**problem.hidden, **others}) if others else problem


def content_sha256(problems: Iterable[Problem]) -> str:
    """A hash of all problems and answers in order.

    What those who generate can read is part of it. CSV has text only, so other columns count in their text form: the level 3 and the level "3" are the same content.
    """
    digest = hashlib.sha256(b"specthink problem set 1\n")
    for problem in problems:
        shown, hidden = (
            sorted((key, _to_text(value)) for key, value in columns.items())
            for columns in (problem.metadata, problem.hidden)
        )
        record = [problem.external_id, problem.prompt, problem.answer, problem.subject, problem.level, shown]
        digest.update(json.dumps(record + [hidden] * bool(hidden), separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()


def check_storable(problem_set: ProblemSet, *, max_faults: int = 10) -> None:
    """Refuse a set made by hand that the database cannot keep. Raises ProblemSetError with the first faults."""
    faults: list[str] = []
    seen: set[str] = set()
    try:
        check_text(problem_set.name)
    except ValueError as error:
        faults.append(f"its name: {error}")
    for problem in problem_set.problems:
        try:
            _check_problem(problem, seen)
        except (TypeError, ValueError) as error:
            faults.append(f"problem {printable(problem.external_id, most=40)!r}: {error}")
        if len(faults) >= max_faults:
            break
    if faults:
        raise ProblemSetError(printable(problem_set.source or problem_set.name), [printable(fault) for fault in faults])


def _check_problem(problem: Problem, seen: set[str]) -> None:
    if problem.external_id in seen:
        raise ValueError("its id occurs twice")
    seen.add(problem.external_id)
    _check_id(problem.external_id)
    for text in (problem.external_id, problem.prompt, problem.answer, problem.subject, problem.level):
        check_text(text or "")
    for columns in (problem.metadata, problem.hidden):
        to_plain(columns)
        json.dumps(columns, allow_nan=False)


def _check_id(external_id: str) -> None:
    if len(external_id) > MAX_ID_CHARS:
        raise ValueError(f"an id of {len(external_id)} characters; {MAX_ID_CHARS} is the limit")


def check_prompt_lengths(
    problem_set: ProblemSet,
    count_tokens: Callable[[str], int],
    max_tokens: int,
    *,
    render: Callable[[Problem], str] | None = None,
    max_faults: int = 10,
) -> None:
    """Refuse the set if a prompt has more than max_tokens tokens, which must leave room for the output.

    render: gives the text that is counted, the bare prompt by default. Raises ProblemSetError with the first faults.
    """
    faults: list[str] = []
    for index, problem in enumerate(problem_set.problems):
        num_tokens = count_tokens(render(problem) if render else problem.prompt)
        if num_tokens > max_tokens:
            place = problem_set.places[index] if problem_set.places else f"problem {problem.external_id!r}"
            faults.append(f"{place}: the prompt has {num_tokens} tokens, the model takes {max_tokens} at most")
        if len(faults) == max_faults:
            break
    if faults:
        raise ProblemSetError(problem_set.source or problem_set.name, faults)


def _collect(entries: Iterator[Row | Fault], max_faults: int, *, max_memory: int) -> tuple[list[Row], list[Fault]]:
    """All rows, or what came before the fault that is one too many. Raises UnreadableFile beyond max_memory bytes."""
    rows: list[Row] = []
    faults: list[Fault] = []
    memory = 0
    for entry in entries:
        if isinstance(entry, Row):
            rows.append(entry)
            memory += _ROW_BYTES + footprint(entry.values)
            if memory > max_memory:
                raise UnreadableFile(
                    f"its first {len(rows):,} rows take {max_memory / 2**20:,.0f} MiB of memory, which is the limit; "
                    "split it, or leave out the columns that are not needed"
                )
            continue
        faults.append(entry)
        if len(faults) == max_faults:
            break
    return rows, faults


def _describe(fault: Fault, unit: str) -> str:
    reason = printable(fault.reason)
    return reason if fault.number is None else f"{unit} {fault.number}: {reason}"


def _make_problems(
    rows: Sequence[Row], columns: ColumnNames, unit: str, max_faults: int
) -> tuple[tuple[Problem, ...], list[Fault]]:
    try:
        resolved = _resolve_columns(columns, {name: None for row in rows for name in row.values})
    except ValueError as error:
        return (), [Fault(number=rows[0].number, reason=str(error))]
    problems: list[Problem] = []
    faults: list[Fault] = []
    first_seen: dict[str, int] = {}
    for index, row in enumerate(rows):
        try:
            problem = _make_problem(row.values, resolved, default_id=str(index))
            if first := first_seen.get(problem.external_id):
                raise ValueError(f"duplicate id {problem.external_id!r}: {unit} {first} has it")
        except ValueError as error:
            faults.append(Fault(number=row.number, reason=str(error)))
            if len(faults) == max_faults:
                break
            continue
        first_seen[problem.external_id] = row.number
        problems.append(problem)
    return tuple(problems), faults


def _resolve_columns(columns: ColumnNames, present: dict[str, None]) -> dict[str, str | None]:
    """The file's column for each part of a problem. present: in the order of the file. Raises ValueError."""
    listed = _list_columns(present)
    resolved: dict[str, str | None] = {}
    for part in fields(ColumnNames):
        given: str | None = getattr(columns, part.name)
        if given is not None and given not in present:
            raise ValueError(f"no column {given!r}, which was named for the {part.name}; the columns are {listed}")
        resolved[part.name] = given or _find_usual(USUAL_COLUMNS[part.name], present)
    if resolved["problem"] is None:
        usual = ", ".join(map(repr, USUAL_COLUMNS["problem"]))
        raise ValueError(f"missing problem: none of the columns {usual}; name the column that holds it: {listed}")
    taken = [column for column in resolved.values() if column]
    if len(set(taken)) < len(taken):
        raise ValueError(f"one column is named for two parts of a problem: {', '.join(taken)}")
    return resolved


def _list_columns(present: dict[str, None], most: int = 20) -> str:
    more = f" and {len(present) - most} more" if len(present) > most else ""
    return ", ".join(repr(printable(name, most=40)) for name in islice(present, most)) + more


def _find_usual(usual: Sequence[str], present: dict[str, None]) -> str | None:
    for name in usual:
        matches = [column for column in present if column.lower() == name]
        if matches:
            return name if name in matches else matches[0]
    return None


def _make_problem(values: dict[str, Any], columns: dict[str, str | None], *, default_id: str) -> Problem:
    """Raises ValueError with what is wrong in this row."""
    values = {name: value for name, value in values.items() if value is not None and value != ""}
    prompt_column = columns["problem"]
    prompt = values.get(prompt_column or "")
    if prompt is None or (isinstance(prompt, str) and not prompt.strip()):
        raise ValueError(f"missing problem: {prompt_column!r} is empty")
    if type(prompt) is not str:
        raise ValueError(f"wrong type: {prompt_column!r} must be text, not {type_name(prompt)}")
    check_text(prompt)
    used = set(columns.values())
    external_id = _text_of(values, columns["id"]) or default_id
    _check_id(external_id)
    return Problem(
        external_id=external_id,
        prompt=prompt,
        answer=_text_of(values, columns["answer"]),
        subject=_text_of(values, columns["subject"]),
        level=_text_of(values, columns["level"]),
        metadata={name: _plain(name, value) for name, value in values.items() if name not in used},
    )


def _text_of(values: dict[str, Any], column: str | None) -> str | None:
    """A text, number or truth value as text in the form of the file; None where it is missing or blank."""
    value = values.get(column) if column else None
    if value is None:
        return None
    if not isinstance(value, str | bool):
        raise ValueError(f"wrong type: {column!r} must be text or a number, not {type_name(value)}")
    text = _to_text(value)
    check_text(text)
    return text if text.strip() else None


def _plain(name: str, value: Any) -> Any:
    check_text(name)
    try:
        if name == "choices" and isinstance(value, list):
            return [_to_text(to_plain(choice) if not isinstance(choice, NumberText) else choice) for choice in value]
        return to_plain(value)
    except ValueError as error:
        raise ValueError(f"{name!r}: {error}") from error


def _to_text(value: Any) -> str:
    if isinstance(value, NumberText):
        return str.__str__(value)
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, separators=(",", ":"))
