"""Think phases: how models mark their thoughts, and what a rendered prompt says about them.

A vocabulary alone says nothing: instruct models often share theirs with a reasoning sibling. What the job names counts
first, then the rendered prompt, then the chat template.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkFamily:
    """One way to mark the think phase, as text.

    frame: what a rendered prompt of these models ends with, where their templates do not show the tags.
    source: a model that writes so, and where that can be read.
    """

    opening: str
    closing: str
    source: str
    frame: str = ""


THINK_FAMILIES = (
    ThinkFamily(
        opening="<think>", closing="</think>", source="DeepSeek-R1, Qwen3, QwQ, GLM-4.5, Phi-4: chat templates"
    ),
    ThinkFamily(opening="<seed:think>", closing="</seed:think>", source="Seed-OSS: chat template"),
    ThinkFamily(opening="[THINK]", closing="[/THINK]", source="Magistral: tokenizer and system prompt"),
    ThinkFamily(opening="<thought>", closing="</thought>", source="EXAONE-Deep: chat template"),
    ThinkFamily(opening="<|START_THINKING|>", closing="<|END_THINKING|>", source="Command A Reasoning: chat template"),
    ThinkFamily(
        opening="<|begin_of_thought|>", closing="<|end_of_thought|>", source="OpenThinker, Sky-T1: model cards"
    ),
    ThinkFamily(opening="<|inner_prefix|>", closing="<|inner_suffix|>", source="Apertus: chat template"),
    ThinkFamily(opening="<longcat_think>", closing="</longcat_think>", source="LongCat-Flash-Thinking: chat template"),
    ThinkFamily(opening="<thinking>", closing="</thinking>", source="Reflection: model card, and others tuned so"),
    ThinkFamily(opening="<mm:think>", closing="</mm:think>", source="MiniMax M3: reasoning parser of vLLM 0.32"),
    ThinkFamily(opening="◁think▷", closing="◁/think▷", source="Kimi-VL-Thinking: chat template"),
    ThinkFamily(opening="<reasoning>", closing="</reasoning>", source="Reka Flash 3: model card"),
    ThinkFamily(
        opening="<|channel|>analysis<|message|>",
        closing="<|end|><|start|>assistant<|channel|>final<|message|>",
        source="gpt-oss: the harmony response format; its channels are the tags",
        frame="<|start|>assistant",
    ),
    ThinkFamily(opening="<|channel>thought\n", closing="<channel|>", source="Gemma 4: reasoning parser of vLLM 0.32"),
)
"""The ways known here; a job names any other by --think-tags."""

OPENING_OF = {family.closing: family.opening for family in THINK_FAMILIES}
"""Closing tags, each with its opening tag."""


class ThinkStart(StrEnum):
    """Where a rendered prompt leaves the think phase."""

    OPENED = "opened"  # the prompt ends inside it: the text begins as thought
    CLOSED = "closed"  # the prompt has closed it, or holds an empty one: the model does not think in this job
    BY_TEXT = "by text"  # the model opens it itself, with the first thing it writes
    NONE = "none"  # the model has no think phase


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkMarks:
    """A model's tags in one job, and where the prompt leaves them. opening, closing: '' without a think phase."""

    opening: str
    closing: str
    start: ThinkStart

    @property
    def thinks(self) -> bool:
        return self.start in (ThinkStart.OPENED, ThinkStart.BY_TEXT)


def find_marks(*, tail: str, shown: str, told: tuple[str, ...] | None, vocabulary: frozenset[str]) -> ThinkMarks:
    """How a model marks its thoughts in a job.

    tail: the rendered prompt behind the user's message. shown: the chat template and the rendered prompt before that
    message, as a system message may say how to think. told: the tags that the job names, () for none, None where it
    says nothing. vocabulary: the tokenizer's added tokens.
    """
    tail = _behind_the_turn(tail, vocabulary)
    if told is not None:
        opening, closing = told or ("", "")
    else:
        family = _family(tail, shown, vocabulary)
        opening, closing = (family.opening, family.closing) if family else ("", "")
    return ThinkMarks(opening=opening, closing=closing, start=_start(tail, opening, closing))


def _behind_the_turn(tail: str, vocabulary: frozenset[str]) -> str:
    """Without what belongs to the user's turn still: a template may say there how to think, and names the tags so."""
    tags = "".join(family.opening + family.closing for family in THINK_FAMILIES)
    places = [tail.find(token) for token in vocabulary if _MARKER.fullmatch(token) and token not in tags]
    return tail[min((place for place in places if place >= 0), default=0) :]


_MARKER = re.compile(r"[^\w\s].+[^\w\s]")
"""What a token that steers a model looks like, such as <|im_start|> and [/INST]."""


def family_of_tokens(vocabulary: frozenset[str]) -> ThinkFamily:
    """The family whose tags are tokens of a vocabulary; where none is, or several are, the first there is."""
    return next((each for each in THINK_FAMILIES if {each.opening, each.closing} <= vocabulary), THINK_FAMILIES[0])


def _family(tail: str, shown: str, vocabulary: frozenset[str]) -> ThinkFamily | None:
    """The family whose tags the prompt ends with, else the first whose tags or frame are shown."""
    in_tail = [family for family in THINK_FAMILIES if family.opening in tail or family.closing in tail]
    if in_tail:
        return max(in_tail, key=lambda family: max(tail.rfind(family.opening), tail.rfind(family.closing)))
    for family in THINK_FAMILIES:
        if family.frame:
            if tail.endswith(family.frame) and _are_tokens(family, vocabulary):
                return family
        elif family.opening in shown or family.closing in shown:
            return family
    return None


def _are_tokens(family: ThinkFamily, vocabulary: frozenset[str]) -> bool:
    """Whether every mark in the tags is a token of the model's."""
    return all(mark in vocabulary for mark in ("<|channel|>", "<|message|>") if mark in family.opening)


def _start(tail: str, opening: str, closing: str) -> ThinkStart:
    if not closing:
        return ThinkStart.NONE
    opened_at, closed_at = tail.rfind(opening), tail.rfind(closing)
    if opened_at > closed_at:
        return ThinkStart.OPENED
    return ThinkStart.CLOSED if closed_at >= 0 else ThinkStart.BY_TEXT
