"""The rows of a sweep."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import ConfigurationError
from pipeline.experiments.plan import Axis, Shares, plan_rows


def names(*arguments: Any, **options: Any) -> list[str]:
    return [row.name for row in plan_rows(*arguments, **options)]


def test_every_combination_of_a_policy_is_a_row() -> None:
    grid = [Axis(key="policy.threshold", values=(0.5, 1)), Axis(key="guard.repeats", values=(3, 4))]
    assert names(["glimpse"], grid) == [
        "glimpse threshold=0.5 guard.repeats=3",
        "glimpse threshold=0.5 guard.repeats=4",
        "glimpse threshold=1 guard.repeats=3",
        "glimpse threshold=1 guard.repeats=4",
    ]
    (row,) = plan_rows(
        ["glimpse"], [Axis(key="policy.threshold", values=("0.5",)), Axis(key="guard.repeats", values=(3,))]
    )
    assert row.options == {"policy_values": {"threshold": "0.5"}, "guard": {"repeats": 3}}


def test_a_key_varies_the_policies_that_have_it_or_the_one_that_it_names() -> None:
    policies = ["glimpse", "random", "small-only"]
    assert names(policies, [Axis(key="policy.threshold", values=(1,))]) == [
        "glimpse threshold=1",
        "random",
        "small-only",
    ]
    assert names(policies, [Axis(key="random.rate", values=(0.1, 0.2))]) == [
        "glimpse", "random rate=0.1", "random rate=0.2", "small-only",
    ]  # fmt: skip
    preset = "speculative-thinking:paper"
    assert names([preset, "speculative-thinking:code"], [Axis(key=f"{preset}.n1", values=(9,))]) == [
        f"{preset} n1=9", "speculative-thinking:code",
    ]  # fmt: skip


def test_a_number_that_is_varied_twice_is_refused() -> None:
    twice = [Axis(key="policy.threshold", values=(1, 2)), Axis(key="glimpse.threshold", values=(3,))]
    with pytest.raises(ConfigurationError, match=r"'policy\.threshold' of glimpse is varied twice"):
        plan_rows(["glimpse"], twice)


def test_baselines_come_first_and_are_not_varied() -> None:
    rows = names(["glimpse"], [Axis(key="exit.thinking_tokens", values=(9,))], baselines=True)
    assert rows == ["small-only", "large-only", "glimpse exit.thinking_tokens=9"]
    assert names(["glimpse", "small-only"], baselines=True) == ["small-only", "large-only", "glimpse"]
    exits = names(["small-only"], [Axis(key="exit.name", values=("deer",))], baselines=True)
    assert exits == ["small-only", "large-only", "small-only exit.name=deer"]


def test_shares_are_of_policies_with_a_threshold_that_is_not_set() -> None:
    shares = Shares(pilot=7, shares=(0.1, 0.25))
    rows = plan_rows(["glimpse", "random"], shares=shares)
    assert [row.name for row in rows] == ["glimpse share=0.1", "glimpse share=0.25", "random"]
    assert rows[1].options == {"calibrated_from": {"job": 7, "share": 0.25}}
    with pytest.raises(ConfigurationError, match="none of the policies has a threshold to calibrate"):
        plan_rows(["random"], shares=shares)
    with pytest.raises(ConfigurationError, match="none of the policies has a threshold to calibrate"):
        plan_rows(["glimpse"], [Axis(key="glimpse.threshold", values=(1,))], shares=shares)


def test_the_same_row_is_there_once() -> None:
    assert names(["glimpse", "glimpse"], [Axis(key="policy.threshold", values=(1, 1))]) == ["glimpse threshold=1"]
    numbers = ("1", "1.0", "1e0", " 1", 1, 1.0)
    assert names(["glimpse"], [Axis(key="policy.threshold", values=numbers)]) == ["glimpse threshold=1"]
    assert names(["specreason", "specreason:rating", "specreason:doubt"]) == ["specreason", "specreason:doubt"]
    small = Axis(key="policy.threshold", values=("1e-3", 0.001, "0.0010"))
    assert names(["glimpse"], [small]) == ["glimpse threshold=0.001"]
    words = Axis(key="policy.switch_cues", values=(["a", "b,c"],))
    assert names(["relay"], [words]) == ["relay switch_cues=['a', 'b,c']"]
    whether = Axis(key="policy.check_start", values=(True, "True"))
    assert names(["glimpse"], [whether]) == ["glimpse check_start=True"]


@pytest.mark.parametrize(
    ("policies", "key", "values", "told"),
    [
        ([], "policy.threshold", (1,), "no policies: name some"),
        (["magic"], "policy.threshold", (1,), "there is no policy 'magic'"),
        (["glimpse"], "threshold", (1,), "there is no 'threshold' to vary; write policy.NAME"),
        (["glimpse"], "random.rate", (1,), r"there is no 'random.rate' to vary; .* or one of glimpse.NAME"),
        (["glimpse"], "policy.rate", (1,), "no policy of the sweep has 'policy.rate'; glimpse has: .*threshold"),
        (["glimpse"], "glimpse.rate", (1,), "no policy of the sweep has 'glimpse.rate'; glimpse has: .*threshold"),
        (["glimpse"], "policy.threshold", (), "'policy.threshold' has no values"),
        (["glimpse"], "policy.threshold", ("high",), "threshold: Input should be a valid number"),
        (["glimpse"], "exit.magic", (1,), "exit has no magic"),
    ],
)
def test_what_cannot_be_varied_is_refused(policies: list[str], key: str, values: tuple[Any, ...], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        plan_rows(policies, [Axis(key=key, values=values)])
