"""Controls of an exit: what ``cut`` and ``random`` are set to, so that texts think as long as under another exit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from pipeline.errors import ConfigurationError
from pipeline.policies.exits import CutExit, ExitSpec, RandomExit

Thoughts: TypeAlias = Sequence[Sequence[float]]
"""Of each complete sample of a job the steps of its think phase, in output tokens."""

CONTROLS = ("cut", "random")
_HALVINGS = 60


def matched_exit(control: ExitSpec, exited: Thoughts, whole: Thoughts) -> ExitSpec:
    """The control with the number by which the mean thinking length becomes that of a job with an exit.

    exited: of that job. whole: of the same job without an exit, whose texts the control will cut short. Raises
    ConfigurationError where there is nothing to match, and for an exit that is no control.
    """
    wanted, longest = mean_length(exited), mean_length(whole)
    if not exited or not whole or not wanted < longest:
        raise ConfigurationError(
            f"its samples think {wanted:.1f} tokens with the exit and {longest:.1f} without: there is nothing to match"
        )
    match control:
        case CutExit():
            tokens = _solve(lambda limit: _cut_length(whole, limit), wanted, max(map(sum, whole)))
            return control.model_copy(update={"thinking_tokens": max(1, round(tokens))})
        case RandomExit():
            rate = 1 - _solve(lambda stays: _expected_length(whole, stays), wanted, 1.0)
            return control.model_copy(update={"rate": min(max(rate, 0.0), 1.0)})
        case _:
            raise ConfigurationError(f"the exit {control.name!r} is no control; choose one of: {', '.join(CONTROLS)}")


def mean_length(thoughts: Thoughts) -> float:
    return sum(map(sum, thoughts)) / len(thoughts) if thoughts else 0.0


def _cut_length(thoughts: Thoughts, limit: float) -> float:
    return mean_length([[min(sum(steps), limit)] for steps in thoughts])


def _expected_length(thoughts: Thoughts, stays: float) -> float:
    """Where the phase goes on with this probability behind each step."""
    return mean_length([[step * stays**place for place, step in enumerate(steps)] for steps in thoughts])


def _solve(length: Callable[[float], float], wanted: float, most: float) -> float:
    """Where a length that grows from 0 to most reaches the wanted one."""
    low, high = 0.0, most
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if length(middle) < wanted else (low, middle)
    return high
