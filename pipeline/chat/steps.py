"""Steps: a finished sample's text, split at its breaks.

A step ends with the token that completes a break, and with the newlines that follow it. What is blank at the start
of the output belongs to the first step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pipeline.breaks import BreakFinder
from pipeline.policies.reading.cues import CueLists, SentenceClass, classify
from pipeline.samples import Author
from pipeline.segments import Segment

CLASS_TOKENS = 20
"""First tokens of a step that give its class. Source: n1 of arXiv 2504.12329."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The text between two breaks, by any author.

    author: who wrote most of its tokens; of equals, the one who began.
    trigger: of the first takeover that begins in it, None where none does.
    start_token: output tokens of the sample before it.
    """

    step_index: int
    text: str
    tokens_small: int
    tokens_large: int
    tokens_inserted: int
    author: Author
    sentence_class: SentenceClass
    trigger: str | None
    start_token: int


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    author: Author
    takeover: str | None
    """The trigger of the takeover that begins with this token."""


def split_steps(segments: Iterable[Segment], cues: CueLists) -> tuple[Step, ...]:
    """The steps of a sample's segments, in order; their texts joined are its text. cues: give their classes."""
    steps: list[Step] = []
    start = 0
    for tokens in _split(_tokens(segments)):
        steps.append(_step(len(steps), tokens, start, cues))
        start += len(tokens)
    return tuple(steps)


def _tokens(segments: Iterable[Segment]) -> Iterator[_Token]:
    for segment in segments:
        takeover = segment.trigger if segment.takes_over else None
        for text in segment.kept.texts:
            yield _Token(text, segment.author, takeover)
            takeover = None


def _split(tokens: Iterable[_Token]) -> Iterator[list[_Token]]:
    breaks = BreakFinder()
    step: list[_Token] = []
    is_blank = True
    for token in tokens:
        breaks.feed(token.text)
        if breaks.begins_step and not is_blank:
            yield step
            step, is_blank = [], True
        step.append(token)
        is_blank = is_blank and not token.text.strip()
    if step:
        yield step


def _step(index: int, tokens: list[_Token], start: int, cues: CueLists) -> Step:
    written = Counter(token.author for token in tokens)
    return Step(
        step_index=index,
        text="".join(token.text for token in tokens),
        tokens_small=written[Author.SMALL],
        tokens_large=written[Author.LARGE],
        tokens_inserted=written[Author.INSERTED],
        author=written.most_common(1)[0][0],
        sentence_class=classify("".join(token.text for token in tokens[:CLASS_TOKENS]), cues),
        trigger=next((token.takeover for token in tokens if token.takeover is not None), None),
        start_token=start,
    )
