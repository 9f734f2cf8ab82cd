"""Words: where they begin, in text that separates them by white space.

A token begins a word where it begins with white space and has more than that, or where it follows white space. Text
that does not separate its words has few such places.
"""

from __future__ import annotations


class WordStarts:
    """Finds the tokens that begin a word. after_space: whether the text so far ends with white space, or is empty."""

    __slots__ = ("after_space",)

    def __init__(self, *, after_space: bool = True) -> None:
        self.after_space = after_space

    def feed(self, text: str) -> bool:
        if not text:
            return False
        begins = not text.isspace() and (self.after_space or text[0].isspace())
        self.after_space = text[-1].isspace()
        return begins
