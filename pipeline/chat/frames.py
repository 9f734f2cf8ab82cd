"""What a judge reads of a sample: the problem and the steps of its thoughts, within the frame that the policy names.

A judge has neither the prompt of the writers nor their ids: it reads text, in its own template and vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.breaks import BREAK_NEWLINES
from pipeline.chat.model import ChatModel
from pipeline.policies.requests import Ask, Frame, Layout

_BREAK = re.compile(r"\s*\n[^\S\n]*" * (BREAK_NEWLINES - 1) + r"\n\s*")


def split_text(text: str, *, think_start: str = "") -> list[str]:
    """The steps of a text without the breaks between them. think_start: the tag that may open it."""
    text = text.strip()
    if think_start:
        text = text.removeprefix(think_start)
    return [step for step in _BREAK.split(text.strip()) if step]


class FramedModel:
    """A judge as one job asks it."""

    def __init__(self, chat: ChatModel) -> None:
        self._chat = chat

    def token_ids(self, ask: Ask, problem: str, steps: Sequence[str]) -> list[int]:
        """All that the judge is given for a question about the last of these steps."""
        frame = _frame_of(ask)
        if frame.layout is Layout.TEXT:
            return self._chat.text_ids(_joined(frame, problem, steps) + ask.question)
        message, earlier = messages(ask, problem, steps)
        return [*self._chat.prompt_ids(message, earlier), *self.tail_ids(ask)]

    def tail_ids(self, ask: Ask, more: str = "") -> list[int]:
        """Ids of the end of what it is given. more: what would come next."""
        frame = _frame_of(ask)
        if frame.layout is Layout.TEXT:
            return self._chat.encode_text(frame.step.rpartition("{step}")[2] + ask.question + more)
        closing = f"\n{self._chat.think_end}\n\n" if self._chat.starts_in_think else ""
        return self._chat.encode_text(closing + ask.opening + more)


def messages(ask: Ask, problem: str, steps: Sequence[str]) -> tuple[str, list[dict[str, str]]]:
    """What a user says to the judge last, and the messages before that."""
    frame = _frame_of(ask)
    if frame.layout is not Layout.TURNS:
        return _joined(frame, problem, steps) + ask.question, []
    told = [_put(frame.step, "step", step) for step in steps]
    told[0] = _put(frame.before, "problem", problem) + told[0]
    earlier: list[dict[str, str]] = []
    for text in told[:-1]:
        earlier += [{"role": "user", "content": text}, {"role": "assistant", "content": ask.labels[0]}]
    return told[-1] + ask.question, earlier


def _joined(frame: Frame, problem: str, steps: Sequence[str]) -> str:
    told = frame.between.join(_put(frame.step, "step", step) for step in steps)
    return _put(frame.before, "problem", problem) + told


def _put(template: str, field: str, text: str) -> str:
    before, _, after = template.partition(f"{{{field}}}")
    return before + text + after


def _frame_of(ask: Ask) -> Frame:
    if ask.frame is None:
        raise ValueError(f"{ask.purpose!r} is no question to a judge")
    return ask.frame
