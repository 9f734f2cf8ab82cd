"""Handing back: where the large model's text ends and the small one goes on."""

from __future__ import annotations

import math
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from pipeline.policies.reading.reader import Reader, SentenceEndFinder
from pipeline.signals import Readings

HandBack: TypeAlias = Literal["sentence", "tokens"]
"""sentence: a takeover ends at the end of a sentence or at a break, so that small does not go on with a torn word or
formula; where none comes, at n tokens. tokens: always at n tokens."""

HandBackFrom: TypeAlias = Annotated[float, Field(ge=0, le=1)]
"""Share of its n tokens that a takeover has at least written before the end of a sentence ends it."""


class HandBackWatcher:
    """Ends the large model's request where the small one goes on; ``num_kept`` is that place.

    limit: most tokens of the takeover; may be raised while it is read.
    """

    __slots__ = ("_ending", "_from", "_num_read", "limit", "num_kept", "reader")

    def __init__(self, reader: Reader, *, limit: int, handback: HandBack, handback_from: float) -> None:
        self.num_kept = 0
        self.reader = reader
        self.limit = limit
        self._from = handback_from
        self._num_read = 0
        self._ending = SentenceEndFinder() if handback == "sentence" else None

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        self._num_read += 1
        self.reader.feed(text)
        end = None if self._ending is None else self._end_of_sentence(self._ending, text)
        if not self.reader.thinking or (end is None and self._num_read >= self.limit):
            end = self._num_read
        if end is None:
            return False
        self.num_kept = end
        return True

    def _end_of_sentence(self, ending: SentenceEndFinder, text: str) -> int | None:
        """The number of tokens at which a sentence or step has just been seen to end, late enough to hand back."""
        end = self._num_read if self.reader.at_break else None
        sentence_end = ending.feed(text)
        end = sentence_end if end is None else end
        least = max(1, math.ceil(self.limit * self._from))
        return end if end is not None and end >= least else None
