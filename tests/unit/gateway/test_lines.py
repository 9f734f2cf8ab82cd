"""The lines of a batch's file, whatever is in them."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.gateway.answers_files import AnswersFile
from pipeline.gateway.lines import CHAT, Faults, LineFault, read_requests
from pipeline.gateway.requests import Asked

GOOD = {
    "custom_id": "a", "method": "POST", "url": CHAT,
    "body": {"model": "s+l", "messages": [{"role": "user", "content": "1+1?"}]},
}  # fmt: skip


def read(content: bytes, *, max_line_bytes: int = 10_000) -> list[Asked | LineFault]:
    return list(read_requests(io.BytesIO(content), endpoint=CHAT, max_line_bytes=max_line_bytes))


def test_blank_lines_and_a_mark_are_skipped() -> None:
    line = json.dumps(GOOD).encode()
    (asked,) = read(b"\xef\xbb\xbf" + line + b"\n\n  \n\r\n")
    assert isinstance(asked, Asked)
    assert (asked.model, asked.problem.external_id) == ("s+l", "a")


def test_lines_are_counted_as_an_editor_counts_them() -> None:
    entries = read(b"\n" + json.dumps(GOOD).encode() + b"\nnonsense\n" + json.dumps(GOOD).encode())
    assert [(entry.code, entry.line) for entry in entries if isinstance(entry, LineFault)] == [
        ("invalid_json_line", 3), ("duplicate_custom_id", 4),
    ]  # fmt: skip


def test_line_beyond_the_limit_is_a_fault_and_the_next_one_is_read() -> None:
    entries = read(b'"' + b"x" * 20_000 + b'"\n' + json.dumps(GOOD).encode())
    assert isinstance(entries[0], LineFault)
    assert isinstance(entries[1], Asked)


@given(st.binary(max_size=300))
def test_any_bytes_are_requests_or_faults(content: bytes) -> None:
    for entry in read(content):
        assert isinstance(entry, Asked | LineFault)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(["custom_id", "method", "url", "body", "more"]), VALUES)
def test_any_value_anywhere_is_a_request_or_a_fault(key: str, value: object) -> None:
    line = json.dumps({**GOOD, key: value})
    (entry,) = read(line.encode())
    assert isinstance(entry, Asked | LineFault)
    if isinstance(entry, LineFault):
        assert entry.plain()["message"].isprintable()


@given(st.sampled_from(["model", "messages", "temperature", "n", "seed", "stop", "specthink", "tools", "x"]), VALUES)
def test_any_parameter_is_taken_or_refused(name: str, value: object) -> None:
    line = json.dumps({**GOOD, "body": {**GOOD["body"], name: value}})  # type: ignore[dict-item]
    (entry,) = read(line.encode())
    assert isinstance(entry, Asked | LineFault)


def test_faults_beyond_a_hundred_are_counted() -> None:
    faults = Faults()
    for number in range(130):
        faults.add(LineFault(code="c", message="m\x1b[2J", line=number))
    told = faults.plain()
    assert len(told) == 101
    assert "30 more" in told[-1]["message"]
    assert all("\x1b" not in fault["message"] for fault in told)


def test_answers_are_read_and_never_quoted() -> None:
    lines = [
        {"custom_id": "a", "answer": "12"}, {"custom_id": "b", "answer": 5}, {"custom_id": "c", "answer": True},
        {"custom_id": "a", "answer": "SECRET"}, {"custom_id": "d"}, {"custom_id": "e", "answer": " "}, [1],
    ]  # fmt: skip
    faults = Faults()
    content = io.BytesIO("\n".join(map(json.dumps, lines)).encode())
    answers = AnswersFile.read(content, faults, max_line_bytes=1000)
    assert [fault["line"] for fault in faults.plain()] == [3, 4, 5, 6, 7]
    assert (answers.take("a"), answers.take("b"), answers.take("z")) == ("12", "5", None)
    assert dict(answers.items()) == {"a": "12", "b": "5"}
    assert "SECRET" not in json.dumps(faults.plain())


@pytest.mark.parametrize("number", ["123456789012345678901234567890", "1.50", "0.12345678901234567890", "-0", "1e400"])
def test_answer_is_the_number_as_it_was_written(number: str) -> None:
    faults = Faults()
    content = io.BytesIO(f'{{"custom_id": "a", "answer": {number}}}'.encode())
    assert AnswersFile.read(content, faults, max_line_bytes=1000).take("a") == number
    assert faults.plain() == []


def test_answers_that_cannot_be_stored_are_told() -> None:
    faults = Faults()
    content = io.BytesIO(b'{"custom_id": "\\ud800", "answer": "1"}\n{"custom_id": "a", "answer": "\\u0000"}')
    AnswersFile.read(content, faults, max_line_bytes=1000)
    assert [fault["line"] for fault in faults.plain()] == [1, 2]
