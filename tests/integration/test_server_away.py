"""A worker whose engine is a server that breaks streams off, turns requests away, and is started anew meanwhile."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.chat.model import ChatModel
from pipeline.db.invariants import check_job
from pipeline.db.session import transaction
from pipeline.embedded import Connections
from pipeline.policies import parse_policy
from pipeline.samples import ModelRole
from pipeline.settings import EngineKind, EngineSettings, ServerSettings
from tests.completions_server import MODEL, WELL, CompletionsServer, Mood, next_ids
from tests.integration.writer_pool import SMALL, WriterPool, make_writer_pool
from tests.vllm_server import free_port
from workers.engine.base import Engine
from workers.engine.loading import load_engine
from workers.engine.server import patience

pytestmark = pytest.mark.integration
CHAT = ChatModel.load(SMALL)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompletionsServer]:
    monkeypatch.setattr(patience, "_FIRST_S", 0.02)
    monkeypatch.setattr(patience, "_LONGEST_S", 0.1)
    server = CompletionsServer(CHAT, free_port())
    server.start()
    yield server
    server.close()


@pytest.fixture
def writers(servers: Connections) -> Iterator[WriterPool]:
    with make_writer_pool(servers) as pool:
        yield pool


@pytest.fixture
def engine(server: CompletionsServer) -> Iterator[Engine]:
    settings = EngineSettings(
        kind=EngineKind.SERVER,
        max_in_flight=4,
        server=ServerSettings(url=server.url, model=MODEL, give_back_after_s=0.2),
    )
    engine = load_engine(CHAT, revision=None, role=ModelRole.SMALL, settings=settings)
    yield engine
    engine.close()


def test_no_sample_is_lost_or_doubled_while_its_server_comes_and_goes(
    server: CompletionsServer, writers: WriterPool, engine: Engine
) -> None:
    numbers = itertools.count()
    num_trials = len(server.requests)

    def by_turns(asked: dict[str, Any]) -> Mood:
        moods = {1: Mood(breaks_after=7), 4: Mood(status=429, text="full"), 6: Mood(breaks_after=19)}
        return moods.get(next(numbers) % 9, WELL)

    def restart() -> None:
        while engine.stats().num_generated_tokens < 60:
            time.sleep(0.01)
        server.stop()
        time.sleep(0.5)
        server.start()

    server.mood, server.pause_s = by_turns, 0.003
    member = writers.hire(engine, SMALL, ModelRole.SMALL, max_in_flight=4)
    job = writers.submit(policy=parse_policy("small-only"), limit=8, max_tokens=60)
    breaking = threading.Thread(target=restart)
    breaking.start()
    writers.work()
    breaking.join()
    assert writers.states() == {"finished": 8}
    assert writers.rows("SELECT max(num_attempts), max(num_rescues) FROM samples") == [(0, 0)]
    prompts = {tuple(asked["prompt"]) for asked in server.requests[num_trials:]}
    written = [row[3] for row in writers.segments(job, "g.token_ids")]
    assert len(written) == 8
    for ids in written:
        assert any(next_ids(prompt, len(ids)) == ids for prompt in prompts)
    with transaction(writers.db_engine) as connection:
        assert list(check_job(connection, job)) == []
    counters = member.writer.counters()
    assert counters.tokens_dropped > 0
    assert counters.tokens_generated == counters.tokens_committed + counters.tokens_dropped
