"""Finds the answer in a text."""

from __future__ import annotations

import re

from pipeline.chat.thinking import OPENING_OF

MAX_TEXT_CHARS = 20_000
"""Answers are looked for in so much of the end of a text."""

_TOKEN = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)


def answer_part(output: str) -> str:
    """What follows the last closing think tag; all of it where there is none."""
    ends = [output.rfind(tag) + len(tag) for tag in OPENING_OF if tag in output]
    return output[max(ends, default=0) :]


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete ``\boxed{…}``, the innermost where they nest; None where there is none.

    One pass over the end of the text. Escaped braces do not count, and a box that is cut off is passed over.
    """
    text = text[-MAX_TEXT_CHARS:]
    open_braces: list[int | None] = []  # where a box's content begins; None for any other brace
    found: tuple[int, int] | None = None
    for token in _TOKEN.finditer(text):
        if token["box"]:
            open_braces.append(token.end())
        elif token["open"]:
            open_braces.append(None)
        elif token["close"] and open_braces:
            start = open_braces.pop()
            if start is not None and (found is None or found[0] < start):
                found = (start, token.start())
    return text[found[0] : found[1]].strip() if found else None


def last_line(text: str) -> str | None:
    """The last line that is not blank."""
    lines = [line.strip() for line in text[-MAX_TEXT_CHARS:].splitlines() if line.strip()]
    return lines[-1] if lines else None


def normalise(text: str) -> str:
    """One form for texts that differ in case and in white space only."""
    return " ".join(text.casefold().split())
