"""Requests as the database stores them: what is read back is what was asked, and damage is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.errors import DamagedRow
from pipeline.policies.requests import Ask, Generate, Insert, Request, Trigger, request_from_json, request_to_json
from pipeline.samples import ModelRole
from pipeline.signals import Signal

LARGE = ModelRole.LARGE
REQUESTS: list[Request] = [
    Generate(role=ModelRole.SMALL, max_tokens=1, trigger=Trigger.START),
    Generate(
        role=LARGE,
        max_tokens=512,
        trigger="my own",
        takes_over=True,
        cue="wait",
        signals=frozenset({Signal.LOGPROB, Signal.FIRST_ENTROPY}),
    ),
    Ask(role=LARGE, purpose="rate"),
    Ask(
        role=ModelRole.SMALL,
        purpose="rate",
        question="Is it right?",
        turn=True,
        opening="It is ",
        after=((0, 3), (2, 1)),
        max_tokens=20,
        greedy=False,
        labels=("0", "1"),
        labels_begin=True,
        signals=frozenset(Signal),
    ),
]


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_stored_request_is_read_back_as_it_was(request_: Request) -> None:
    stored = json.loads(json.dumps(request_to_json(request_)))
    read = request_from_json(stored)
    assert (read, type(read)) == (request_, type(request_))
    assert stored["version"] == 1


@pytest.mark.parametrize("request_", REQUESTS)
def test_the_same_request_is_stored_the_same(request_: Request) -> None:
    assert json.dumps(request_to_json(request_)) == json.dumps(request_to_json(request_))


def generate(**values: Any) -> dict[str, Any]:
    return request_to_json(REQUESTS[1]) | values


def without(name: str, stored: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in stored.items() if key != name}


@pytest.mark.parametrize("name", request_to_json(REQUESTS[1]))
def test_a_request_with_a_missing_field_is_refused(name: str) -> None:
    with pytest.raises(DamagedRow):
        request_from_json(without(name, generate()))


@pytest.mark.parametrize("name", request_to_json(REQUESTS[3]))
def test_an_ask_with_a_missing_field_is_refused(name: str) -> None:
    with pytest.raises(DamagedRow):
        request_from_json(without(name, request_to_json(REQUESTS[3])))


@pytest.mark.parametrize(
    "stored",
    [
        None,
        "generate",
        [],
        {},
        [["version", 1], ["kind", "generate"]],
        generate(version=2),
        generate(version=None),
        generate(kind="peek"),
        generate(kind=None),
        generate(kind=["generate"]),
        generate(kind="ask"),
        generate(temperature=1),
        generate(role="judge"),
        generate(max_tokens="512"),
        generate(max_tokens=512.0),
        generate(max_tokens=True),
        generate(max_tokens=0),
        generate(trigger=None),
        generate(trigger=3),
        generate(takes_over="true"),
        generate(takes_over=1),
        generate(cue=None),
        generate(signals=None),
        generate(signals=["loudness"]),
        generate(signals=["logprob", "first_entropy"]),
        generate(signals=["logprob", "logprob"]),
        request_to_json(REQUESTS[3]) | {"after": [[0]]},
        request_to_json(REQUESTS[3]) | {"after": [[0, "3"]]},
        request_to_json(REQUESTS[3]) | {"labels": "01"},
        request_to_json(REQUESTS[3]) | {"purpose": None},
    ],
)
def test_a_damaged_request_is_refused(stored: Any) -> None:
    with pytest.raises(DamagedRow):
        request_from_json(stored)


def test_another_version_is_named() -> None:
    with pytest.raises(DamagedRow, match="a request of version 7; this program reads version 1"):
        request_from_json(generate(version=7))


def test_a_request_for_no_token_cannot_be_made() -> None:
    with pytest.raises(ValidationError):
        Generate(role=LARGE, max_tokens=0, trigger=Trigger.START)
    with pytest.raises(ValidationError):
        Ask(role=LARGE, purpose="rate", max_tokens=0)


def test_small_takes_over_from_nobody() -> None:
    with pytest.raises(ValidationError, match=r"'my own'.*only large is called in.*leave takes_over out"):
        Generate(role=ModelRole.SMALL, max_tokens=1, trigger="my own", takes_over=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"purpose": ""}, "no purpose"),
        ({"opening": "It is "}, "opening but no turn"),
        ({"labels_begin": True}, "no labels"),
        ({"labels": ("",)}, "empty label"),
        ({"labels": ("1", "0", "1")}, "a label twice"),
        ({"after": ((0, 0),)}, "after no token"),
        ({"after": ((-1, 3),)}, "after no token"),
        ({"labels": ("0", "1"), "max_tokens": 0}, "greater than or equal to 1"),
    ],
)
def test_an_ask_that_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Ask(**{"role": LARGE, "purpose": "rate", **fields})


def test_an_empty_insert_is_refused() -> None:
    with pytest.raises(ValueError, match="inserts nothing"):
        Insert(text="", trigger="exit")
