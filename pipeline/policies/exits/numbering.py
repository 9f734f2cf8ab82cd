"""Numbers of asides: a delegation counts its own, as if an exit asked none.

A sample's asides have one row of numbers. What an exit asked is taken out of it before the delegation sees a number,
and put back into what the delegation decides.
"""

from __future__ import annotations

from dataclasses import replace

from pipeline.policies.protocol import Transition
from pipeline.policies.requests import Answered, Ask, Event, Take


class Numbering:
    """trials: the numbers of the exit's asides, in order."""

    def __init__(self, trials: tuple[int, ...]) -> None:
        self._trials = trials

    def inward(self, event: Event) -> Event:
        """The event with the number that the delegation knows its aside by."""
        if not isinstance(event, Answered):
            return event
        return replace(event, index=event.index - sum(trial < event.index for trial in self._trials))

    def outward(self, transition: Transition) -> Transition:
        """The transition with the sample's numbers."""
        insert = tuple(
            replace(part, index=self._outward(part.index)) if isinstance(part, Take) else part
            for part in transition.insert
        )
        then = transition.then
        if isinstance(then, Ask):
            then = replace(then, after=tuple((self._outward(index), count) for index, count in then.after))
        return replace(transition, insert=insert, then=then)

    def _outward(self, index: int) -> int:
        for trial in self._trials:
            index += trial <= index
        return index
