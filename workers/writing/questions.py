"""What an Ask puts after the text: the ids of its question, and those that count for its labels.

Both depend on a model's vocabulary and chat template, so that a policy names texts alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.chat.frames import FramedModel
from pipeline.chat.model import ChatModel
from pipeline.chat.translation import ThinkTagTranslator
from pipeline.errors import ConfigurationError
from pipeline.policies.requests import Ask

MAX_KNOWN = 1024
"""Questions that are kept: one may have a sample's own words in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """An Ask's question as one model reads it. labels: by label the ids that count for it as the first token."""

    token_ids: tuple[int, ...]
    labels: Mapping[str, tuple[int, ...]]


class Questions:
    """The questions that one model is asked in one job.

    Raises ConfigurationError where the model's template has no place for a question in a turn of its own, where a
    label has no token, and where two labels have the same one.
    """

    def __init__(self, chat: ChatModel, translator: ThinkTagTranslator) -> None:
        self._chat = chat
        self._translator = translator
        self._framed = FramedModel(chat)
        self._known: dict[tuple[object, ...], Question] = {}

    def get(self, ask: Ask) -> Question:
        key = (ask.turn, ask.question, ask.opening, ask.labels, ask.labels_begin, ask.frame)
        known = self._known.get(key)
        if known is None:
            known = Question(token_ids=tuple(self._ids(ask)), labels=self._labels(ask))
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[key] = known
        return known

    def ids_within(self, ask: Ask, problem: str, steps: Sequence[str]) -> tuple[int, ...]:
        """All that a judge is given for a question about the last of these steps."""
        return tuple(self._framed.token_ids(ask, problem, steps))

    def _ids(self, ask: Ask, more: str = "") -> list[int]:
        if ask.frame is not None:
            return self._framed.tail_ids(ask, more)
        if ask.turn:
            return self._chat.turn_ids(ask.question, self._translator.from_job(ask.opening + more))
        return self._chat.encode_text(self._translator.from_job(ask.question + more))

    def _labels(self, ask: Ask) -> dict[str, tuple[int, ...]]:
        labels: dict[str, tuple[int, ...]] = {}
        owner: dict[int, str] = {}
        for label in ask.labels:
            labels[label] = ids = self._label_ids(ask, label)
            for token_id in ids:
                if owner.setdefault(token_id, label) != label:
                    both = f"{owner[token_id]!r} and {label!r} of {ask.purpose!r}"
                    raise ConfigurationError(
                        f"{self._chat.name} begins the labels {both} with the same token, so that neither can be read: "
                        "give labels that begin in different ways"
                    )
        return labels

    def _label_ids(self, ask: Ask, label: str) -> tuple[int, ...]:
        """The first ids of those spellings of a label that go on after the question without changing its ids.

        A space alone begins no label, where it is a token of its own: every label could follow it.
        """
        before = self._ids(ask)
        space = self._ids(ask, " ")[len(before) :]
        found = {}
        for spelling in (label, f" {label}"):
            with_label = self._ids(ask, spelling)
            rest = with_label[len(before) :]
            begins = bool(rest) and ask.labels_begin and rest[:1] != space
            if with_label[: len(before)] == before and (len(rest) == 1 or begins):
                found[rest[0]] = True
        if not found:
            raise ConfigurationError(
                f"{self._chat.name} has no token of its own for the label {label!r} of {ask.purpose!r} after that "
                "question: take another label, or labels_begin"
            )
        return tuple(found)
