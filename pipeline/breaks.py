"""Breaks: where one reasoning step ends and the next begins.

A break is two newlines, or more, with nothing but blanks between them. Tokenizers merge it with other characters, so it
is found in the text: a token with a newline ends with a break where the text so far ends with one; blanks after it do
not matter. A break in the middle of a token is at no token boundary, and so is none. The start of the output is none
either.
"""

from __future__ import annotations

BREAK_NEWLINES = 2
"""Newlines that make a break."""


class BreakFinder:
    """Finds the breaks of a text that comes token by token."""

    __slots__ = ("newlines",)

    def __init__(self, newlines: int = 0) -> None:
        self.newlines = newlines
        """Of the white space that the text ends with, as far as a break needs them."""

    def feed(self, text: str) -> bool:
        """Whether the text so far ends with a break that this token completes or lengthens."""
        if "\n" not in text:
            if text and not text.isspace():
                self.newlines = 0
            return False
        core = text.rstrip()
        trailing = text.count("\n", len(core)) + (0 if core else self.newlines)
        self.newlines = min(trailing, BREAK_NEWLINES)
        return trailing >= BREAK_NEWLINES


def is_newlines(text: str) -> bool:
    """Whether a token adds nothing to a break before it but more newlines: a run of them is one break."""
    return not text or text.isspace()
