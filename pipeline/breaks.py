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
    """Finds the breaks of a text that comes token by token. A run of newlines is one break, however many tokens it has:
    its first token that makes a break ends the step, the first token after the run begins the next one."""

    __slots__ = ("_was_break", "at_break", "lengthens", "newlines")

    def __init__(self, newlines: int = 0, *, at_break: bool = False) -> None:
        """Of the text before."""
        self.newlines = newlines
        """Of the white space that the text ends with, as far as a break needs them."""
        self.at_break = at_break
        """Whether the text ends with a break that its last token completes or lengthens."""
        self._was_break = False  # the same of the text before its last token
        self.lengthens = False
        """Whether the last token adds nothing to the break before it but more newlines."""

    def feed(self, text: str) -> bool:
        """Read the next token; whether the text is at a break then."""
        self._was_break = was_break = self.at_break
        if "\n" not in text:
            if text and not text.isspace():
                self.newlines = 0
            self.at_break = self.lengthens = False
            return False
        core = text.rstrip()
        trailing = text.count("\n", len(core)) + (0 if core else self.newlines)
        self.newlines = min(trailing, BREAK_NEWLINES)
        self.at_break = at_break = trailing >= BREAK_NEWLINES
        self.lengthens = was_break and at_break and not core
        return at_break

    @property
    def ends_step(self) -> bool:
        """Whether a step ends with the last token."""
        return self.at_break and not self.lengthens

    @property
    def begins_step(self) -> bool:
        """Whether the last token is the first one after a break."""
        return self._was_break and not self.lengthens
