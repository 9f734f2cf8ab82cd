"""A short job through real workers on given servers: migrate, submit, every kind of worker, Flower, doctor, sql.

Only the models are scripted. What anybody said is searched for the servers' password.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from sqlalchemy import text

from bench.scripted_worker import environment as scripted
from bench.scripts import problem_set
from bench.stack import MODELS, REPOSITORY
from pipeline import Client
from pipeline.cli.doctor import Verdict, check_database, check_redis
from pipeline.db.session import open_database, transaction
from pipeline.embedded import Connections
from tests.servers.programs import PASSWORD, free_port

NUM_PROBLEMS, NUM_SAMPLES, TAKEOVERS = 8, 4, 6
START_S, JOB_S, COMMAND_S = 300.0, 300.0, 300.0
SETTINGS = {
    "SPECTHINK_LEASE__TTL_S": "6",
    "SPECTHINK_LEASE__RENEW_INTERVAL_S": "0.5",
    "SPECTHINK_UPKEEP__REPUBLISH_AFTER_S": "3",
    "SPECTHINK_LOGINS__READER": f"specthink_reader:{PASSWORD}",
}


class Failed(Exception):
    """Something did not come out as it must."""


def environment_of(database_url: str, redis_url: str) -> dict[str, str]:
    """Of every process that is to use these servers."""
    usual = {name: value for name, value in os.environ.items() if not name.startswith("SPECTHINK_")}
    urls = {"SPECTHINK_DATABASE_URL": database_url, "SPECTHINK_REDIS_URL": redis_url}
    return usual | SETTINGS | urls | scripted(f"takeovers:{TAKEOVERS}", max_in_flight=8, step_s=0.01)


def specthink(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command, as somebody types it. What it says must not show the password."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments], cwd=REPOSITORY, env=dict(environment), capture_output=True,
        text=True, timeout=COMMAND_S, check=False,
    )  # fmt: skip
    if PASSWORD in done.stdout + done.stderr:
        raise Failed(f"specthink {arguments[0]} shows the password")
    return done


def refused_in_one_line(environment: Mapping[str, str], *arguments: str) -> str:
    """What a command says that must be refused. Raises Failed."""
    done = specthink(environment, *arguments)
    lines = done.stderr.strip().splitlines()
    if done.returncode == 0 or len(lines) != 1:
        raise Failed(f"specthink {' '.join(arguments)} ended with {done.returncode}: {done.stderr[-800:]}")
    return lines[0]


def must(environment: Mapping[str, str], *arguments: str) -> str:
    """What a command prints that must succeed. Raises Failed."""
    done = specthink(environment, *arguments)
    if done.returncode:
        said = (done.stderr or done.stdout)[-800:]
        raise Failed(f"specthink {' '.join(arguments)} ended with {done.returncode}: {said}")
    return done.stdout


@dataclass
class Workers:
    """Processes that use the servers; each writes a log."""

    environment: Mapping[str, str]
    folder: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", *arguments], cwd=REPOSITORY, env=dict(self.environment), stdout=log, stderr=log
            )

    def require_alive(self) -> None:
        for name, process in self.processes.items():
            if process.poll() is not None:
                raise Failed(f"{name} ended with {process.returncode}: {self.log(name)[-800:]}")

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def end(self) -> None:
        """SIGTERM to all. Raises Failed where one does not end by itself or shows the password."""
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for name, process in self.processes.items():
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise Failed(f"{name} did not end: {self.log(name)[-800:]}") from None
        shown = [name for name in self.processes if PASSWORD in self.log(name)]
        if shown:
            raise Failed(f"the password is in the log of {', '.join(shown)}")


@contextmanager
def workers(environment: Mapping[str, str], folder: Path) -> Iterator[Workers]:
    """One of each kind, and Flower."""
    started = Workers(environment, folder)
    try:
        for kind in ("upkeep", "grade"):
            started.start(kind, "pipeline.cli", "worker", kind)
        for role in ("small", "large"):
            started.start(role, "bench.scripted_worker", role)
        yield started
    finally:
        started.end()


def run_job(environment: Mapping[str, str], folder: Path, *, meanwhile: Callable[[], None] | None = None) -> str:
    """A job from an empty database to its end; returns what ran. meanwhile: done once it is under way.

    Raises Failed.
    """
    must(environment, "migrate")
    url = environment["SPECTHINK_DATABASE_URL"]
    with workers(environment, folder) as started, Client.connect(database_url=url) as client:
        port = free_port()
        started.start("flower", "pipeline.cli", "flower", "--port", str(port))
        job = client.submit(
            problem_set(NUM_PROBLEMS), small=MODELS["small"], large=MODELS["large"], num_samples=NUM_SAMPLES, seed=1,
            policy="speculative-thinking:improved", max_tokens=600,
        )  # fmt: skip
        _until(lambda: _counts(url, "SELECT FROM segments") > 0, started, START_S, "a first segment")
        if meanwhile is not None:
            meanwhile()
        _until(lambda: _counts(url, "SELECT FROM jobs WHERE state = 'running'") == 0, started, JOB_S, "the job's end")
        _require_right(url)
        _until(lambda: _shown_by_flower(port), started, JOB_S, "Flower to show workers and queues")
        must(environment, "doctor", "--job", str(job.id))
        _require_healthy(environment)
        must(environment, "sql", "SELECT * FROM job_summary")
    return f"a job of {NUM_PROBLEMS * NUM_SAMPLES} samples, Flower, doctor, sql"


def _until(condition: Callable[[], bool], started: Workers, timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        started.require_alive()
        if time.monotonic() > deadline:
            raise Failed(f"waited {timeout_s:.0f} s for {what}; {started.log('upkeep')[-800:]}")
        time.sleep(0.2)


def _rows(url: str, query: str) -> list[tuple[Any, ...]]:
    db_engine = open_database(SecretStr(url), pool_size=1)
    try:
        with transaction(db_engine) as connection:
            return [tuple(row) for row in connection.execute(text(query))]
    finally:
        db_engine.dispose()


def _counts(url: str, query: str) -> int:
    return len(_rows(url, query))


def _require_right(url: str) -> None:
    """All samples graded as right, with all of their takeovers."""
    found = _rows(url, "SELECT state, score, num_takeovers, count(*)::integer FROM samples GROUP BY 1, 2, 3")
    expected = [("graded", 1.0, TAKEOVERS, NUM_PROBLEMS * NUM_SAMPLES)]
    if found != expected:
        raise Failed(f"the samples are {found} and not {expected}")


def _require_healthy(environment: Mapping[str, str]) -> None:
    """What doctor says of servers and workers; its other half, whether vLLM can be imported, takes a minute."""
    connections = Connections(
        database_url=SecretStr(environment["SPECTHINK_DATABASE_URL"]),
        redis_url=SecretStr(environment["SPECTHINK_REDIS_URL"]),
        reader_url=None,
    )
    findings = [*check_redis(connections), *check_database(connections)]
    sick = [f"{finding.check}: {finding.found}" for finding in findings if finding.verdict is Verdict.FAILURE]
    if sick:
        raise Failed(f"doctor says {'; '.join(sick)}")


def _shown_by_flower(port: int) -> bool:
    """Whether it knows the workers by their events, and asks Redis for the queues' lengths."""
    try:
        shown = [_get(port, path) for path in ("/api/workers", "/api/queues/length")]
    except OSError:
        return False
    return len(shown[0]) >= 4 and len(shown[1].get("active_queues", [])) >= 4


def _get(port: int, path: str) -> dict[str, list[object]]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as response:
        found: dict[str, list[object]] = json.load(response)
    return found
