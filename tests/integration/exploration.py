"""Visits every state that a scene of the protocol can come to, breadth first, and says what is wrong with any.

What is found is the shortest way there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pipeline.samples import GUILTY_AFTER_LAPSES
from tests.integration.protocol_normal_form import is_idle, normal
from tests.integration.protocol_world import (
    ENDED,
    NOBODY,
    Move,
    Place,
    Record,
    Rules,
    Scene,
    State,
    apply,
    beginning,
    heads,
    moves,
)

BLAMED = frozenset({"engine_died", "timed_out"})


@dataclass
class Found:
    """A state that must not be, and the shortest way to it."""

    what: str
    trace: list[Move]

    def __str__(self) -> str:
        return f"{self.what}, after\n" + "\n".join(f"  {move}" for move in self.trace)


@dataclass
class Exploration:
    """All states of a scene that are reached. Stops at the first fault."""

    scene: Scene
    rules: Rules = field(default_factory=Rules)
    is_reduced: bool = True
    """Visit one of all states that are alike. Only where every fence stands."""
    most: int = 10_000_000
    """States that are visited at most; a test of the protocol itself never comes so far."""
    fault: Found | None = None
    num_moves: int = 0
    num_ended: int = 0
    """States in which every sample has ended."""
    depth: int = 0

    def run(self) -> Exploration:
        first = self._seen(beginning(self.scene, self.rules))
        self._number = {first: 0}
        self._came: list[tuple[int, Move | None, int]] = [(0, None, 0)]
        """By state: from which, by what, after how many."""
        self._good: list[tuple[int, int]] = []
        """Moves that are no faults, from and to."""
        self._ended: list[int] = []
        waiting = deque([first])
        while waiting and self.fault is None and len(self._number) < self.most:
            self._expand(waiting.popleft(), waiting)
        if not waiting and self.fault is None and not self.scene.never:
            self._look_for_traps()
        return self

    @property
    def num_states(self) -> int:
        return len(self._number)

    @property
    def states(self) -> Iterable[State]:
        return self._number

    def _seen(self, state: State) -> State:
        return normal(state) if self.is_reduced else state

    def _expand(self, state: State, waiting: deque[State]) -> None:
        number = self._number[state]
        if all(place.row.state in ENDED for place in state.places):
            self._ended.append(number)
            self.num_ended += 1
        for move in moves(state, self.scene):
            if self.is_reduced and is_idle(state, move):
                continue
            changed = apply(state, move, self.scene, self.rules)
            self.num_moves += 1
            after = state if changed == state else self._seen(changed)
            if after == state:
                continue
            wrong = next(self._wrong_with(state, move, changed), None)
            place = self._number.setdefault(after, len(self._number))
            if place == len(self._came):
                self.depth = self._came[number][2] + 1
                self._came.append((number, move, self.depth))
                waiting.append(after)
                wrong = wrong or next(wrong_with(after), None)
            if wrong:
                self.fault = Found(wrong, [*self._way_to(number), move])
                return
            if not move.is_fault:
                self._good.append((number, place))

    def _way_to(self, number: int) -> list[Move]:
        way: list[Move] = []
        while number:
            number, move, _ = self._came[number]
            way += [move] if move else []
        return way[::-1]

    @staticmethod
    def _wrong_with(state: State, move: Move, changed: State) -> Iterator[str]:
        """What is wrong with a move. changed: before its samples are put in order."""
        if move.name != "restore" and _num_records(changed) < _num_records(state):
            yield "what was committed is gone"
        if move.name in ("commit", "commit_unanswered", "fail"):
            sample, index, worker = move.args
            before, work = state.places[sample].row, state.places[sample].works[index]
            is_stored = changed.places[sample].row != before
            if is_stored and (before.holder, before.epoch) != (worker, work.epoch):
                yield "a commit is stored of a claim under which nobody holds the sample"
        if move.name == "renew" and state.whole.restore == "done":
            hand = state.whole.hands[move.args[0]]
            renewed = {life.worker: life.renewed for life in state.whole.lives}
            if hand.token > renewed.get(hand.worker, 0.0) and changed.whole.hands[move.args[0]].worker == hand.worker:
                yield "a life goes on that a restore has set back"

    def _look_for_traps(self) -> None:
        """From every state the moves that are no faults can bring every sample to its end."""
        into: list[list[int]] = [[] for _ in self._number]
        for before, after in self._good:
            into[after].append(before)
        reaches = bytearray(len(into))
        waiting = self._ended
        while waiting:
            number = waiting.pop()
            if not reaches[number]:
                reaches[number] = 1
                waiting += into[number]
        trapped = reaches.find(0)
        if trapped >= 0:
            self.fault = Found("no end can be reached", self._way_to(trapped))


def _num_records(state: State) -> int:
    return sum(len(place.row.segments) + len(place.row.asides) for place in state.places)


def wrong_with(state: State) -> Iterator[str]:
    """What is wrong with a state: each is a promise that is broken."""
    for place in state.places:
        row = place.row
        if not _stands(row.segments, row.segments, row.asides):
            yield "a segment does not continue what is stored before it"
        if not _stands(row.asides, row.segments, row.asides):
            yield "an aside was asked about another text than what is stored before it"
        if row.error == "another text's":
            yield "a sample failed for a text that is not its own"
        if row.error in BLAMED and not place.kills:
            yield "a sample is blamed that killed nobody"
        if row.num_rescues > GUILTY_AFTER_LAPSES:
            yield "a sample costs more workers than the last one that it may"
        if len(_able(place)) > 1:
            yield "two processes can commit the same claim"


def _stands(records: tuple[Record, ...], segments: tuple[Record, ...], asides: tuple[Record, ...]) -> bool:
    """Whether each record was written on just what was committed before it."""
    texts = heads(segments), heads(asides)
    for epoch, at, base in records:
        before = tuple(tuple(head for head in text if head < (epoch, at)) for text in texts)
        if before != base:
            return False
    return True


def _able(place: Place) -> set[int]:
    """The processes that remember the claim under which a sample is held now."""
    row = place.row
    if row.holder == NOBODY:
        return set()
    return {work.hand for work in place.works if (work.worker, work.epoch) == (row.holder, row.epoch)}
