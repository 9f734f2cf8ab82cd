"""Worked examples that stand before every problem of a job: drawn once at submit, and stored with it."""

from __future__ import annotations

import random
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from pipeline.chat.prompts import PromptTemplate
from pipeline.errors import ConfigurationError
from pipeline.problems import Problem, ProblemSet

Count = Annotated[int, Field(ge=1, le=100)]


class FewShotFile(BaseModel):
    """Examples to be drawn from a file, read as that of the problems is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: Path
    count: Count
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Of the draw; None: the job's."""


class Example(BaseModel):
    """One exchange: what a user asks, and what an assistant replies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str
    reply: str


class FewShot(BaseModel):
    """The examples of a job, in their order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    """The file's base name."""
    content_sha256: str
    """Of the problems in it."""
    seed: int
    """Of the draw."""
    examples: tuple[Example, ...]

    def messages(self) -> tuple[dict[str, str], ...]:
        return tuple(
            message
            for example in self.examples
            for message in (
                {"role": "user", "content": example.question},
                {"role": "assistant", "content": example.reply},
            )
        )


def draw_examples(
    source: ProblemSet, count: int, *, seed: int, template: PromptTemplate, asked: Collection[str]
) -> FewShot:
    """Draw examples of a set. asked: the job's own prompts, none of which may be an example.

    Raises ConfigurationError where there are too few with an answer.
    """
    fitting = [each for each in source.problems if each.answer is not None and each.prompt not in asked]
    if len(fitting) < count:
        raise ConfigurationError(
            f"--few-shot: {source.source or source.name} has {len(fitting)} problems that have an answer and are none "
            f"of the job's own, and {count} are asked for"
        )
    drawn = random.Random(seed).sample(fitting, count)
    return FewShot(
        source=Path(source.source).name or source.name,
        content_sha256=source.content_sha256,
        seed=seed,
        examples=tuple(_example(problem, template) for problem in drawn),
    )


def _example(problem: Problem, template: PromptTemplate) -> Example:
    """The answer is boxed where the prompt asks for that."""
    question = template.render(problem.as_shown())
    answer = problem.answer or ""
    return Example(question=question, reply=rf"\boxed{{{answer}}}" if r"\boxed" in question else answer)
