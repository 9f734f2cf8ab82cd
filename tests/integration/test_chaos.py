"""A few cells of the chaos matrix, one run each; ``make chaos`` runs all of them, ten times and more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.matrix import Lane, find_faults

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

CELLS = (
    "small+large: kill -9 while generating",
    "small+large+upkeep: kill -9 between commit and publish",
    "small: SIGSTOP beyond the lease, SIGCONT",
    "upkeep: kill -9 while settling",
    "small+large: SIGTERM as soon as it has registered",
    "messages: each delivered 10 times",
    "gateway: kill -9 of gateway and workers in mid-batch",
)


@pytest.fixture(scope="module")
def lane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lane]:
    folder = tmp_path_factory.mktemp("chaos")
    lane = Lane(folder / "failed", new_folder=lambda: folder / "state")
    yield lane
    lane.close()


@pytest.mark.parametrize("cell", CELLS)
def test_fault_loses_nothing_and_doubles_nothing(lane: Lane, cell: str) -> None:
    [fault] = [fault for fault in find_faults(None) if str(fault) == cell]
    [run] = lane.cell(fault, runs=1, seed=1)
    assert run.is_good, (run, f"logs and rows are in {lane.folder(fault, 0)}")
