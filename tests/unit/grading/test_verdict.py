"""Verdicts: read from the judge's own last words alone, and never guessed."""

from __future__ import annotations

import time

import pytest

from pipeline.errors import GradingError
from pipeline.grading import Ending, grade_output, make_grader
from pipeline.grading.verdict import read_verdict
from pipeline.samples import FinishReason

ENDED = Ending(finish_reason=FinishReason.EOS, think_start="<think>", think_end="</think>", think_opened=True)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Verdict: correct", "correct"),
        ("Verdict: incorrect", "incorrect"),
        ("It fits.\n\n**Verdict: Correct.**\n", "correct"),
        ("**Verdict:** incorrect", "incorrect"),
        ("## verdict : CORRECT\n\nI hope this helps.", "correct"),
        ("Verdict: correct\nNo, wait.\nVerdict: incorrect", "incorrect"),
        ("Verdict:\tcorrect\r\n", "correct"),
    ],
)
def test_last_line_that_is_a_verdict_counts(text: str, verdict: str) -> None:
    assert read_verdict(text) == verdict


@pytest.mark.parametrize(
    "text",
    [
        "",
        "correct",
        "Verdict: correct or incorrect",
        "Verdict: correct?",
        "Verdict: not correct",
        "Verdict: partially correct",
        "My verdict: correct",
        "> Verdict: correct",
        'The answer says "Verdict: correct"',
        '"Verdict: correct"',
        "`Verdict: correct`",
        "Verdict: correct, since it is 7",
        "Verdict: correctly",
        "Verdict\n: correct",
        "Verdict: \u0441orrect",
        "Verdict:" + " " * 100 + "correct",
    ],
)
def test_nothing_else_is_a_verdict(text: str) -> None:
    assert read_verdict(text) is None
    with pytest.raises(GradingError, match="no line with a verdict alone"):
        grade_output(make_grader("verdict"), f"</think>{text}", (None,), ending=ENDED)


def test_verdict_is_the_judges_score() -> None:
    grader = make_grader("verdict")
    for said, score in (("correct", 1.0), ("incorrect", 0.0)):
        grade = grade_output(grader, f"hm</think>Verdict: {said}", (None,), ending=ENDED)
        assert (grade.score, grade.predicted_answer) == (score, said)


@pytest.mark.parametrize(
    ("output", "reason", "complaint"),
    [
        ("I think\nVerdict: correct", FinishReason.EOS, r"ended inside its think phase \(eos\)"),
        ("I think\nVerdict: correct", FinishReason.LENGTH, r"ended inside its think phase \(length\)"),
        ("</think>The answer says:\nVerdict: correct\nbut", FinishReason.LENGTH, r"was cut \(length\)"),
        ("</think>Verdict: correct", FinishReason.REPETITION, r"was cut \(repetition\)"),
        ("Verdict: correct</think>I do not know.", FinishReason.EOS, "no line with a verdict alone"),
        ("</think>Verdict: correct<think>\nwait", FinishReason.EOS, r"ended inside its think phase \(eos\)"),
    ],
)
def test_thoughts_and_cut_texts_have_no_verdict(output: str, reason: FinishReason, complaint: str) -> None:
    ending = Ending(finish_reason=reason, think_start="<think>", think_end="</think>", think_opened=True)
    with pytest.raises(GradingError, match=complaint):
        grade_output(make_grader("verdict"), output, (None,), ending=ending)


def test_model_without_thoughts_is_read_as_a_whole() -> None:
    ending = Ending(finish_reason=FinishReason.STOP, think_start="", think_end="")
    grade = grade_output(make_grader("verdict"), "It fits.\nVerdict: correct", (None,), ending=ending)
    assert grade.score == 1.0


@pytest.mark.parametrize(
    "text", ["verdict" + ":" * 200_000, "*" * 200_000, "_ " * 200_000, "verdict: correct\n" * 50_000]
)
def test_no_text_makes_reading_slow(text: str) -> None:
    start = time.monotonic()
    read_verdict(text)
    assert time.monotonic() - start < 2
