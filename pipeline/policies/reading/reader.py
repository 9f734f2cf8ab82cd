"""Reading along: breaks, open windows, cues and the end of the think phase, token by token.

What a break is: ``pipeline.breaks``.
"""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from pipeline.breaks import BreakFinder
from pipeline.policies.reading.cues import Cue, CueFinder, CueStream

TakeoverFrom: TypeAlias = Literal["earliest", "nearest"]
"""The break that a cue belongs to, of those whose window holds it. earliest: large writes again what small wrote
between them, the step that small is about to doubt. nearest: the last one; no finished step is thrown away."""


class TextState(BaseModel):
    """What matters of the text so far for reading on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    thinking: bool = True
    """Whether the think phase goes on."""
    tag_part: str = ""
    """The part of the closing think tag that the text ends with."""
    newlines: int = 0
    """How many newlines the text ends with, two at most."""
    windows: tuple[int, ...] = ()
    """Tokens since each break whose window is still open, oldest first."""
    tail: str = ""
    """The end of the sentence so far, for a cue split over pieces; kept while a window is open."""

    @property
    def at_break(self) -> bool:
        return bool(self.windows) and self.windows[-1] == 0


class SentenceEndFinder:
    """Finds where sentences end: at a full stop and the like, with what closes after it, before white space."""

    _STOP = re.compile(r"[.!?…][\"'”’)\]}*$]*(?P<space>\s*)\Z")
    _FULL_WIDTH_STOP = re.compile(r"[。！？][」』”’）]*\s*\Z")

    __slots__ = ("_num_read", "_open_end", "_tail")

    def __init__(self) -> None:
        self._num_read = 0
        self._open_end: int | None = None  # a full stop that white space has still to follow: "3." may go on as "3.14"
        self._tail = ""

    def feed(self, text: str) -> int | None:
        """Tokens up to the sentence end that text makes certain, if any."""
        self._num_read += 1
        if not text:
            return None
        ended = self._open_end if text[0].isspace() else None
        self._open_end = None
        self._tail = (self._tail + text)[-8:]
        stop = self._STOP.search(self._tail)
        if stop is not None and stop["space"] == "":
            self._open_end = self._num_read
        elif ended is None and not text.isspace() and (stop or self._ends_full_width()):
            ended = self._num_read
        return ended

    def _ends_full_width(self) -> bool:
        return not self._tail.isascii() and self._FULL_WIDTH_STOP.search(self._tail) is not None


class Reader:
    """Reads a sample's text on from a state.

    A window is the first window_tokens tokens after a break, whatever further breaks lie in it. A cue is inside when
    its last character is. It is found at the token that makes it certain: the one with the next character, or the
    window's last. It classifies the sentence, so that it closes all windows open at that place. A cue does not reach
    over a break.
    """

    __slots__ = (
        *("_breaks", "_closes_at", "_cues", "_tag", "_tag_part", "_takeover_from", "_window_tokens", "_windows"),
        *("at_break", "cue_break", "position", "thinking"),
    )

    def __init__(
        self,
        state: TextState,
        finder: CueFinder,
        *,
        window_tokens: int,
        think_end: str,
        takeover_from: TakeoverFrom = "earliest",
    ) -> None:
        self.position = 0
        """Tokens read since the state."""
        self.thinking = state.thinking
        self.at_break = False
        """Whether the token read last ended with a break."""
        self.cue_break = 0
        """Tokens before the break that the cue found last belongs to; 0 where that is before the state."""
        self._tag = think_end
        self._tag_part = state.tag_part
        self._breaks = BreakFinder(state.newlines, at_break=state.at_break)
        self._cues = CueStream(finder, state.tail)
        self._window_tokens = window_tokens
        self._takeover_from = takeover_from
        self._windows = [-age for age in state.windows]
        self._closes_at = self._windows[0] + window_tokens if self._windows else 0

    @property
    def state(self) -> TextState:
        return TextState(
            thinking=self.thinking,
            tag_part=self._tag_part,
            newlines=self._breaks.newlines,
            windows=tuple(self.position - start for start in self._windows),
            tail=self._cues.tail if self._windows else "",
        )

    @property
    def ends_step(self) -> bool:
        """Whether a step ended with the token read last, by a break."""
        return self.at_break and not self._breaks.lengthens

    @property
    def begins_step(self) -> bool:
        """Whether the token read last is the first one after a break of the think phase."""
        return self.thinking and self._breaks.begins_step

    @property
    def lengthens_break(self) -> bool:
        """Whether the token read last adds nothing to the break before it but more newlines."""
        return self.at_break and self._breaks.lengthens

    def feed(self, text: str) -> Cue | None:
        """Read what the next token added; the cue it makes certain inside an open window, if any."""
        self.position += 1
        if not self.thinking:
            self.at_break = False
            return None
        shown = text
        if self._tag and (self._tag_part or self._tag[0] in text):
            shown = self._read_tag(text)
        cue = self._read_windows(shown) if self._windows else None
        self.at_break = self._breaks.feed(text)
        if not self.thinking:
            self.at_break = False
            self.close_windows()
        elif self.at_break:
            self._open_window()
        return cue

    def end(self) -> Cue | None:
        """The cue that the end of the writing makes certain."""
        cue = self._cues.end() if self._windows else None
        if cue is not None:
            self._found()
        return cue

    def close_windows(self) -> None:
        """Look for no cue until the next break."""
        self._windows.clear()
        self._cues.begin_sentence()

    def _open_window(self) -> None:
        self._cues.begin_sentence()
        self._windows.append(self.position)
        self._closes_at = self._windows[0] + self._window_tokens

    def _read_windows(self, text: str) -> Cue | None:
        cue = self._cues.feed(text)
        if self.position < self._closes_at:
            if cue is not None:
                self._found()
            return cue
        cue = cue or self._cues.end()
        if cue is not None:
            self._found()
            return cue
        del self._windows[0]
        if self._windows:
            self._closes_at = self._windows[0] + self._window_tokens
        return None

    def _found(self) -> None:
        self.cue_break = max(0, self._windows[0 if self._takeover_from == "earliest" else -1])
        self.close_windows()

    def _read_tag(self, text: str) -> str:
        """Follow the closing think tag; returns what of the text may hold or end a cue."""
        joined = self._tag_part + text
        at = joined.find(self._tag)
        if at >= 0:
            shown = text[: max(0, at + 1 - len(self._tag_part))]
            self.thinking = False
            self._tag_part = ""
            return shown
        lengths = range(min(len(joined), len(self._tag) - 1), 0, -1)
        self._tag_part = next((self._tag[:length] for length in lengths if joined.endswith(self._tag[:length])), "")
        return text
