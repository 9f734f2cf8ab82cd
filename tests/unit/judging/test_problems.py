"""The problems of a judge: which samples are asked about, what of them is shown, and which share a prompt."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.chat.prompts import make_text_template, prompt_template
from pipeline.grading import Ending, make_grader
from pipeline.judging.problems import CompleteSample, JudgeProblems, make_problems
from pipeline.judging.prompts import DEFAULT_TEMPLATE, JudgeTemplate, make_template
from pipeline.problems import Problem
from pipeline.samples import FinishReason

THINKS = Ending(finish_reason=FinishReason.EOS, think_start="<think>", think_end="</think>", think_opened=True)
CUT = Ending(finish_reason=FinishReason.LENGTH, think_start="<think>", think_end="</think>", think_opened=True)


def sample(
    number: int, output: str = "a </think> b", *, problem: Problem | None = None, **others: Any
) -> CompleteSample:
    asked = problem or Problem(external_id="p", prompt="Why?", answer="ZQ-right", subject="s", level="3")
    values = {"epoch": 2, "problem_id": 1, "ending": THINKS, "predicted_answer": None, **others}
    return CompleteSample(sample_id=number, problem=asked, output=output, **values)


def made(
    *samples: CompleteSample, template: JudgeTemplate = DEFAULT_TEMPLATE, asked_with: str = "math", **others: Any
) -> JudgeProblems:
    return make_problems(
        samples, name="n", template=template, asked_with=prompt_template(asked_with), grader=make_grader("math"),
        **others,
    )  # fmt: skip


def prompt(*samples: CompleteSample, **others: Any) -> str:
    return made(*samples, **others).problems.problems[0].prompt


def test_equal_answers_to_a_problem_are_asked_once_whatever_was_thought() -> None:
    asked = made(
        sample(1, "one</think>7"), sample(2, "two</think>\n7 "), sample(3, "</think>8"),
        sample(4, "</think>7", problem_id=2),
    )  # fmt: skip
    assert [place.asked_as for place in asked.places] == ["sample 1", "sample 1", "sample 3", "sample 4"]
    assert [place.epoch for place in asked.places] == [2] * 4
    assert asked.num_judged == 4
    assert len(asked.problems.problems) == 3


def test_problem_of_a_judge_hides_nothing_and_tells_no_reference_but_in_its_prompt() -> None:
    [problem] = made(sample(1)).problems.problems
    assert (problem.answer, problem.metadata, problem.hidden) == (None, {}, {})
    assert (problem.subject, problem.level) == ("s", "3")
    assert "ZQ-right" in problem.prompt
    assert "ZQ" not in prompt(sample(1), template=make_template("t", "{{question}}{{answer}}"))


def test_thoughts_are_not_shown_nor_the_instruction() -> None:
    text = prompt(sample(1, "secret thoughts</think>It is 7."))
    assert "thoughts" not in text
    assert "\nIt is 7.\n" in text
    assert "boxed" not in text


def test_question_of_an_own_template_is_shown_as_it_was_asked() -> None:
    template = make_text_template("own", "{{context}}: {{problem}}")
    problem = Problem(external_id="p", prompt="Who?", answer="1", metadata={"context": "In Rome"})
    asked = make_problems(
        [sample(1, problem=problem)], name="n", template=DEFAULT_TEMPLATE, asked_with=template,
        grader=make_grader("math"),
    )  # fmt: skip
    assert "\nIn Rome: Who?\n" in asked.problems.problems[0].prompt


def test_of_a_long_answer_its_end_is_shown() -> None:
    text = prompt(sample(1, "</think>" + "x" * 50 + "the end"), answer_chars=10)
    assert "\n[…]\nxxxthe end\n" in text


def test_every_reference_that_is_right_is_shown() -> None:
    problem = Problem(external_id="p", prompt="?", answer="1", also_accepted=("one", "I"))
    assert "Any one of these:\n- 1\n- one\n- I\n" in prompt(sample(1, problem=problem))


@pytest.mark.parametrize(
    ("output", "ending", "is_judged"),
    [
        ("still thinking", THINKS, False),
        ("thoughts</think>", THINKS, False),
        ("thoughts</think>and cut off be", CUT, False),
        (r"thoughts</think>It is \boxed{7}. To che", CUT, True),
        ("thoughts</think>seven", THINKS, True),
    ],
)
def test_only_a_text_that_has_answered_is_judged(output: str, ending: Ending, is_judged: bool) -> None:
    asked = made(sample(1, output, ending=ending))
    assert (asked.num_judged, asked.num_unanswered) == (int(is_judged), int(not is_judged))


def test_sample_without_a_reference_is_left_out_where_the_template_shows_it() -> None:
    problem = Problem(external_id="p", prompt="?")
    asked = made(sample(1, problem=problem), sample(2))
    assert [place.sample_id for place in asked.places] == [2]
    assert asked.num_unreferenced == 1
    untold = made(sample(1, problem=problem), template=make_template("t", "{{question}}{{answer}}"))
    assert untold.num_judged == 1


def test_template_of_the_predicted_answer_alone_asks_once_for_each() -> None:
    template = make_template("t", "{{question}}{{predicted_answer}}{{reference}}")
    asked = made(
        sample(1, "</think>It is 7", predicted_answer="7"), sample(2, "</think>Thus 7", predicted_answer="7"),
        sample(3, "</think>hm", predicted_answer=None), template=template,
    )  # fmt: skip
    assert [place.asked_as for place in asked.places] == ["sample 1", "sample 1", None]


def test_sets_of_two_jobs_are_two_versions() -> None:
    one, other = (
        make_problems([sample(1)], name=name, template=DEFAULT_TEMPLATE, asked_with=prompt_template("math"),
                      grader=make_grader("math"))
        for name in ("answers of job 1", "answers of job 2")
    )  # fmt: skip
    assert one.problems.content_sha256 != other.problems.content_sha256
