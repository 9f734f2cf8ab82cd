"""A pipeline of its own for one benchmark: servers in a new folder, real worker processes, everything ended with it."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from pipeline import Client, load_settings
from pipeline.db import migrate, report_queries
from pipeline.db.session import open_database, transaction
from pipeline.devices import Pool
from pipeline.embedded import Connections, EmbeddedState, Program, ProgramState, start, stop
from pipeline.embedded.supervision import last_lines
from pipeline.local import require_alive, start_local

REPOSITORY = Path(__file__).parents[1]
MODELS = {role: REPOSITORY / "examples" / "models" / f"demo-{role}" for role in ("small", "large")}
"""The demo pair: the models of the benchmarks that generate, and the tokenizers of those that are scripted."""
PROBLEMS = REPOSITORY / "examples" / "problems.jsonl"

JOB_TIMEOUT_S = 300.0
"""For one job: no benchmark waits without an end."""
_START_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """What runs. db_engine: with the owner's rights, for the benchmark's own questions."""

    state: EmbeddedState
    client: Client
    db_engine: Engine

    @property
    def connections(self) -> Connections:
        return self.state.connections

    def start_keepers(
        self, *, small: Path | None = None, large: Path | None = None, pools: Sequence[Pool] = ()
    ) -> None:
        """Start a grader and upkeep, and workers on vLLM where their models are given."""
        start_local(
            load_settings(state_dir=self.state.state_dir),
            small=str(small) if small else None,
            large=str(large) if large else None,
            pools=pools,
            flower=False,
            die_with_parent=True,
        )

    def rows(self, query: str) -> list[tuple]:
        """What a query gives, with the owner's rights."""
        with self.db_engine.connect() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(query)]

    def start_programs(self, programs: Sequence[Program]) -> None:
        """Start worker processes beside those that run; returns once all have registered.

        Raises ServiceUnavailable, with the last lines of its log, when one ends instead.
        """
        self.state.add_programs(programs)
        for program in programs:
            self.state.start_program(program.name)
        names = {program.name for program in programs}
        deadline = time.monotonic() + _START_TIMEOUT_S
        while missing := self._unregistered(names):
            require_alive(self.state, missing)
            if time.monotonic() > deadline:
                log = next(iter(missing.values())).log_path
                raise RuntimeError(f"{', '.join(missing)} did not register; {last_lines(log)}")
            time.sleep(0.1)

    def pid(self, name: str) -> int:
        """Of a program that runs."""
        found = next(program.pid for program in self.state.program_states() if program.name == name)
        if found is None:
            raise RuntimeError(f"{name} does not run")
        return found

    def _unregistered(self, names: set[str]) -> dict[str, ProgramState]:
        with transaction(self.db_engine) as connection:
            registered = {worker.pid for worker in report_queries.live_workers(connection)}
        return {
            program.name: program
            for program in self.state.program_states()
            if program.name in names and program.pid not in registered
        }


@contextmanager
def running_stack(
    *,
    small: Path | None = None,
    large: Path | None = None,
    pools: Sequence[Pool] = (),
    settings: Mapping[str, str] | None = None,
) -> Iterator[Stack]:
    """Servers, a grader and upkeep; a small and a large worker on vLLM where their models are given, and further pools.

    settings: SPECTHINK_… variables for all processes. Ends everything and removes the folder, also at a SIGTERM.
    """
    with running_servers(settings) as stack:
        stack.start_keepers(small=small, large=large, pools=pools)
        yield stack


@contextmanager
def running_servers(settings: Mapping[str, str] | None = None) -> Iterator[Stack]:
    """Postgres and Redis, with the schema and nobody at work. Otherwise as ``running_stack``."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder = Path(tempfile.mkdtemp(prefix="specthink-bench-"))
    try:
        with _environment(settings or {}):
            state = start(folder / "state", die_with_parent=True)
            db_engine = open_database(state.connections.database_url, pool_size=4, application_name="bench")
            migrate.upgrade(db_engine)
            with Client.connect(database_url=state.connections.database_url.get_secret_value()) as client:
                yield Stack(state=state, client=client, db_engine=db_engine)
            db_engine.dispose()
    finally:
        try:
            stop(folder / "state")
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Programs inherit the environment in which they are started: these settings, and none of this shell's."""
    before = {name: value for name, value in os.environ.items() if name.startswith("SPECTHINK_")}
    for name in before:
        del os.environ[name]
    os.environ.update(settings)
    try:
        yield
    finally:
        for name in settings:
            os.environ.pop(name, None)
        os.environ.update(before)
