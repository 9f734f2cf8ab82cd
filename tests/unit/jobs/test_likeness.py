"""How two jobs differ, in words."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.chat.asking import Asking
from pipeline.jobs.config import JobConfig, ModelSpec, RoleDrawingSpec, SamplingSpec
from pipeline.jobs.likeness import (
    asking_differences,
    drawing_differences,
    field_differences,
    model_differences,
    policy_roles,
)
from pipeline.policies import parse_policy
from pipeline.samples import WRITING_ROLES, ModelRole

SMALL = ModelRole.SMALL


def job(small: dict[str, Any] | None = None, **fields: Any) -> JobConfig:
    models = {"small": ModelSpec(**{"name": "S", **(small or {})}), "large": ModelSpec(name="L")}
    return JobConfig(**{**models, "policy": parse_policy("glimpse"), **fields})


@pytest.mark.parametrize(
    ("given", "before", "told"),
    [
        ({}, {}, []),
        ({"name": "T"}, {}, ["small T instead of S"]),
        ({"name": "T", "weights": "a"}, {"weights": "a"}, []),  # another name of the same
        ({"name": "T", "weights": "a"}, {"weights": "b"}, ["small T instead of S"]),
        ({"name": "T", "weights": "a"}, {}, ["small T instead of S"]),
        ({"weights": "a"}, {"weights": "b"}, ["small S with other weights"]),
        ({"weights": "a"}, {}, []),  # not known
        ({"revision": "1"}, {"revision": "2"}, ["small S with other weights"]),
        ({"fingerprint": "a"}, {"fingerprint": "b"}, ["small S with another tokenizer or chat template"]),
        ({"fingerprint": "a"}, {}, []),
    ],
)
def test_models(given: dict[str, Any], before: dict[str, Any], told: list[str]) -> None:
    assert list(model_differences(job(given), job(before), ModelRole)) == told


def test_a_role_that_one_of_them_lacks_tells_nothing() -> None:
    alone = JobConfig(small=ModelSpec(name="S"), policy=parse_policy("small-only"))
    other = job(large=ModelSpec(name="M"), large_asking=Asking(system="Be brief."))
    assert list(model_differences(alone, other, ModelRole)) == []
    assert list(asking_differences(alone, other, WRITING_ROLES)) == []
    assert policy_roles(alone) == {SMALL}
    assert policy_roles(other) == set(WRITING_ROLES)


def test_fields_are_told_with_their_values_where_these_are_short() -> None:
    given, before = job(seed=3, cut_samples="unscored"), job(sampling=SamplingSpec(max_tokens=7))
    assert list(field_differences(given, before, ("seed", "sampling", "grader"))) == [
        "seed 3 instead of 0", "another sampling",
    ]  # fmt: skip


def test_what_is_said_and_drawn_is_told_by_role() -> None:
    given = job(sampling=SamplingSpec(temperature=1.0), large_sampling=RoleDrawingSpec(temperature=0.6, top_k=1))
    assert list(drawing_differences(given, job(), WRITING_ROLES)) == [
        "small temperature 1.0 instead of 0.6", "large top_k 1 instead of 50",
    ]  # fmt: skip
    said = job(large_asking=Asking(system="Be brief."))
    assert list(asking_differences(said, job(), WRITING_ROLES)) == ["large asked otherwise"]
