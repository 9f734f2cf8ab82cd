"""The file of a batch's reference answers: one line for each request that has one, by its custom_id."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

from pipeline.errors import PipelineError
from pipeline.gateway.lines import Faults, LineFault
from pipeline.grading import grader_names
from pipeline.grading.checking import find_faults
from pipeline.jobs.references import WITHOUT_REFERENCES
from pipeline.problems.lines import Fault, UnreadableFile, read_lines
from pipeline.problems.values import check_text, parse_json, text_of

NOT_OVER_HTTP = ("code", "judge")
"""Graders that nobody asks for over HTTP: the references of the first are programs, and it runs them."""


def known_graders() -> tuple[str, ...]:
    """The graders that a batch may name: none of a file of this machine."""
    return tuple(name for name in grader_names() if name not in (*WITHOUT_REFERENCES, *NOT_OVER_HTTP))


class AnswersFile:
    """Reference answers by custom_id. All of them are in memory: they are short."""

    def __init__(self) -> None:
        self._answers: dict[str, str] = {}
        self._unused: dict[str, int] = {}

    @classmethod
    def read(cls, file: IO[bytes], faults: Faults, *, max_line_bytes: int) -> AnswersFile:
        made = cls()
        try:
            for number, line in read_lines(file, max_line_bytes):
                if isinstance(line, Fault):
                    faults.add(LineFault(code="invalid_answers_line", message=line.reason, line=number))
                elif line.strip():
                    made._add(_parse(line), number, faults)
        except UnreadableFile as error:
            faults.add(LineFault(code="invalid_answers_line", message=str(error)))
        return made

    def _add(self, values: dict[str, Any] | None, number: int, faults: Faults) -> None:
        wrong = _why_not(values)
        if wrong is None and values is not None and values["custom_id"] in self._answers:
            wrong = f"has the custom_id '{values['custom_id']}' again"
        if wrong is not None or values is None:
            told = f"A line of the answers' file {wrong}."
            faults.add(LineFault(code="invalid_answers_line", message=told, line=number, param="answers_file_id"))
            return
        self._answers[values["custom_id"]] = text_of(values["answer"])
        self._unused[values["custom_id"]] = number

    def take(self, custom_id: str) -> str | None:
        """The reference answer of a request; None: it has none."""
        self._unused.pop(custom_id, None)
        return self._answers.get(custom_id)

    def check(self, grader: str, faults: Faults) -> None:
        """Whether each belongs to a request, and the grader can read it. No fault quotes an answer."""
        for number in self._unused.values():
            told = "No request has the custom_id of this line of the answers' file."
            faults.add(LineFault(code="unknown_custom_id", message=told, line=number, param="answers_file_id"))
        ids = list(self._answers)
        try:
            reasons = find_faults(grader, [self._answers[custom_id] for custom_id in ids])
        except PipelineError as error:
            faults.add(LineFault(code="invalid_answers_line", message=str(error), param="answers_file_id"))
            return
        for custom_id, reason in zip(ids, reasons, strict=True):
            if reason:
                told = f"The grader '{grader}' cannot read the reference answer of '{custom_id}': {reason}."
                faults.add(LineFault(code="invalid_answers_line", message=told, param="answers_file_id"))

    def items(self) -> Iterator[tuple[str, str]]:
        yield from self._answers.items()


def _parse(line: str) -> dict[str, Any] | None:
    """A line's JSON object, with numbers as they were written: no long one is rounded. None where it is none."""
    try:
        values = parse_json(line)
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


def _why_not(values: dict[str, Any] | None) -> str | None:
    """What is wrong with a line; None: nothing. A number is an answer too."""
    if values is None:
        return "is not parseable as valid JSON"
    if set(values) != {"custom_id", "answer"}:
        return "has not just the keys 'custom_id' and 'answer'"
    answer = values["answer"]
    if type(values["custom_id"]) is not str or not isinstance(answer, str):  # a number is a text here
        return "has a custom_id that is no text, or an answer that is neither text nor number"
    try:
        check_text(values["custom_id"])
        check_text(answer)
    except ValueError as error:
        return f"has a text with {error}"
    return None if answer.strip() else "has an empty answer"
