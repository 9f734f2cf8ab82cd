"""Reasoning traces to train on: steps, slips, doubts, corrections and checks.

A trace is a text with the places marked that carry no training loss. The two models differ in their `TraceStyle`:
the small one learns from traces of an unsure writer, who guesses where a carry makes a step hard, doubts the guess
afterwards and does not always mend it; the large one learns from traces whose slips are all mended, and never
learns to slip itself.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from .problems import MODULUS, ORDINALS, Operation, Problem

BREAK = "\n\n"
CARRY = 10  # the slip of a carry forgotten, or of one made up where there is none
THINK_END = "</think>"
INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."

HEDGES = (" perhaps", " maybe", " I guess")
# After a guess. The first word or two are a cue of the negative list.
DOUBTS = (
    "Wait, that seems wrong:",
    "Wait, this looks off:",
    "Hold on, that seems wrong:",
    "Alternatively, do it slowly:",
)
# Rarer: cues of the verify list.
VERIFYING_DOUBTS = ("Let me think again:", "Let me check that:")
# After a step that was right.
CHECKS = (
    "Wait, is that right? Going over it:",
    "Let me check that:",
    "Let me check whether there are some wrong steps:",
    "To recap:",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceStyle:
    """How often a writer slips, doubts and checks; all but the last two are probabilities."""

    guess_hard: float  # a step that carries is written as a guess
    guess_easy: float  # any other step is
    guess_wrong: float  # a guess is wrong
    doubt_right_guess: float  # a right guess is doubted, too (a wrong one always is)
    correction_wrong: float  # a correction is wrong itself
    doubt_wrong_correction: float  # and is doubted in turn
    verify_doubt: float  # a doubt uses a cue of the verify list
    check: float  # a right step is followed by a check
    slips: tuple[int, ...]  # what a wrong result is off by: CARRY, or a number to add; one is drawn
    learn_slips: bool  # guesses and wrong corrections carry loss


SMALL_STYLE = TraceStyle(
    guess_hard=0.7,
    guess_easy=0.05,
    guess_wrong=0.7,
    doubt_right_guess=0.6,
    correction_wrong=0.45,
    doubt_wrong_correction=0.35,
    verify_doubt=0.06,
    check=0.02,
    slips=(CARRY,) * 9 + (1,),
    learn_slips=True,
)
LARGE_STYLE = TraceStyle(
    guess_hard=0.2,
    guess_easy=0.1,
    guess_wrong=0.8,
    doubt_right_guess=0.6,
    correction_wrong=0.2,
    doubt_wrong_correction=1.0,
    verify_doubt=0.1,
    check=0.03,
    slips=(CARRY, CARRY, 1, -1),
    learn_slips=False,
)


# For the tokenizer alone: what a model is trained on can change and the vocabulary stays.
CORPUS_STYLE = TraceStyle(
    guess_hard=0.65,
    guess_easy=0.05,
    guess_wrong=0.7,
    doubt_right_guess=0.6,
    correction_wrong=0.38,
    doubt_wrong_correction=0.5,
    verify_doubt=0.06,
    check=0.02,
    slips=(CARRY, CARRY, 1, -1),
    learn_slips=True,
)


@dataclass(slots=True)
class Trace:
    """A model's answer to one problem, grown piece by piece."""

    text: str = ""
    without_loss: list[tuple[int, int]] = field(default_factory=list)  # character ranges, end exclusive

    def add(self, text: str, *, loss: bool = True) -> None:
        if not loss:
            self.without_loss.append((len(self.text), len(self.text) + len(text)))
        self.text += text


def write_trace(problem: Problem, style: TraceStyle, rng: random.Random) -> Trace:
    """A trace for the problem, from after the opening think tag to the boxed answer."""
    trace = Trace()
    trace.add(f"We begin at {problem.start} and keep every result modulo {MODULUS}.{BREAK}")
    value = problem.start
    for ordinal, operation in zip(ORDINALS, problem.operations, strict=False):
        value = _write_step(trace, ordinal, operation, value, style, rng)
    trace.add(f"That was the last step.\n{THINK_END}{BREAK}The result is \\boxed{{{value}}}.")
    return trace


def _write_step(
    trace: Trace,
    ordinal: str,
    operation: Operation,
    value: int,
    style: TraceStyle,
    rng: random.Random,
) -> int:
    """Write one step, with its doubts or check; returns the value the writer goes on with."""
    trace.add(f"{ordinal} {operation.verb} {operation.operand}:")
    right = operation.apply(value)
    if rng.random() >= (style.guess_hard if operation.carries(value) else style.guess_easy):
        trace.add(f"{_sum(operation, value)}{right}.{BREAK}")
        if rng.random() < style.check:
            trace.add(f"{rng.choice(CHECKS)}{_sum(operation, value)}{right}, as before.{BREAK}")
        return right

    written = _slip(operation, value, style, rng) if rng.random() < style.guess_wrong else right
    trace.add(
        f"{rng.choice(HEDGES)}{_sum(operation, value)}{written}.{BREAK}",
        loss=style.learn_slips,
    )
    doubted = written != right or rng.random() < style.doubt_right_guess
    while doubted:
        doubts = VERIFYING_DOUBTS if rng.random() < style.verify_doubt else DOUBTS
        trace.add(f"{rng.choice(doubts)}{_sum(operation, value)}")
        written = _slip(operation, value, style, rng) if rng.random() < style.correction_wrong else right
        trace.add(f"{written}.{BREAK}", loss=style.learn_slips or written == right)
        doubted = written != right and rng.random() < style.doubt_wrong_correction
    return written


def _sum(operation: Operation, value: int) -> str:
    return f" {value}{operation.symbol}{operation.operand}="


def _slip(operation: Operation, value: int, style: TraceStyle, rng: random.Random) -> int:
    """A wrong result as a hurried writer gets it."""
    right = operation.apply(value)
    carry_slip = -CARRY if operation.carries(value) == (operation.sign > 0) else CARRY
    return (right + rng.choice([carry_slip if slip == CARRY else slip for slip in style.slips])) % MODULUS
