"""Graders: compare a sample's answer with the reference. Unscored is not wrong: a score of None is never counted as 0.

A grader may be slow on a hostile formula, and may want all memory there is. Its caller runs it in a process with a hard
time limit and limited memory (``limit_memory``), in that process's main thread.
"""

from collections.abc import Callable

from pipeline.errors import ConfigurationError
from pipeline.grading.base import Grade, Grader
from pipeline.grading.choice import ChoiceGrader
from pipeline.grading.exact import ExactGrader, NoGrader
from pipeline.grading.extract import answer_part
from pipeline.grading.math import MathGrader
from pipeline.grading.memory import limit_memory

__all__ = ["Grade", "Grader", "answer_part", "grader_names", "limit_memory", "make_grader"]

_GRADERS: dict[str, Callable[[], Grader]] = {
    "math": MathGrader,
    "exact": ExactGrader,
    "choice": ChoiceGrader,
    "none": NoGrader,
}


def make_grader(name: str) -> Grader:
    """Raises ConfigurationError with the names there are."""
    if name not in _GRADERS:
        raise ConfigurationError(f"there is no grader {name!r}; there are {', '.join(grader_names())}")
    return _GRADERS[name]()


def grader_names() -> tuple[str, ...]:
    return tuple(_GRADERS)
