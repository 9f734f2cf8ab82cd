"""Chat completions online, whole and streamed, with the official client against a real gateway and scripted workers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from sqlalchemy import Engine, text

from pipeline.db.session import transaction
from pipeline.embedded import Connections
from tests.integration.gateway_world import ANSWER, PAIR, THOUGHT, Pair, Served, scripted, serving, user, wait_for

pytestmark = pytest.mark.integration

ASKED: dict[str, Any] = {"model": PAIR, "messages": [user("What is 1+1?")], "seed": 7, "max_tokens": 300}


@pytest.fixture
def served(connections: Connections, db_engine: Engine) -> Iterator[Served]:
    with serving(connections, db_engine, collect_s=0.1) as served:
        yield served


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with served.client(_strict_response_validation=True) as client:
        yield client


@pytest.fixture
def pair(db_engine: Engine) -> Iterator[Pair]:
    with scripted(db_engine, [user("What is 1+1?")], [user("Twice?")]) as pair:
        yield pair


def test_answer_is_whole_and_says_who_wrote_it(client: openai.OpenAI, pair: Pair) -> None:
    with pair.at_work():
        answer = client.chat.completions.create(**ASKED, n=2, user="ann", extra_body={"reasoning_effort": "high"})
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert (choice.message.content, choice.finish_reason) == (ANSWER, "stop")
        assert choice.message.reasoning == choice.message.reasoning_content == THOUGHT
    assert answer.specthink["ignored"] == ["reasoning_effort", "user"]
    assert answer.specthink["seed"] == 7
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_stream_is_the_answer_in_pieces(client: openai.OpenAI, pair: Pair) -> None:
    with pair.at_work():
        chunks = list(client.chat.completions.create(**ASKED, stream=True, stream_options={"include_usage": True}))
    *pieces, last = chunks
    deltas = [chunk.choices[0].delta for chunk in pieces]
    assert deltas[0].role == "assistant"
    assert "".join(getattr(delta, "reasoning", None) or "" for delta in deltas) == THOUGHT
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == THOUGHT
    assert "".join(delta.content or "" for delta in deltas) == ANSWER
    assert [chunk.choices[0].finish_reason for chunk in pieces if chunk.choices[0].finish_reason] == ["stop"]
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens > 0
    authors = {chunk.specthink["author"] for chunk in pieces if (chunk.specthink or {}).get("author")}
    assert "small" in authors
    assert len({chunk.id for chunk in chunks}) == 1


def test_requests_of_a_moment_that_ask_alike_are_one_job(client: openai.OpenAI, pair: Pair, served: Served) -> None:
    def ask(content: str) -> str | None:
        whole = client.chat.completions.create(**{**ASKED, "messages": [user(content)]})
        return whole.choices[0].message.content

    with pair.at_work(), ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, ["What is 1+1?", "Twice?", "What is 1+1?", "Twice?"]))
    assert answers == [ANSWER] * 4
    assert served.scalar("SELECT count(*) FROM samples") == 4, "nobody shares a sample with somebody who waits"
    assert served.scalar("SELECT count(*) FROM jobs") < 4
    assert served.scalar("SELECT count(*) FROM chat_requests WHERE delivered_at IS NULL") == 0


def test_same_question_with_the_same_seed_draws_the_same_noise(
    client: openai.OpenAI, pair: Pair, served: Served
) -> None:
    """Noise is drawn by the problem's id, so that a seed means something only where the id is the same too."""
    with pair.at_work(), ThreadPoolExecutor(2) as pool:
        ids = {one.id for one in pool.map(lambda _: client.chat.completions.create(**ASKED), range(2))}
        client.chat.completions.create(**{**ASKED, "messages": [user("Twice?")]})
        client.chat.completions.create(**{**ASKED, "seed": None})
    assert len(ids) == 2
    assert served.scalar("SELECT count(DISTINCT external_id) FROM chat_requests") == 3
    assert served.scalar("SELECT count(*) FROM samples") == 4


def test_client_that_lost_patience_gets_the_answer_that_it_waited_for(
    client: openai.OpenAI, pair: Pair, served: Served
) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=1.0).chat.completions.create(**ASKED)
    assert served.scalar("SELECT count(*) FROM samples") == 1
    with pair.at_work():
        retry = {"x-stainless-retry-count": "1"}
        answer = client.chat.completions.create(**ASKED, extra_headers=retry)
    assert answer.choices[0].message.content == ANSWER
    assert served.scalar("SELECT count(*) FROM samples") == 1
    with pair.at_work():
        client.chat.completions.create(**ASKED)
    assert served.scalar("SELECT count(*) FROM samples") == 2, "asked anew it is another one"


def test_harness_that_asks_again_without_saying_so_is_joined_too(
    client: openai.OpenAI, pair: Pair, served: Served
) -> None:
    """lm-eval sends the same body after its timeout, and no header."""
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=1.0).chat.completions.create(**ASKED)
    wait_for(lambda: served.scalar("SELECT count(*) FROM chat_requests WHERE waited_at = '-infinity'"))
    with pair.at_work():
        client.chat.completions.create(**ASKED)
    assert served.scalar("SELECT count(*) FROM samples") == 1


def test_what_nobody_waits_for_is_cancelled_in_the_end(client: openai.OpenAI, pair: Pair, served: Served) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=1.0).chat.completions.create(**ASKED)
    wait_for(lambda: served.scalar("SELECT count(*) FROM chat_requests WHERE waited_at = '-infinity'"))
    with transaction(served.db_engine) as connection:
        connection.execute(text("UPDATE chat_requests SET created_at = created_at - interval '11 minutes'"))
    wait_for(lambda: served.scalar("SELECT state FROM jobs") == "cancelled")


def test_failed_sample_is_an_error_of_its_class(client: openai.OpenAI, pair: Pair, served: Served) -> None:
    def fail() -> None:
        wait_for(lambda: served.scalar("SELECT count(*) FROM samples"))
        with transaction(served.db_engine) as connection:
            connection.execute(
                text(
                    "UPDATE samples SET state = 'failed', error = 'too long', error_class = 'budget', ended_at = now()"
                )
            )

    for options in ({}, {"stream": True}):
        thread = threading.Thread(target=fail)
        thread.start()
        with pytest.raises(openai.APIError, match="too long") as refused:
            list(client.chat.completions.create(**ASKED, **options))  # type: ignore[call-overload]
        thread.join()
        assert refused.value.code == "context_length_exceeded"
        with transaction(served.db_engine) as connection:
            connection.execute(text("SET LOCAL session_replication_role = replica"))
            connection.execute(text("DELETE FROM chat_requests"))
            connection.execute(text("DELETE FROM samples"))


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"model": "nobody+serves"}, 404, "model_not_served"),
        ({"model": "speculative-thinking:improved/one"}, 404, "model_not_found"),
        ({"tools": [{"type": "function"}]}, 400, "unsupported_parameter"),
        ({"frobnicate": 1}, 400, "unknown_parameter"),
        ({"specthink": {"policy_options": {"n1": "many"}}}, 400, "bad_input"),
        ({"specthink": {"grader": "math"}}, 400, "unknown_parameter"),
        ({"messages": [user("a\0b")]}, 400, "invalid_value"),
        ({"model": "a\0b"}, 400, "invalid_value"),
    ],
)
def test_what_cannot_be_answered_is_refused_at_once(
    served: Served, pair: Pair, changes: dict[str, Any], status: int, code: str
) -> None:
    answer = httpx.post(f"{served.url}/chat/completions", json={**ASKED, **changes}, timeout=20)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert served.scalar("SELECT count(*) FROM jobs") == 0


def test_too_many_that_wait_are_told_to_come_again(connections: Connections, db_engine: Engine, pair: Pair) -> None:
    with serving(connections, db_engine, max_waiting=1) as served:
        client = served.client(timeout=2.0)

        def lose_patience() -> None:
            with pytest.raises(openai.APITimeoutError):
                client.chat.completions.create(**ASKED)

        thread = threading.Thread(target=lose_patience)
        thread.start()
        wait_for(lambda: served.scalar("SELECT count(*) FROM chat_requests"))
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(**ASKED)
        thread.join()
