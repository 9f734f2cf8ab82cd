"""Histories of the world of values, on a real Postgres: after each move all rows are as the model says.

All short ones, and long ones that are drawn. So the search through all histories is about these statements.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from pipeline.db import commits
from tests.integration.protocol_normal_form import normal
from tests.integration.protocol_replay import Replay
from tests.integration.protocol_world import Move, Rules, Scene, State, apply, beginning, moves
from tests.integration.test_protocol_exhaustively import ANY, OVER_AND_BACK, THRICE, TWICE, TWO
from tests.integration.test_protocol_machine import quick_engine
from tests.integration.test_protocol_mutations import Mutation, mutated

__all__ = ["quick_engine"]  # a fixture

RULES = Rules()
SCENES = (
    Scene(kinds=TWO, num_samples=1, turns=THRICE, faults=3, which=ANY, may_restore=True),
    Scene(kinds=("small", "large"), num_samples=2, turns=OVER_AND_BACK, faults=3, which=ANY, may_restore=True),
    Scene(kinds=TWO, num_samples=3, num_killers=1, turns=TWICE, faults=3, which=ANY, may_restore=True),
)
NUM_WALKS, LENGTH = int(os.environ.get("SPECTHINK_PROTOCOL_WALKS", "60")), 16
SHORT = 3
"""Moves of the histories of which all are made."""


def changes(state: State, scene: Scene) -> list[tuple[Move, State]]:
    """The moves that change something, and where each leads."""
    after = ((move, apply(state, move, scene, RULES)) for move in moves(state, scene))
    return [(move, changed) for move, changed in after if changed != state]


def drawn(scene: Scene, seed: int) -> list[Move]:
    draw, state, walk = random.Random(seed), beginning(scene, RULES), []
    for _ in range(LENGTH):
        choice = changes(state, scene)
        if not choice:
            break
        weights = [1 if move.is_fault else 3 for move, _ in choice]
        ((move, state),) = draw.choices(choice, weights)
        walk.append(move)
    return walk


def short(scene: Scene) -> Iterator[list[Move]]:
    """All histories of so many moves, but for those that lead where another one has led."""
    ends: list[tuple[list[Move], State]] = [([], beginning(scene, RULES))]
    seen = {normal(ends[0][1])}
    for _ in range(SHORT):
        longer = []
        for walk, state in ends:
            for move, after in changes(state, scene):
                if normal(after) not in seen:
                    seen.add(normal(after))
                    longer.append(([*walk, move], after))
        ends = longer
    return (walk for walk, _ in ends)


def replay(db_engine: Engine, scene: Scene, walk: list[Move]) -> Replay:
    replayed = Replay(db_engine, scene)
    try:
        for move in walk:
            replayed.make(move)
    except AssertionError as error:
        raise AssertionError(f"{error}\nin " + ", ".join(map(str, walk))) from error
    finally:
        replayed.clear()
    return replayed


@pytest.mark.slow
@pytest.mark.parametrize("scene", SCENES, ids=["a restore", "a hand-over", "a sample that kills"])
def test_drawn_histories_are_the_same_on_postgres(quick_engine: Engine, scene: Scene) -> None:
    for seed in range(NUM_WALKS):
        replay(quick_engine, scene, drawn(scene, seed))


@pytest.mark.slow
def test_short_histories_are_the_same_on_postgres(quick_engine: Engine) -> None:
    walks = list(short(SCENES[0]))
    assert len(walks) > 50
    for walk in walks:
        replay(quick_engine, SCENES[0], walk)


LOST_COMMIT = [
    Move("snapshot", (), True),
    Move("claim", (0, 0, 0), False),
    Move("commit", (0, 0, 0), False),
    Move("claim", (0, 0, 1), False),
    Move("restore", (), True),
    Move("claim", (0, 0, 0), False),
    Move("commit", (0, 0, 0), False),
    Move("claim", (0, 0, 1), False),
    Move("commit", (0, 0, 0), False),
]
"""The search found it: the last commit is of the history that the restore undid. Its epoch, its holder and its numbers
are those of the claim that the sample is held under, and its text goes on from another one."""
SINCE_WHENEVER = Mutation(
    "commit since whenever", commits, "_COMMIT",
    "AND (written.runnable_at IS NULL OR written.runnable_at = s.runnable_at)", "", "commits .* should answer",
)  # fmt: skip


def test_commit_on_a_text_that_a_restore_has_undone_is_refused(quick_engine: Engine) -> None:
    replayed = replay(quick_engine, SCENES[0], LOST_COMMIT)
    (sample,) = replayed.model.samples.values()
    assert (sample.state, len(sample.segments), len(sample.asides)) == ("drafting", 1, 0)


def test_commit_on_such_a_text_is_caught(quick_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "_COMMIT", mutated(SINCE_WHENEVER))
    with pytest.raises(AssertionError, match=SINCE_WHENEVER.found):
        replay(quick_engine, SCENES[0], LOST_COMMIT)
