"""The statements that store the lines of a batch as problems, one by one, however many there are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from sqlalchemy import Connection, text

from pipeline.db.session import copy_rows
from pipeline.problems import Problem

_PUT_SET = text("""
    INSERT INTO problem_sets (name, content_sha256, num_problems, num_references, has_choices, tells_answers_of)
    VALUES (:name, :content_sha256, :num_problems, :num_references, false, NULL) ON CONFLICT DO NOTHING RETURNING id
""")
_FIND_SET = text("SELECT id FROM problem_sets WHERE content_sha256 = :content_sha256")


def put_set(
    connection: Connection, *, name: str, content_sha256: str, num_problems: int, num_references: int
) -> tuple[int, bool]:
    """The id of the set with just this content, and whether it is new: then its problems are still to be stored."""
    values = {
        "name": name, "content_sha256": content_sha256, "num_problems": num_problems, "num_references": num_references
    }  # fmt: skip
    new_id = connection.execute(_PUT_SET, values).scalar()
    if new_id is not None:
        return int(new_id), True
    return int(connection.execute(_FIND_SET, values).scalar_one()), False


# Ids are given in the order of the rows, so that they rise with the position in each set.
_COPY_PROBLEMS = "COPY problems (problem_set_id, position, external_id, prompt, subject, level, shown) FROM STDIN"


def copy_problems(connection: Connection, problems: Iterable[tuple[int, int, Problem]]) -> None:
    """Store problems, each with its set and its position there; one at a time is in memory."""
    copy_rows(connection, _COPY_PROBLEMS, _rows(problems))


def _rows(problems: Iterable[tuple[int, int, Problem]]) -> Iterator[tuple[int | str | None, ...]]:
    for problem_set_id, position, problem in problems:
        shown = json.dumps(problem.metadata) if problem.metadata else "{}"
        yield problem_set_id, position, problem.external_id, problem.prompt, problem.subject, problem.level, shown


_INSERT_ANSWERS = text("""
    INSERT INTO reference_answers (problem_id, answer)
    SELECT p.id, a.answer
    FROM unnest(CAST(:ids AS text[]), CAST(:answers AS text[])) AS a (external_id, answer)
    JOIN problems p ON p.external_id = a.external_id AND p.problem_set_id = ANY(:sets)
""")
_BATCH = 2_000


def insert_answers(connection: Connection, sets: Sequence[int], answers: Iterable[tuple[str, str]]) -> None:
    """Store the reference answers of some new sets, by the external ids of their problems."""
    rest = iter(answers)
    while chunk := list(islice(rest, _BATCH)):
        values = {"ids": [key for key, _ in chunk], "answers": [answer for _, answer in chunk], "sets": list(sets)}
        connection.execute(_INSERT_ANSWERS, values)
