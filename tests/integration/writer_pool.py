"""Writers with real engines in this process, driven by hand: one by one or many at once, in any order.

What Celery would carry is handed over here, so that the order is the test's to choose; everything else is as in a
running pipeline.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from celery import Celery
from pydantic import SecretStr
from sqlalchemy import Engine as DbEngine
from sqlalchemy import text

from pipeline import Client
from pipeline.chat.files import served_name
from pipeline.chat.model import ChatModel
from pipeline.db.commits import StoredRow
from pipeline.db.session import open_database, transaction
from pipeline.db.submissions import insert_job, put_problem_set
from pipeline.db.upkeep_statements import admit_samples, overdue_samples
from pipeline.db.worker_leases import Registration, WorkerCounters, put_engine
from pipeline.embedded import Connections
from pipeline.jobs.config import JobConfig, ModelSpec, SamplingSpec
from pipeline.policies import PolicySpec
from pipeline.policies.reading.cues import CueLists
from pipeline.policies.speculative_thinking.improved import SpeculativeThinkingSpec
from pipeline.problems import load_problem_set
from pipeline.samples import RUNNABLE_STATE, ModelRole
from pipeline.settings import EngineSettings, LeaseSettings, VllmSettings
from pipeline.workforce import WorkerKind
from tests.conftest import TEMPLATE, with_database
from workers.broker.messages import SamplesMessage
from workers.broker.publish import Publisher
from workers.engine.base import Engine, EngineStats
from workers.engine.loading import load_engine
from workers.engine.vllm.inline import InlineEngine
from workers.processes.lease import LeaseKeeper
from workers.writing.store import Identity
from workers.writing.writer import Writer

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL, LARGE = EXAMPLES / "models" / "demo-small", EXAMPLES / "models" / "demo-large"
PROBLEMS = EXAMPLES / "problems.jsonl"

EAGER = SpeculativeThinkingSpec(
    cues=CueLists(verify=("third",), negative=("second", "fourth", "fifth", "sixth"), positive=("seventh", "result")),
    n1=7,
    n2=15,
    n3=15,
    n3_max=20,
    threshold=2,
    threshold_max=4,
    handback="tokens",
)
"""Takes over at nearly every step of the demo's problems, and cuts words: their steps begin with these."""

_stepping = threading.Lock()


def load_inline(model: Path, role: ModelRole) -> InlineEngine:
    """An engine of its own; the engines of this process step in turn: vLLM keeps what a step needs in globals."""
    settings = EngineSettings(
        max_model_len=1024,
        max_in_flight=128,
        vllm=VllmSettings(process="inline", cpu_kv_cache_gib=0.1),
    )
    engine = load_engine(ChatModel.load(model), revision=None, role=role, settings=settings)
    assert isinstance(engine, InlineEngine)
    get_output = engine._client.get_output

    def get_output_in_turn() -> Any:
        with _stepping:
            return get_output()

    engine._client.get_output = get_output_in_turn
    return engine


@dataclass
class Engines:
    """Loaded engines by model folder, kept for the tests of a module."""

    loaded: dict[tuple[Path, int], InlineEngine] = field(default_factory=dict)

    def get(self, model: Path, role: ModelRole, number: int = 0) -> InlineEngine:
        key = (model, number)
        if key not in self.loaded:
            self.loaded[key] = load_inline(model, role)
        return self.loaded[key]

    def close(self) -> None:
        for engine in self.loaded.values():
            engine.close()


@dataclass(frozen=True)
class Member:
    """One writer with its lease, as its worker process would have them."""

    writer: Writer
    engine: Engine
    role: ModelRole
    lease: LeaseKeeper
    before: EngineStats
    """The engine's totals when it was hired."""


class MemberHolder:
    """Holds a member's lease, as its worker process would."""

    def __init__(self, writer: Writer, engine_id: int, max_in_flight: int) -> None:
        self._writer = writer
        self._engine_id = engine_id
        self._max_in_flight = max_in_flight
        self._start = writer.counters()  # an engine that was another writers's before has counted already

    def counters(self) -> WorkerCounters:
        return replace(self._writer.counters().since(self._start), num_slots=self._max_in_flight)

    def take_stored(self) -> Sequence[StoredRow]:
        return self._writer.take_stored()

    def lease_renewed(self, worker_id: int) -> None:
        self._writer.reconcile(worker_id)

    def lease_lost(self) -> None:
        self._writer.lease_lost()

    def lease_renewed_as(self, worker_id: int) -> None:
        self._writer.lease_renewed_as(Identity(worker_id=worker_id, engine_id=self._engine_id))


class WriterPool:
    """Workers on one database."""

    def __init__(self, url: SecretStr, db_engine: DbEngine) -> None:
        self.url = url
        self.client = Client(url)
        self.db_engine = db_engine
        self.members: list[Member] = []

    def hire(self, engine: Engine, model: Path, role: ModelRole, *, max_in_flight: int = 128) -> Member:
        """A worker with an engine. max_in_flight: how many samples are let in for it."""
        chat = ChatModel.load(model)
        with transaction(self.db_engine) as connection:
            engine_id = put_engine(
                connection,
                kind=engine.info.kind,
                version=engine.info.version,
                model=served_name(model),
                model_fingerprint=chat.fingerprint,
                vocabulary_sha256=chat.vocabulary_sha256,
                settings=dict(engine.info.settings),
            )
        registration = Registration(
            kind=WorkerKind(role.value),
            model=served_name(model),
            engine_id=engine_id,
            host="here",
            pid=1,
            queue=f"{role.value}.{len(self.members)}",
            max_in_flight=max_in_flight,
            ttl=dt.timedelta(hours=1),
        )
        lease = LeaseKeeper(self.db_engine, registration, LeaseSettings(ttl_s=600, renew_interval_s=0.2))
        writer = Writer(
            role=role,
            engine=engine,
            chat=chat,
            db_engine=self.db_engine,
            publisher=Publisher(Celery("writers", broker="memory://", set_as_current=False)),
            identity=Identity(worker_id=lease.worker_id, engine_id=engine_id),
            on_failure=lambda reason: None,
        )
        member = Member(writer, engine, role, lease, engine.stats())
        self.members.append(member)
        lease.start(MemberHolder(writer, engine_id, max_in_flight))
        return member

    def submit(
        self, *, small: Path = SMALL, large: Path = LARGE, policy: PolicySpec = EAGER, limit: int = 6,
        num_samples: int = 1, seed: int = 7, **sampling: Any,
    ) -> int:  # fmt: skip
        """A job on the first problems of the demo's set; its policy may have numbers that no preset has."""
        config = JobConfig(
            small=ModelSpec(name=served_name(small)),
            large=ModelSpec(name=served_name(large)),
            policy=policy,
            sampling=SamplingSpec(**({"max_tokens": 300} | sampling)),
            num_samples=num_samples,
            seed=seed,
        )
        with transaction(self.db_engine) as connection:
            return insert_job(
                connection,
                name="writers",
                policy=policy.name,
                problem_set_id=put_problem_set(connection, load_problem_set(PROBLEMS)),
                num_problems=limit,
                config=config,
                first_role=ModelRole.SMALL,
                versions={},
            )

    def work(
        self,
        *,
        until: Callable[[], bool] | None = None,
        order: int = 0,
        timeout_s: float = 120.0,
    ) -> None:
        """Hand out whatever waits, in an order drawn from ``order``, until nobody has anything to do (or ``until``)."""
        draw, handed, deadline = random.Random(order), set(), time.monotonic() + timeout_s
        with ThreadPoolExecutor(256) as pool:
            while not (until or self.is_done)():
                assert time.monotonic() < deadline, self.states()
                with transaction(self.db_engine) as connection:
                    admit_samples(connection, ahead=1.0)
                    waiting = overdue_samples(connection, age=dt.timedelta(0))
                draw.shuffle(waiting)
                for sample in waiting:
                    members = [m for m in self.members if RUNNABLE_STATE[m.role] is sample.state]
                    if members and (sample.sample_id, sample.epoch) not in handed:
                        handed.add((sample.sample_id, sample.epoch))
                        message = SamplesMessage(job_id=sample.job_id, samples=[(sample.sample_id, sample.epoch)])
                        pool.submit(draw.choice(members).writer.write, message)
                time.sleep(0.005)

    def is_done(self) -> bool:
        return not self.states().keys() & {"pending", "ready", "drafting", "awaiting_large", "assisting"}

    def states(self) -> dict[str, int]:
        return {row[0]: row[1] for row in self.rows("SELECT state, count(*) FROM samples GROUP BY state")}

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with transaction(self.db_engine) as connection:
            return [tuple(row) for row in connection.execute(text(query))]

    def segments(self, job_id: int, columns: str) -> list[tuple[Any, ...]]:
        """Of all samples, in order; problem, sample_index and segment_index come first."""
        return self.rows(f"""
            SELECT p.external_id, s.sample_index, g.segment_index, {columns}
            FROM segments g JOIN samples s ON s.id = g.sample_id JOIN problems p ON p.id = s.problem_id
            WHERE s.job_id = {job_id} ORDER BY p.position, s.sample_index, g.segment_index
        """)

    def texts(self, job_id: int) -> dict[tuple[str, int], str]:
        return {(result.problem, result.sample_index): result.output for result in self.client.results(job_id)}

    def dismiss(self) -> None:
        """End the writers; the engines stay."""
        for member in self.members:
            member.writer.close()
            member.lease.stop()
        self.members.clear()

    def close(self) -> None:
        self.dismiss()
        self.client.close()


@contextlib.contextmanager
def make_writer_pool(servers: Connections) -> Iterator[WriterPool]:
    """A writers on a new database."""
    name = f"crew_{uuid.uuid4().hex[:12]}"
    owner = open_database(servers.database_url)
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}"))
    owner.dispose()
    url = with_database(servers.database_url, name)
    db_engine = open_database(url, pool_size=16)
    writers = WriterPool(url, db_engine)
    try:
        yield writers
    finally:
        writers.close()
        db_engine.dispose()
