"""The SQL files say of states and their moves what ``pipeline`` says."""

from __future__ import annotations

import re
from enum import StrEnum
from itertools import chain

import pytest

from pipeline.db.schema_objects import FOLDER, sql_files
from pipeline.jobs.config import JOB_TRANSITIONS, JobState
from pipeline.samples import (
    IDLE_STATES,
    RUNNABLE_STATE,
    SUSPECT_AFTER,
    TRANSITIONS,
    WRITING_STATE,
    Author,
    FinishReason,
    ModelRole,
    SampleState,
)

STATE_MACHINE = (FOLDER / "state_machine.sql").read_text(encoding="utf-8")
ALL_SQL = "\n".join(path.read_text(encoding="utf-8") for path in sql_files())


def moves_in(function: str) -> set[str]:
    body = STATE_MACHINE.split(f"CREATE FUNCTION {function}()")[1].split("$$;")[0]
    return set(re.findall(r"'(\w+>\w+)'", body))


@pytest.mark.parametrize(
    ("function", "moves"),
    [("log_sample_changes", TRANSITIONS), ("log_job_changes", JOB_TRANSITIONS)],
    ids=["samples", "jobs"],
)
def test_state_machine_knows_the_moves_of_the_package(function: str, moves: frozenset[tuple[StrEnum, StrEnum]]) -> None:
    assert moves_in(function) == {f"{start}>{end}" for start, end in moves}


KNOWN_LISTS = [
    set(SampleState) - IDLE_STATES,
    {*RUNNABLE_STATE.values(), *WRITING_STATE.values()},
    set(RUNNABLE_STATE.values()),
    {SampleState.FINISHED, SampleState.GRADED},
]
"""The sets of states that the views ask for: in the pipeline, admitted, waiting for a model, with complete text."""


def test_lists_of_states_are_those_of_the_package() -> None:
    sample_states = {state.value for state in SampleState}
    lists = [set(re.findall(r"'(\w+)'", found)) for found in re.findall(r"state (?:NOT )?IN \(([^)]*)\)", ALL_SQL)]
    of_samples = [found for found in lists if found <= sample_states]
    assert len(of_samples) > 10
    assert [found for found in of_samples if found not in KNOWN_LISTS] == []


def test_words_compared_with_are_words_that_are_stored() -> None:
    words = {
        "state": {*SampleState, *JobState},
        "author": {*Author, "all"},
        "finish_reason": set(FinishReason),
        "first_role": set(ModelRole),
    }
    for column, known in words.items():
        equal = re.findall(rf"\.{column} (?:=|<>) '(\w+)'", ALL_SQL)
        listed = chain.from_iterable(
            re.findall(r"'(\w+)'", found) for found in re.findall(rf"\.{column} (?:NOT )?IN \(([^)]*)\)", ALL_SQL)
        )
        found = {*equal, *listed}
        assert found, column
        assert found <= {str(word) for word in known}, column


def test_suspects_begin_where_the_package_says() -> None:
    assert set(re.findall(r"num_rescues >= (\d+)", ALL_SQL)) == {str(SUSPECT_AFTER)}
