"""Files, keys, models and errors over HTTP, with the official client and by hand against a real gateway."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from sqlalchemy import Engine, text

from pipeline.db.gateway.keys import revoke_key, save_alias
from pipeline.db.session import transaction
from pipeline.embedded import Connections
from pipeline.key_roles import KeyRole
from tests.integration.gateway_world import PAIR, Served, create, jsonl, line, scripted, serving, upload, user, wait_for

pytestmark = pytest.mark.integration

LINES = [line("a", "1+1?"), line("b", "2+2?")]


@pytest.fixture
def served(connections: Connections, db_engine: Engine) -> Iterator[Served]:
    with serving(connections, db_engine, max_file_bytes=3_000_000, max_body_bytes=100_000) as served:
        yield served


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=30) as client:
        yield client


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with served.client(_strict_response_validation=True) as client:
        yield client


def test_file_comes_back_byte_for_byte(client: openai.OpenAI, served: Served) -> None:
    content = jsonl(LINES) + b"\xff\x00 not even text \r\n" * 120_000  # 2.4 MB
    made = client.files.create(
        file=("dir/many.jsonl", content), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (made.bytes, made.filename, made.purpose, made.status) == (len(content), "many.jsonl", "batch", "processed")
    assert made.expires_at is not None
    assert 3590 < made.expires_at - made.created_at < 3610
    answer = client.files.content(made.id)
    assert answer.content == content
    assert answer.response.headers["etag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    assert served.scalar("SELECT count(*) FROM file_parts") == 3
    assert served.scalar("SELECT max(length(data)) FROM file_parts") == 2**20
    assert client.files.retrieve(made.id) == made


def test_deleted_file_is_gone_with_its_parts(client: openai.OpenAI, served: Served) -> None:
    file = upload(client, LINES)
    assert client.files.delete(file).deleted
    assert served.scalar("SELECT count(*) FROM file_parts") == 0
    for ask in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match="No file found"):
            ask(file)


def test_file_of_an_open_batch_stays(client: openai.OpenAI) -> None:
    batch = create(client, LINES)
    with pytest.raises(openai.BadRequestError, match="in use"):
        client.files.delete(batch.input_file_id)


def test_expired_file_is_deleted(client: openai.OpenAI, served: Served) -> None:
    file = upload(client, LINES)
    with transaction(served.db_engine) as connection:
        connection.execute(text("UPDATE files SET expires_at = clock_timestamp()"))
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file)
    wait_for(lambda: served.scalar("SELECT count(*) FROM file_parts") == 0)


def test_files_are_listed_page_by_page(client: openai.OpenAI) -> None:
    made = [upload(client, [line(str(number), "?")]) for number in range(5)]
    private = upload(client, [{"custom_id": "a", "answer": "1"}], "evals")
    assert [file.id for file in client.files.list(limit=2)] == [private, *made[::-1]]
    assert [file.id for file in client.files.list(limit=2, order="asc")] == [*made, private]
    assert [file.id for file in client.files.list(purpose="evals")] == [private]
    assert client.files.list(limit=0).data == []


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("r.txt", b"{}\n", "Must be .jsonl"),
        ("r", b"{}\n", "Must be .jsonl"),
        ("r.jsonl", b"", "empty"),
        ("r" * 300 + ".jsonl", b"{}\n", "more than 255"),
    ],
)
def test_wrong_upload_is_refused_and_not_stored(
    client: openai.OpenAI, served: Served, name: str, content: bytes, said: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        client.files.create(file=(name, content), purpose="batch")
    assert served.scalar("SELECT count(*) FROM files") == 0


def test_upload_beyond_the_limit_is_cut_off(client: openai.OpenAI, http: httpx.Client, served: Served) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.files.create(file=("r.jsonl", b"x" * 3_200_000), purpose="batch")
    assert (refused.value.status_code, refused.value.code) == (413, "file_too_large")

    def endless() -> Iterator[bytes]:
        for _ in range(200):
            yield b"x" * 50_000

    answer = http.post("/files", content=endless(), headers={"content-type": "multipart/form-data; boundary=b"})
    assert answer.status_code in (400, 413)
    assert http.post("/batches", json={"metadata": {"k": "x" * 200_000}}).status_code == 413
    assert served.scalar("SELECT count(*) FROM files") == 0


def test_upload_that_is_sent_twice_is_one_file(client: openai.OpenAI) -> None:
    first = upload(client, LINES)
    again = client.files.create(
        file=("requests.jsonl", jsonl(LINES)), purpose="batch", extra_headers={"x-stainless-retry-count": "2"}
    )
    assert again.id == first
    keyed = [
        client.files.create(
            file=("requests.jsonl", jsonl(LINES)), purpose="batch", extra_headers={"idempotency-key": "k"}
        ).id
        for _ in range(2)
    ]
    assert keyed[0] == keyed[1] != first


# Keys


def test_key_sees_its_own_and_admin_sees_all(served: Served) -> None:
    ann, bob = (served.client(served.add_key(name)) for name in ("ann", "bob"))
    admin = served.client(served.add_key("root", KeyRole.ADMIN))
    batch = create(ann, LINES)
    for ask in (
        lambda: bob.files.retrieve(batch.input_file_id), lambda: bob.files.content(batch.input_file_id),
        lambda: bob.files.delete(batch.input_file_id), lambda: bob.batches.retrieve(batch.id),
        lambda: bob.batches.cancel(batch.id), lambda: bob.post(f"/batches/{batch.id}/pause", cast_to=object),
        lambda: bob.get(f"/batches/{batch.id}/results", cast_to=object),
    ):  # fmt: skip
        with pytest.raises(openai.NotFoundError):
            ask()
    with pytest.raises(openai.BadRequestError, match="No file found"):
        bob.batches.create(input_file_id=batch.input_file_id, endpoint="/v1/chat/completions", completion_window="24h")
    assert (bob.files.list().data, bob.batches.list().data) == ([], [])
    assert admin.batches.retrieve(batch.id).id == batch.id
    assert [each.id for each in admin.batches.list()] == [batch.id]


@pytest.mark.parametrize("key", [None, "", "wrong", "sk-specthink-" + "x" * 43, "x" * 10_000, "é", "a b"])
def test_wrong_key_is_told_so(served: Served, http: httpx.Client, key: str | None) -> None:
    served.add_key("ann")
    headers = {} if key is None else {b"authorization": f"Bearer {key}".strip().encode()}
    answer = http.get("/models", headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert http.post("/files", content=b"x" * 1000, headers=headers).status_code == 401


def test_revoked_key_opens_nothing(served: Served) -> None:
    served.add_key("other")
    key = served.add_key("ann")
    client = served.client(key)
    client.models.list()
    with transaction(served.db_engine) as connection:
        revoke_key(connection, "ann")
    with pytest.raises(openai.AuthenticationError):
        client.models.list()
    assert key not in str(served.scalar("SELECT json_agg(k) FROM api_keys k"))


def test_reading_key_changes_nothing(served: Served) -> None:
    reader = served.client(served.add_key("dashboard", KeyRole.READ))
    assert reader.batches.list().data == []
    with pytest.raises(openai.PermissionDeniedError, match="may read"):
        upload(reader, LINES)


def test_limits_of_a_key_hold(served: Served) -> None:
    client = served.client(served.add_key("ann", requests_per_minute=3, max_file_bytes=1000))
    with pytest.raises(openai.APIStatusError) as refused:
        client.files.create(file=("r.jsonl", b"x" * 2000), purpose="batch")
    assert refused.value.status_code == 413
    for _ in range(2):
        client.models.list()
    with pytest.raises(openai.RateLimitError) as limited:
        client.models.list()
    assert 0 < int(limited.value.response.headers["retry-after"]) <= 120


# Errors


def test_everything_that_is_wrong_has_the_one_shape(http: httpx.Client, served: Served) -> None:
    asked: list[tuple[str, str, dict[str, Any], int]] = [
        ("GET", "/nothing", {}, 404),
        ("PUT", "/batches", {}, 405),
        ("POST", "/batches", {"content": b"{broken"}, 400),
        ("POST", "/batches", {"json": {}}, 400),
        ("POST", "/batches", {"json": [1]}, 400),
        ("POST", "/files", {"json": {}}, 400),
        ("POST", "/files", {"files": {"file": ("a.jsonl", b"x")}, "data": {"purpose": "fine-tune"}}, 400),
        ("GET", "/batches?limit=many", {}, 400),
        ("GET", "/batches/batch_%00", {}, 400),
        ("GET", "/files/%00", {}, 400),
        ("GET", "/files/%F0%9F%98%80", {}, 404),
        ("GET", "/files?after=%00", {}, 400),
        ("GET", "/batches?after=%00", {}, 400),
        ("POST", "/chat/completions", {"json": {"model": "m"}}, 400),
        ("POST", "/chat/completions", {"data": {"model": "m"}}, 400),
        ("POST", "/chat/completions", {"content": b'{"model": "\\ud800"}'}, 400),
        ("POST", "/batches", {"content": b'{"input_file_id": "\\ud800"}'}, 400),
        ("POST", "/chat/completions", {"json": {"model": "no+one", "messages": [user("?")]}}, 404),
    ]
    for method, path, options, status in asked:
        headers = {"content-type": "application/json"} if "content" in options else {}
        answer = http.request(method, path, headers=headers, **options)
        assert answer.status_code == status, (method, path, answer.text)
        error = answer.json()["error"]
        assert sorted(error) == ["code", "message", "param", "type"]
        assert error["message"].isprintable()
        assert answer.headers["x-request-id"].startswith("req_")


def test_other_sites_cannot_ask_a_gateway_on_loopback(http: httpx.Client) -> None:
    for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}, {"origin": "null"}):
        answer = http.get("/models", headers=headers)
        assert answer.status_code == 403
        assert answer.json()["error"]["type"] == "permission_error"


def test_health_and_readiness_need_no_key(served: Served) -> None:
    served.add_key("ann")
    root = served.url.removesuffix("/v1")
    assert httpx.get(f"{root}/health").json() == {"status": "ok"}
    assert httpx.get(f"{root}/ready").status_code == httpx.head(f"{root}/ready").status_code == 200
    with transaction(served.db_engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    assert httpx.get(f"{root}/ready").status_code == 503


def test_models_are_saved_names_and_what_is_served(served: Served, client: openai.OpenAI, db_engine: Engine) -> None:
    with transaction(db_engine) as connection:
        save_alias(connection, "mine", {"small": "small", "large": "large", "temperature": 0.2})
    with scripted(db_engine, [user("?")]):
        found = {model.id for model in client.models.list()}
        assert found == {"mine", PAIR, "small-only/small", "large-only/large"}
        assert client.models.retrieve(PAIR).id == PAIR
        assert client.models.retrieve("mine").owned_by == "specthink"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("speculative-thinking:improved/one")


def test_saved_name_answers_as_it_was_saved(served: Served, client: openai.OpenAI, db_engine: Engine) -> None:
    with transaction(db_engine) as connection:
        save_alias(connection, "mine", {"small": "small", "large": "large", "temperature": 0.2})
    batch = create(client, [line("a", "1+1?", model="mine", top_p=0.5)])
    config = served.scalar("SELECT config FROM jobs")
    assert (config["sampling"]["temperature"], config["sampling"]["top_p"], batch.model) == (0.2, 0.5, "mine")
    assert config["grader"] == "none"


def test_document_names_no_422(served: Served) -> None:
    document = httpx.get(f"{served.url.removesuffix('/v1')}/openapi.json").json()
    assert "422" not in json.dumps(document)
    assert {"/v1/files", "/v1/batches", "/v1/chat/completions", "/v1/models", "/health"} <= set(document["paths"])
