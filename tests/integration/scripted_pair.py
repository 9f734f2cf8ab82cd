"""A pair of models that answer from a script, and are told right from wrong by one step.

Each problem has six steps. In every third problem small is uncertain of the first token of its fourth step, and that
step is wrong; large writes it right. A text with a wrong step states a wrong answer, whoever writes it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from sqlalchemy import Engine as DbEngine

from pipeline.chat.prompts import render_user_message
from pipeline.problems import Problem, ProblemSet, content_sha256
from pipeline.samples import WRITING_ROLES, ModelRole
from tests.integration.test_invariants import CHAT, Member, hire, work
from workers.engine.base import GenerateRequest
from workers.engine.scripted import Drawn

NUM_STEPS = 6
HARD_STEP = 3
TRIAL = "\\boxed"
"""What asks for a trial answer ends so."""
WRONG_STEP = "Maybe it is less.\n\n"


def problem_set(first: int, count: int = 12) -> ProblemSet:
    problems = tuple(
        Problem(external_id=f"p{number}", prompt=f"What is 1+{number}?", answer=f"{number + 1}")
        for number in range(first, first + count)
    )
    return ProblemSet(name=f"sums {first}", content_sha256=content_sha256(problems), problems=problems)


@contextmanager
def scripted_pair(db_engine: DbEngine, *sets: ProblemSet) -> Iterator[Pair]:
    """Workers for the models "small" and "large", who know these problems."""
    prompts = {
        tuple(CHAT.prompt_ids(render_user_message("math", problem))): int(problem.external_id[1:])
        for problems in sets
        for problem in problems.problems
    }
    members = [hire(db_engine, role, script=partial(go_on, role, prompts)) for role in WRITING_ROLES]
    try:
        yield Pair(db_engine, members)
    finally:
        for member in members:
            member.writer.close()
            member.engine.close()


class Pair:
    """Writes and grades whatever waits."""

    def __init__(self, db_engine: DbEngine, members: list[Member]) -> None:
        self._db_engine = db_engine
        self._small, self._large = members

    def work(self) -> None:
        work(self._db_engine, self._small, self._large)


def go_on(role: ModelRole, prompts: dict[tuple[int, ...], int], request: GenerateRequest) -> Iterable[Drawn]:
    """What follows the text so far."""
    ids = tuple(request.prompt_ids)
    length = next(len(prompt) for prompt in prompts if ids[: len(prompt)] == prompt)
    number, written = prompts[ids[:length]], CHAT.piece(list(ids[length:])).text
    if written.endswith(TRIAL):
        yield from _drawn(f"{{{number + 1}}}", number, 8)
        return
    while "</think>" not in written:
        num_steps = written.count(".\n\n")
        rest = _step(role, number, num_steps) if num_steps < NUM_STEPS else "</think>\n\n"
        begun = written.rpartition(".\n\n")[2]
        yield from _drawn(rest.removeprefix(begun), number, num_steps, uncertain=rest == WRONG_STEP and not begun)
        written += rest.removeprefix(begun)
    answer = number + 1 - (WRONG_STEP in written)
    yield from _drawn(f"The answer is \\boxed{{{answer}}}.".removeprefix(written.rpartition("\n\n")[2]), number, 9)


def _step(role: ModelRole, number: int, index: int) -> str:
    if index == HARD_STEP and number % 3 == 0:
        return WRONG_STEP if role is ModelRole.SMALL else "Surely it is that.\n\n"
    return f"Step {index} is done.\n\n"


def _drawn(text: str, number: int, index: int, *, uncertain: bool = False) -> Iterator[Drawn]:
    """The first token of five alike where it is uncertain; else with a probability from 0.8 to 0.99."""
    draw = random.Random(f"{number} {index}")
    others = [token_id for token in "12345" for token_id in CHAT.encode_text(token)[:1]]
    for place, token_id in enumerate(CHAT.encode_text(text)):
        share = 0.2 if uncertain and place == 0 else draw.uniform(0.8, 0.99)
        alike = [other for other in others if other != token_id][:4]
        rest = math.log((1 - share) / len(alike))
        top = sorted({token_id: math.log(share), **dict.fromkeys(alike, rest)}.items(), key=lambda pair: -pair[1])
        yield Drawn(token_id, math.log(share), dict(top))
