"""Texts that were cut or still think have given no answer, whatever number stands last; odd scores are errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from pipeline.errors import GradingError
from pipeline.grading import Ending, Grade, answer_part, grade_output, make_grader
from pipeline.samples import CutSamples, FinishReason

THINKS: dict[str, Any] = {"think_start": "<think>", "think_end": "</think>"}


def grade(
    output: str, *, reference: str | None = "9", cut_samples: CutSamples = CutSamples.WRONG, **ending: Any
) -> Grade:
    return grade_output(make_grader("math"), output, (reference,), ending=Ending(**ending), cut_samples=cut_samples)


@pytest.mark.parametrize("finish_reason", [FinishReason.LENGTH, FinishReason.CONTEXT, FinishReason.REPETITION])
@pytest.mark.parametrize("output", ["<think>\nso d=09: a9", "<think>\nwe get \\boxed{9}. Wait", "<think> 9"])
def test_text_that_was_cut_inside_its_think_phase_is_wrong(output: str, finish_reason: FinishReason) -> None:
    told = grade(output, finish_reason=finish_reason, **THINKS)
    assert told == Grade(
        score=0.0,
        predicted_answer=None,
        detail=f"no answer: the text ended inside its think phase ({finish_reason})",
    )


def test_prompt_that_opened_the_think_phase_counts_as_the_texts_own_tag() -> None:
    opened = {"think_opened": True, "finish_reason": FinishReason.LENGTH, **THINKS}
    assert grade("So it is \\boxed{9}.", **opened).score == 0.0
    assert grade("So it is 9.</think>\n\\boxed{9}.", **opened).score == 1.0


def test_text_that_its_writer_ended_in_its_think_phase_has_no_answer_either() -> None:
    assert grade("<think>It is \\boxed{9}.", finish_reason=FinishReason.EOS, **THINKS).score == 0.0


def test_second_think_phase_that_stays_open_hides_what_is_in_it() -> None:
    output = "<think>a</think>It is \\boxed{8}.<think>Or is it \\boxed{9}?"
    assert grade(output, finish_reason=FinishReason.LENGTH, **THINKS).score == 0.0


def test_model_without_a_think_phase_may_write_of_tags() -> None:
    output = "The tag <think> begins a thought. \\boxed{9}"
    assert grade(output, finish_reason=FinishReason.EOS, think_start="", think_end="").score == 1.0


@pytest.mark.parametrize("output", ["First 3, then 9", "a</think>\nWe have 4 + 5 = 9"])
def test_text_that_was_cut_before_it_stated_an_answer_is_wrong(output: str) -> None:
    told = grade(output, finish_reason=FinishReason.LENGTH, **THINKS)
    assert told.score == 0.0
    assert told.detail == "no answer: the text was cut before it stated an answer (length)"


@pytest.mark.parametrize("output", ["a</think>\n\\boxed{9} is", "The answer is 9. Let me", "<answer>9</answer> since"])
def test_text_that_was_cut_behind_its_answer_keeps_it(output: str) -> None:
    assert grade(output, finish_reason=FinishReason.LENGTH, **THINKS).score == 1.0


def test_text_that_its_writer_ended_is_answered_by_its_last_formula() -> None:
    assert grade("So 4+5=9", finish_reason=FinishReason.EOS).score == 1.0
    assert grade("So 4+5=9", finish_reason=FinishReason.LENGTH).score == 0.0


def test_cut_samples_may_be_left_unscored() -> None:
    leave = {"cut_samples": CutSamples.UNSCORED, **THINKS}
    assert grade("<think> 9", finish_reason=FinishReason.LENGTH, **leave).score is None
    assert grade("first 8", finish_reason=FinishReason.CONTEXT, **leave).score is None
    assert grade("<think> 9", finish_reason=FinishReason.EOS, **leave).score == 0.0
    assert grade("\\boxed{8}", finish_reason=FinishReason.LENGTH, **leave).score == 0.0


def test_sample_without_a_reference_stays_unscored() -> None:
    assert grade("<think> 9", reference=None, finish_reason=FinishReason.LENGTH, **THINKS).score is None


@pytest.mark.parametrize("output", ["<think> a9", "  <think>\n\\boxed{9}", "[THINK]9"])
def test_answer_part_of_a_text_that_still_thinks_is_empty(output: str) -> None:
    assert answer_part(output) == ""


@dataclass(frozen=True)
class OwnGrader:
    """A grader of somebody's own, which gives one score for all."""

    score: Any
    name: str = "own"
    version: str = "1"
    is_instant: bool = True

    def grade(self, answer_text: str, reference: str | None) -> Grade:
        return Grade(score=self.score, predicted_answer=answer_text)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -0.1, 1.1, "right"])
def test_score_that_is_no_number_from_0_to_1_is_a_grading_error(score: Any) -> None:
    with pytest.raises(GradingError, match="'own' gave"):
        grade_output(OwnGrader(score), "x", ("y",), ending=Ending())


@pytest.mark.parametrize("score", [0, 1, True, 0.5])
def test_score_from_0_to_1_is_stored_as_a_number(score: Any) -> None:
    stored = grade_output(OwnGrader(score), "x", ("y",), ending=Ending()).score
    assert isinstance(stored, float)
    assert stored == score


def test_own_grader_that_says_nothing_of_statements_grades_cut_texts() -> None:
    assert grade_output(OwnGrader(0.5), "x", ("y",), ending=Ending(finish_reason=FinishReason.LENGTH)).score == 0.5
