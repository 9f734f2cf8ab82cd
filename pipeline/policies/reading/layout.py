"""Layout: which breaks end a step in text with headings, lists, display formulas and blocks of code.

Models that do not reason write such text. A break is inside a step where

- a display formula or a block of code is open, or one follows it;
- the last line before it is a heading, or introduces what follows ("we get:", "= ", the number of an item alone);
- the next line is indented, so that it belongs to the item of a list.

The last two need the text after the break: it is decided at the first character there that is not blank.
"""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict

from pipeline.breaks import BreakFinder

_FENCE = re.compile(r"\s*(?:`{3,}[^`]*$|~~~)")  # a line with more of them is code within a line
_DELIMITER = re.compile(r"\\\\|(\\\[|\\\]|\$\$|\\begin\{[^}]*\}|\\end\{[^}]*\})")
"""None in its group where a row of a formula ends: the bracket of ``\\\\[2pt]`` opens nothing."""
_HEADING = re.compile(r"#{1,6}\s|(\*\*|__)[^*_]+\1[:：]?$")
_ITEM_ALONE = re.compile(r"(?:[-*•]|\(?(?:\d{1,3}|[a-zA-Z]|[ivxIVX]{1,5})[.)])$")
_INTRODUCES = re.compile(r"[:：,，、=+(（]\**$|\\\\$")
_OPENS_FORMULA = re.compile(r"\\\[|\$\$|\\begin|```|~~~")
_UNDECIDED = re.compile(r"(?:\\(?:b(?:e(?:g(?:i)?)?)?)?|\$|`{1,2}|~{1,2})\Z")
_INDENTED = re.compile(r"(?:\n|\r)(?: {2,}|[ ]*\t[ \t]*)\Z")


class LayoutState(BaseModel):
    """What matters of the text so far. depth: display formulas that are open. dollars, fence: whether a formula between
    dollars, or a block of code, is open. line: the line so far. introduces: whether the last line that is not blank
    needs what follows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    depth: int = 0
    dollars: bool = False
    fence: bool = False
    line: str = ""
    introduces: bool = False
    newlines: int = 0


class StepEndFinder:
    """Finds the breaks that end a step; ``num_kept`` is the place of the one found last."""

    __slots__ = ("_after", "_breaks", "_num_read", "_pending", "_state", "num_kept")

    def __init__(self, state: LayoutState) -> None:
        self.num_kept = 0
        self._state = state
        self._breaks = BreakFinder(state.newlines)
        self._num_read = 0
        self._pending: int | None = None
        self._after = ""

    @property
    def state(self) -> LayoutState:
        return self._state.model_copy(update={"newlines": self._breaks.newlines})

    def feed(self, text: str) -> bool:
        """Whether this token shows that a break before it ended a step."""
        self._num_read += 1
        found = self._pending is not None and self._follows(text)
        self._read(text)
        if self._breaks.feed(text):
            is_end = not (self._is_inside or self._state.introduces)
            self._pending, self._after = (self._num_read if is_end else None), text[text.rfind("\n") :]
        return found

    @property
    def _is_inside(self) -> bool:
        return self._state.depth > 0 or self._state.dollars or self._state.fence

    def _follows(self, text: str) -> bool:
        """Whether the first characters after the break, as far as they are known with this token, begin a step."""
        self._after += text
        shown = self._after.lstrip()
        if not shown or _UNDECIDED.fullmatch(shown):
            return False
        pending, self._pending = self._pending, None
        blanks = self._after[: len(self._after) - len(shown)]
        if _OPENS_FORMULA.match(shown) or _INDENTED.search(blanks):
            return False
        self.num_kept = pending or 0
        return True

    def _read(self, text: str) -> None:
        *lines, rest = (self._state.line + text).split("\n")
        for line in lines:
            self._read_line(line)
        self._state = self._state.model_copy(update={"line": rest})

    def _read_line(self, line: str) -> None:
        state, stripped = self._state, line.strip()
        if not stripped:
            return
        if _FENCE.match(line):
            self._state = state.model_copy(update={"fence": not state.fence, "introduces": False})
            return
        if state.fence:
            return
        depth, dollars = state.depth, state.dollars
        for found in filter(None, _DELIMITER.findall(line)):
            if found == "$$":
                dollars = not dollars
            else:
                depth = max(0, depth + (1 if found.startswith((r"\[", r"\begin")) else -1))
        introduces = _introduces(stripped)
        self._state = state.model_copy(update={"depth": depth, "dollars": dollars, "introduces": introduces})


def _introduces(line: str) -> bool:
    """Whether a line needs what follows it."""
    return bool(_HEADING.match(line) or _ITEM_ALONE.match(line) or _INTRODUCES.search(line))
