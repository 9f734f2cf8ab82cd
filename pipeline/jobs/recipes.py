"""Published sets as recipes: data that say how a file in the columns of its publication becomes a problem set.

The first four are the sets of arXiv 2504.12329, asked, sampled and graded as there. A file is the user's own; a set of
a hub is fetched where it is asked for. What stands beside question and answer is hidden from those who generate.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection
from dataclasses import dataclass, replace
from os import PathLike

from pipeline.errors import ConfigurationError, ProblemSetError
from pipeline.jobs.code_sets import CodeForm, with_tests
from pipeline.jobs.config import SamplingSpec
from pipeline.problems import AnswerForm, ColumnNames, Problem, ProblemSet, content_sha256, load_problem_set

OPTION_SEED = 0
"""Of the order of a multiple choice's options: the same for every job, so that jobs can be paired by problem."""

PAPER_SAMPLING = SamplingSpec(temperature=0.6, top_p=0.95, top_k=50, max_tokens=32_768)
"""Paper: 0.6 and 0.95, 32,768 tokens at most; top_k is of its released code."""

_LETTERS = "ABCD"
_USUAL = ColumnNames()
_SAMPLING = SamplingSpec()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one published set becomes a job.

    columns: of the published file; what is None takes the usual ones. kept: columns that those who generate may read.
    published: where its columns are described. url_years: leave out problems whose url names none of these years; a
    file without a url is taken whole. shuffles_choices: the file has the right choice first; their order is drawn for
    each problem by its text alone, so that neither the file's order nor its format matters. code: how the file says
    which tests an answer must pass. hub: where it is published, as OWNER/SET[:CONFIG][#SPLIT].
    """

    name: str
    title: str
    published: str
    columns: ColumnNames = _USUAL
    kept: tuple[str, ...] = ()
    url_years: tuple[int, ...] = ()
    shuffles_choices: bool = False
    has_answers: bool = True
    code: CodeForm | None = None
    prompt_template: str = "math"
    grader: str = "math"
    sampling: SamplingSpec = _SAMPLING
    hub: str | None = None

    def load(self, path: str | PathLike[str], *, keep: Collection[str] = ()) -> ProblemSet:
        """The problem set that this recipe makes of a file. Raises ProblemSetError."""
        read = load_problem_set(path, name=self.name, columns=self.columns, keep=(*self.kept, *keep))
        problems, places, faults = [], [], []
        for problem, place in zip(read.problems, read.places, strict=True):
            if not self._is_wanted(problem):
                continue
            try:
                problems.append(self._made(problem))
                places.append(place)
            except ValueError as error:
                faults.append(f"{place}: {error}")
        if not problems and not faults:
            faults = [f"it holds no problem of {self.title}"]
        if faults:
            raise ProblemSetError(read.source, faults[:10])
        return replace(read, content_sha256=content_sha256(problems), problems=tuple(problems), places=tuple(places))

    def _is_wanted(self, problem: Problem) -> bool:
        url = str(problem.hidden.get("url", ""))
        return not (url and self.url_years) or any(str(year) in url for year in self.url_years)

    def _made(self, problem: Problem) -> Problem:
        if self.code is not None:
            problem = with_tests(problem, self.code)
        if self.has_answers and problem.answer is None:
            raise ValueError(f"no answer; {self.title} has one for every problem")
        return _shuffle_choices(problem) if self.shuffles_choices else problem


def _shuffle_choices(problem: Problem) -> Problem:
    """The four choices in an order drawn for this problem, and the letter of the first one there."""
    choices = [choice.strip() for choice in problem.metadata.get("choices", ())]
    if len(choices) != len(_LETTERS):
        raise ValueError(f"it has {len(choices)} choices instead of {len(_LETTERS)}")
    if len(set(choices)) < len(choices):
        raise ValueError("two of its four answers are the same")
    order = list(range(len(choices)))
    seed = hashlib.sha256(f"{OPTION_SEED}\n{problem.prompt}".encode()).digest()
    random.Random(int.from_bytes(seed, "big")).shuffle(order)
    shuffled = [choices[index] for index in order]
    return replace(problem, answer=_LETTERS[order.index(0)], metadata={**problem.metadata, "choices": shuffled})


_PAPER = (
    Recipe(
        name="math500",
        title="MATH-500",
        hub="HuggingFaceH4/MATH-500#test",
        published="problem, solution, answer, subject, level, unique_id",
        columns=ColumnNames(problem="problem", answer="answer", id="unique_id", subject="subject", level="level"),
        prompt_template="paper-math",
        sampling=PAPER_SAMPLING,
    ),
    Recipe(
        name="aime",
        title="AIME 2022 to 2024",
        hub="AI-MO/aimo-validation-aime#train",
        published="id, problem, solution, answer, url",
        url_years=(2022, 2023, 2024),
        prompt_template="paper-math",
        sampling=PAPER_SAMPLING,
    ),
    Recipe(
        name="gpqa-diamond",
        title="GPQA Diamond",
        hub="Idavidrein/gpqa:gpqa_diamond#train",
        published="Question, Correct Answer, Incorrect Answer 1 to 3, Subdomain, High-level domain, Record ID",
        columns=ColumnNames(
            problem="Question",
            answer="Correct Answer",
            choices="Correct Answer+Incorrect Answer 1+Incorrect Answer 2+Incorrect Answer 3",
            id="Record ID",
            subject="High-level domain",
            answer_as=AnswerForm.FIRST,
        ),
        shuffles_choices=True,
        prompt_template="paper-choice",
        grader="choice",
        sampling=PAPER_SAMPLING,
    ),
    Recipe(
        name="amc23",
        title="AMC 2023",
        hub="math-ai/amc23#test",
        published="id, question (or problem), answer, url",
        url_years=(2023,),
        prompt_template="paper-math",
        sampling=PAPER_SAMPLING,
    ),
)

_MATHEMATICS = (
    Recipe(
        name="gsm8k",
        title="GSM8K",
        hub="openai/gsm8k:main#test",
        published="question, answer (a solution that ends in #### and the number)",
        columns=ColumnNames(problem="question", answer="answer", answer_as=AnswerForm.HASHES),
    ),
    Recipe(
        name="math",
        title="MATH",
        published="problem, level, type, solution (its answer is boxed)",
        columns=ColumnNames(
            problem="problem", answer="solution", subject="type", level="level", answer_as=AnswerForm.BOXED
        ),
    ),
    Recipe(
        name="aime-1983-2024",
        title="AIME 1983 to 2024",
        published="ID, Year, Problem Number, Question, Answer, Part",
        columns=ColumnNames(problem="Question", answer="Answer", id="ID"),
    ),
    Recipe(
        name="aime25",
        title="AIME 2025",
        hub="math-ai/aime25#test",
        published="problem (or question), answer, id (or problem_idx)",
    ),
    Recipe(name="amc", title="AMC 2022 and 2023", published="problem (or prompt), answer, id"),
    Recipe(
        name="hmmt",
        title="HMMT",
        hub="MathArena/hmmt_feb_2025#train",
        published="problem_idx, problem, answer, problem_type",
    ),
    Recipe(
        name="brumo",
        title="BRUMO",
        hub="MathArena/brumo_2025#train",
        published="problem_idx, problem, answer, problem_type",
    ),
    Recipe(
        name="minerva", title="Minerva Math", hub="math-ai/minervamath#test", published="question (or problem), answer"
    ),
    Recipe(
        name="olympiadbench",
        title="OlympiadBench, open-ended mathematics in text",
        hub="Hothan/OlympiadBench:OE_TO_maths_en_COMP#train",
        published="id, context, question, solution, final_answer (a list), is_multiple_answer, subfield, unit",
        columns=ColumnNames(
            problem="context+question",
            answer="final_answer",
            id="id",
            subject="subfield",
            answer_as=AnswerForm.ALL_OF,
        ),
    ),
    Recipe(
        name="svamp",
        title="SVAMP",
        published="ID, Body, Question, Equation, Answer, Type",
        columns=ColumnNames(problem="Body+Question", answer="Answer", id="ID", subject="Type"),
    ),
    Recipe(
        name="cmath",
        title="CMATH",
        published="input, golden, grade, reasoning_step, num_digits",
        columns=ColumnNames(problem="input", answer="golden", level="grade"),
    ),
    Recipe(
        name="theoremqa",
        title="TheoremQA",
        published="Question, Answer, Answer_type, Picture",
        columns=ColumnNames(problem="Question", answer="Answer", subject="Answer_type"),
    ),
)


def _choice(name: str, title: str, published: str, columns: ColumnNames, hub: str | None = None) -> Recipe:
    return Recipe(
        name=name, title=title, published=published, columns=columns, prompt_template="choice", grader="choice", hub=hub
    )


_CHOICES = (
    _choice(
        "aqua",
        "AQuA-RAT",
        "question, options (each begins with its letter), rationale, correct",
        ColumnNames(problem="question", choices="options", answer="correct", answer_as=AnswerForm.LETTER),
    ),
    _choice(
        "arc",
        "ARC",
        "id, question, choices (text and label), answerKey",
        ColumnNames(problem="question", choices="choices", answer="answerKey", id="id", answer_as=AnswerForm.LABEL),
        "allenai/ai2_arc:ARC-Challenge#test",
    ),
    _choice(
        "medmcqa",
        "MedMCQA",
        "id, question, opa, opb, opc, opd, cop, exp, subject_name",
        ColumnNames(
            problem="question",
            choices="opa+opb+opc+opd",
            answer="cop",
            id="id",
            subject="subject_name",
            answer_as=AnswerForm.INDEX0,
        ),
    ),
    _choice(
        "mmlu",
        "MMLU",
        "question, subject (or type), choices, answer (0 to 3)",
        ColumnNames(problem="question", choices="choices", answer="answer", answer_as=AnswerForm.INDEX0),
        "cais/mmlu:all#test",
    ),
    _choice(
        "mmlu-pro",
        "MMLU-Pro",
        "question_id, question, options, answer, answer_index, cot_content, category, src",
        ColumnNames(
            problem="question",
            choices="options",
            answer="answer",
            id="question_id",
            subject="category",
            answer_as=AnswerForm.LETTER,
        ),
        "TIGER-Lab/MMLU-Pro#test",
    ),
    _choice(
        "supergpqa",
        "SuperGPQA",
        "uuid, question, options, answer, answer_letter, discipline, field, subfield, difficulty",
        ColumnNames(
            problem="question",
            choices="options",
            answer="answer_letter",
            id="uuid",
            subject="discipline",
            level="difficulty",
            answer_as=AnswerForm.LETTER,
        ),
        "m-a-p/SuperGPQA#train",
    ),
)

_OTHERS = (
    Recipe(
        name="bbh",
        title="BIG-Bench Hard",
        hub="lukaemon/bbh:all#test",
        published="input (or question), target",
        columns=ColumnNames(answer="target", choices=""),
        grader="exact",
    ),
    Recipe(
        name="humaneval",
        title="HumanEval",
        hub="openai/openai_humaneval#test",
        published="task_id, prompt, canonical_solution, test, entry_point",
        columns=ColumnNames(problem="prompt", id="task_id", answer=""),
        code=CodeForm.HUMANEVAL,
        prompt_template="code",
        grader="code",
    ),
    Recipe(
        name="mbpp",
        title="MBPP",
        published="task_id, text, code, test_list, test_setup_code",
        columns=ColumnNames(problem="text", id="task_id", answer=""),
        code=CodeForm.MBPP,
        prompt_template="code",
        grader="code",
    ),
    Recipe(
        name="mbpp-sanitized",
        title="MBPP, sanitized",
        published="task_id, prompt, code, test_list, test_imports",
        columns=ColumnNames(problem="prompt", id="task_id", answer=""),
        code=CodeForm.MBPP,
        prompt_template="code",
        grader="code",
    ),
    Recipe(
        name="livecodebench",
        title="LiveCodeBench",
        published="question_content, question_id, platform, starter_code, public_test_cases, difficulty",
        columns=ColumnNames(
            problem="question_content", id="question_id", subject="platform", level="difficulty", answer=""
        ),
        has_answers=False,
        prompt_template="free",
        grader="none",
    ),
)

RECIPES = {recipe.name: recipe for recipe in (*_PAPER, *_MATHEMATICS, *_CHOICES, *_OTHERS)}


def recipe_names() -> tuple[str, ...]:
    return tuple(RECIPES)


def find_recipe(name: str) -> Recipe:
    """Raises ConfigurationError with the names there are."""
    if name not in RECIPES:
        raise ConfigurationError(f"there is no recipe {name!r}; there are {', '.join(recipe_names())}")
    return RECIPES[name]
