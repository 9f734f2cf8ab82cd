"""Breaks: where one reasoning step ends and the next begins.

A break is two newlines. Tokenizers merge it with other characters, so it is found in the text: a token ends with a
break where the text so far ends with two newlines (blanks after them in the same token do not matter). A break in the
middle of a token is at no token boundary, and so is none. The start of the output is none either.
"""

from __future__ import annotations

BREAK_NEWLINES = 2
"""Newlines that make a break."""


class BreakFinder:
    """Finds the breaks of a text that comes token by token."""

    __slots__ = ("newlines",)

    def __init__(self, newlines: int = 0) -> None:
        self.newlines = newlines

    def feed(self, text: str) -> bool:
        """Whether the text so far ends with a break."""
        if "\n" not in text:
            if text:
                self.newlines = 0
            return False
        core = text.rstrip(" \t")
        trailing = len(core) - len(core.rstrip("\n"))
        if trailing == len(core):
            trailing += self.newlines
        self.newlines = min(trailing, BREAK_NEWLINES) if core == text else 0
        return trailing >= BREAK_NEWLINES
