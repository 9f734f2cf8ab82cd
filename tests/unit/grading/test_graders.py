"""Graders on answers as models write them."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigurationError, GradingError
from pipeline.grading import Ending, Grade, answer_part, grade_output, grader_names, make_grader
from pipeline.grading.extract import last_boxed
from pipeline.grading.math import MathGrader


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.} end", r"\left\{ x \right."),
        (r"\boxed{x = \boxed{3}}", "3"),
        (r"\boxed{7} and \boxed{8", "7"),
        (r"a } stray \boxed{7} { brace", "7"),
        (r"\fbox{5}", "5"),
        (r"\boxed {6}", "6"),
        (r"\boxed{}", ""),
        ("nothing", None),
        (r"\boxed{" * 100_000, None),
        (r"\boxed{" + "{" * 100_000 + "}" * 100_000 + "}", None),
    ],
)
def test_last_boxed(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


def test_answer_part_follows_the_last_think_end() -> None:
    assert answer_part("a\\boxed{1}</think>b</think>\nc") == "\nc"
    assert answer_part("x[/THINK]y") == "y"
    assert answer_part("no tag") == "no tag"
    assert answer_part("") == ""


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        (r"\boxed{5}", "5"),
        (r"\boxed{\frac{1}{2}}", "0.5"),
        (r"\boxed{\dfrac12}", "$\\frac{1}{2}$"),
        (r"\boxed{(1, 2)}", "(1,2)"),
        (r"\boxed{2, 1}", "1,2"),
        (r"\boxed{1{,}000}", "1000"),
        (r"\boxed{x=5}", "5"),
        (r"\boxed{\text{Evelyn}}", "Evelyn"),
        (r"\boxed{Evelyn}", r"\text{Evelyn}"),
        (r"\boxed{5}", "First 2 + 3.\n#### 5"),
        (r"\boxed{5}", r"We find $2+3=\boxed{5}$."),
        ("The answer is 7 apples", "7"),
        (r"\boxed{\text{odd \unknown words}}", r"\text{odd  \unknown words}"),
    ],
)
def test_math_accepts_what_means_the_same(answer: str, reference: str) -> None:
    assert make_grader("math").grade(answer, reference).score == 1.0


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        (r"\boxed{6}", "5"),
        (r"\boxed{5} no, \boxed{6}", "5"),
        (r"\boxed{\frac{1}{0}}", "1"),
        (r"\boxed{\frac{}{}}}}", "1"),
        (r"\boxed{x_{}^{^}}", "1"),
        (r"\boxed{" + "9" * 2000 + "}", "1"),
    ],
)
def test_math_refuses_what_does_not(answer: str, reference: str) -> None:
    assert make_grader("math").grade(answer, reference).score == 0.0


def test_math_tells_the_predicted_answer() -> None:
    grader = make_grader("math")
    assert grader.grade(r"so \boxed{\frac12}", "1") == Grade(score=0.0, predicted_answer=r"\frac12")
    assert grader.grade("the answer is $7$", "8") == Grade(
        score=0.0, predicted_answer="7", detail="the answer is not boxed"
    )


@pytest.mark.parametrize("name", ["math", "exact", "choice"])
def test_no_answer_is_wrong_and_no_reference_is_unscored(name: str) -> None:
    grader = make_grader(name)
    assert grader.grade("", "C") == Grade(score=0.0, predicted_answer=None, detail="no answer found")
    assert grader.grade(r"\boxed{C}", None) == Grade(score=None, predicted_answer="C", detail="no reference answer")


def test_empty_box_is_no_answer() -> None:
    assert make_grader("math").grade(r"\boxed{ }", "5").predicted_answer is None


def test_math_leaves_a_sample_unscored_where_the_reference_cannot_be_read() -> None:
    with pytest.raises(GradingError, match="finds no formula in the reference"):
        make_grader("math").grade(r"\boxed{5}", "$$")


@pytest.mark.timeout(30)
def test_math_gives_up_on_a_hostile_formula_and_does_not_call_it_wrong() -> None:
    started = time.monotonic()
    with pytest.raises(GradingError, match="too long") as refused:
        MathGrader(timeout_s=1).grade(r"\boxed{9^{9^{9}}}", "123454321")
    assert time.monotonic() - started < 10
    assert "123454321" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_math_says_that_it_needs_the_main_thread() -> None:
    caught: list[BaseException] = []

    def grade() -> None:
        try:
            make_grader("math").grade(r"\boxed{x}", "x+1")
        except GradingError as error:
            caught.append(error)

    thread = threading.Thread(target=grade)
    thread.start()
    thread.join()
    assert "main thread" in str(caught[0])


@pytest.mark.parametrize(
    ("answer", "score"),
    [("So:\n  The  Eiffel\ttower \n\n", 1.0), (r"\boxed{the eiffel tower} indeed", 1.0), ("The Eiffel towers.", 0.0)],
)
def test_exact_ignores_case_and_white_space(answer: str, score: float) -> None:
    assert make_grader("exact").grade(answer, "the Eiffel Tower").score == score


@pytest.mark.parametrize(
    "answer",
    [
        r"\boxed{C}",
        r"\boxed{(C)}",
        r"\boxed{\text{C}}",
        r"\boxed{\textbf{(C)}\ 12}",
        r"\boxed{C. 12}",
        r"\boxed{c}",
        "Not A. The answer is (C).",
        "**Answer:** C",
        "Answer: **C**",
        "I choose option C",
        "Between (A) and (C)",
        "I think that A dog barks. C",
        "C) twelve",
    ],
)
def test_choice_finds_the_letter(answer: str) -> None:
    assert make_grader("choice").grade(answer, "C") == Grade(score=1.0, predicted_answer="C")


@pytest.mark.parametrize("answer", ["I think so", r"\boxed{12}", r"\boxed{Cat}", "", "ABC", "Don't"])
def test_choice_finds_no_letter_where_there_is_none(answer: str) -> None:
    assert make_grader("choice").grade(answer, "C").predicted_answer is None


@pytest.mark.parametrize(
    "answer",
    [
        "The answer is C, since A and D fail.",
        "The correct answer is **C. Paris**, not D.",
        "The correct answer is C.\n\nNote that option (D) would need more heat.",
        "**The correct answer is (C)**.\n\nLet me know if option (D) needs detail.",
        "So $\\boxed{\\langle H\\rangle \\ll \\Delta E}$.\n\n**Answer: C**",
        "The correct option is C, i.e. $\\boxed{42}$.",
        "Therefore, option C is correct. Option D is not.",
        "C is the correct answer; D is tempting.",
        "The answer is not A. The answer is C.",
        "The answer isn't D, the answer is C",
        "Options A, B and D fail, so the answer must be C",
        "It is C, not (D)",
        "A: no. C: yes. So we pick C",
        "the answer is (c).",
        "the answer to the question is C",
        "The answer is therefore C",
        "My answer is option (C)",
        "Answer:\n\nC",
        "### Answer: C",
        "<answer>C</answer> and so D is wrong",
        r"\boxed{\text{Option C}}",
        r"$\mathbf{C}$",
        "**C**",
        "c",
        "(c)",
        "C. Paris",
        "答案是C。",
        "正确答案：（Ｃ）",
        "答案选 C",
        "Ответ: С",
    ],
)
def test_choice_takes_a_statement_before_a_mention(answer: str) -> None:
    assert make_grader("choice").grade(answer, "C") == Grade(score=1.0, predicted_answer="C")


@pytest.mark.parametrize("answer", ["The answer is a dog", "The answer is I think unknown", "Nothing fits"])
def test_choice_takes_no_article_for_a_letter(answer: str) -> None:
    assert make_grader("choice").grade(answer, "A").predicted_answer in (None, "I")


COLOURS = ("red", "dark blue", "Blue", "a white dog", r"$\frac{1}{2}$", "2", "2.", "7")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        (r"\boxed{blue}", "C"),
        (r"\boxed{\text{Dark Blue}}", "B"),
        ("The answer is blue.", "C"),
        ("The final answer is **red**", "A"),
        ("<answer>A white dog</answer>", "D"),
        ("The answer is A white dog", "D"),
        (r"\boxed{\dfrac{1}{2}}", "E"),
        (r"\boxed{7}", "H"),
        ("Not red.\nSo the sky must be dark blue.", "B"),
        ("Blue", "C"),
        (r"\boxed{C}", "C"),
        ("The answer is C, blue", "C"),
        (r"\boxed{2}", None),  # two choices say so
        (r"\boxed{green}", None),
        ("So it is red or a white dog", None),
        ("So it is not red", None),
    ],
)
def test_choice_reads_the_text_of_a_choice(answer: str, letter: str | None) -> None:
    grade = grade_output(make_grader("choice"), answer, ["C"], ending=Ending(), choices=COLOURS)
    assert grade.predicted_answer == letter
    assert grade.score == float(letter == "C")


@pytest.mark.parametrize(
    ("reference", "answer", "score"),
    [
        ("B", r"\boxed{B, C}", 0.0),
        ("A", r"\boxed{A or B}", 0.0),
        ("A", "The answer is A or B", 0.0),
        ("A", "Answer: A, B, C, D", 0.0),
        ("A, C", r"\boxed{C, A}", 1.0),
        ("A, C", r"\boxed{A}", 0.0),
        ("ACD", "**Answer:** A, C and D.", 1.0),
        ("AC", "答案：AC", 1.0),
        ("B", "The answer is B, and A is wrong.", 1.0),
        ("B", "The answer is B, not A.", 1.0),
        ("B", "The answer is (B), (A) being wrong.", 1.0),
        ("B", "B. green\n\nBecause A. red is not it.", 1.0),
        ("C", "A. no\nB. no\nC. yes, this one", 1.0),
        ("C", "B. green?\nNo: it must be C", 1.0),
        ("B", "정답은 B입니다", 1.0),
    ],
)
def test_choice_takes_several_letters_for_several(reference: str, answer: str, score: float) -> None:
    assert make_grader("choice").grade(answer, reference).score == score


@pytest.mark.parametrize(
    ("choices", "answer", "letter"),
    [
        (("12", "15", "18"), r"\boxed{15.0}", "B"),
        (("12", "15", "18"), r"\boxed{\frac{30}{2}}", "B"),
        (("1", "1.0", "2"), r"\boxed{1.00}", None),
        (("A", "B", "C", "O"), r"\boxed{O}", "D"),
        (("AB", "A", "B", "O"), r"\boxed{AB}", "A"),
        (("50%", "0.5"), r"\boxed{50\%}", "A"),
    ],
)
def test_choice_reads_numbers_and_letters_that_are_texts(
    choices: tuple[str, ...], answer: str, letter: str | None
) -> None:
    grade = grade_output(make_grader("choice"), answer, ["A"], ending=Ending(), choices=choices)
    assert grade.predicted_answer == letter


@pytest.mark.parametrize(
    ("reference", "answer", "score"),
    [
        ("$5", "5", 0.0), ("$5", "$5", 1.0), ("5", "$5$", 1.0), ("foo*bar", "foobar", 0.0), ("a*b*c", "a*b*c", 1.0),
        ("x", "***x***", 1.0), ("x", "`x`", 1.0), ("__init__", "init", 0.0), ("$1 and $2", "1 and 2", 0.0),
    ],
)  # fmt: skip
def test_exact_keeps_signs_that_mark_nothing(reference: str, answer: str, score: float) -> None:
    assert make_grader("exact").grade(answer, reference).score == score


def test_choice_takes_references_as_they_are_written() -> None:
    grader = make_grader("choice")
    right = [grader.grade(r"\boxed{B}", reference).score for reference in ("B", "(B)", " b ", "B. red", "1")]
    assert right == [1.0] * 5
    assert [grader.grade(r"\boxed{B}", reference).score for reference in ("A", "2", "(C)")] == [0.0] * 3
    assert grader.grade("The answer is (K).", "K").score == 1.0
    with pytest.raises(GradingError, match="not a letter"):
        grader.grade(r"\boxed{B}", "12")


@pytest.mark.parametrize(
    ("reference", "answer", "score"),
    [
        ("No", "No.", 1.0),
        ("No", "**No**", 1.0),
        ("No", "So the answer is No.", 1.0),
        ("No", "The answer is **no**.", 1.0),
        ("No", r"\boxed{\text{No}}", 1.0),
        ("No", "Yes", 0.0),
        ("No", "Nobody", 0.0),
        ("No", "The answer is Yes, not No", 0.0),
        ("北京", "北京。", 1.0),
        ("北京", "答案是：北京。", 1.0),
        ("北京", "上海", 0.0),
        ("ABC", "ＡＢＣ", 1.0),
        ("(A)", "A", 1.0),
        ("Paris", '"Paris"', 1.0),
        ("-5", "5", 0.0),
        ("valid", "invalid", 0.0),
    ],
)
def test_exact_looks_past_marks_and_sentences(reference: str, answer: str, score: float) -> None:
    assert make_grader("exact").grade(answer, reference).score == score


def test_none_leaves_everything_unscored() -> None:
    assert make_grader("none").grade(r"\boxed{5}", "5") == Grade(score=None, predicted_answer="5")


def test_stored_answers_are_short_and_storable() -> None:
    grade = make_grader("exact").grade("\\boxed{a\0" + "b" * 5000 + "}", "c")
    assert grade.predicted_answer is not None
    assert len(grade.predicted_answer) == 1000
    assert "\0" not in grade.predicted_answer


def test_versions_name_what_a_grade_depends_on() -> None:
    from importlib.metadata import version

    assert make_grader("math").version == f"math/3+math-verify-{version('math-verify')}"
    assert {make_grader(name).name for name in grader_names()} == set(grader_names())


def test_unknown_grader_lists_the_known() -> None:
    with pytest.raises(ConfigurationError, match="no grader 'maths'; there are math, exact, choice, code, none"):
        make_grader("maths")


@settings(max_examples=50, deadline=None)
@given(st.text(), st.sampled_from(["exact", "choice", "none"]))
def test_any_text_can_be_graded(text: str, name: str) -> None:
    assert make_grader(name).grade(text, "A").score in (0.0, 1.0, None)


@settings(max_examples=40, deadline=None)
@given(st.text(st.sampled_from(r"\{}^_$ 019x+-=.,/fracsqt()"), max_size=20))
def test_math_gives_a_score_for_whatever_a_model_wrote(formula: str) -> None:
    try:
        score = make_grader("math").grade(rf"\boxed{{{formula}}}", "7").score
    except GradingError as error:
        score = None if "too long" in str(error) else float("nan")
    assert score in (0.0, 1.0, None)
