"""Sets in the columns and types of their publication, in rows of our own: what is asked, right and hidden."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.chat.prompts import render_user_message
from pipeline.grading import make_grader
from pipeline.jobs.recipes import find_recipe
from pipeline.jobs.references import check_references
from pipeline.problems import ColumnNames, ProblemSet, load_problem_set

COLOURS = ["red", "green", "blue", "black", "white", "grey", "pink", "brown", "gold", "teal"]
SECRET = "because-7f3a-of-the-sky"
"""Stands in every column that tells the answer or how to find it."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A set: its recipe, one row, what its prompt must show, its reference, and a right answer."""

    recipe: str
    row: dict[str, Any]
    shown: tuple[str, ...]
    answer: str | None
    right: str = ""
    plain: ColumnNames | None = field(default_factory=ColumnNames)
    """Columns without the recipe; None where it needs the recipe."""
    in_parquet: bool = False


SKY = "What colour is the sky?"
SETS = [
    Published(
        recipe="math500",
        row={
            "problem": "1+1?", "solution": SECRET, "answer": "2", "subject": "Algebra", "level": 2,
            "unique_id": "test/1.json",
        },
        shown=("1+1?",), answer="2", right=r"\boxed{2}",
    ),
    Published(
        recipe="gsm8k", row={"question": "1+1?", "answer": f"{SECRET} <<1+1=2>>2.\n#### 5,600"},
        shown=("1+1?",), answer="5600", right=r"\boxed{5600}",
    ),
    Published(
        recipe="aime",
        row={"id": 60, "problem": "1+1?", "solution": SECRET, "answer": "204", "url": "u/2024_AIME_I", "year": "2024"},
        shown=("1+1?",), answer="204", right=r"\boxed{204}",
    ),
    Published(
        recipe="aime",
        row={"ID": "2024-II-4", "Problem": "1+1?", "Solution": SECRET, "Answer": 33},
        shown=("1+1?",), answer="33", right=r"\boxed{033}",
    ),
    Published(
        recipe="aime25", row={"problem_idx": 1, "problem": "1+1?", "answer": 70, "problem_type": ["Number Theory"]},
        shown=("1+1?",), answer="70", right=r"\boxed{70}", in_parquet=True,
    ),
    Published(
        recipe="amc23", row={"id": 0, "question": "1+1?", "answer": 27.0, "url": "u/2023_AMC_12A"},
        shown=("1+1?",), answer="27.0", right=r"\boxed{27}",
    ),
    Published(
        recipe="gpqa-diamond",
        row={
            "Question": SKY, "Correct Answer": "blue", "Incorrect Answer 1": "red", "Incorrect Answer 2": "green",
            "Incorrect Answer 3": "grey", "Explanation": SECRET, "Subdomain": "Optics",
            "High-level domain": "Physics", "Record ID": "rec1",
        },
        shown=(SKY, "red", "blue", "grey"), answer=None, plain=None,
    ),
    Published(
        recipe="olympiadbench",
        row={
            "id": 1606, "subfield": "Algebra", "context": "Let n=3.", "question": "Both roots?", "solution": [SECRET],
            "final_answer": ["4", "7"], "is_multiple_answer": True, "unit": None, "answer_type": "Numerical",
        },
        shown=("Let n=3.", "Both roots?"), answer="4, 7", right=r"\boxed{4, 7}", plain=None,
    ),
    Published(
        recipe="minerva", row={"question": "1+1?", "answer": "2"}, shown=("1+1?",), answer="2", right=r"\boxed{2}"
    ),
    Published(
        recipe="livecodebench",
        row={
            "question_title": "t", "question_content": "Write f.", "platform": "p", "question_id": "1_A",
            "contest_date": "d", "starter_code": "", "difficulty": "easy", "public_test_cases": SECRET,
            "private_test_cases": SECRET, "metadata": "{}",
        },
        shown=("Write f.",), answer=None,
    ),
    Published(
        recipe="mmlu-pro",
        row={
            "question_id": 70, "question": SKY, "options": COLOURS, "answer": "C", "answer_index": 2,
            "cot_content": f"A: {SECRET}. The answer is (C).", "category": "physics", "src": "x",
        },
        shown=(SKY, "(C) blue", "(J) teal"), answer="C", right=r"\boxed{C}", in_parquet=True,
    ),
    Published(
        recipe="supergpqa",
        row={
            "uuid": "u1", "question": SKY, "options": COLOURS, "answer": "blue", "answer_letter": "C",
            "discipline": "Science", "field": "Physics", "subfield": "Optics", "difficulty": "middle",
        },
        shown=(SKY, "(C) blue"), answer="C", right=r"\boxed{C}",
    ),
    Published(
        recipe="bbh", row={"input": f"{SKY}\nOptions:\n(A) red\n(B) blue", "target": "(B)"},
        shown=(SKY, "(B) blue"), answer="(B)", right=r"\boxed{(B)}",
    ),
    Published(
        recipe="arc",
        row={
            "id": "Q1", "question": SKY, "choices": {"text": COLOURS[:4], "label": ["1", "2", "3", "4"]},
            "answerKey": "3",
        },
        shown=(SKY, "(C) blue"), answer="C", right=r"\boxed{C}", in_parquet=True,
    ),
    Published(
        recipe="hmmt",
        row={"problem_idx": 1, "problem": "1+1?", "answer": "2", "problem_type": ["Algebra", "Geometry"]},
        shown=("1+1?",), answer="2", right=r"\boxed{2}", in_parquet=True,
    ),
    Published(
        recipe="humaneval",
        row={
            "task_id": "HumanEval/0", "prompt": "def f():", "canonical_solution": SECRET, "test": SECRET,
            "entry_point": "f",
        },
        shown=("def f():",), answer=None,
    ),
    Published(
        recipe="mbpp",
        row={
            "task_id": 2, "text": "Write a function to add.", "code": f"def add(a, b):\n    return a + b  # {SECRET}",
            "test_list": [f"assert add(1, 2) == 3  # {SECRET}"], "test_setup_code": "", "challenge_test_list": [SECRET],
        },
        shown=("Write a function to add.", "`def add(a, b)`"), answer=None, plain=None,
    ),
    Published(
        recipe="math", row={"problem": "1+1?", "level": "Level 1", "type": "Algebra",
                            "solution": SECRET + r" so $\boxed{\frac{4}{2}}$."},
        shown=("1+1?",), answer=r"\frac{4}{2}", right=r"\boxed{2}",
    ),
    Published(
        recipe="svamp",
        row={
            "ID": "chal-1", "Body": "There are 3 red and 4 blue cups.", "Question": "How many cups are there?",
            "Equation": SECRET, "Answer": 7.0, "Type": "Addition",
        },
        shown=("3 red and 4 blue", "How many"), answer="7.0", right=r"\boxed{7}",
    ),
    Published(
        recipe="mmlu", row={"question": SKY, "subject": "astronomy", "choices": COLOURS[:4], "answer": 2},
        shown=(SKY, "(C) blue"), answer="C", right=r"\boxed{C}", in_parquet=True,
    ),
    Published(
        recipe="aqua",
        row={"question": SKY, "options": ["A)red", "B)blue", "C)5(x + 1)"], "rationale": SECRET, "correct": "B"},
        shown=(SKY, "(B) blue", "(C) 5(x + 1)"), answer="B", right=r"\boxed{B}",
    ),
    Published(
        recipe="medmcqa",
        row={
            "id": "m1", "question": SKY, "opa": "red", "opb": "blue", "opc": "green", "opd": "grey", "cop": 1,
            "exp": SECRET, "subject_name": "Optics",
        },
        shown=(SKY, "(B) blue"), answer="B", right=r"\boxed{B}", plain=ColumnNames(answer="cop"),
    ),
    Published(
        recipe="cmath", row={"grade": 1, "input": "1+1?", "golden": "2", "reasoning_step": 1, "num_digits": 1},
        shown=("1+1?",), answer="2", right=r"\boxed{2}",
    ),
    Published(
        recipe="theoremqa",
        row={
            "Question": "1+1?", "Answer": "2", "Answer_type": "integer",
            "Picture": {"bytes": b"\x89PNG", "path": None},
        },
        shown=("1+1?",), answer="2", right=r"\boxed{2}", in_parquet=True,
    ),
]  # fmt: skip


def write(folder: Path, published: Published) -> Path:
    if published.in_parquet:
        file = folder / "set.parquet"
        pq.write_table(pa.Table.from_pylist([published.row]), file)
    else:
        file = folder / "set.jsonl"
        file.write_text(json.dumps(published.row) + "\n")
    return file


def named(published: Published) -> str:
    return f"{published.recipe}, {', '.join(published.row)}"


def check(loaded: ProblemSet, published: Published, prompt: str, grader: str) -> None:
    (problem,) = loaded.problems
    message = render_user_message(prompt, problem.as_shown())
    for text in published.shown:
        assert text in message
    if published.answer is not None:
        assert problem.answer == published.answer
        check_references(loaded, 1, grader)
    if published.right:
        assert make_grader(grader).grade(published.right, problem.answer).score == 1.0
    readable = json.dumps([problem.external_id, problem.prompt, problem.metadata])
    assert SECRET not in readable + message
    assert problem.metadata.keys() <= {"choices"}


@pytest.mark.parametrize("published", SETS, ids=named)
def test_recipe_takes_the_set_as_it_was_published(tmp_path: Path, published: Published) -> None:
    recipe = find_recipe(published.recipe)
    check(recipe.load(write(tmp_path, published)), published, recipe.prompt_template, recipe.grader)


@pytest.mark.parametrize("published", [each for each in SETS if each.plain is not None], ids=named)
def test_usual_columns_take_the_set_too(tmp_path: Path, published: Published) -> None:
    loaded = load_problem_set(write(tmp_path, published), columns=published.plain)
    recipe = find_recipe(published.recipe)
    check(loaded, published, "choice" if loaded.has_choices else "math", recipe.grader)


def test_right_choice_is_found_wherever_the_recipe_puts_it(tmp_path: Path) -> None:
    published = next(each for each in SETS if each.recipe == "gpqa-diamond")
    (problem,) = find_recipe("gpqa-diamond").load(write(tmp_path, published)).problems
    assert problem.answer is not None
    assert problem.metadata["choices"]["ABCD".index(problem.answer)] == "blue"


def test_what_a_set_says_beside_its_question_is_kept_for_graders_and_people(tmp_path: Path) -> None:
    published = next(each for each in SETS if each.recipe == "mmlu-pro")
    (problem,) = find_recipe("mmlu-pro").load(write(tmp_path, published)).problems
    assert problem.hidden["cot_content"].endswith("The answer is (C).")
    assert problem.hidden["answer_index"] == 2
    assert (problem.external_id, problem.subject) == ("70", "physics")
