"""What the scripted models write: a text that is fixed by the job's seed, the problem and the number of the sample.

Whoever writes a part of it, and however often, writes the same: the script looks how much of the text is there and goes
on. So a sample whose text differs from ``expected_text`` has lost something, or has something twice.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from functools import lru_cache

from pipeline.chat.model import ChatModel
from pipeline.chat.prompts import render_user_message
from pipeline.problems import Problem, ProblemSet, content_sha256
from pipeline.samples import ModelRole
from pipeline.seeds import segment_seed
from workers.engine.base import GenerateRequest

NUM_PROBLEMS, NUM_SAMPLES = 5, 2
"""Of most jobs; every problem has so many samples."""
MAX_SAMPLES = 16
"""Most samples of a problem."""
NUM_CUES = 2
"""Places in each text where the large model takes over."""
_MAX_SEGMENTS = 64
"""More than any of these texts is written in."""
_MARK = re.compile(r"Series (\d+), number (\d+)\.")


def problem_set(seed: int) -> ProblemSet:
    """The problems of the job with this seed; other seeds have others."""
    problems = tuple(make_problem(seed, number) for number in range(NUM_PROBLEMS))
    return ProblemSet(name=f"chaos-{seed}", content_sha256=content_sha256(problems), problems=problems)


def make_problem(seed: int, number: int) -> Problem:
    return Problem(
        external_id=str(number),
        prompt=f"Series {seed}, number {number}.\nWhat is the result?",
        answer=str(_result(seed, number)),
    )


def _result(seed: int, number: int) -> int:
    return random.Random(f"result {seed} {number}").randrange(100)


@lru_cache(maxsize=4096)
def expected_text(seed: int, number: int, sample_index: int) -> str:
    """The whole output of a sample."""
    draw = random.Random(f"text {seed} {number} {sample_index}")
    parts, total = [], draw.randrange(100)
    for index in range(NUM_CUES):
        for _ in range(draw.randint(1, 2)):
            total = (total + draw.randrange(10)) % 100
            parts.append(f"First add, so {total}.\n\n")
        cue = draw.choice(("Wait", "Hold on", "Yes"))
        parts.append(f"{cue}, {total} is {total}. So add {index}.\n\n")
    result = _result(seed, number)
    return "".join(parts) + f"So the result is {result}.\n</think>\n\nThe result is \\boxed{{{result}}}."


def make_script(chat: ChatModel, role: ModelRole) -> Callable[[GenerateRequest], Iterable[int]]:
    """The script of one model."""

    @lru_cache(maxsize=4096)
    def prompt_length(seed: int, number: int) -> int:
        return len(chat.prompt_ids(render_user_message("math", make_problem(seed, number))))

    @lru_cache(maxsize=4096)
    def sample_index(seed: int, number: int, request_seed: int) -> int:
        for index in range(MAX_SAMPLES):
            for segment_index in range(_MAX_SEGMENTS):
                if request_seed == segment_seed(
                    job_seed=seed,
                    problem_id=str(number),
                    sample_index=index,
                    segment_index=segment_index,
                    role=role,
                ):
                    return index
        raise LookupError(f"seed {request_seed} is of no sample of series {seed}, number {number}")

    def script(request: GenerateRequest) -> Iterable[int]:
        prompt = chat.tokenizer.decode(list(request.prompt_ids), skip_special_tokens=False)
        mark = _MARK.search(prompt)
        if mark is None or request.seed is None:
            raise LookupError(f"no job of the harness asks this: {prompt!r}")
        seed, number = int(mark[1]), int(mark[2])
        text = expected_text(seed, number, sample_index(seed, number, request.seed))
        return chat.encode_text(text)[len(request.prompt_ids) - prompt_length(seed, number) :]

    return script
