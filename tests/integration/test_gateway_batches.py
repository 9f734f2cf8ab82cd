"""Batches over HTTP, with the official client against a real gateway and scripted workers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from sqlalchemy import Engine, text

from pipeline.db.session import transaction
from pipeline.embedded import Connections
from tests.integration.gateway_world import (
    ANSWER,
    PAIR,
    THOUGHT,
    Pair,
    Served,
    create,
    ended,
    line,
    read_lines,
    scripted,
    serving,
    upload,
    user,
    wait_for,
)

WINDOW: Any = "background"
"""Without a deadline; the client's types know 24h alone."""
pytestmark = pytest.mark.integration

SYSTEM = {"role": "system", "content": "Be brief."}
CONVERSATION = [SYSTEM, user("Hello"), {"role": "assistant", "content": "Hi."}, user("What is 1+1?")]


@pytest.fixture
def served(connections: Connections, db_engine: Engine) -> Iterator[Served]:
    with serving(connections, db_engine) as served:
        yield served


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    """The strict one: an object that is not just as OpenAI's types say is an error."""
    with served.client(_strict_response_validation=True) as client:
        yield client


@pytest.fixture
def pair(db_engine: Engine) -> Iterator[Pair]:
    with scripted(db_engine, [user("What is 1+1?")], [user("Twice?")], CONVERSATION) as pair:
        yield pair


def test_batch_is_answered_line_by_line(client: openai.OpenAI, pair: Pair, served: Served) -> None:
    lines = [
        line("b", "What is 1+1?"),
        line("a", "Twice?", n=2),
        line("c", "", messages=CONVERSATION),
    ]
    batch = create(client, lines, metadata={"name": "sums"})
    assert (batch.status, batch.model, batch.metadata) == ("in_progress", PAIR, {"name": "sums"})
    assert (batch.request_counts.total, batch.request_counts.completed, batch.output_file_id) == (3, 0, None)
    assert batch.specthink["state"] == "running"
    pair.work()
    batch = ended(client, batch.id)
    assert batch.status == "completed"
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (3, 3, 0)
    assert batch.error_file_id is None
    answers = {each["custom_id"]: each for each in read_lines(client, batch.output_file_id)}
    assert sorted(answers) == ["a", "b", "c"]
    for custom_id, n in (("a", 2), ("b", 1), ("c", 1)):
        response = answers[custom_id]["response"]
        assert (response["status_code"], answers[custom_id]["error"]) == (200, None)
        assert [choice["index"] for choice in response["body"]["choices"]] == list(range(n))
        for choice in response["body"]["choices"]:
            assert choice["message"]["reasoning"] == choice["message"]["reasoning_content"] == THOUGHT
            assert (choice["message"]["content"], choice["finish_reason"]) == (ANSWER, "stop")
            check_provenance(choice)
    usage = wait_for(lambda: client.batches.retrieve(batch.id).usage)
    assert usage.output_tokens == sum(
        each["response"]["body"]["usage"]["completion_tokens"] for each in answers.values()
    )
    assert 0 < usage.output_tokens_details.reasoning_tokens < usage.output_tokens
    file = client.files.retrieve(batch.output_file_id)
    assert file.bytes == len(client.files.content(batch.output_file_id).content)
    assert served.scalar("SELECT count(*) FROM jobs") == 2, "one for each number of choices"


def check_provenance(choice: dict[str, Any]) -> None:
    """Segments tile the text, and large wrote where small began to doubt."""
    about = choice["specthink"]
    text = about["think_start"] + choice["message"]["reasoning"] + about["think_end"] + choice["message"]["content"]
    ends = [0]
    for segment in about["segments"]:
        assert segment["start"] == ends[-1]
        ends.append(segment["end"])
    assert ends[-1] == len(text)
    assert about["num_takeovers"] == sum(segment["takes_over"] for segment in about["segments"])


def test_openai_types_hold_for_every_answer(client: openai.OpenAI, pair: Pair) -> None:
    batch = create(client, [line("a", "What is 1+1?")])
    pair.work()
    (answer,) = read_lines(client, ended(client, batch.id).output_file_id)
    body = answer["response"]["body"]
    parsed = openai.types.chat.ChatCompletion.model_validate(body)
    assert parsed.usage is not None
    assert parsed.usage.total_tokens == parsed.usage.prompt_tokens + parsed.usage.completion_tokens
    details = parsed.usage.completion_tokens_details
    assert details is not None
    assert 0 < (details.reasoning_tokens or 0) < parsed.usage.completion_tokens


def test_partial_results_pause_and_resume(client: openai.OpenAI, pair: Pair, served: Served) -> None:
    batch = create(client, [line("a", "What is 1+1?"), line("b", "Twice?")])
    paused = client.post(f"/batches/{batch.id}/pause", cast_to=openai.types.Batch)
    assert (paused.status, paused.specthink["state"]) == ("in_progress", "paused")  # type: ignore[attr-defined]
    assert "paused" in paused.specthink["waiting_for"]  # type: ignore[attr-defined]
    pair.work()
    assert results(client, batch.id) == (True, [])
    client.post(f"/batches/{batch.id}/resume", cast_to=openai.types.Batch)
    pair.work()
    ended(client, batch.id)
    is_incomplete, lines = results(client, batch.id)
    assert (is_incomplete, [each["custom_id"] for each in lines]) == (False, ["a", "b"])
    assert results(client, batch.id, skip=1, limit=1) == (False, lines[1:])


def results(client: openai.OpenAI, batch_id: str, **query: int) -> tuple[bool, list[dict[str, Any]]]:
    answer = httpx.get(f"{client.base_url}batches/{batch_id}/results", params=query, timeout=30)
    lines = [json.loads(each) for each in answer.text.splitlines()]
    assert int(answer.headers["x-last-line"]) == query.get("skip", 0) + len(lines)
    return answer.headers["x-incomplete"] == "true", lines


def test_cancelled_batch_accounts_for_every_line(client: openai.OpenAI, pair: Pair) -> None:
    batch = create(client, [line("a", "What is 1+1?"), line("b", "Twice?")])
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    batch = ended(client, batch.id)
    assert (batch.status, batch.request_counts.failed, batch.output_file_id) == ("cancelled", 2, None)
    lines = read_lines(client, batch.error_file_id)
    assert [each["custom_id"] for each in lines] == ["a", "b"]
    assert {each["error"]["code"] for each in lines} == {"batch_cancelled"}
    assert client.batches.cancel(batch.id).status == "cancelled", "once more is no error"


def test_batch_past_its_deadline_expires(client: openai.OpenAI, pair: Pair, served: Served) -> None:
    batch = create(client, [line("a", "What is 1+1?"), line("b", "Twice?", seed=8)])
    with transaction(served.db_engine) as connection:
        connection.execute(text("UPDATE batches SET expires_at = clock_timestamp()"))
    batch = ended(client, batch.id)
    assert (batch.status, batch.request_counts.failed) == ("expired", 2)
    assert {each["error"]["code"] for each in read_lines(client, batch.error_file_id)} == {"batch_expired"}
    with pytest.raises(openai.BadRequestError, match="expired"):
        client.batches.cancel(batch.id)


def test_failed_lines_are_errors_and_can_be_tried_again(client: openai.OpenAI, pair: Pair, served: Served) -> None:
    batch = create(client, [line("a", "What is 1+1?"), line("b", "Twice?")])
    pair.work()
    ended(client, batch.id)
    with transaction(served.db_engine) as connection:
        undo(connection)
    batch = client.batches.retrieve(batch.id)
    counts = batch.request_counts
    assert counts is not None
    assert (batch.status, counts.completed, counts.failed) == ("completed", 1, 1)
    (error,) = read_lines(client, batch.error_file_id)
    assert (error["custom_id"], error["response"]["status_code"], error["error"]) == ("b", 503, None)
    assert error["response"]["body"]["error"]["code"] == "engine_refused"
    again = client.post(f"/batches/{batch.id}/retry", cast_to=openai.types.Batch)
    assert (again.status, again.completed_at, again.output_file_id) == ("in_progress", None, None)
    pair.work()
    batch = ended(client, batch.id)
    assert (batch.status, batch.request_counts.completed, batch.error_file_id) == ("completed", 2, None)


def undo(connection: Any) -> None:
    """The second line's sample as if an engine had refused it: what a batch says follows from its samples."""
    connection.execute(text("SET LOCAL session_replication_role = replica"))
    connection.execute(text("DELETE FROM job_totals"))
    connection.execute(
        text(
            "UPDATE samples SET state = 'failed', error = 'no room', error_class = 'engine_refused', score = NULL, "
            "finish_reason = NULL WHERE problem_id = (SELECT max(problem_id) FROM samples)"
        )
    )
    connection.execute(text("UPDATE jobs SET state = 'completed_with_errors'"))
    connection.execute(text("UPDATE rollups SET refreshed_at = NULL"))
    connection.execute(text("UPDATE batches SET num_completed = 1, num_failed = 1"))


BAD: list[tuple[Any, str | None, int | None]] = [
    (b"{broken\n", "invalid_json_line", 1),
    (b"[1]\n", "invalid_json_line", 1),
    (b'\xff\xfe{"a"}\n', "invalid_json_line", 1),
    ({"custom_id": "x"}, "missing_required_parameter", 1),
    ({**line("x", "?"), "url": "/v1/embeddings"}, "url_mismatch", 1),
    ({**line("x", "?"), "method": "GET"}, "invalid_method", 1),
    ({**line("x", "?"), "custom_id": 3}, "invalid_value", 1),
    ({**line("x", "?"), "custom_id": "x" * 501}, "invalid_value", 1),
    ({**line("x", "?"), "priority": 3}, "unknown_parameter", 1),
    (line("x", "?", frobnicate=1), "unknown_parameter", 1),
    (line("x", "?", stream=True), "unsupported_parameter", 1),
    (line("x", "?", tools=[{"type": "function"}]), "unsupported_parameter", 1),
    (line("x", "?", response_format={"type": "json_object"}), "unsupported_parameter", 1),
    (line("x", "?", logprobs=True), "unsupported_parameter", 1),
    (line("x", "?", temperature=3), "integer_above_max_value", 1),
    (line("x", "?", temperature="1"), "invalid_type", 1),
    (line("x", "?", specthink={"priority": 3}), "unknown_parameter", 1),
    (line("x", "?", specthink={"include": []}), "unsupported_parameter", 1),
    (line("x", " "), None, 1),
    (line("x", "\ud800"), "invalid_json_line", 1),
    (line("x", "?", model="no-such-policy:at-all/"), None, None),
    (line("x", "?", model="large-only/"), "model_not_found", None),
    (line("x", "?", model="a+b+c"), "model_not_found", None),
    (line("x", "?", model="speculative-thinking:improved/small"), "model_not_found", None),
    (line("x", "?", specthink={"policy_options": {"n1": "many"}}), None, None),
]


@pytest.mark.timeout(300)
def test_bad_input_fails_the_batch_with_its_line(client: openai.OpenAI, served: Served) -> None:
    for bad, code, at in BAD:
        batch = create(client, [bad, line("good", "What?")])
        if code is None and at is None and batch.status == "in_progress":
            assert bad["body"]["model"].startswith("no-such"), bad  # a model of that name may come to be served
            client.batches.cancel(batch.id)
            continue
        assert batch.status == "failed", bad
        assert (batch.output_file_id, batch.error_file_id, batch.request_counts.completed) == (None, None, 0)
        fault = batch.errors.data[0]
        assert fault.line == at, (bad, fault)
        assert code in (None, fault.code), (bad, fault)
    assert served.scalar("SELECT count(*) FROM jobs WHERE state <> 'cancelled'") == 0


def test_many_faults_are_counted(client: openai.OpenAI) -> None:
    batch = create(client, [line("same", "What?"), *[line("same", "What?")] * 150])
    assert batch.status == "failed"
    assert [(fault.code, fault.line) for fault in batch.errors.data[:2]] == [
        ("duplicate_custom_id", 2), ("duplicate_custom_id", 3),
    ]  # fmt: skip
    assert len(batch.errors.data) == 101
    assert batch.errors.data[-1].message == "50 more lines are bad and not listed."


def test_more_ways_to_ask_than_jobs_are_refused(client: openai.OpenAI) -> None:
    batch = create(client, [line(str(number), "What?", seed=number) for number in range(33)])
    assert (batch.status, batch.errors.data[0].code) == ("failed", "too_many_settings")


def test_answers_are_graded_and_given_to_nobody(client: openai.OpenAI, pair: Pair, served: Served) -> None:
    answers = upload(client, [{"custom_id": "a", "answer": "2"}, {"custom_id": "b", "answer": "3"}], "evals")
    options = {"specthink": {"grader": "math", "answers_file_id": answers}}
    batch = create(client, [line("a", "What is 1+1?"), line("b", "Twice?")], extra_body=options)
    assert batch.status == "in_progress", batch.errors
    pair.work()
    lines = read_lines(client, ended(client, batch.id).output_file_id)
    assert [each["response"]["body"]["choices"][0]["specthink"]["score"] for each in lines] == [1.0, 0.0]
    assert served.scalar("SELECT count(*) FROM reference_answers") == 2
    with pytest.raises(openai.PermissionDeniedError):
        client.files.content(answers)
    wrong = upload(client, [{"custom_id": "z", "answer": "2"}], "evals")
    batch = create(client, [line("a", "1?")], extra_body={"specthink": {"grader": "math", "answers_file_id": wrong}})
    assert [fault.code for fault in batch.errors.data][-1] in ("unknown_custom_id", "invalid_value")
    unreadable = upload(client, [{"custom_id": "a", "answer": "A"}, {"custom_id": "b", "answer": "no choice"}], "evals")
    options = {"specthink": {"grader": "choice", "answers_file_id": unreadable}}
    batch = create(client, [line("a", "1?", seed=1), line("b", "2?", seed=2)], extra_body=options)
    assert [fault.code for fault in batch.errors.data] == ["invalid_answers_line"]
    assert "cannot read the reference answer of 'b'" in batch.errors.data[0].message
    assert "no choice" not in batch.errors.data[0].message


def test_create_that_is_sent_twice_makes_one_batch(client: openai.OpenAI, served: Served) -> None:
    file = upload(client, [line("a", "What?")])
    asked: dict[str, Any] = {
        "input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"
    }  # fmt: skip
    retry = {"x-stainless-retry-count": "1"}
    first = client.batches.create(**asked)
    assert client.batches.create(**asked, extra_headers=retry).id == first.id
    assert client.batches.create(**asked).id != first.id, "asked anew it is another one"
    keyed = client.batches.create(**asked, extra_headers={"idempotency-key": "one"})
    assert client.batches.create(**asked, extra_headers={"idempotency-key": "one"}).id == keyed.id
    with pytest.raises(openai.BadRequestError, match="Idempotency-Key"):
        client.batches.create(**{**asked, "completion_window": "2d"}, extra_headers={"idempotency-key": "one"})
    assert served.scalar("SELECT count(*) FROM batches") == 3


def test_lists_are_walked_to_their_end(client: openai.OpenAI, served: Served) -> None:
    file = upload(client, [line("a", "What?")])
    made = [
        client.batches.create(input_file_id=file, endpoint="/v1/chat/completions", completion_window=WINDOW).id
        for _ in range(7)
    ]
    assert [batch.id for batch in client.batches.list(limit=3)] == made[::-1]
    page = client.batches.list(limit=0)
    assert (page.data, page.has_more) == ([], False), "an empty page that promises more ends every walk"
    for limit, code in ((-1, "integer_below_min_value"), (101, "integer_above_max_value")):
        with pytest.raises(openai.BadRequestError) as refused:
            client.batches.list(limit=limit)
        assert refused.value.code == code
    with pytest.raises(openai.BadRequestError, match="no batch"):
        client.batches.list(after="batch_nothing")


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"input_file_id": "file-none"}, "input_file_id"),
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"completion_window": "31d"}, "completion_window"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"metadata": {"k": "x" * 513}}, "metadata.k"),
        ({"extra_body": {"specthink": {"grader": "/etc/x.py:C", "answers_file_id": "file-a"}}}, "specthink.grader"),
        ({"extra_body": {"specthink": {"grader": "code", "answers_file_id": "file-a"}}}, "specthink.grader"),
        ({"extra_body": {"specthink": {"grader": "math"}}}, "specthink.grader"),
        ({"extra_body": {"what": 1}}, "what"),
    ],
)
def test_bad_creation_is_refused_at_once(client: openai.OpenAI, changed: dict[str, Any], param: str) -> None:
    asked: dict[str, Any] = {
        "input_file_id": upload(client, [line("a", "What?")]), "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }  # fmt: skip
    with pytest.raises(openai.BadRequestError) as refused:
        client.batches.create(**{**asked, **changed})
    assert refused.value.param == param
