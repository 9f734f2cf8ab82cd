"""A real gateway on a port of this machine, and workers with scripted engines that answer what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import openai
import uvicorn
from sqlalchemy import Engine as DbEngine
from sqlalchemy import text

from pipeline.db.gateway.keys import insert_key
from pipeline.db.session import transaction
from pipeline.embedded import Connections
from pipeline.gateway.app import make_app
from pipeline.gateway.keys import hash_of, make_key
from pipeline.gateway.serving import listen
from pipeline.gateway.state import Gateway
from pipeline.key_roles import KeyRole
from pipeline.samples import WRITING_ROLES
from pipeline.settings import GatewaySettings
from tests.integration.test_invariants import CHAT, hire, work
from workers.engine.base import GenerateRequest

PAIR = "speculative-thinking:improved/small+large"
THOUGHT = "First we add.\n\nWait, is that right?\n\nYes it is.\n\n"
ANSWER = "\n\nThe answer is \\boxed{2}."
SCRIPT = CHAT.encode_text(f"{THOUGHT}</think>{ANSWER}")


@dataclass
class Served:
    """A gateway that listens. key: of an owner; None where no key is needed."""

    url: str
    db_engine: DbEngine
    gateway: Gateway
    key: str | None = None

    def client(self, key: str | None = None, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=key or self.key or "any", **{"max_retries": 0, **options})

    def add_key(self, name: str, role: KeyRole = KeyRole.SUBMIT, **limits: int) -> str:
        made = make_key()
        with transaction(self.db_engine) as connection:
            insert_key(connection, name=name, sha256=hash_of(made), role=role, **limits)
        return made

    def scalar(self, query: str, **values: Any) -> Any:
        with transaction(self.db_engine) as connection:
            return connection.execute(text(query), values).scalar()


@contextmanager
def serving(connections: Connections, db_engine: DbEngine, **settings: Any) -> Iterator[Served]:
    """A gateway with the rights of its own login, in this process."""
    chosen = GatewaySettings(**{"collect_s": 0.0, **settings})
    gateway = Gateway.open(connections.gateway_url, chosen, is_local=True)
    listening = listen("127.0.0.1", 0)
    config = uvicorn.Config(make_app(gateway, is_local=True), access_log=False, log_level="warning", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield Served(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", db_engine, gateway)
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        assert not thread.is_alive()


def wait_for(condition: Callable[[], Any], timeout_s: float = 90) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


class Pair:
    """Workers that know some conversations, and write the same text for each."""

    def __init__(self, db_engine: DbEngine, conversations: Sequence[Sequence[Mapping[str, str]]]) -> None:
        self._db_engine = db_engine
        asked = [(messages[-1]["content"], messages[:-1]) for messages in conversations]
        self._prompts = [tuple(ids) for ids in CHAT.ids_of_prompts(asked)]
        self.members = [hire(db_engine, role, script=self._go_on) for role in WRITING_ROLES]

    def _go_on(self, request: GenerateRequest) -> Iterable[int]:
        ids = tuple(request.prompt_ids)
        prompt = next(prompt for prompt in self._prompts if ids[: len(prompt)] == prompt)
        written = CHAT.piece(list(ids[len(prompt) :])).text
        whole = CHAT.piece(SCRIPT).text
        return CHAT.encode_text(whole[len(written) :]) if whole.startswith(written) else []

    def work(self) -> None:
        """Write and grade whatever waits."""
        work(self._db_engine, *self.members)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Go on working, for whoever waits meanwhile."""
        stopped = threading.Event()

        def run() -> None:
            while not stopped.wait(0.05):
                self.work()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join(timeout=60)

    def close(self) -> None:
        for member in self.members:
            member.writer.close()
            member.engine.close()


@contextmanager
def scripted(db_engine: DbEngine, *conversations: Sequence[Mapping[str, str]]) -> Iterator[Pair]:
    pair = Pair(db_engine, conversations)
    try:
        yield pair
    finally:
        pair.close()


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def line(custom_id: str, content: str, **body: Any) -> dict[str, Any]:
    """A request of a batch."""
    whole = {"model": PAIR, "messages": [user(content)], "seed": 7, "max_tokens": 300, **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": whole}


def jsonl(lines: Iterable[Any]) -> bytes:
    return b"".join(each if isinstance(each, bytes) else json.dumps(each).encode() + b"\n" for each in lines)


def upload(client: openai.OpenAI, lines: Iterable[Any], purpose: Any = "batch") -> str:
    return client.files.create(file=("requests.jsonl", jsonl(lines)), purpose=purpose).id


def create(client: openai.OpenAI, lines: Iterable[Any], **options: Any) -> Any:
    """A batch whose lines were read."""
    made = client.batches.create(
        input_file_id=upload(client, lines), endpoint="/v1/chat/completions", completion_window="24h", **options
    )
    return wait_for(lambda: (seen := client.batches.retrieve(made.id)).status != "validating" and seen)


def read_lines(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(each) for each in client.files.content(file_id).text.splitlines()]


def ended(client: openai.OpenAI, batch_id: str) -> Any:
    final = ("completed", "failed", "expired", "cancelled")
    return wait_for(lambda: (seen := client.batches.retrieve(batch_id)).status in final and seen)
