"""The register of claims: what is lost, what is orphaned, and what stopping leaves."""

from __future__ import annotations

from pipeline.policies.requests import Generate
from pipeline.samples import ModelRole
from tests.turns import Moves, setup_of, start
from workers.writing.active import ActiveSample
from workers.writing.in_flight import InFlight

SETUP = setup_of(Moves([lambda event: {"then": Generate(role=ModelRole.SMALL, max_tokens=9, trigger="start")}]))


def active(sample_id: int, epoch: int = 1) -> ActiveSample:
    sample, _ = start(SETUP, sample_id=sample_id, epoch=epoch)
    return sample


def holding(*samples: ActiveSample) -> InFlight:
    register = InFlight()
    for sample in samples:
        register.claimed([sample.claim])
        assert register.started(sample)
    return register


def test_what_the_database_holds_no_more_is_lost() -> None:
    one, two, three = active(1), active(2), active(3)
    register = holding(one, two, three)
    three.committing = True
    assert register.find_lost(register.samples(), {1: 1, 2: 2}) == [two], "its epoch is another's"
    assert register.find_lost(register.samples(), {1: 1, 2: 1}) == [], "the third is on its way to the database"


def test_a_claim_made_since_is_not_lost() -> None:
    register = holding(active(1))
    before = register.samples()
    register.started(active(2))
    assert register.find_lost(before, {1: 1}) == []


def test_a_claim_nobody_works_on_is_orphaned_when_it_is_found_twice() -> None:
    register = holding(active(1))
    register.claimed([(2, 1)])
    held = {1: 1, 2: 1, 3: 4}
    assert register.find_orphaned(register.samples(), held) == {}
    assert register.find_orphaned(register.samples(), held) == {3: 4}, "the second starts"
    assert register.find_orphaned(register.samples(), {3: 5}) == {}, "another claim"
    register.ended([(2, 1)])
    assert register.find_orphaned(register.samples(), held) == {}
    assert register.find_orphaned(register.samples(), held) == {2: 1, 3: 4}


def test_a_claim_that_ends_takes_no_later_one_with_it() -> None:
    later = active(1, epoch=3)
    register = holding(active(1), later)
    register.claimed([(1, 5)])
    register.ended([(1, 1)])
    assert register.samples() == [later]
    register.ended([(1, 3), (1, 5)])
    assert (len(register), register.is_idle) == (0, True)
    assert register.find_orphaned([], {1: 5}) == {}
    assert register.find_orphaned([], {1: 5}) == {1: 5}


def test_a_worker_that_stops_claims_nothing_and_lets_what_it_has_run_on() -> None:
    register = holding(active(1))
    assert register.begin_claiming()
    register.stop()
    assert register.is_stopping
    assert not register.begin_claiming()
    late = active(2)
    assert register.started(late), "what was claimed before may run"
    assert not register.is_idle
    register.end_claiming()
    register.ended([(1, 1), (2, 1)])
    assert register.is_idle


def test_a_drained_worker_starts_nothing() -> None:
    one = active(1)
    register = holding(one)
    assert register.drain() == [one]
    assert not register.started(active(2))
    assert register.samples() == [one]


def test_claim_that_was_made_while_the_heartbeat_was_read_is_not_orphaned() -> None:
    """before and held are older than the register: the sample came back meanwhile, under a later epoch."""
    earlier, later = active(1), active(1, epoch=3)
    register = holding(later)
    for _ in range(2):
        assert register.find_orphaned([earlier], {1: 3}) == {}
