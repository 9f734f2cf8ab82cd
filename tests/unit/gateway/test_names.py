"""How requests name a pair, and what keys and windows may say."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.batches import Caller
from pipeline.errors import ConfigurationError
from pipeline.gateway.aliases import check_alias
from pipeline.gateway.errors import ApiError
from pipeline.gateway.gate import is_loopback
from pipeline.gateway.keys import Limiter, check_name, hash_of, make_key
from pipeline.gateway.names import pair_options, served_names
from pipeline.gateway.routes.batches import window_seconds
from pipeline.jobs.config import ModelSpec
from pipeline.key_roles import KeyRole


def named(model: str, saved: dict[str, Any] | None = None) -> dict[str, Any]:
    options = pair_options(model, saved)
    return {key: value.name if isinstance(value, ModelSpec) else value for key, value in options.items()}


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("a+b", {"policy": "speculative-thinking:improved", "small": "a", "large": "b"}),
        ("org/a-1b+org/b-32b", {"policy": "speculative-thinking:improved", "small": "org/a-1b", "large": "org/b-32b"}),
        (
            "speculative-thinking:paper/org/a+b",
            {"policy": "speculative-thinking:paper", "small": "org/a", "large": "b"},
        ),
        ("small-only/org/a", {"policy": "small-only", "small": "org/a"}),
        ("large-only/b", {"policy": "large-only", "large": "b"}),
        ("org/a", {"policy": "small-only", "small": "org/a"}),
    ],
)
def test_name_says_policy_and_models(model: str, options: dict[str, str]) -> None:
    assert named(model) == options


@pytest.mark.parametrize(
    "model", ["", "+", "a+", "+b", "a+b+c", "small-only/", "speculative-thinking/a", "x" * 501, "a\0", "a\ud800"]
)
def test_name_that_means_nothing_is_not_found(model: str) -> None:
    with pytest.raises(ApiError) as refused:
        pair_options(model, None)
    assert (refused.value.status, refused.value.code, refused.value.param) == (404, "model_not_found", "model")


@pytest.mark.parametrize("model", ["/etc", "../..", "~/models/x", "examples/models/demo-small", "./a+./b"])
def test_name_opens_no_folder_of_this_machine(model: str) -> None:
    """A ModelSpec is a name that only workers look up."""
    options = pair_options(model, None)
    assert all(isinstance(options[role], ModelSpec) for role in ("small", "large") if role in options)


def test_saved_name_is_its_options() -> None:
    saved = {"small": "a", "small_revision": "main", "policy": "small-only", "temperature": 0.2}
    options = pair_options("mine", saved)
    assert options == {"small": ModelSpec(name="a", revision="main"), "policy": "small-only", "temperature": 0.2}
    assert saved["small"] == "a"


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("a b", {"small": "a"}, "no name"),
        ("a,b", {"small": "a"}, "no name"),
        ("small-only/x", {"small": "a"}, "begins with a policy"),
        ("mine", {"small": "a", "policy": "small-only", "grader": "math"}, "no option grader"),
        ("mine", {"small": "a", "policy": "small-only", "problems": "x"}, "no option problems"),
        ("mine", {"small": "a", "policy": "no-such"}, "no-such"),
        ("mine", {"small": "a"}, "needs a large model"),
    ],
)
def test_alias_that_no_request_could_use_is_refused(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        check_alias(name, options)


def test_alias_of_a_pair_is_taken() -> None:
    check_alias("qwen-pair", {"small": "a", "large": "b", "temperature": 0.2, "policy_values": {"n1": 20}})


def test_live_workers_make_names_that_can_be_asked() -> None:
    names = served_names(["s"], ["l1", "l2"])
    assert len(names) == 5
    assert {named(name)["policy"] for name in names} == {"speculative-thinking:improved", "small-only", "large-only"}


@pytest.mark.parametrize(
    ("window", "seconds"), [("24h", 86_400), ("1h", 3600), ("30d", 2_592_000), ("background", None)]
)
def test_window_is_hours_days_or_none(window: str, seconds: float | None) -> None:
    assert window_seconds(window) == seconds


@pytest.mark.parametrize("window", ["", "h", "0h", "31d", "721h", "9999d", "24", "24H", "-1h", "1.5h", "24h\n", "٢h"])
def test_window_that_is_none_is_refused(window: str) -> None:
    with pytest.raises(ApiError) as refused:
        window_seconds(window)
    assert refused.value.param == "completion_window"


def test_keys_are_long_and_differ() -> None:
    keys = {make_key() for _ in range(100)}
    assert len({hash_of(key) for key in keys}) == 100
    assert min(map(len, keys)) > 50
    for name in ("", "x" * 101, "a\nb", "\x1b[2J"):
        with pytest.raises(ConfigurationError):
            check_name(name)


def test_limiter_lets_so_many_through_a_minute() -> None:
    now = [0.0]
    limiter = Limiter(clock=lambda: now[0])
    caller = Caller(key_id=1, name="ann", role=KeyRole.SUBMIT, requests_per_minute=2)
    assert [limiter.wait_s(caller) for _ in range(3)] == [0, 0, 30]
    assert limiter.wait_s(Caller(key_id=2, requests_per_minute=2)) == 0, "others have their own"
    now[0] = 30.0
    assert [limiter.wait_s(caller) for _ in range(2)] == [0, 30]
    assert limiter.wait_s(Caller(key_id=3)) == 0


@pytest.mark.parametrize(
    ("host", "is_local"),
    [("localhost", True), ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("0.0.0.0", False), ("::", False),
     ("example.org", False), ("127.0.0.1.example.org", False), ("", False), ("10.0.0.1", False)],
)  # fmt: skip
def test_loopback_is_this_machine_alone(host: str, is_local: bool) -> None:
    assert is_loopback(host) is is_local
