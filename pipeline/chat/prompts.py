"""What the model is asked: a template makes one user message of a problem; a conversation may come before it.

Templates are named, one per kind of answer, or a file's text with fields. The model's own chat template goes around it
(pipeline/chat/model.py). A problem's reference answer never enters here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.errors import BadProblem, ConfigurationError
from pipeline.plugins import PluginGroup, own_or_plugin
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


FIELD = re.compile(r"\{\{\s*([^{}\n]+?)\s*\}\}")
MAX_TEMPLATE_CHARS = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTemplate(PromptTemplate):
    """A text with fields: ``{{problem}}``, ``{{choices}}`` and ``{{COLUMN}}`` for a column of the set.

    A field is replaced by its text, once; no field can do anything else. Single braces are text.
    """

    text: str

    @property
    def shows_choices(self) -> bool:
        return any(match[1] == "choices" for match in FIELD.finditer(self.text))

    def render(self, problem: Problem) -> str:
        return FIELD.sub(lambda match: _field(match[1], problem), self.text)


def _field(name: str, problem: Problem) -> str:
    """A column that a problem does not have is empty."""
    if name == "problem":
        return problem.prompt
    if "choices" in problem.metadata and name == "choices":
        return _render_choices(problem)
    value = problem.metadata.get(name, "")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def make_text_template(name: str, text: str) -> TextTemplate:
    """Raises ConfigurationError where the text does not show the problem, or cannot be stored."""
    fields = dict.fromkeys(match[1] for match in FIELD.finditer(text))
    if "problem" not in fields:
        raise ConfigurationError(f"{name} does not show the problem: write {{{{problem}}}} where it is to stand")
    if len(text) > MAX_TEMPLATE_CHARS:
        raise ConfigurationError(f"{name} has {len(text):,} characters; {MAX_TEMPLATE_CHARS:,} is the limit")
    return TextTemplate(
        name=name,
        version=f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:12]}",
        instruction="",
        shows=tuple(field for field in fields if field not in ("problem", "choices")),
        text=text,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """message: the user's last one. earlier: the messages before it, each with role and content."""

    message: str
    earlier: tuple[Mapping[str, str], ...] = ()


def make_prompt(template: PromptTemplate, problem: Problem, examples: Sequence[Mapping[str, str]] = ()) -> Prompt:
    """The whole of what a problem asks: its system text, then examples, its earlier turns, and its question."""
    turns = problem.metadata.get("turns", [])
    system = [turn for turn in turns if turn["role"] == "system"]
    rest = [turn for turn in turns if turn["role"] != "system"]
    return Prompt(message=template.render(problem), earlier=(*system, *examples, *rest))


def render_question(template: PromptTemplate, problem: Problem) -> str:
    """What a problem asks, for who judges what is said to it: as it was asked, earlier turns before it; without the
    instruction of a template of this program's."""
    plain = template if isinstance(template, TextTemplate) else replace(template, instruction="")
    turns = [f"[{turn['role']}]\n{turn['content']}" for turn in problem.metadata.get("turns", [])]
    asked = plain.render(problem)
    return "\n\n".join([*turns, f"[user]\n{asked}"]) if turns else asked


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
        PromptTemplate(
            name="code",
            version="code/1",
            instruction="Please reason step by step, and put the whole Python code of your answer in one fenced block.",
        ),
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


def render_user_message(template_name: str, problem: Problem) -> str:
    """The user message for a problem. Raises ConfigurationError for an unknown name, BadProblem for bad choices."""
    return prompt_template(template_name).render(problem)
