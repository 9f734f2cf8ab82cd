"""Makes the problems of a judge of a job's complete samples; answers that would be asked alike are asked once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pipeline.chat.prompts import PromptTemplate, render_question
from pipeline.grading import Ending, Grader, answer_part, why_no_answer
from pipeline.judging.prompts import ANSWER, PREDICTED_ANSWER, QUESTION, REFERENCE, JudgeTemplate
from pipeline.problems import Problem, ProblemSet, content_sha256

DEFAULT_ANSWER_CHARS = 8_000
"""Of an answer so much of its end is shown: some 2,500 tokens, and a result stands at the end."""
_LEFT_OUT = "[…]\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompleteSample:
    """A complete sample of the judged job, with all that a judge may be told.

    epoch: of this text; a sample that is drawn again has another. problem: with its reference answers where they were
    read.
    """

    sample_id: int
    epoch: int
    problem_id: int
    problem: Problem
    output: str
    ending: Ending
    predicted_answer: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a sample is judged. asked_as: the judge's problem by its id in the set; None: the sample has no answer."""

    sample_id: int
    epoch: int
    asked_as: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeProblems:
    """What a judge is asked, and where each sample is judged. num_unreferenced: samples that are left out, because the
    template shows the reference answer and their problem has none."""

    problems: ProblemSet
    places: tuple[Place, ...] = field(repr=False)
    num_unreferenced: int

    @property
    def num_judged(self) -> int:
        return sum(place.asked_as is not None for place in self.places)

    @property
    def num_unanswered(self) -> int:
        return len(self.places) - self.num_judged


def make_problems(
    samples: Iterable[CompleteSample],
    *,
    name: str,
    template: JudgeTemplate,
    asked_with: PromptTemplate,
    grader: Grader,
    answer_chars: int = DEFAULT_ANSWER_CHARS,
) -> JudgeProblems:
    """asked_with, grader: of the judged job. name: of the set; it is part of its version."""
    problems: dict[tuple[int, str], Problem] = {}
    places: list[Place] = []
    num_unreferenced = 0
    for sample in samples:
        if template.tells_reference and sample.problem.answer is None:
            num_unreferenced += 1
            continue
        asked_as = None
        texts = _texts(sample, asked_with, answer_chars)
        if why_no_answer(grader, sample.output, sample.ending) is None and _shows_any(template, texts):
            prompt = template.render(texts)
            problem = problems.setdefault((sample.problem_id, prompt), _problem(sample, prompt))
            asked_as = problem.external_id
        places.append(Place(sample_id=sample.sample_id, epoch=sample.epoch, asked_as=asked_as))
    asked = tuple(problems.values())
    version = hashlib.sha256(f"{name}\n{content_sha256(asked)}".encode()).hexdigest()
    return JudgeProblems(
        problems=ProblemSet(name=name, content_sha256=version, problems=asked),
        places=tuple(places),
        num_unreferenced=num_unreferenced,
    )


def _problem(sample: CompleteSample, prompt: str) -> Problem:
    """Under the number of the first sample that it judges."""
    judged = sample.problem
    return Problem(external_id=f"sample {sample.sample_id}", prompt=prompt, subject=judged.subject, level=judged.level)


def _shows_any(template: JudgeTemplate, texts: Mapping[str, str]) -> bool:
    """Whether there is an answer in what the template shows of it."""
    return any(texts[name] for name in template.fields & {ANSWER, PREDICTED_ANSWER})


def _texts(sample: CompleteSample, asked_with: PromptTemplate, answer_chars: int) -> dict[str, str]:
    return {
        QUESTION: render_question(asked_with, sample.problem),
        ANSWER: _end_of(answer_part(sample.output, end=sample.ending.think_end).strip(), answer_chars),
        PREDICTED_ANSWER: sample.predicted_answer or "",
        REFERENCE: _reference(sample.problem),
    }


def _end_of(text: str, num_chars: int) -> str:
    return text if len(text) <= num_chars else _LEFT_OUT + text[-num_chars:]


def _reference(problem: Problem) -> str:
    if not problem.also_accepted:
        return problem.answer or ""
    return "\n".join(["Any one of these:", *(f"- {answer}" for answer in (problem.answer, *problem.also_accepted))])
