"""The four sets of arXiv 2504.12329 as recipes: from a file in the columns they were published in to a problem set.

A recipe says how the paper asked, sampled and graded. The files are the user's own; nothing is fetched. What
stands beside question and answer is hidden from those who generate.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigurationError, ProblemSetError
from pipeline.jobs.config import SamplingSpec
from pipeline.problems import ColumnNames, Problem, ProblemSet, content_sha256, load_problem_set

OPTION_SEED = 0
"""Of the order of a multiple choice's options: the same for every job, so that jobs can be paired by problem."""

PAPER_SAMPLING = SamplingSpec(temperature=0.6, top_p=0.95, top_k=50, max_tokens=32_768)
"""Paper: 0.6 and 0.95, 32,768 tokens at most; top_k is of its released code."""

_GPQA_WRONG = tuple(f"Incorrect Answer {number}" for number in (1, 2, 3))
_GPQA_RIGHT = "Correct Answer"
_LETTERS = "ABCD"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one published set becomes a job.

    columns: of the published file; None takes the usual ones. kept: columns that those who generate may read. convert: a problem as it was read, with all its columns, to what is asked; None: leave it out.
    published: where its columns are described.
    """

    name: str
    title: str
    published: str
    columns: ColumnNames | None = None
    kept: tuple[str, ...] = ()
    convert: Callable[[Problem], Problem | None] | None = None
    prompt_template: str = "paper-math"
    grader: str = "math"
    sampling: SamplingSpec = PAPER_SAMPLING

    def load(self, path: str | PathLike[str]) -> ProblemSet:
        """The problem set that this recipe makes of a file. Raises ProblemSetError."""
        read = load_problem_set(path, columns=self.columns, keep=self.kept)
        problems, places, faults = [], [], []
        for problem, place in zip(read.problems, read.places, strict=True):
            try:
                made = self.convert(problem) if self.convert else problem
                if made is not None:
                    problems.append(self._checked(made))
                    places.append(place)
            except ValueError as error:
                faults.append(f"{place}: {error}")
        if not problems and not faults:
            faults = [f"it holds no problem of {self.title}"]
        if faults:
            raise ProblemSetError(str(path), faults[:10])
        return ProblemSet(
            name=self.name,
            content_sha256=content_sha256(problems),
            problems=tuple(problems),
            source=str(Path(path)),
            places=tuple(places),
        )

    def _checked(self, problem: Problem) -> Problem:
        if problem.answer is None:
            raise ValueError(f"no answer; {self.title} has one for every problem")
        return problem


def _of_years(*years: int) -> Callable[[Problem], Problem | None]:
    """Leaves out problems whose url names none of these years; files without a url are taken whole."""

    def convert(problem: Problem) -> Problem | None:
        url = str(problem.hidden.get("url", ""))
        return problem if not url or any(str(year) in url for year in years) else None

    return convert


def _shuffle_options(problem: Problem) -> Problem:
    """The four answers in an order drawn for this problem, and the letter of the right one.

    The draw depends on the problem's text alone: neither the file's order nor its format matters.
    """
    answers = [problem.answer, *(problem.hidden.get(column) for column in _GPQA_WRONG)]
    missing = [column for column, answer in zip((_GPQA_RIGHT, *_GPQA_WRONG), answers, strict=True) if answer is None]
    if missing:
        raise ValueError(f"{missing[0]!r} is empty")
    options = [_option(answer) for answer in answers]
    if len(set(options)) < len(options):
        raise ValueError("two of its four answers are the same")
    order = list(range(len(options)))
    seed = hashlib.sha256(f"{OPTION_SEED}\n{problem.prompt}".encode()).digest()
    random.Random(int.from_bytes(seed, "big")).shuffle(order)
    return replace(
        problem,
        answer=_LETTERS[order.index(0)],
        metadata={**problem.metadata, "choices": [options[index] for index in order]},
    )


def _option(answer: Any) -> str:
    return str(answer).strip()


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="math500",
            title="MATH-500",
            published="problem, solution, answer, subject, level, unique_id",
            columns=ColumnNames(problem="problem", answer="answer", id="unique_id", subject="subject", level="level"),
        ),
        Recipe(
            name="aime",
            title="AIME 2022 to 2024",
            published="id, problem, solution, answer, url",
            columns=ColumnNames(problem="problem", answer="answer"),
            convert=_of_years(2022, 2023, 2024),
        ),
        Recipe(
            name="gpqa-diamond",
            title="GPQA Diamond",
            published="Question, Correct Answer, Incorrect Answer 1 to 3, Subdomain, High-level domain, Record ID",
            columns=ColumnNames(problem="Question", answer=_GPQA_RIGHT, id="Record ID", subject="High-level domain"),
            convert=_shuffle_options,
            prompt_template="paper-choice",
            grader="choice",
        ),
        Recipe(
            name="amc23",
            title="AMC 2023",
            published="id, question (or problem), answer, url",
            convert=_of_years(2023),
        ),
    )
}


def recipe_names() -> tuple[str, ...]:
    return tuple(RECIPES)


def find_recipe(name: str) -> Recipe:
    """Raises ConfigurationError with the names there are."""
    if name not in RECIPES:
        raise ConfigurationError(f"there is no recipe {name!r}; there are {', '.join(recipe_names())}")
    return RECIPES[name]
