"""What the model is asked: one named template per kind of answer, each making one user message of a problem.

The model's own chat template goes around it (pipeline/chat/model.py). Reference answers never enter here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import BadProblem, ConfigurationError
from pipeline.plugins import PluginGroup, own_or_plugin, plugin_names
from pipeline.problems import Problem

CHOICE_LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTemplate:
    """Text around a problem. version: changes with every change of the text, and is stored with the job.

    instruction: follows the problem after a blank line, or stands before it where leads is set; '' for none. A
    problem's ``choices`` are listed under it as ``(A) …`` lines. shows: further columns that it shows; all others are
    hidden.
    """

    name: str
    version: str
    instruction: str
    leads: bool = False
    shows: tuple[str, ...] = ()

    def render(self, problem: Problem) -> str:
        """Joined, never formatted: braces and template syntax in a problem stay text."""
        parts = [problem.prompt]
        if "choices" in problem.metadata:
            parts.append(_render_choices(problem))
        if self.instruction:
            parts.insert(0 if self.leads else len(parts), self.instruction)
        return "\n\n".join(parts)


def _render_choices(problem: Problem) -> str:
    choices = problem.metadata["choices"]
    if not isinstance(choices, Sequence) or isinstance(choices, str):
        raise BadProblem(problem.external_id, "'choices' must be a list")
    if not 0 < len(choices) <= len(CHOICE_LETTERS):
        reason = f"it has {len(choices)} choices; there must be 1 to {len(CHOICE_LETTERS)}"
        raise BadProblem(problem.external_id, reason)
    return "\n".join(f"({letter}) {choice}" for letter, choice in zip(CHOICE_LETTERS, choices, strict=False))


_TEMPLATES = {
    template.name: template
    for template in (
        PromptTemplate(
            name="math",
            version="math/2",
            instruction=r"Please reason step by step, and put your final answer within \boxed{}.",
        ),
        PromptTemplate(
            name="choice",
            version="choice/1",
            instruction=r"Please reason step by step, and put the letter of your final answer within \boxed{}.",
        ),
        PromptTemplate(name="free", version="free/2", instruction=""),
        # arXiv 2504.12329 asks so: the instruction, then the problem; the opening think tag is the chat template's.
        PromptTemplate(
            name="paper-math",
            version="paper-math/2",
            instruction=r"Please reason step by step, and put your final answer within \boxed{}.",
            leads=True,
        ),
        PromptTemplate(
            name="paper-choice",
            version="paper-choice/1",
            instruction=r"Please reason step by step, and put the letter of your final answer within \boxed{}.",
            leads=True,
        ),
    )
}


def prompt_template(name: str) -> PromptTemplate:
    """A template of this program's, or of a package by its entry point in the group "specthink.prompts".

    Raises ConfigurationError with the names there are.
    """
    template = own_or_plugin(PluginGroup.PROMPTS, name, _TEMPLATES, what="prompt template")
    if not isinstance(template, PromptTemplate):
        raise ConfigurationError(f"the prompt template {name!r} must be a pipeline.chat.prompts.PromptTemplate")
    return template


def prompt_template_names() -> tuple[str, ...]:
    return (*_TEMPLATES, *plugin_names(PluginGroup.PROMPTS))


def render_user_message(template_name: str, problem: Problem) -> str:
    """The user message for a problem. Raises ConfigurationError for an unknown name, BadProblem for bad choices."""
    return prompt_template(template_name).render(problem)
