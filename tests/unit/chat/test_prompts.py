"""Prompt templates."""

import pytest

from pipeline.chat.prompts import _TEMPLATES, prompt_template, render_user_message
from pipeline.errors import BadProblem, ConfigurationError
from pipeline.problems import Problem

HOSTILE = "Is {} = {problem} or {{ messages }} {% raw %} %s \\boxed{} $x$?"


def make_problem(prompt: str = "p?", **metadata: object) -> Problem:
    return Problem(external_id="1", prompt=prompt, answer="the answer", metadata=metadata)


def test_math_asks_for_steps_and_a_box() -> None:
    message = render_user_message("math", make_problem("What is 1+1?"))
    assert message == "What is 1+1?\n\nPlease reason step by step, and put your final answer within \\boxed{}."


def test_paper_asks_before_the_problem() -> None:
    message = render_user_message("paper-math", make_problem("What is 1+1?"))
    assert message == "Please reason step by step, and put your final answer within \\boxed{}.\n\nWhat is 1+1?"
    message = render_user_message("paper-choice", make_problem("Which?", choices=["red", "blue"]))
    assert message.endswith("\\boxed{}.\n\nWhich?\n\n(A) red\n(B) blue")


def test_free_is_the_problem_alone() -> None:
    assert render_user_message("free", make_problem(HOSTILE)) == HOSTILE


@pytest.mark.parametrize("name", _TEMPLATES)
def test_template_syntax_in_a_problem_stays_text(name: str) -> None:
    assert HOSTILE in render_user_message(name, make_problem(HOSTILE)).split("\n\n")


@pytest.mark.parametrize("name", _TEMPLATES)
def test_reference_answer_is_never_shown(name: str) -> None:
    assert "the answer" not in render_user_message(name, make_problem())


def test_choices_are_lettered() -> None:
    message = render_user_message("choice", make_problem("Which?", choices=["red", "2.50"]))
    assert message.startswith("Which?\n\n(A) red\n(B) 2.50\n\nPlease reason")


def test_choices_may_stand_in_the_problem_itself() -> None:
    assert render_user_message("choice", make_problem("Which? (A) a (B) b")).startswith("Which? (A) a (B) b\n\nPlease")


@pytest.mark.parametrize("choices", [[], ["x"] * 11, "red, blue", {"text": ["x"]}])
def test_choices_that_are_none_are_refused(choices: object) -> None:
    with pytest.raises(BadProblem, match="problem '1'"):
        render_user_message("choice", make_problem(choices=choices))


def test_unknown_template_lists_the_known() -> None:
    with pytest.raises(ConfigurationError, match="no prompt template 'maths'; there are math, choice, free"):
        prompt_template("maths")


def test_each_template_has_its_own_version() -> None:
    versions = {prompt_template(name).version for name in _TEMPLATES}
    assert len(versions) == len(_TEMPLATES)
