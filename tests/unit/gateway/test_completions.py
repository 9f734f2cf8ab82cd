"""Answers made of stored samples: thoughts and content, token counts, and the same in pieces."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.db.gateway.answers import AnsweringJob, Line, WrittenSample, WrittenSegment
from pipeline.gateway.completions import completion, split_text
from pipeline.gateway.streaming import ChunkStream, Splitter
from pipeline.jobs.config import JobConfig, ModelSpec
from pipeline.policies import parse_policy

CONFIG = JobConfig(
    small=ModelSpec(name="S"), large=ModelSpec(name="L"), policy=parse_policy("speculative-thinking:improved"), seed=7
)
OPENED = AnsweringJob(
    job_id=3, model="pair", policy="speculative-thinking:improved", config=CONFIG, think_start="<think>",
    think_end="</think>", is_opened=True, engines={1: ("abc", "S"), 2: ("def", "L")},
)  # fmt: skip
BY_TEXT = replace(OPENED, is_opened=False)
WITHOUT = replace(OPENED, think_start="", think_end="", is_opened=False)


def segment(index: int, text: str, author: str = "small", **changes: Any) -> WrittenSegment:
    """One token a character."""
    values: dict[str, Any] = {
        "index": index, "author": author, "trigger": "start", "cue": "", "takes_over": author == "large", "text": text,
        "tokens": len(text), "tokens_generated": len(text) + 1, "tokens_discarded": 1, "prompt_tokens": 10 + index,
        "cached_tokens": 4, "engine_id": 2 if author == "large" else 1, "token_lengths": tuple([1] * len(text)),
    }  # fmt: skip
    return WrittenSegment(**values | changes)


def sample(*segments: WrittenSegment, **changes: Any) -> WrittenSample:
    count = {who: sum(s.tokens for s in segments if s.author == who) for who in ("small", "large", "inserted")}
    values: dict[str, Any] = {
        "id": 5, "sample_index": 0, "state": "graded", "finish_reason": "eos", "error_class": None, "error": None,
        "score": 1.0, "predicted_answer": "2", "num_takeovers": 1,
        "tokens": {**count, "discarded_small": 1, "discarded_large": 0}, "ended_at": 1000, "segments": segments,
    }  # fmt: skip
    return WrittenSample(**values | changes)


@pytest.mark.parametrize(
    ("job", "output", "reasoning", "content"),
    [
        (OPENED, "So.</think>\n\n2", "So.", "\n\n2"),
        (OPENED, "So it is cut", "So it is cut", ""),
        (OPENED, "</think>2", "", "2"),
        (BY_TEXT, "<think>So.</think>2", "So.", "2"),
        (BY_TEXT, "\n<think>So.</think>2", "So.", "2"),
        (BY_TEXT, "2, at once", None, "2, at once"),
        (WITHOUT, "all </think> of it", None, "all </think> of it"),
    ],
)
def test_text_is_split_at_the_closing_tag_untrimmed(
    job: AnsweringJob, output: str, reasoning: str | None, content: str
) -> None:
    split = split_text(output, job)
    assert (split.reasoning, split.content) == (reasoning, content)
    assert split.start + (split.reasoning or "") + split.end + split.content == output


@given(
    pieces=st.lists(
        st.sampled_from(["<think>", "</think>", "</thi", "nk>", "<", "x", "\n\n", "</", "think>", "<thi", "\n"])
    ),
    job=st.sampled_from([OPENED, BY_TEXT, WITHOUT]),
)
def test_pieces_say_the_same_as_the_whole(pieces: list[str], job: AnsweringJob) -> None:
    splitter = Splitter(job)
    told = [entry for piece in pieces for entry in splitter.feed(piece)] + list(splitter.feed("", is_last=True))
    whole = split_text("".join(pieces), job)
    assert "".join(text for kind, text in told if kind == "reasoning") == (whole.reasoning or "")
    assert "".join(text for kind, text in told if kind == "content") == whole.content


def test_usage_counts_the_prompt_once_and_thoughts_by_token() -> None:
    written = (segment(0, "So "), segment(1, "it is.</think>", "large"), segment(2, "\n2"))
    body = completion(OPENED, [sample(*written), replace(sample(*written), sample_index=1)], completion_id="c")
    assert body["usage"] == {
        "prompt_tokens": 10, "completion_tokens": 38, "total_tokens": 48,
        "prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 18},
    }  # fmt: skip
    assert body["specthink"]["engine_usage"]["large"] == {
        "prompt_tokens": 22, "cached_tokens": 8, "generated_tokens": 30, "discarded_tokens": 2
    }  # fmt: skip
    segments = body["choices"][0]["specthink"]["segments"]
    assert [(each["author"], each["model"], each["start"], each["end"]) for each in segments] == [
        ("small", "S", 0, 3), ("large", "L", 3, 17), ("small", "S", 17, 19),
    ]  # fmt: skip


def test_closing_tag_across_two_segments_is_found() -> None:
    written = (segment(0, "So.</th"), segment(1, "ink>2", "large"))
    body = completion(OPENED, [sample(*written)], completion_id="c")
    assert body["choices"][0]["message"]["reasoning"] == "So."
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}


@pytest.mark.parametrize(
    ("reason", "told"),
    [("eos", "stop"), ("stop", "stop"), ("length", "length"), ("context", "length"), ("repetition", "length")],
)
def test_finish_reason_is_a_word_that_strict_clients_know(reason: str, told: str) -> None:
    choice = completion(OPENED, [sample(segment(0, "a"), finish_reason=reason)], completion_id="c")["choices"][0]
    assert (choice["finish_reason"], choice["specthink"]["finish_reason"]) == (told, reason)


@pytest.mark.parametrize("splits", itertools.product([1, 2, 4], repeat=2))
def test_stream_says_what_the_whole_answer_says(splits: Sequence[int]) -> None:
    segments = [segment(0, "So </th"), segment(1, "it is.</thi", "large"), segment(2, "nk>\n2"), segment(3, "!")]
    stream = ChunkStream(completion_id="c", include_usage=True)
    chunks: list[dict[str, Any]] = []
    for count in (*sorted(splits), 4):
        state, reason = ("graded", "eos") if count == 4 else ("drafting", None)
        line = Line(custom_id="c", samples=(sample(*segments[:count], state=state, finish_reason=reason),))
        chunks += stream.chunks(OPENED, line)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    message = completion(OPENED, [sample(*segments)], completion_id="c")["choices"][0]["message"]
    assert "".join(delta.get("reasoning", "") for delta in deltas) == message["reasoning"]
    assert "".join(delta.get("content", "") for delta in deltas) == message["content"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks].count("stop") == 1
    assert stream.usage_chunk(OPENED, Line(custom_id="c", samples=(sample(*segments),)))["usage"]["prompt_tokens"] == 10
