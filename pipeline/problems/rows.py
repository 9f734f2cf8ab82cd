"""Makes problems of the rows of a file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.problems.answers import Reference, is_number, letter_of, read_answer
from pipeline.problems.choices import ChoiceAnswer, Choices, read_choices, settle_form
from pipeline.problems.columns import (
    OF_CHOICES,
    AnswerForm,
    Column,
    ColumnNames,
    Layout,
    find_column,
    resolve_columns,
)
from pipeline.problems.lines import Fault, Row
from pipeline.problems.messages import looks_like_messages, read_messages
from pipeline.problems.sets import MAX_ID_CHARS, Problem, SetReading
from pipeline.problems.values import check_text, text_of, to_plain, type_name

MIN_SOLUTION = 20
"""Characters; a shorter text is no worked solution."""
_CHOICE_FORMS = (*OF_CHOICES, AnswerForm.TEXT)


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeProblems:
    """Problems with the rows they come from, how the file was read, and the faults of the other rows."""

    problems: tuple[Problem, ...] = ()
    rows: tuple[Row, ...] = ()
    reading: SetReading | None = None
    faults: tuple[Fault, ...] = ()


def make_problems(
    rows: Sequence[Row], columns: ColumnNames, keep: Collection[str], place: Callable[[Row], str], max_faults: int
) -> MadeProblems:
    """place: says where a row is. A file-wide fault, such as a missing column, is told at the first row."""
    present = list({name: None for row in rows for name in (*row.values, *row.binary)})
    try:
        layout = resolve_columns(columns, present)
        kept = [find_column(name, present, "columns to keep") for name in keep]
        _refuse_answers(kept, layout)
        _refuse_bytes(rows, layout.used | {column.name for column in kept})
        layout = replace(layout, answer_as=layout.answer_as or _mark_of_solutions(rows, layout))
        drafts, faults = _make_drafts(rows, layout, kept, place, max_faults)
        form = _settle(drafts, layout)
    except ValueError as error:
        return MadeProblems(faults=(Fault(number=rows[0].number, file=rows[0].file, reason=str(error)),))
    made: list[tuple[Row, Problem]] = []
    for draft in drafts:
        try:
            made.append((draft.row, draft.settled(form)))
        except ValueError as error:
            faults.append(draft.fault(error))
    return MadeProblems(
        problems=tuple(problem for _, problem in made),
        rows=tuple(row for row, _ in made),
        reading=_reading(rows, layout, form, [problem for _, problem in made]),
        faults=tuple(faults[:max_faults]),
    )


def _refuse_answers(kept: Sequence[Column], layout: Layout) -> None:
    """Raises ValueError for a column that is to be shown and has the reference answer in it."""
    for column in kept:
        if any(
            answer.name == column.name and answer.path[: len(column.path)] == column.path for answer in layout.answer
        ):
            raise ValueError(f"the column {str(column)!r} has the reference answer: those who write may not read it")


def _refuse_bytes(rows: Sequence[Row], used: Collection[str]) -> None:
    for row in rows:
        for name in row.binary:
            if name in used:
                raise ValueError(
                    f"the column {name!r} holds bytes, such as an image, which no prompt or answer can have"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """A problem whose answer is as the file has it. choice: where it is one of several choices."""

    row: Row
    problem: Problem
    choice: ChoiceAnswer | None

    def settled(self, form: AnswerForm | None) -> Problem:
        if self.choice is None or form is None:
            return self.problem
        letter = letter_of(self.choice, form)
        if letter == self.choice.text:
            return self.problem
        return replace(self.problem, answer=letter)

    def fault(self, error: ValueError) -> Fault:
        return Fault(number=self.row.number, file=self.row.file, reason=str(error))


def _make_drafts(
    rows: Sequence[Row], layout: Layout, kept: Sequence[Column], place: Callable[[Row], str], max_faults: int
) -> tuple[list[_Draft], list[Fault]]:
    drafts: list[_Draft] = []
    faults: list[Fault] = []
    seen: dict[str, Row] = {}
    for index, row in enumerate(rows):
        try:
            draft = _make_draft(row, layout, kept, default_id=str(index))
            if first := seen.get(draft.problem.external_id):
                raise ValueError(_told_twice(draft.problem.external_id, place(first), layout))
        except ValueError as error:
            faults.append(Fault(number=row.number, file=row.file, reason=str(error)))
            if len(faults) == max_faults:
                break
            continue
        seen[draft.problem.external_id] = row
        drafts.append(draft)
    return drafts, faults


def _told_twice(external_id: str, first: str, layout: Layout) -> str:
    remedy = "; --column id= numbers the rows instead, --column id=COLUMN+COLUMN joins columns" if layout.id else ""
    return f"duplicate id {external_id!r}: {first} has it{remedy}"


def _make_draft(row: Row, layout: Layout, kept: Sequence[Column], *, default_id: str) -> _Draft:
    """Raises ValueError with what is wrong in this row."""
    values = {name: value for name, value in row.values.items() if value is not None and value != ""}
    prompt, shown, hidden = _read_prompt(layout.problem, values)
    choices = read_choices(layout.choices, values) if layout.choices else None
    if choices is not None:
        shown["choices"] = list(choices.texts)
    raw = layout.answer[0].of(values) if layout.answer else None
    reference = _read_reference(layout, values)
    external_id = _joined(layout.id, values, "-") or default_id
    if len(external_id) > MAX_ID_CHARS:
        raise ValueError(f"an id of {len(external_id)} characters; {MAX_ID_CHARS} is the limit")
    for text in (prompt, reference.answer, *reference.others, external_id):
        check_text(text or "")
    shown |= {str(column): _plain(str(column), value) for column in kept if (value := column.of(values)) is not None}
    done = layout.shown | {column.name for column in kept if not column.path}
    as_written = raw is not None and not isinstance(raw, list) and text_of(raw) == reference.answer
    if as_written and choices is None and not layout.answer[0].path:
        done |= {layout.answer[0].name}
    problem = Problem(
        external_id=external_id,
        prompt=prompt,
        answer=reference.answer,
        also_accepted=reference.others,
        subject=_joined(layout.subject, values, ", "),
        level=_joined(layout.level, values, ", "),
        metadata=shown,
        hidden=hidden | {name: _plain(name, value) for name, value in values.items() if name not in done},
    )
    return _Draft(row=row, problem=problem, choice=_choice(reference, choices, raw))


def _choice(reference: Reference, choices: Choices | None, raw: Any) -> ChoiceAnswer | None:
    if choices is None or reference.answer is None:
        return None
    return ChoiceAnswer(text=reference.answer, choices=choices, is_number=is_number(raw))


def _read_prompt(columns: Sequence[Column], values: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The question, what else is shown with it, and what is to be hidden of a conversation."""
    parts: list[str] = []
    shown: dict[str, Any] = {}
    hidden: dict[str, Any] = {}
    for column in columns:
        value = column.of(values)
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        if looks_like_messages(value) and len(columns) == 1:
            conversation = read_messages(str(column), value)
            parts.append(conversation.question)
            if conversation.earlier:
                shown["turns"] = list(conversation.earlier)
            if conversation.has_reply:
                hidden[str(column)] = _plain(str(column), value)
        elif type(value) is str:
            parts.append(value)
        else:
            raise ValueError(f"wrong type: {str(column)!r} must be text, not {type_name(value)}")
    prompt = "\n\n".join(parts)
    if not prompt.strip():
        raise ValueError(f"missing problem: {'+'.join(map(str, columns))!r} is empty")
    return prompt, to_plain(shown), hidden


def _read_reference(layout: Layout, values: dict[str, Any]) -> Reference:
    if not layout.answer:
        return Reference()
    if len(layout.answer) > 1:
        texts = [text for column in layout.answer if (text := read_answer(str(column), column.of(values), None).answer)]
        return read_answer("+".join(map(str, layout.answer)), texts, layout.answer_as)
    return read_answer(str(layout.answer[0]), layout.answer[0].of(values), layout.answer_as)


def _joined(columns: Sequence[Column], values: dict[str, Any], between: str) -> str | None:
    """Texts, numbers and truth values as text in the form of the file; None where all are missing or blank."""
    texts = [text for column in columns for text in _label_texts(column, column.of(values))]
    for text in texts:
        check_text(text)
    return between.join(texts) if any(text.strip() for text in texts) else None


def _label_texts(column: Column, value: Any) -> Iterator[str]:
    for item in value if isinstance(value, list) else [value]:
        if item is None:
            continue
        if not isinstance(item, str | bool):
            raise ValueError(f"wrong type: {str(column)!r} must be text or a number, not {type_name(item)}")
        yield text_of(item)


def _plain(name: str, value: Any) -> Any:
    check_text(name)
    try:
        return to_plain(value)
    except ValueError as error:
        raise ValueError(f"{name!r}: {error}") from error


def _mark_of_solutions(rows: Sequence[Row], layout: Layout) -> AnswerForm | None:
    """How worked solutions mark their answers, where all of a file's answers are such; None where they are not."""
    if len(layout.answer) != 1 or layout.choices:
        return None
    answers = [value for row in rows if (value := layout.answer[0].of(row.values)) is not None]
    for form, mark in ((AnswerForm.HASHES, "\n####"), (AnswerForm.BOXED, "\\boxed{")):
        if answers and all(type(value) is str and mark in value and len(value) > MIN_SOLUTION for value in answers):
            return form
    return None


def _settle(drafts: Sequence[_Draft], layout: Layout) -> AnswerForm | None:
    """How the answers of a multiple choice are written; None where there is none."""
    answers = [draft.choice for draft in drafts if draft.choice is not None]
    if not answers:
        return None
    if layout.answer_as is not None:
        if layout.answer_as not in _CHOICE_FORMS:
            raise ValueError(f"--answer-as {layout.answer_as}: a file with choices takes {'|'.join(_CHOICE_FORMS)}")
        return layout.answer_as
    return settle_form(answers, "+".join(map(str, layout.answer)))


def _reading(rows: Sequence[Row], layout: Layout, form: AnswerForm | None, problems: Sequence[Problem]) -> SetReading:
    def told(columns: Sequence[Column]) -> str | None:
        return "+".join(map(str, columns)) or None

    ignored = {name: None for problem in problems for name in problem.hidden}
    read = {column.name for column in layout.answer}
    return SetReading(
        problem=told(layout.problem) or "",
        answer=told(layout.answer),
        answer_as=form or layout.answer_as,
        choices=told(layout.choices),
        id=told(layout.id),
        subject=told(layout.subject),
        level=told(layout.level),
        ignored=tuple(name for name in ignored if name not in read),
        binary=tuple({name: None for row in rows for name in row.binary}),
    )
