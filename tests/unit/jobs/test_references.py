"""A job's problems can be graded, or it is refused before anything is stored."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigurationError, PipelineError, ProblemSetError
from pipeline.jobs.readiness import ReadyJob, make_ready
from pipeline.jobs.references import StoredSet, check_references
from pipeline.jobs.submission import Submission
from pipeline.problems import Problem, ProblemSet, content_sha256

MODELS = {"small": "S", "large": "L"}
UNREADABLE = "letter Q of no choice"


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    file = folder / "set.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def ready(file: Path, **options: Any) -> ReadyJob:
    return make_ready(Submission.parse(problems=file, **MODELS, **options))


def few(*answers: str | None) -> ProblemSet:
    problems = tuple(Problem(external_id=str(i), prompt=f"{i}?", answer=answer) for i, answer in enumerate(answers))
    return ProblemSet(name="few", content_sha256=content_sha256(problems), problems=problems)


def test_reference_that_the_grader_cannot_read_is_told_with_its_line_and_never_quoted(tmp_path: Path) -> None:
    file = write(tmp_path, {"problem": "1?", "answer": "B"}, {"problem": "2?", "answer": UNREADABLE})
    with pytest.raises(ProblemSetError) as refused:
        ready(file, grader="choice")
    (fault,) = refused.value.faults
    assert fault.startswith("line 2: the grader 'choice' cannot read its reference answer: ")
    assert UNREADABLE not in str(refused.value)
    assert ready(file, grader="exact").config.grader == "exact"
    assert ready(file, grader="choice", limit=1).num_problems == 1


def test_only_the_first_faults_are_told() -> None:
    with pytest.raises(ProblemSetError) as refused:
        check_references(few(*[UNREADABLE] * 30), 30, "choice")
    assert len(refused.value.faults) == 10


def test_math_reference_that_is_no_formula_is_refused() -> None:
    check_references(few(r"\frac{1}{2}", "5,600", "(1, 2)"), 3, "math")
    with pytest.raises(ProblemSetError, match="problem '1': the grader 'math' cannot read"):
        check_references(few("2", ""), 2, "math")


def test_problems_without_any_reference_are_refused_unless_they_are_not_to_be_graded(tmp_path: Path) -> None:
    file = write(tmp_path, {"problem": "1?", "verdict": "2", "note": "x"})
    with pytest.raises(ConfigurationError) as refused:
        ready(file)
    told = str(refused.value)
    assert "none of the 1 problems has a reference answer (looked in columns answer, target" in told
    assert "there are also verdict, note" in told
    assert "--column answer=COLUMN, or leave samples unscored with --grader none" in told
    assert ready(file, grader="none").config.grader == "none"


def test_some_problems_without_a_reference_are_told(tmp_path: Path) -> None:
    file = write(tmp_path, {"problem": "1?", "answer": "2", "proof": "x", "src": "y"}, {"problem": "2?", "answer": ""})
    assert ready(file).notes == ("1 of 2 problems have a reference answer (column answer); ignored: proof, src",)


def test_choices_and_how_their_answers_were_read_are_told(tmp_path: Path) -> None:
    file = write(tmp_path, {"question": "Sky?", "options": ["red", "blue"], "answer": 1})
    made = ready(file)
    assert made.notes == (
        "1 of 1 problems have a reference answer (column answer, read as index0)", "choices are from options",
    )  # fmt: skip
    assert (made.config.prompt_template, made.config.grader) == ("choice", "choice")
    assert ready(file, prompt_template="free", grader="exact").config.grader == "exact"


def stored_set(num_references: int) -> StoredSet:
    return StoredSet(
        id=3, name="few", size=2, num_references=num_references, has_choices=False,
        read=lambda limit: few("1", "2").problems[:limit],
    )  # fmt: skip


def test_stored_set_without_references_is_refused_too() -> None:
    submission = Submission.parse(problems=3, **MODELS)
    with pytest.raises(ConfigurationError, match="none of the 2 problems has a reference answer; name its column"):
        make_ready(submission, stored=stored_set(0))
    assert make_ready(submission, stored=stored_set(1)).notes == ("1 of 2 problems have a reference answer",)


def test_references_are_read_whatever_thread_submits() -> None:
    raised: list[PipelineError] = []

    def check() -> None:
        check_references(few(r"\frac{1}{2}"), 1, "math")
        try:
            check_references(few("2", ""), 2, "math")
        except PipelineError as error:
            raised.append(error)

    thread = threading.Thread(target=check)
    thread.start()
    thread.join(timeout=120)
    assert ["problem '1'" in str(error) for error in raised] == [True]


def test_each_of_several_accepted_answers_is_read() -> None:
    problem = Problem(external_id="0", prompt="?", answer="A", also_accepted=(UNREADABLE,))
    with pytest.raises(ProblemSetError, match="cannot read its reference answer"):
        check_references(ProblemSet(name="one", content_sha256="", problems=(problem,)), 1, "choice")
