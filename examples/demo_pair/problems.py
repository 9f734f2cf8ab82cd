"""Problems of the demo pair: running totals modulo 100, and the split that keeps held-out problems out of training.

A problem's split is decided by a hash of its canonical form, so a held-out problem cannot be generated for
training, whatever the seed.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from enum import StrEnum

MODULUS = 100
MIN_OPERATIONS = 4
MAX_OPERATIONS = 8
MAX_OPERAND = 9
ORDINALS = ("First", "Second", "Third", "Fourth", "Fifth", "Sixth", "Seventh", "Eighth")


class Split(StrEnum):
    """What a problem may be used for."""

    TRAIN = "train"  # seen in training
    VALIDATION = "validation"  # for choosing numbers of the recipe
    HELD_OUT = "held_out"  # shipped in problems.jsonl, measured once at the end


@dataclass(frozen=True, slots=True)
class Operation:
    """One addition or subtraction of a one-digit number."""

    sign: int  # +1 or -1
    operand: int  # 1 to 9

    @property
    def verb(self) -> str:
        return "add" if self.sign > 0 else "subtract"

    @property
    def symbol(self) -> str:
        return "+" if self.sign > 0 else "-"

    def apply(self, value: int) -> int:
        return (value + self.sign * self.operand) % MODULUS

    def carries(self, value: int) -> bool:
        """Whether the tens digit changes: the hard case."""
        return self.apply(value) // 10 != value // 10


@dataclass(frozen=True, slots=True)
class Problem:
    """A starting number and the operations to apply to it, in order."""

    start: int
    operations: tuple[Operation, ...]

    @property
    def text(self) -> str:
        steps = (
            f"{ordinal} {operation.verb} {operation.operand}."
            for ordinal, operation in zip(ORDINALS, self.operations, strict=False)
        )
        lines = (
            f"Start with {self.start}.",
            *steps,
            f"What is the result modulo {MODULUS}?",
        )
        return "\n".join(lines)

    @property
    def answer(self) -> int:
        value = self.start
        for operation in self.operations:
            value = operation.apply(value)
        return value

    @property
    def level(self) -> int:
        return len(self.operations)

    @property
    def split(self) -> Split:
        """The split of this problem: 1 in 16 held out, 1 in 16 for validation, by a hash of its canonical form."""
        canonical = f"{self.start}:" + ",".join(f"{op.symbol}{op.operand}" for op in self.operations)
        match hashlib.sha256(canonical.encode()).digest()[0] % 16:
            case 0:
                return Split.HELD_OUT
            case 1:
                return Split.VALIDATION
            case _:
                return Split.TRAIN


def draw_problem(rng: random.Random, split: Split) -> Problem:
    """A random problem of the given split."""
    while True:
        num_operations = rng.randint(MIN_OPERATIONS, MAX_OPERATIONS)
        operations = tuple(
            Operation(sign=rng.choice((1, -1)), operand=rng.randint(1, MAX_OPERAND)) for _ in range(num_operations)
        )
        problem = Problem(start=rng.randrange(MODULUS), operations=operations)
        if problem.split is split:
            return problem


def draw_problems(seed: int, split: Split, count: int) -> list[Problem]:
    """`count` different problems of the given split, the same for the same seed."""
    rng = random.Random(seed)
    problems: dict[Problem, None] = {}
    while len(problems) < count:
        problems[draw_problem(rng, split)] = None
    return list(problems)
