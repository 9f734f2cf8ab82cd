"""A text that two models write in turn: what each of them is given of it, and how each of them is understood.

All of a job's texts mark the think phase in one way, the way of the model that opens them (of the other one where that
knows no think phase). A model that marks it in another way is given its own tags and understood in the job's. Where two
models have the same vocabulary, ids go from one to the other as they were generated; else text does, and each model
keeps its own ids for what it wrote itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, takewhile
from typing import TYPE_CHECKING

from pipeline.chat.thinking import family_of_tokens
from pipeline.errors import ConfigurationError
from pipeline.samples import Author, Piece
from pipeline.segments import Segment

if TYPE_CHECKING:
    from pipeline.chat.model import ChatModel


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkPhase:
    """How the texts of a job mark their think phase."""

    start: str
    """The tag that opens it, e.g. ``<think>``; '' where there is none."""
    end: str
    """The tag that ends it, e.g. ``</think>``; '' where there is none."""
    opened: bool
    """Whether the prompt has opened it, so that the text begins inside; else the text has the opening tag."""


def own_phase(model: ChatModel) -> ThinkPhase:
    """How a model marks its own texts."""
    return ThinkPhase(start=model.think_start, end=model.think_end, opened=model.starts_in_think)


def settle_think_phase(
    opener: ChatModel, other: ChatModel | None = None, *, other_is_unknown: bool = False
) -> ThinkPhase:
    """How a job's texts mark the think phase. Raises ConfigurationError for a pair that cannot write one text.

    Where nothing shows how the models mark it and the job says nothing, a text may still open the usual one: some
    models think when their system message says so. other_is_unknown: there is another, which may mark it in some way.
    """
    model = other if other is not None and not opener.think_end else opener
    phase = own_phase(model)
    models = [chat for chat in (opener, other) if chat is not None]
    if not other_is_unknown and all(chat.may_think_unseen for chat in models):
        usual = family_of_tokens(frozenset[str]().union(*(chat.added_tokens for chat in models)))
        phase = ThinkPhase(start=usual.opening, end=usual.closing, opened=False)
    for chat in models:
        ThinkTagTranslator(chat, phase)
    return phase


class ThinkTagTranslator:
    """One model among a job's: from the job's texts to its ids, and from its text to the job's.

    Raises ConfigurationError where the model marks the think phase in another way than the job and its text cannot be
    translated token by token.
    """

    def __init__(self, chat: ChatModel, phase: ThinkPhase) -> None:
        self._chat = chat
        self._translates = bool(chat.think_end and phase.end) and chat.think_end != phase.end
        self._opens = phase.opened and bool(chat.think_end) and not chat.starts_in_think
        self._is_opened = bool(phase.end) and not phase.opened and chat.starts_in_think
        self._tags = {}
        if self._translates:
            if not chat.tags_are_tokens:
                raise ConfigurationError(
                    f"{chat.name} ends thinking with {chat.think_end!r}, which its tokenizer writes in several tokens, "
                    f"and the other model with {phase.end!r}: such a pair cannot write one text; take two models with "
                    "the same think tags"
                )
            self._tags = {chat.think_end: phase.end, chat.think_start: phase.start}

    def output_ids(self, segments: Iterable[Segment], *, own: Author) -> list[int]:
        """What follows this model's prompt: the text so far as its ids.

        What it wrote itself, and what was written in its vocabulary, as the very ids; the rest as the ids of its text.
        own: the author that this model is.
        """
        start = f"{self._chat.think_start}\n" if self._opens else ""
        token_ids = self._chat.encode_output(start) if start else []
        before: list[Segment] = []
        vocabulary, takes_others = self._chat.vocabulary_sha256, not (self._translates or self._is_opened)

        def takes_ids(segment: Segment) -> bool:
            return segment.vocabulary_sha256 == vocabulary and (takes_others or segment.author is own)

        for index, (as_ids, run) in enumerate(groupby(segments, takes_ids)):
            written = list(run)
            if as_ids:
                token_ids += chain.from_iterable([segment.kept_ids for segment in written])
            else:
                # No ids of another vocabulary can end the character that is unfinished before them.
                del token_ids[len(token_ids) - _num_unfinished(before) :]
                heard = self._from_job("".join([segment.kept.text for segment in written]), is_start=index == 0)
                token_ids += self._chat.encode_output(heard)
            before = written if as_ids else []
        return token_ids

    @property
    def translates(self) -> bool:
        """Whether its text differs from the job's."""
        return self._translates

    def from_job(self, text: str) -> str:
        """A text of the job's as this model writes it, in the middle of an output."""
        for own, shared in self._tags.items():
            text = text.replace(shared, own)
        return text

    def to_job(self, text: str) -> str:
        """The job's text for what one of this model's tokens added."""
        for own, shared in self._tags.items():
            text = text.replace(own, shared)
        return text

    def piece_to_job(self, piece: Piece) -> Piece:
        """A piece of this model's with the job's text."""
        if not self._translates:
            return piece
        return Piece(token_ids=piece.token_ids, texts=tuple(map(self.to_job, piece.texts)))

    def _from_job(self, text: str, *, is_start: bool) -> str:
        text = self.from_job(text)
        start = self._chat.think_start
        if is_start and self._is_opened and text.lstrip().startswith(start):
            return text.lstrip().removeprefix(start).removeprefix("\n")
        return text


def _num_unfinished(segments: Sequence[Segment]) -> int:
    """Tokens at the end that begin a character and do not end it."""
    backwards = (text for segment in reversed(segments) for text in reversed(segment.kept.texts))
    return sum(1 for _ in takewhile(lambda text: not text, backwards))


def first_prompt_tokens(segments: Iterable[tuple[int, int]]) -> int | None:
    """Tokens of the rendered prompt as a sample's first writer read it; None before anybody wrote.

    segments: of each one the tokens that its author was given (0: inserted by the policy) and the tokens kept.
    """
    before = 0
    for given, kept in segments:
        if given:
            return given - before
        before += kept
    return None
