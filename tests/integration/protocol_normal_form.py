"""One state for all that are alike: what differs in nothing that may still happen is visited once.

Samples are put in an order of their own, lives and epochs are numbered anew, and what the fences make harmless is left
out: messages of other epochs, claims that no commit can be of any more, what processes remember of texts. That this
leaves out nothing else is tested: where a fence is down, none of it is done, and a small scene is visited both ways.
"""

from __future__ import annotations

from functools import cache

from pipeline.samples import SUSPECT_AFTER
from tests.integration.protocol_model import Base
from tests.integration.protocol_world import (
    ENDED,
    NOBODY,
    ROLE_OF,
    Hand,
    Life,
    Move,
    Place,
    Record,
    Row,
    State,
    Whole,
    Work,
)

_NOTHING: tuple[Base, Base] = ((), ())
Numbers = dict[int, int]
Lives = tuple[tuple[int, int], ...]
"""Each life and its new number."""


def normal(state: State) -> State:
    """What stands for a state and for all that are like it."""
    whole, places = state
    places = tuple(map(_without_what_is_over, places))
    numbers = _numbers(whole, places)
    return State(_whole(whole, numbers), tuple(sorted(_place(place, numbers) for place in places)))


def is_idle(state: State, move: Move) -> bool:
    """Whether a move changes nothing in a state of normal form: most heartbeats, and most looks for what waits."""
    if move.name == "publish_again":
        return all(_is_told(place) for place in state.places)
    return move.name == "renew" and _changes_nothing(state, move.args[0])


def _is_told(place: Place) -> bool:
    return place.row.num_rescues < SUSPECT_AFTER and (
        place.row.state not in ROLE_OF or place.row.epoch in place.messages
    )


def _changes_nothing(state: State, hand: int) -> bool:
    """Whether the life of a process goes on as it was, and holds nothing that the process does not know of."""
    whole, places = state
    worker, token = whole.hands[hand]
    if token != (1.0 if whole.restore == "kept" else -1.0):
        return False
    return any(life.worker == worker and not life.ended for life in whole.lives) and not any(
        place.row.holder == worker and not any(work.hand == hand for work in place.works) for place in places
    )


# -- what is over ------------------------------------------------------------------------------------------------------


@cache
def _without_what_is_over(place: Place) -> Place:
    """Upkeep can send any message again, and a memory that is not the stored text is read anew."""
    kills, row, messages, works, caches, kept = place
    rows = (row, kept) if kept else (row,)
    return Place(
        kills,
        row,
        tuple(sorted({one.epoch for one in rows if one.state in ROLE_OF and one.epoch in messages})),
        tuple(work for work in works if any(_may_be_met(work, one) for one in rows)),
        (_NOTHING,) * len(caches),
        kept,
    )


def _may_be_met(work: Work, row: Row) -> bool:
    """Whether a row is, or may come to be, under the claim of a process: it waits, or is held, since the same time."""
    if work.since != row.since or row.state in ENDED:
        return False
    return work.epoch == row.epoch + (row.holder == NOBODY)


# -- lives -------------------------------------------------------------------------------------------------------------


def _numbers(whole: Whole, places: tuple[Place, ...]) -> Lives:
    """First the lives that processes have now, in the order of these; then the rest in their old order."""
    now = [hand.worker for hand in whole.hands]
    others = {life.worker for lives in (whole.lives, whole.kept_lives) for life in lives}
    numbers = {worker: index for index, worker in enumerate(now) if worker != NOBODY}
    rest = sorted(others.union(*map(_named_in, places)) - numbers.keys() - {NOBODY})
    return (*numbers.items(), *((worker, len(now) + index) for index, worker in enumerate(rest)), (NOBODY, NOBODY))


@cache
def _named_in(place: Place) -> frozenset[int]:
    kept = (place.kept.holder,) if place.kept else ()
    return frozenset((place.row.holder, *kept, *(work.worker for work in place.works)))


def _whole(whole: Whole, lives: Lives) -> Whole:
    numbers = dict(lives)
    renewed = {life.worker: life.renewed for life in whole.lives}
    return whole._replace(
        lives=_lives(whole.lives, numbers, renewed=1.0 if whole.restore == "kept" else 0.0),
        kept_lives=_lives(whole.kept_lives, numbers, renewed=0.0),
        hands=tuple(
            Hand(numbers[hand.worker], 1.0 if _is_set_back(hand, whole, renewed) else -1.0) for hand in whole.hands
        ),
        sequence=0,
        kept_sequence=0,
    )


def _lives(lives: tuple[Life, ...], numbers: Numbers, *, renewed: float) -> tuple[Life, ...]:
    """renewed: later than any heartbeat that is remembered, but for those that a restore undoes."""
    return tuple(sorted(Life(numbers[life.worker], life.kind, life.ended, renewed) for life in lives))


def _is_set_back(hand: Hand, whole: Whole, renewed: dict[int, float]) -> bool:
    """Whether a restore has set, or would set, the life of a process back to before its last heartbeat."""
    since = renewed.get(hand.worker, 0.0) if whole.restore == "done" else 0.0
    return hand.token > since


# -- samples -----------------------------------------------------------------------------------------------------------


@cache
def _place(place: Place, lives: Lives) -> Place:
    """Epochs count from the earliest that may still be met; commits that are stored count backwards to it."""
    numbers = dict(lives)
    rows = (place.row, place.kept) if place.kept else (place.row,)
    first = min(row.epoch for row in rows)
    stored = sorted({(epoch, at) for row in rows for epoch, at, _ in (*row.segments, *row.asides)})
    commits = {head: (index - len(stored), head[1]) for index, head in enumerate(stored)}
    works = (
        work._replace(
            worker=numbers[work.worker],
            epoch=work.epoch - first,
            segments=_base(work.segments, commits),
            asides=_base(work.asides, commits),
        )
        for work in place.works
    )
    return Place(
        place.kills,
        _row(place.row, first, commits, numbers),
        tuple(epoch - first for epoch in place.messages),
        tuple(sorted(works)),
        place.caches,
        _row(place.kept, first, commits, numbers) if place.kept else (),
    )


Commits = dict[tuple[int, float], tuple[int, float]]


def _row(row: Row, first: int, commits: Commits, numbers: Numbers) -> Row:
    return row._replace(
        epoch=row.epoch - first,
        holder=numbers[row.holder],
        segments=_records(row.segments, commits),
        asides=_records(row.asides, commits),
    )


def _records(records: tuple[Record, ...], commits: Commits) -> tuple[Record, ...]:
    return tuple(
        (*commits[epoch, at], (_base(base[0], commits), _base(base[1], commits))) for epoch, at, base in records
    )


def _base(base: Base, commits: Commits) -> Base:
    return tuple(commits.get(head, head) for head in base)
