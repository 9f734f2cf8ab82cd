"""Watchers of the preset ``improved``: where the small model is interrupted, and where the large one hands back."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.policies.reading.cues import Cue, CueKind, CueStream
from pipeline.policies.reading.handback import HandBackWatcher
from pipeline.policies.reading.layout import StepEndFinder
from pipeline.policies.reading.loops import LoopFinder
from pipeline.policies.reading.reader import Reader
from pipeline.policies.requests import Trigger
from pipeline.signals import Readings


@dataclass(frozen=True, slots=True, kw_only=True)
class Takeover:
    """Where and why the small model is interrupted: its first num_kept tokens stay."""

    num_kept: int
    trigger: Trigger
    cue: str = ""


class DraftWatcher:
    """Ends the small model's request at a cue inside a window; at every break or in a loop, where that is asked for."""

    __slots__ = ("_break_at", "_cue", "_every_break", "_loops", "_step_ends", "reader")

    def __init__(
        self, reader: Reader, loops: LoopFinder | None, *, every_break: bool, step_ends: StepEndFinder | None
    ) -> None:
        """step_ends: finds the breaks that count, where not all do."""
        self.reader = reader
        self._loops = loops
        self._every_break = every_break
        self._step_ends = step_ends
        self._break_at: int | None = None
        self._cue: Cue | None = None

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        self._cue = self.reader.feed(text)
        self._break_at = self._find_break(text) if self._every_break else None
        if self._cue is not None or self._break_at is not None:
            return True
        return self._loops is not None and self._loops.feed(text) and self.reader.thinking

    def _find_break(self, text: str) -> int | None:
        """Tokens before the end of the break that this token shows to call large in."""
        if self._step_ends is None:
            return self.reader.position if self.reader.at_break else None
        return self._step_ends.num_kept if self._step_ends.feed(text) and self.reader.thinking else None

    def end(self) -> bool:
        """After the last token: whether the end of the text makes a cue certain."""
        self._cue = self.reader.end()
        return self._cue is not None

    def takeover(self) -> Takeover:
        """After a True: the takeover it asks for."""
        if self._cue is not None:
            return Takeover(
                num_kept=self.reader.cue_break,
                trigger=Trigger.VERIFY if self._cue.kind is CueKind.VERIFY else Trigger(self._cue.sentence_class),
                cue=self._cue.words,
            )
        if self._break_at is not None:
            return Takeover(num_kept=self._break_at, trigger=Trigger.EVERY_BREAK)
        assert self._loops is not None
        return Takeover(num_kept=self._loops.first_block_end(), trigger=Trigger.REPETITION)


class TakeoverWatcher:
    """Ends the large model's request where the small one goes on, later where a verify cue lets it write on."""

    __slots__ = ("_back", "_extended_limit", "_num_read", "_verify", "_window_tokens")

    def __init__(
        self, back: HandBackWatcher, verify: CueStream | None, *, window_tokens: int, extended_limit: int
    ) -> None:
        """verify: the cues that raise the limit while the window lasts; None where nothing raises it."""
        self._back = back
        self._verify = verify
        self._window_tokens = window_tokens
        self._extended_limit = extended_limit
        self._num_read = 0

    @property
    def num_kept(self) -> int:
        return self._back.num_kept

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        self._num_read += 1
        if self._verify is not None:
            self._look_for_verify(self._verify, text)
        ended = self._back.feed(text)
        if self._verify is not None and self._back.reader.at_break:
            self._verify.begin_sentence()
        return ended

    def _look_for_verify(self, verify: CueStream, text: str) -> None:
        closes = self._num_read >= self._window_tokens
        if verify.feed(text) is not None or (closes and verify.end() is not None):
            self._back.limit = self._extended_limit
            self._verify = None
        elif closes:
            self._verify = None
