"""Graders: compare a sample's answer with the reference. Unscored is not wrong: a score of None is never counted as 0.

A grader may be slow on a hostile formula, and may want all memory there is. Its caller runs it in a process with a hard
time limit and limited memory (``limit_memory``), in that process's main thread.
"""

from collections.abc import Callable

from pipeline.errors import ConfigurationError
from pipeline.grading.base import Grade, Grader, check_reference, grade_any
from pipeline.grading.choice import ChoiceGrader
from pipeline.grading.exact import ExactGrader, NoGrader
from pipeline.grading.extract import answer_part
from pipeline.grading.math import MathGrader
from pipeline.grading.memory import limit_memory
from pipeline.plugins import PluginGroup, own_or_plugin, plugin_names

__all__ = [
    "Grade",
    "Grader",
    "answer_part",
    "check_reference",
    "grade_any",
    "grader_names",
    "limit_memory",
    "make_grader",
]

_GRADERS: dict[str, Callable[[], Grader]] = {
    "math": MathGrader,
    "exact": ExactGrader,
    "choice": ChoiceGrader,
    "none": NoGrader,
}


def make_grader(name: str) -> Grader:
    """A grader of this program's, or of a package by its entry point in the group "specthink.graders".

    Raises ConfigurationError with the names there are.
    """
    grader: Grader = own_or_plugin(PluginGroup.GRADERS, name, _GRADERS, what="grader")()
    if not callable(getattr(grader, "grade", None)):
        raise ConfigurationError(f"{name!r} makes no grader: it must return an object with a method grade")
    return grader


def grader_names() -> tuple[str, ...]:
    return (*_GRADERS, *plugin_names(PluginGroup.GRADERS))
