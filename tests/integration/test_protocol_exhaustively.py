"""Every history of a small pipeline: none breaks a promise, and from each the end can still be reached.

Then the protocol is broken on purpose, in the model: each fence that is taken down is found, with the shortest history
that shows it. ``SPECTHINK_PROTOCOL=large`` visits larger scenes, as ``make protocol`` does.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.integration import protocol_model as pm
from tests.integration.exploration import Exploration
from tests.integration.protocol_normal_form import normal
from tests.integration.protocol_world import Rules, Scene, State, Turn

TWICE = (Turn("ready", 1, 0), Turn("finished", 1, 1))
THRICE = (Turn("ready", 1, 0), Turn("ready", 0, 1), Turn("finished", 1, 1))
"""The second turn stores an aside alone."""
OVER_AND_BACK = (Turn("awaiting_large", 1, 0), Turn("ready", 0, 1), Turn("finished", 1, 1))
JUDGED = (Turn("awaiting_judge", 0, 1), Turn("ready", 0, 1), Turn("finished", 1, 0))
"""Small drafts an aside, a judge answers by another, and small goes on."""
ONCE = (Turn("finished", 1, 0),)
TWO = ("small", "small")
ANY = frozenset({"lapse", "kill", "claim_unanswered", "commit_unanswered", "release", "lose", "cancel", "fail"})

SCENES = {
    "a restore, and a fault": Scene(
        kinds=TWO, num_samples=1, turns=THRICE, faults=1, which=ANY, may_restore=True,
    ),
    "a restore, two samples": Scene(kinds=TWO, num_samples=2, turns=TWICE, faults=0, which=ANY, may_restore=True),
    "a restore, parts": Scene(
        kinds=TWO, num_samples=1, turns=TWICE, faults=0, which=ANY, may_restore=True, max_parts=2,
    ),
    "a restore, a hand-over, a fault": Scene(
        kinds=("small", "large"), num_samples=1, turns=OVER_AND_BACK, faults=1, which=ANY, may_restore=True,
    ),
    "a hand-over, four faults": Scene(
        kinds=("small", "large"), num_samples=1, turns=OVER_AND_BACK, faults=4, which=ANY
    ),
    "a judge, a restore, a fault": Scene(
        kinds=("small", "judge"), num_samples=1, turns=JUDGED, faults=1, which=ANY, may_restore=True,
    ),
    "three samples, a fault": Scene(kinds=TWO, num_samples=3, turns=TWICE, faults=1, which=ANY),
    "a sample that kills": Scene(
        kinds=TWO, num_samples=3, num_killers=1, turns=ONCE, faults=1, which=frozenset({"lose", "release", "cancel"})
    ),
}  # fmt: skip
LARGE = {
    "a restore, a hand-over, two faults": replace(SCENES["a restore, a hand-over, a fault"], faults=2),
    "a restore, three samples": replace(SCENES["a restore, two samples"], num_samples=3, turns=ONCE),
    "a restore, parts, a fault": replace(SCENES["a restore, parts"], faults=1),
    "a sample that kills, two faults": replace(SCENES["a sample that kills"], faults=2),
    "three samples, three faults": replace(SCENES["three samples, a fault"], faults=3),
    "two workers, two samples, a restore, a fault": replace(SCENES["a restore, two samples"], faults=1),
}
CHOSEN = SCENES | (LARGE if os.environ.get("SPECTHINK_PROTOCOL") == "large" else {})


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", CHOSEN)
def test_no_history_breaks_a_promise(name: str) -> None:
    start = time.process_time()
    seen = Exploration(CHOSEN[name]).run()
    took = time.process_time() - start
    print(f"{name}: {seen.num_states} states, {seen.num_moves} moves, {seen.depth} deep, {took:.0f} s")
    assert seen.fault is None, str(seen.fault)
    assert seen.num_ended > 0


SMALL = replace(SCENES["a restore, and a fault"], turns=TWICE, faults=0)


@pytest.mark.parametrize("kinds", [("small",), TWO])
def test_leaving_out_what_is_alike_leaves_out_nothing_else(kinds: tuple[str, ...]) -> None:
    scene = replace(SMALL, kinds=kinds, turns=TWICE if len(kinds) == 1 else ONCE)
    every = Exploration(scene, is_reduced=False).run()
    reduced = Exploration(scene).run()
    assert every.fault is None, str(every.fault)
    assert every.num_states > 2 * reduced.num_states
    assert {normal(state) for state in every.states} <= set(reduced.states)
    assert rows_of(map(normal, every.states)) == rows_of(reduced.states)


def rows_of(states: Iterable[State]) -> set[tuple[Any, ...]]:
    """What the database has of samples in these states, whatever the ids of lives are."""
    return {tuple((place.row._replace(holder=0), place.row.holder >= 0) for place in s.places) for s in states}


# The protocol broken on purpose


class AnyEpoch(pm.Model):
    def accepts(self, s: pm.Sample, worker: int, commit: pm.Written) -> bool:
        return s.holder == worker and self.goes_on(s, commit)


class AnyHolder(pm.Model):
    def accepts(self, s: pm.Sample, worker: int, commit: pm.Written) -> bool:
        return s.epoch == commit.epoch and s.holder is not None and self.goes_on(s, commit)


class SinceWhenever(pm.Model):
    """As it was before this search: epoch, holder and numbers."""

    def goes_on(self, s: pm.Sample, commit: pm.Written) -> bool:
        return self.counts(s, commit)


class OnWhatever(pm.Model):
    """As it was before the first look at restores: epoch and holder."""

    def goes_on(self, s: pm.Sample, commit: pm.Written) -> bool:
        return True


class PartSinceWhenever(pm.Model):
    """As it was before this search knew of parts: epoch, holder and where the stored ones end."""

    def accepts_part(self, s: pm.Sample, part: pm.Part) -> bool:
        return super().accepts_part(s, replace(part, runnable=None))


class PartOfAnyEpoch(pm.Model):
    def accepts_part(self, s: pm.Sample, part: pm.Part) -> bool:
        return super().accepts_part(s, replace(part, epoch=s.epoch))


class PartFromAnywhere(pm.Model):
    def accepts_part(self, s: pm.Sample, part: pm.Part) -> bool:
        return super().accepts_part(s, replace(part, start=s.part_tokens))


class LivesOn(pm.Model):
    def is_as_left(self, worker: pm.Worker, since: float | None) -> bool:
        return True


class KeepsTheEpoch(pm.Model):
    """A claim does not raise the epoch."""

    def claim(self, worker: int, epochs: Mapping[int, int], job: int) -> dict[int, tuple[Any, ...]]:
        taken = super().claim(worker, epochs, job)
        for sample in taken:
            self.samples[sample].epoch -= 1
        return taken


class PublishesOnce(pm.Model):
    """Upkeep looks for nothing that waits too long."""

    def overdue(self) -> pm.Runnables:
        return ()


class TriesNoSuspect(pm.Model):
    def try_suspects(self) -> pm.Runnables:
        return ()


class BlamesBeside(pm.Model):
    """Upkeep does not ask whether a suspect had its worker to itself."""

    def is_tried(self, s: pm.Sample, held: Sequence[pm.Sample]) -> bool:
        return s.must_be_alone


class KeepsStrays(pm.Model):
    """A heartbeat does not look for claims whose answer was lost."""

    def held_by(self, worker: int) -> dict[int, int]:
        return {}


class ForgetsTheHeld(pm.Model):
    """Upkeep ends lives and leaves them what they hold."""

    def _rescue(self, w: pm.Worker) -> tuple[set[int], int]:
        return set(), 0


class RemembersByEpoch(Rules):
    """A remembered text is believed where the epoch of its last record is the stored one's."""

    def is_cache_true(self, cached: pm.Base, stored: pm.Base) -> bool:
        place = len(cached) - 1
        return not cached or (place < len(stored) and cached[-1][0] == stored[place][0])


class SameIds(Rules):
    """The database's sequence alone numbers lives."""

    draws_ids = False


class OfTheFirstDays(RemembersByEpoch, SameIds):
    """The protocol before anybody looked at restores: nothing tells two histories apart."""

    class model(OnWhatever, LivesOn): ...


def with_model(model: type[pm.Model]) -> Rules:
    rules = Rules()
    rules.model = model
    return rules


ANOTHER_TEXT = "does not continue|asked about another text|not its own"
NOT_HELD = "under which nobody holds"
TWICE_HELD = "two processes can commit"
TRAP = "no end can be reached"
QUIET = frozenset({"renew", "lapse", "publish_again"})
RESTORED = replace(SMALL, turns=THRICE)
LONGER = replace(SMALL, turns=(TWICE[0], TWICE[0], TWICE[1]), never=QUIET)
"""Of what is remembered the last record is read again in any case."""
FAULTS = replace(SMALL, faults=1, may_restore=False)
KILLS = replace(SCENES["a sample that kills"], num_samples=1, faults=0)
BESIDE = replace(KILLS, num_samples=2, faults=2, which=frozenset({"kill"}))
"""Two workers vanish with an innocent sample, which is then a suspect as the one that kills is."""
REPLACED = replace(SMALL, faults=2, which=frozenset({"kill"}), never=QUIET)


@dataclass(frozen=True)
class Mutation:
    """rules: what is broken. found: how it shows. num_moves: of the shortest history that shows it."""

    name: str
    rules: Rules
    scene: Scene
    found: str
    num_moves: int


MUTATIONS = [
    Mutation("commit without epoch", with_model(AnyEpoch), FAULTS, NOT_HELD, 5),
    Mutation("commit without holder", with_model(AnyHolder), RESTORED, NOT_HELD, 5),
    Mutation("commit since whenever", with_model(SinceWhenever), RESTORED, ANOTHER_TEXT, 9),
    Mutation("commit on whatever text", with_model(OnWhatever), RESTORED, ANOTHER_TEXT, 9),
    Mutation("part since whenever", with_model(PartSinceWhenever), replace(SMALL, max_parts=1), ANOTHER_TEXT, 9),
    Mutation("part without epoch", with_model(PartOfAnyEpoch), replace(FAULTS, max_parts=1), NOT_HELD, 5),
    Mutation("part from anywhere", with_model(PartFromAnywhere), replace(SMALL, max_parts=2), ANOTHER_TEXT, 5),
    Mutation("life that is set back goes on", with_model(LivesOn), SMALL, "set back", 4),
    Mutation("memory believed by its epoch", RemembersByEpoch(), LONGER, ANOTHER_TEXT, 13),
    Mutation("ids by the sequence alone", SameIds(), REPLACED, TWICE_HELD, 8),
    Mutation("the protocol before restores were looked at", OfTheFirstDays(), REPLACED, TWICE_HELD, 8),
    Mutation("claim without a new epoch", with_model(KeepsTheEpoch), FAULTS, ANOTHER_TEXT, 4),
    Mutation("upkeep publishes once", with_model(PublishesOnce), FAULTS, TRAP, 1),
    Mutation("suspects are never tried", with_model(TriesNoSuspect), KILLS, TRAP, 0),
    Mutation("suspects blamed beside others", with_model(BlamesBeside), BESIDE, "blamed that killed nobody", 18),
    Mutation("strays are kept", with_model(KeepsStrays), FAULTS, TRAP, 1),
    Mutation("the dead keep what they hold", with_model(ForgetsTheHeld), FAULTS, TRAP, 2),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_broken_protocol_is_found_with_the_shortest_history(mutation: Mutation) -> None:
    is_reduced = mutation.found == TRAP or mutation.scene.num_killers > 0
    found = Exploration(mutation.scene, mutation.rules, is_reduced=is_reduced).run().fault
    assert found is not None
    print(found)
    assert re.search(mutation.found, found.what)
    assert len(found.trace) == mutation.num_moves


def test_blame_after_fewer_lapses_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = replace(KILLS, num_killers=0, faults=4, which=frozenset({"lapse"}))
    assert Exploration(scene).run().fault is None
    monkeypatch.setattr(pm, "GUILTY_AFTER_LAPSES", 4)
    found = Exploration(scene).run().fault
    assert found is not None
    assert found.what == "a sample is blamed that killed nobody"
    assert sum(move.is_fault for move in found.trace) == 4


def test_suspect_is_not_blamed_for_a_sample_that_kills_beside_it() -> None:
    fault = Exploration(BESIDE).run().fault
    assert fault is None, str(fault)
