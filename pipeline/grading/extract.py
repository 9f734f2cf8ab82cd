"""Finds the answer in a text."""

from __future__ import annotations

import re
from typing import NamedTuple

from pipeline.chat.thinking import OPENING_OF

MAX_TEXT_CHARS = 20_000
"""Answers are looked for in so much of the end of a text."""

_TOKEN = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)


_MATHS_MARK = re.compile(r"\$+|\\[()\[\]]|\*\*|\\(?:q?quad|text|mathrm)\b|\\[,; ]|[{}]")
_LINK = re.compile(
    r"\s*(?:(?:,|;|、|，|&|and|or|和|或|及|与|,\s*and|,\s*or)\s*(?:\(?[a-zA-Z][\w\\]{0,6}(?:_\w+)?\)?\s*=)?|\(?[b-hivx2-9]{1,3}[).:])\s*"
)
_NAME_BEFORE = re.compile(r"(?<![\w\\])([A-Za-z](?:_\{?\w+\}?)?)\s*=\s*$")


def answer_part(output: str, *, end: str | None = None) -> str:
    """What follows the last closing think tag; all of it where there is none; nothing of a text that still thinks.

    end: the job's closing tag, where it is none of those known here.
    """
    if is_thinking(output, end=end):
        return ""
    ends = [output.rfind(tag) + len(tag) for tag in {*OPENING_OF, *filter(None, [end])} if tag in output]
    return output[max(ends, default=0) :]


def is_thinking(output: str, *, start: str | None = None, end: str | None = None, opened: bool = False) -> bool:
    """Whether a text ends inside its think phase.

    start, end: the job's tags; "" where it has no think phase, None where that is not known: then a text thinks that
    begins with an opening tag. opened: whether the prompt had opened it.
    """
    if end == "":
        return False
    openings, closings = ([start] if start else [], [end]) if end else ([], list(OPENING_OF))
    last_end = max(output.rfind(tag) for tag in closings)
    if opened and last_end < 0:
        return True
    if any(output.rfind(opening) > last_end for opening in openings):
        return True
    return last_end < 0 and output.lstrip().startswith(tuple(openings or OPENING_OF.values()))


class _Box(NamedTuple):
    """Where a box is in a text: from its command to behind its brace, and its content."""

    start: int
    content: str
    end: int


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete ``\boxed{…}``, the innermost where they nest; None where there is none."""
    boxes = _boxes(text[-MAX_TEXT_CHARS:])
    return boxes[-1].content if boxes else None


def boxed_answer(text: str) -> str | None:
    r"""The content of the last box, with those before it that are one answer: ``\boxed{3}`` and ``\boxed{5}``."""
    text = text[-MAX_TEXT_CHARS:]
    boxes = _boxes(text)
    if not boxes:
        return None
    first = len(boxes) - 1
    while first > 0 and _LINK.fullmatch(_MATHS_MARK.sub(" ", text[boxes[first - 1].end : boxes[first].start])):
        first -= 1
    contents = [box.content for box in boxes[first:]]
    if len(set(contents)) == 1:
        return contents[-1]
    labels = [_label_before(text[: box.start]) for box in boxes[first:]]
    return ", ".join(label + content for label, content in zip(labels, contents, strict=True))


def _label_before(text: str) -> str:
    label = _NAME_BEFORE.search(text[-40:])
    return f"{label[1]} = " if label else ""


def _boxes(text: str) -> list[_Box]:
    """Every complete box that is in no other, or the innermost of those that nest, in order.

    One pass over the text. Escaped braces do not count, and a box that is cut off is passed over.
    """
    open_braces: list[tuple[int, int] | None] = []  # a box's command and where its content begins; None: another brace
    boxes: list[_Box] = []
    for token in _TOKEN.finditer(text):
        if token["box"]:
            open_braces.append((token.start(), token.end()))
        elif token["open"]:
            open_braces.append(None)
        elif token["close"] and open_braces:
            begun = open_braces.pop()
            if begun is not None and (not boxes or boxes[-1].start < begun[0]):
                boxes.append(_Box(begun[0], text[begun[1] : token.start()].strip(), token.end()))
    return boxes


def last_line(text: str) -> str | None:
    """The last line that is not blank."""
    lines = [line.strip() for line in text[-MAX_TEXT_CHARS:].splitlines() if line.strip()]
    return lines[-1] if lines else None


def normalise(text: str) -> str:
    """One form for texts that differ in case and in white space only."""
    return " ".join(text.casefold().split())
