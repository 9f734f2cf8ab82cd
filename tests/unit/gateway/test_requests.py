"""What a chat request may ask: how it is read, and what is refused by which word."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.gateway.errors import ApiError
from pipeline.gateway.requests import Asked, chat_sha256, parse_request, read_request

ASKED: dict[str, Any] = {"model": "pair", "messages": [{"role": "user", "content": "1+1?"}]}


def read(**changes: Any) -> Asked:
    return read_request(parse_request({**ASKED, **changes}), external_id="a")


def test_parameters_become_options_of_a_submission() -> None:
    asked = read(
        temperature=0.5, top_p=0.9, top_k=-1, min_p=0.1, presence_penalty=1, frequency_penalty=-1,
        repetition_penalty=1.1, max_completion_tokens=50, n=3, seed=7, stop=["\n\n", "\n\n", ""],
        specthink={"policy_options": {"n1": 30}},
    )  # fmt: skip
    assert asked.options == {
        "temperature": 0.5, "top_p": 0.9, "top_k": 0, "min_p": 0.1, "presence_penalty": 1, "frequency_penalty": -1,
        "repetition_penalty": 1.1, "max_tokens": 50, "num_samples": 3, "seed": 7, "stop": ["\n\n"],
        "policy_values": {"n1": 30},
    }  # fmt: skip
    assert read().options == {}


def test_what_two_requests_share_decides_whether_they_are_one_job() -> None:
    other = [{"role": "user", "content": "another"}]
    assert read(seed=1).settings == read(seed=1, messages=other, user="ann").settings
    assert len({read(seed=1).settings, read(seed=2).settings, read(seed=1, n=2).settings, read().settings}) == 4


def test_conversation_becomes_turns_and_a_question() -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi", "reasoning": "they greet", "reasoning_content": "they greet"},
        {"role": "user", "content": "1+1?"},
    ]
    problem = read(messages=messages).problem
    assert (problem.external_id, problem.prompt) == ("a", "1+1?")
    assert problem.metadata == {
        "turns": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi"},
        ]
    }


def test_stream_options_without_a_stream_are_refused() -> None:
    with pytest.raises(ApiError, match="goes with 'stream'") as refused:
        read(stream_options={"include_usage": True})
    assert refused.value.param == "stream_options"
    assert read(stream=True, stream_options={"include_usage": True}).ignored == ()


def test_name_of_a_speaker_is_told_to_be_ignored() -> None:
    assert read(messages=[{"role": "user", "content": "1+1?", "name": "ann"}]).ignored == ("messages.name",)


NEUTRAL: list[tuple[str, list[Any]]] = [
    ("logprobs", [False, None]), ("top_logprobs", [0]), ("logit_bias", [{}, None]), ("tools", [[]]),
    ("tool_choice", ["none"]), ("response_format", [{"type": "text"}]), ("functions", [[]]), ("echo", [False]),
    ("service_tier", ["auto", "default"]), ("include_reasoning", [True]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "values"), NEUTRAL)
def test_what_changes_nothing_is_taken_and_named(name: str, values: list[Any]) -> None:
    for value in values:
        assert read(**{name: value}).ignored == (name,)


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"logprobs": True}, "unsupported_parameter", "logprobs"),
        ({"logprobs": 0}, "unsupported_parameter", "logprobs"),
        ({"top_logprobs": 5}, "unsupported_parameter", "top_logprobs"),
        ({"tools": [{"type": "function"}]}, "unsupported_parameter", "tools"),
        ({"response_format": {"type": "json_object"}}, "unsupported_parameter", "response_format"),
        ({"guided_json": {}}, "unsupported_parameter", "guided_json"),
        ({"logit_bias": {"1": 5}}, "unsupported_parameter", "logit_bias"),
        ({"include_reasoning": False}, "unsupported_parameter", "include_reasoning"),
        ({"best_of": 3}, "unsupported_parameter", "best_of"),
        ({"whatever": 1}, "unknown_parameter", "whatever"),
        ({"temperature": 2.1}, "integer_above_max_value", "temperature"),
        ({"temperature": True}, "invalid_type", "temperature"),
        ({"n": 0}, "integer_below_min_value", "n"),
        ({"n": 129}, "integer_above_max_value", "n"),
        ({"seed": -1}, "integer_below_min_value", "seed"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, None, "max_completion_tokens"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": [{"role": "user", "content": "  "}]}, None, "messages"),
        ({"messages": [{"role": "user", "content": "a\0b"}]}, "invalid_value", "messages.0.content"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, None, "messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "invalid_value", "messages.0.role"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}, None, "messages"),
        ({"model": ""}, "invalid_value", "model"),
        ({"stop": ["a"] * 5}, "invalid_value", "stop"),
        ({"stop": [1]}, "invalid_type", "stop.0"),
        ({"stop": 1}, "invalid_type", "stop"),
        ({"messages": [{"role": "user", "content": 7}]}, "invalid_type", "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
         "unsupported_parameter", "messages.0.content.0.type"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}]}]},
         "unknown_parameter", "messages.0.content.0.cache_control"),
        ({"model": "a\0b"}, "invalid_value", "model"),
        ({"model": "\ud800"}, "invalid_value", "model"),
        ({"user": "\ud800"}, "invalid_value", "user"),
        ({"reasoning_effort": "\0"}, "invalid_value", "reasoning_effort"),
        ({"metadata": {"a": "\ud800"}}, "invalid_value", "metadata.a"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(changes: dict[str, Any], code: str | None, param: str) -> None:
    with pytest.raises(ApiError) as refused:
        read(**changes)
    assert (refused.value.status, refused.value.code, refused.value.param) == (400, code, param)


def test_answer_may_come_back_as_the_official_client_shows_it() -> None:
    given = {"role": "assistant", "content": "2", "refusal": None, "annotations": None, "audio": None,
             "function_call": None, "tool_calls": None}  # fmt: skip
    asked = read(messages=[{"role": "user", "content": "1+1?"}, given, {"role": "user", "content": "Sure?"}])
    assert asked.problem.metadata["turns"][1] == {"role": "assistant", "content": "2"}


def test_system_message_stands_first() -> None:
    messages = [{"role": r, "content": "x"} for r in ("user", "system", "user")]
    with pytest.raises(ApiError, match="must be the first"):
        read(messages=messages)


def test_same_request_is_known_again_whatever_the_order_of_its_keys() -> None:
    first = parse_request({**ASKED, "seed": 1})
    assert chat_sha256(first) == chat_sha256(parse_request({"seed": 1, **ASKED}))
    assert chat_sha256(first) != chat_sha256(parse_request({**ASKED, "seed": 2}))
