"""The paper's four sets, from files in the columns they were published in."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.chat.prompts import render_user_message
from pipeline.errors import ConfigurationError, ProblemSetError
from pipeline.grading import make_grader
from pipeline.jobs.recipes import find_recipe, recipe_names
from pipeline.problems import Problem, ProblemSet

DATA = Path(__file__).parent / "data" / "recipes"
FILES = {"math500": "math500.jsonl", "aime": "aime.csv", "gpqa-diamond": "gpqa_diamond.csv", "amc23": "amc23.csv"}


def load(name: str) -> ProblemSet:
    return find_recipe(name).load(DATA / FILES[name])


def test_the_papers_four_sets_come_first() -> None:
    assert recipe_names()[:4] == tuple(FILES)


@pytest.mark.parametrize("name", FILES)
def test_recipe_samples_and_asks_as_the_paper_did(name: str) -> None:
    recipe = find_recipe(name)
    sampling = recipe.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_tokens) == (0.6, 0.95, 50, 32_768)
    assert load(name).name == name
    for problem in load(name).problems:
        message = render_user_message(recipe.prompt_template, problem)
        assert message.startswith("Please reason step by step, and put ")
        assert problem.prompt in message


@pytest.mark.parametrize("name", FILES)
def test_reference_is_what_the_recipes_grader_takes(name: str) -> None:
    grader = make_grader(find_recipe(name).grader)
    for problem in load(name).problems:
        assert grader.grade(f"so \\boxed{{{problem.answer}}}", problem.answer).score == 1.0


@pytest.mark.parametrize("name", FILES)
def test_solutions_are_left_out_of_what_generating_workers_can_read(name: str) -> None:
    for problem in load(name).problems:
        assert problem.metadata.keys() <= {"choices"}


def test_math500_keeps_ids_subjects_and_levels() -> None:
    first, second = load("math500").problems
    assert (first.external_id, first.answer, first.subject, first.level) == (
        "test/prealgebra/9001.json", "\\frac{1}{2}", "Prealgebra", "2",
    )  # fmt: skip
    assert second.answer == "-7"


@pytest.mark.parametrize(("name", "answers"), [("aime", ["045", "14"]), ("amc23", ["15.0"])])
def test_problems_of_other_years_are_left_out(name: str, answers: list[str]) -> None:
    assert [problem.answer for problem in load(name).problems] == answers


def test_file_of_other_years_only_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "old.csv"
    file.write_text("problem,answer,url\n1+1?,2,https://host/2019_AIME_I\n")
    with pytest.raises(ProblemSetError, match="no problem of AIME 2022 to 2024"):
        find_recipe("aime").load(file)


def gpqa(problem: Problem) -> tuple[list[str], str]:
    return problem.metadata["choices"], problem.answer or ""


RIGHT = {"recAAA": "20 m", "recBBB": "Argon", "recCCC": "Thymine"}


def test_gpqa_letter_names_the_right_option() -> None:
    for problem in load("gpqa-diamond").problems:
        choices, letter = gpqa(problem)
        assert choices["ABCD".index(letter)] == RIGHT[problem.external_id]
        assert len(set(choices)) == 4


def test_gpqa_options_are_shuffled_the_same_way_each_time_whatever_the_files_order(tmp_path: Path) -> None:
    header, *rows = (DATA / "gpqa_diamond.csv").read_text().split("\n(a draft)")
    turned = tmp_path / "turned.csv"
    turned.write_text("\n(a draft)".join([header, *[row.rstrip("\n") for row in reversed(rows)]]) + "\n")
    loaded, again = load("gpqa-diamond"), find_recipe("gpqa-diamond").load(turned)
    assert {p.external_id: gpqa(p) for p in loaded.problems} == {p.external_id: gpqa(p) for p in again.problems}
    assert {gpqa(p)[1] for p in loaded.problems} != {"A"}
    assert load("gpqa-diamond").content_sha256 == loaded.content_sha256


def test_gpqa_right_answers_are_spread_over_the_letters(tmp_path: Path) -> None:
    lines = [f"Question {i}?,yes {i},no {i},never {i},nowhere {i},rec{i},Physics" for i in range(400)]
    columns = "Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3,Record ID"
    (tmp_path / "many.csv").write_text("\n".join([f"{columns},High-level domain", *lines]) + "\n")
    letters = [gpqa(problem)[1] for problem in find_recipe("gpqa-diamond").load(tmp_path / "many.csv").problems]
    assert all(70 <= letters.count(letter) <= 130 for letter in "ABCD")


@pytest.mark.parametrize(
    ("row", "told"), [("Which?,a,,c,d", "'Incorrect Answer 1' is empty"), ("Which?,a,a,c,d", "are the same")]
)
def test_gpqa_row_without_four_answers_is_refused_with_its_line(tmp_path: Path, row: str, told: str) -> None:
    columns = "Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3"
    (tmp_path / "bad.csv").write_text(f"{columns},Record ID,High-level domain\n{row},r,Physics\n")
    with pytest.raises(ProblemSetError, match=f"line 2: .*{told}"):
        find_recipe("gpqa-diamond").load(tmp_path / "bad.csv")


def test_file_in_other_columns_is_refused() -> None:
    with pytest.raises(ProblemSetError, match="Question"):
        find_recipe("gpqa-diamond").load(DATA / "math500.jsonl")


def test_unknown_recipe_lists_the_known() -> None:
    with pytest.raises(ConfigurationError, match="math500, aime, gpqa-diamond, amc23"):
        find_recipe("nosuch")
