"""The names of the programs that `specthink up` starts."""

from __future__ import annotations

import pytest

from pipeline.errors import ProgramFailed
from pipeline.local import worker_names

A, B, C = ("small", "a"), ("small", "b"), ("small", "c")


@pytest.mark.parametrize(
    ("commands", "written", "names"),
    [
        ([A], {}, ["small"]),
        ([A, B], {}, ["small", "small-2"]),
        ([A, A], {}, ["small", "small-2"]),
        ([A, B], {"small": A}, ["small", "small-2"]),
        ([B, A], {"small": A}, ["small-2", "small"]),  # the one that runs keeps its name
        ([C, B, A], {"small": A, "small-2": B}, ["small-3", "small-2", "small"]),
        ([B], {"small": A}, ["small"]),  # refused later, where that one runs
        ([B], {"small": A, "small-2": B}, ["small-2"]),
        ([A, A], {"small": A, "small-2": A}, ["small", "small-2"]),
    ],
)
def test_workers_of_one_role_keep_their_names(
    commands: list[tuple[str, ...]], written: dict[str, tuple[str, ...]], names: list[str]
) -> None:
    assert worker_names("small", commands, written) == names


@pytest.mark.parametrize(("of_the_program", "of_the_error"), [(2, 2), (3, 3), (4, 4), (1, 1), (75, 1), (None, 1)])
def test_failed_start_has_its_causes_exit_code(of_the_program: int | None, of_the_error: int) -> None:
    assert ProgramFailed("small", of_the_program, "see x.log").exit_code == of_the_error
