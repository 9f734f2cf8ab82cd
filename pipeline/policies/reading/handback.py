"""Handing back: where the large model's text ends and the small one goes on."""

from __future__ import annotations

import math
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from pipeline.policies.reading.reader import Reader, SentenceEndFinder
from pipeline.signals import Readings

HandBack: TypeAlias = Literal["sentence", "break", "tokens"]
"""sentence: a takeover ends at the end of a sentence or at a break, so that small does not go on with a torn word or
formula; where none comes, at n tokens. break: at the break that ends its step; where none comes, at n tokens. tokens:
always at n tokens."""

HandBackFrom: TypeAlias = Annotated[float, Field(ge=0, le=1)]
"""Share of its n tokens that a takeover has at least written before the end of a sentence ends it."""


class HandBackWatcher:
    """Ends the large model's request where the small one goes on; ``num_kept`` is that place.

    limit: most tokens of the takeover; may be raised while it is read.
    """

    __slots__ = ("_ending", "_from", "_handback", "_num_read", "limit", "num_kept", "reader")

    def __init__(self, reader: Reader, *, limit: int, handback: HandBack, handback_from: float) -> None:
        self.num_kept = 0
        self.reader = reader
        self.limit = limit
        self._handback = handback
        self._from = handback_from
        self._num_read = 0
        self._ending = SentenceEndFinder() if handback == "sentence" else None

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        self._num_read += 1
        self.reader.feed(text)
        end = self._end_of_sentence(self._ending, text) if self._ending else self._end_of_step()
        is_over = not self.reader.thinking
        if is_over or (end is None and self._num_read >= self.limit):
            end = self._num_read
        self.num_kept = end or 0
        return end is not None

    def _end_of_sentence(self, ending: SentenceEndFinder, text: str) -> int | None:
        """The number of tokens at which a sentence or step has just been seen to end, late enough to hand back."""
        sentence_end = ending.feed(text)
        end = self._num_read if self.reader.at_break else sentence_end
        if end is None:
            return None
        return end if end >= max(1, math.ceil(self.limit * self._from)) else None

    def _end_of_step(self) -> int | None:
        """The number of tokens at which the step has just ended, where that hands back."""
        return self._num_read if self._handback == "break" and self.reader.ends_step else None


class StepsWatcher(HandBackWatcher):
    """Ends the large model's request only after so many steps, each of step_tokens tokens at most.

    A step that no break ends is over after step_tokens tokens; the next one goes on there.
    """

    __slots__ = ("_num_left", "_step_tokens")

    def __init__(self, reader: Reader, *, num_steps: int, step_tokens: int) -> None:
        super().__init__(reader, limit=step_tokens, handback="break", handback_from=0.0)
        self._num_left = num_steps
        self._step_tokens = step_tokens

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        if not super().feed(text, readings):
            return False
        self._num_left -= 1
        self.limit = self.num_kept + self._step_tokens
        return self._num_left == 0 or not self.reader.thinking
