"""Graders: compare a sample's answer with the reference. Unscored is not wrong: a score of None is never counted as 0.

A grader may be slow on a hostile formula, and may want all memory there is. Its caller runs it in a process with a hard
time limit and limited memory (``limit_memory``), in that process's main thread.
"""

from collections.abc import Callable

from pipeline.errors import ConfigurationError
from pipeline.grading.base import Grade, Grader, check_reference, grade_any
from pipeline.grading.choice import ChoiceGrader
from pipeline.grading.code import make_code_grader
from pipeline.grading.ends import Ending, grade_output, why_no_answer
from pipeline.grading.exact import ExactGrader, NoGrader
from pipeline.grading.extract import answer_part
from pipeline.grading.math import MathGrader
from pipeline.grading.memory import limit_memory
from pipeline.grading.verdict import VerdictGrader
from pipeline.plugins import PluginGroup, is_file, load_file, own_or_plugin, plugin_names

__all__ = [
    "Ending",
    "Grade",
    "Grader",
    "answer_part",
    "check_reference",
    "grade_any",
    "grade_output",
    "grader_names",
    "limit_memory",
    "make_grader",
    "why_no_answer",
]

_GRADERS: dict[str, Callable[[], Grader]] = {
    "math": MathGrader,
    "exact": ExactGrader,
    "choice": ChoiceGrader,
    "code": make_code_grader,
    "none": NoGrader,
    "verdict": VerdictGrader,
}


def make_grader(name: str) -> Grader:
    """A grader of this program's, of a package by its entry point in "specthink.graders", or of FILE.py:CLASS.

    Raises ConfigurationError with the names there are.
    """
    maker = load_file(name).value if is_file(name) else _named(name)
    try:
        grader: Grader = maker()
    except TypeError as error:
        raise ConfigurationError(f"{name!r} makes no grader: {error}") from error
    if not callable(getattr(grader, "grade", None)):
        raise ConfigurationError(f"{name!r} makes no grader: it must return an object with a method grade")
    for attribute, kind in (("name", str), ("version", str), ("is_instant", bool)):
        if not isinstance(getattr(grader, attribute, None), kind):
            raise ConfigurationError(f"the grader {name!r} has no {attribute}, which must be a {kind.__name__}")
    return grader


def _named(name: str) -> Callable[[], Grader]:
    named: Callable[[], Grader] = own_or_plugin(PluginGroup.GRADERS, name, _GRADERS, what="grader")
    return named


def grader_names() -> tuple[str, ...]:
    return (*_GRADERS, *plugin_names(PluginGroup.GRADERS))
