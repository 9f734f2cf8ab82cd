"""A running pipeline to break: real servers, real worker processes, supervisord; only the models are scripted.

One harness serves many runs. Each run submits a job of its own, something is broken while it runs, and the job's rows
are read at its end. Must be started from the main thread: everything ends with this process.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
import redis
from sqlalchemy import Connection, Engine, text

from pipeline.client import Client
from pipeline.db import migrate
from pipeline.db.grants import grant_roles
from pipeline.db.session import open_database, transaction
from pipeline.embedded import (
    EMBEDDED_LOGINS,
    Connections,
    EmbeddedState,
    Program,
    ProgramPhase,
    start,
    stop,
    supervision,
)
from pipeline.errors import PipelineError
from pipeline.jobs.config import FINAL_JOB_STATES
from tests.chaos import supervisor
from tests.chaos.models import REPOSITORY
from tests.chaos.texts import NUM_SAMPLES
from tests.chaos.worker import ORDERS_VARIABLE, PROGRAM_VARIABLE, Order, fired_file, order_file
from tests.chaos.workload import GRADER, ChaosJob, Scripted, Workload
from tests.jumping_clock import JumpingClock, over_postgres, why_no_clock

_T = TypeVar("_T")

SETTINGS = {
    "SPECTHINK_LEASE__TTL_S": "2",
    "SPECTHINK_LEASE__RENEW_INTERVAL_S": "0.65",
    "SPECTHINK_LEASE__DRAIN_S": "10",
    "SPECTHINK_UPKEEP__TICK_S": "0.7",
    "SPECTHINK_UPKEEP__REPUBLISH_AFTER_S": "2",
    "SPECTHINK_GRADING__TIME_LIMIT_S": "5",
}
"""Short leases: recovery takes a lease and a sweep, and is measured with these. Renewals and rounds of upkeep are what
an idle harness costs, and several share two cores."""

_BYTECODE = {"PYTHONDONTWRITEBYTECODE": ""}
"""Hundreds of starts: compiled anew each time, one costs 7 s of a core instead of 2.5."""

PATIENCE = float(os.environ.get("CHAOS_PATIENCE", "3"))
"""All deadlines of the harness are multiplied by it: they are for a machine with nothing else to do."""

QUICKLY_S = 0.05
"""Between two looks for a moment of a job, which passes."""


class Broken(AssertionError):
    """Something that must happen did not, within its time."""


class Missed(Broken):
    """The job was over before the fault came about: there is nothing to see in this run."""


@dataclass(frozen=True, slots=True)
class Fired:
    """An order that was carried out. at: seconds since 1970. pid: of the process."""

    at: float
    pid: int


@dataclass
class Harness:
    """The pipeline, and all that one does to it. Got from ``Harness.start``; ``close`` ends it."""

    state: EmbeddedState
    client: Client
    db_engine: Engine
    workload: Workload
    environment: dict[str, str]
    clock: JumpingClock | None
    """Of Postgres; None where none can be made to jump."""
    changed: dict[str, dict[str, str]] = field(default_factory=dict)
    """Environment of single programs that differs."""
    absent: set[str] = field(default_factory=set)
    """Programs that are not to run now."""

    @classmethod
    def start(cls, state_dir: Path, workload: Workload | None = None) -> Harness:
        """Start servers and workers; returns once all workers are up. workload: None: Scripted."""
        workload = workload or Scripted()
        clock = JumpingClock(_beside(state_dir)) if why_no_clock() is None else None
        by_clock = over_postgres(clock) if clock else nullcontext()
        with _without_settings(), _preloading(workload.imports), by_clock:
            state = start(state_dir, die_with_parent=True)
        db_engine = open_database(state.connections.database_url, pool_size=8, application_name="chaos")
        migrate.upgrade(db_engine)
        with transaction(db_engine) as connection:
            grant_roles(connection, EMBEDDED_LOGINS)
        orders = state_dir / "orders"
        orders.mkdir(exist_ok=True)
        made = cls(
            state=state,
            client=Client.connect(database_url=state.connections.database_url.get_secret_value()),
            db_engine=db_engine,
            workload=workload,
            environment={**SETTINGS, **_BYTECODE, ORDERS_VARIABLE: str(orders), **workload.environment},
            clock=clock,
        )
        made.state.add_programs([made._program(name) for name in made.programs])
        for name in made.programs:
            made.state.start_program(name)
        made.wait_healthy(timeout_s=2 * workload.start_timeout_s)
        return made

    def close(self) -> None:
        """End everything and remove what was stored."""
        self.client.close()
        self.db_engine.dispose()
        stop(self.state.state_dir)
        for folder in (self.state.state_dir, _beside(self.state.state_dir)):
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def connections(self) -> Connections:
        return self.state.connections

    @property
    def programs(self) -> Mapping[str, str]:
        """Program → its kind of worker."""
        return self.workload.programs

    @property
    def lease_s(self) -> float:
        return float(self.environment["SPECTHINK_LEASE__TTL_S"])

    @property
    def orders(self) -> Path:
        return self.state.state_dir / "orders"

    @contextmanager
    def redis(self) -> Iterator[redis.Redis]:
        """A connection to the broker."""
        with redis.Redis.from_url(self.connections.redis_url.get_secret_value()) as client:
            yield client

    # -- programs ----------------------------------------------------------------------------------------------------

    def _program(self, name: str) -> Program:
        own = self.workload.own_environment.get(name, {})
        environment = {**self.environment, PROGRAM_VARIABLE: name, **own, **self.changed.get(name, {})}
        return Program(
            name=name,
            argv=(sys.executable, "-m", "tests.chaos.worker", self.programs[name]),
            env=environment,
            cwd=REPOSITORY,
            stop_wait_s=30,
            max_starts=1_000_000,  # killed again and again: started again at once each time
            window_s=0.001,
        )

    def names(self, kind: str) -> list[str]:
        """The programs of a kind."""
        return [name for name, its_kind in self.programs.items() if its_kind == kind]

    def names_of_all(self) -> list[str]:
        return list(self.programs)

    def wait_registered(self, name: str) -> None:
        """Return once a program has registered as a worker."""
        query = "SELECT count(*) FROM workers WHERE pid = :pid AND ended_at IS NULL"
        self.until(lambda: self.rows(query, pid=self.pid(name))[0][0] > 0, f"{name} to register",
                   timeout_s=self.workload.start_timeout_s)  # fmt: skip

    def pid(self, name: str) -> int:
        """Of a program that runs; waits for a new start. Raises Broken."""
        return self.until(lambda: self.find_pid(name), f"{name} to run", timeout_s=30)

    def find_pid(self, name: str) -> int | None:
        return next(state.pid for state in self.state.program_states() if state.name == name)

    def signal(self, name: str, sign: signal.Signals, *, children: bool = True) -> int:
        """Send a signal to a program, at once also to its children; returns its pid."""
        pid = self.pid(name)
        processes = [psutil.Process(pid)]
        processes += processes[0].children(recursive=True) if children else []
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(sign)
        return pid

    def kill(self, name: str) -> int:
        """kill -9; supervisord starts it again."""
        return self.signal(name, signal.SIGKILL)

    def stop_program(self, name: str) -> None:
        """SIGTERM by supervisord, and wait for the end."""
        self.state.stop_program(name)

    def start_program(self, name: str) -> None:
        self.state.start_program(name)

    def exit_code(self, name: str) -> int | None:
        """Of its last end."""
        return next(state.exit_code for state in self.state.program_states() if state.name == name)

    def change_programs(self, environments: Mapping[str, Mapping[str, str] | None]) -> None:
        """Restart programs with other environment beside that of all; None: as it was in the beginning."""
        for name, environment in environments.items():
            self.state.stop_program(name)
            self.changed[name] = dict(environment or {})
        self.state.add_programs([self._program(name) for name in environments])
        for name in environments:
            self.state.start_program(name)
        self.wait_healthy()

    def cpu_s(self) -> float:
        """Seconds of a core that all its processes have used so far, those that ended included."""
        this = psutil.Process()
        used = 0.0
        for process in this.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                used += times.user + times.system + times.children_user + times.children_system
        return used

    # -- orders: what a process does to itself, see tests.chaos.worker ----------------------------------------------

    def order(self, name: str, order: Order) -> None:
        order.write(self.orders, name)

    def fired(self, name: str) -> Fired | None:
        """Whether the last order was carried out."""
        try:
            found = json.loads(fired_file(self.orders, name).read_text())
        except FileNotFoundError:
            return None
        return Fired(at=found["at"], pid=found["pid"])

    def wait_fired(self, name: str, job: ChaosJob, *, timeout_s: float = 15.0) -> Fired:
        """Wait until the last order was carried out. Raises Missed when the job ended without."""
        what = f"{name} to carry out its order"
        self.until(lambda: self.fired(name) is not None or self.is_over(job), what, timeout_s=timeout_s)
        with suppress(Broken):  # an order at the job's very end
            self.until(lambda: self.fired(name) is not None, what, timeout_s=1.0 / PATIENCE)
        fired = self.fired(name)
        if fired is None:
            raise Missed(f"the job ended before {name} had to carry out its order")
        return fired

    def withdraw_orders(self) -> None:
        for name in self.programs:
            order_file(self.orders, name).unlink(missing_ok=True)
            fired_file(self.orders, name).unlink(missing_ok=True)

    # -- jobs --------------------------------------------------------------------------------------------------------

    def submit(self, seed: int, *, num_samples: int = NUM_SAMPLES, grader: str = GRADER) -> ChaosJob:
        """A job with so many samples of each problem, at most MAX_SAMPLES."""
        job_id = self.workload.submit(self.client, seed, num_samples=num_samples, grader=grader)
        return ChaosJob(job_id, seed, num_samples)

    def is_over(self, job: ChaosJob) -> bool:
        rows = self.rows("SELECT state FROM jobs WHERE id = :job", job=job.id)
        return bool(rows) and rows[0][0] in [state.value for state in FINAL_JOB_STATES]

    def wait_over(self, job: ChaosJob, *, timeout_s: float = 60.0) -> None:
        self.until(lambda: self.is_over(job), f"job {job.id} to end", timeout_s=timeout_s)

    def num_commits(self, job: ChaosJob, kind: str | None = None) -> int:
        """Segments of a job that are stored, by all or by one kind of worker."""
        return self.rows(
            "SELECT count(*) FROM segments g JOIN samples s ON s.id = g.sample_id "
            "WHERE s.job_id = :job AND (CAST(:kind AS text) IS NULL OR g.author = :kind)",
            job=job.id, kind=kind,
        )[0][0]  # fmt: skip

    def at_some_moment(self, job: ChaosJob, rng: random.Random, *, latest: float = 0.6) -> None:
        """Wait until a share of the job's segments is stored that is drawn from rng, from 0 to latest."""
        wanted = rng.randrange(1, int(self.workload.num_segments(job) * latest))
        self.until(
            lambda: self.num_commits(job) >= wanted or self.is_over(job), f"{wanted} segments", every_s=QUICKLY_S
        )

    def holds(self, job: ChaosJob, pid: int) -> int:
        """How many samples of a job the process holds now."""
        return self.rows(
            "SELECT count(*) FROM samples s JOIN workers w ON w.id = s.holder_id "
            "WHERE s.job_id = :job AND w.pid = :pid",
            job=job.id, pid=pid,
        )[0][0]  # fmt: skip

    def until_busy(self, job: ChaosJob, name: str) -> None:
        """Wait until a writer holds a sample of the job, or the job is over; at once for other kinds."""
        if self.programs[name] in ("small", "large"):
            pid = self.pid(name)
            self.until(
                lambda: self.holds(job, pid) > 0 or self.is_over(job), f"{name} to hold a sample", every_s=QUICKLY_S
            )

    def rows(self, query: str, **values: Any) -> list[tuple[Any, ...]]:
        with transaction(self.db_engine) as connection:
            return rows_of(connection, query, **values)

    # -- waiting -----------------------------------------------------------------------------------------------------

    def until(
        self, condition: Callable[[], _T | None], what: str, *, timeout_s: float = 30.0, every_s: float = 0.2
    ) -> _T:
        """Wait until a condition gives something true, and return that; a server that is away counts as not yet.

        Raises Broken.
        """
        deadline = time.monotonic() + timeout_s * PATIENCE
        while True:
            with suppress(PipelineError, redis.ConnectionError):
                if found := condition():
                    return found
            if time.monotonic() > deadline:
                raise Broken(f"waited {timeout_s * PATIENCE:.0f} s for {what}")
            time.sleep(every_s)

    def wait_healthy(self, *, timeout_s: float | None = None) -> None:
        """Return once every program runs and has registered, and nobody else is registered."""
        timeout_s = timeout_s or self.workload.start_timeout_s
        try:
            self.until(lambda: not self._sick(), "a healthy harness", timeout_s=timeout_s)
        except Broken as error:
            with suppress(PipelineError):
                raise Broken(f"{error}; not up, or not yet settled: {', '.join(self._sick())}") from None
            raise

    def _sick(self) -> list[str]:
        """The programs that are not up, and the lives in the database that have no process."""
        names = set(self.programs) - self.absent
        states = {state.name: state for state in self.state.program_states() if state.name in names}
        live = {
            row[0]
            for row in self.rows(
                "SELECT pid FROM workers WHERE ended_at IS NULL AND expires_at > clock_timestamp() "
                "AND renewed_at > clock_timestamp() - interval '1.5 s'"
            )
        }
        alive = {state.pid for state in states.values() if state.state is ProgramPhase.RUNNING}
        sick = [name for name, state in states.items() if state.pid not in live]
        sick += [name for name, state in states.items() if state.state in (ProgramPhase.EXITED, ProgramPhase.STOPPED)]
        for name in sick:
            if states[name].state in (ProgramPhase.EXITED, ProgramPhase.STOPPED):
                self.state.start_program(name)
        unsettled = self.rows("SELECT pid FROM workers WHERE settled_at IS NULL AND NOT pid = ANY(:pids)",
                              pids=[pid for pid in alive if pid])  # fmt: skip
        return sick + [f"pid {pid}" for (pid,) in unsettled]


def _beside(state_dir: Path) -> Path:
    """Where the clock of its Postgres lies."""
    return state_dir.with_name(f"{state_dir.name}.clock")


@contextmanager
def _without_settings() -> Iterator[None]:
    """Programs inherit the environment in which the servers are started: none of its settings are for them."""
    settings = {name: value for name, value in os.environ.items() if name.startswith("SPECTHINK_")}
    for name in settings:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(settings)


@contextmanager
def _preloading(imports: str) -> Iterator[None]:
    """Start servers under the supervisord that has what its workers import."""
    usual = supervision.SUPERVISORD
    supervision.SUPERVISORD = (supervisor.__file__, imports)
    try:
        yield
    finally:
        supervision.SUPERVISORD = usual


def rows_of(connection: Connection, query: str, **values: Any) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in connection.execute(text(query), values)]


def log_sizes(harness: Harness) -> dict[Path, int]:
    """How long each log is now."""
    return {path: path.stat().st_size for path in sorted((harness.state.state_dir / "logs").glob("*.log"))}


def copy_logs(harness: Harness, since: Mapping[Path, int], folder: Path) -> None:
    """What was added to each log since."""
    for path in sorted((harness.state.state_dir / "logs").glob("*.log")):
        content = path.read_bytes()
        start_at = since.get(path, 0)
        (folder / path.name).write_bytes(content[start_at:] if start_at <= len(content) else content)


def dump_rows(harness: Harness, job_id: int | None, folder: Path) -> None:
    """The job's rows as JSON lines, one file a table."""
    queries = {
        "jobs": "SELECT to_jsonb(j) FROM jobs j WHERE id = :job",
        "samples": "SELECT to_jsonb(s) FROM samples s WHERE job_id = :job ORDER BY id",
        "segments": "SELECT to_jsonb(g) FROM segments g JOIN samples s ON s.id = g.sample_id WHERE s.job_id = :job "
                    "ORDER BY g.sample_id, g.segment_index",
        "grades": "SELECT to_jsonb(g) FROM grades g JOIN samples s ON s.id = g.sample_id WHERE s.job_id = :job",
        "events": "SELECT to_jsonb(e) FROM events e WHERE job_id = :job ORDER BY id",
        "workers": "SELECT to_jsonb(w) FROM workers w ORDER BY id",
    }  # fmt: skip
    for table, query in queries.items():
        lines: Sequence[tuple[Any, ...]] = harness.rows(query, job=job_id)
        write_lines(folder / f"{table}.jsonl", (row[0] for row in lines))


def write_lines(path: Path, records: Iterable[Any]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
