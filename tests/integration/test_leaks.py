"""A whole run on the demo pair whose reference answers and passwords are unmistakable; then they are looked for
everywhere: Redis and its files, every broadcast, Flower, logs, the processes, what the command line says, every column.

Reference answers may be in the table reference_answers alone, and what else tells them in hidden_columns: grades keep
what a grader found in the output, and of its errors only what is written in this repository.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import redis

from pipeline import Client
from pipeline.embedded import Connections, stop
from pipeline.embedded.folder import StateFolder
from pipeline.jobs import readiness
from pipeline.local import LocalStack, start_local
from pipeline.results.jobs import Job
from pipeline.settings import Settings

pytestmark = pytest.mark.timeout(600)

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL, LARGE = EXAMPLES / "models" / "demo-small", EXAMPLES / "models" / "demo-large"
FLOWER_AUTH = "watcher:flower-password-91c4"
ANSWER = "7f3a9e5b"
"""Part of every reference answer."""
ENVIRONMENT = {
    "SPECTHINK_LEASE__TTL_S": "6",
    "SPECTHINK_LEASE__RENEW_INTERVAL_S": "0.5",
    "SPECTHINK_ENGINE__MAX_MODEL_LEN": "1024",
    "SPECTHINK_ENGINE__MAX_IN_FLIGHT": "32",
    "SPECTHINK_FLOWER__BASIC_AUTH": FLOWER_AUTH,
}
GRADERS = {
    "exact": "ZQ-7f3a9e5b-{n}",
    "math": r"\frac{{7f3a9e5b}}{{ {n} }}",
    "choice": "QZ-7f3a9e5b-{n}",  # no letter: the grader breaks, and may not quote it
}
"""Reference answers by grader."""


@dataclass(frozen=True)
class Run:
    """What ran, what was overheard on Redis meanwhile, and the passwords by their names."""

    stack: LocalStack
    client: Client
    jobs: tuple[Job, ...]
    overheard: bytes
    passwords: Mapping[str, str]
    spoken: Mapping[str, bytes]

    @property
    def folder(self) -> StateFolder:
        return StateFolder.of(self.stack.state.state_dir)

    @property
    def connections(self) -> Connections:
        return self.stack.state.connections

    def flower(self, path: str, *, method: str = "GET", auth: str | None = FLOWER_AUTH) -> tuple[int, bytes]:
        request = urllib.request.Request(f"{self.stack.flower_url}{path}", method=method)
        if auth is not None:
            request.add_header("Authorization", f"Basic {base64.b64encode(auth.encode()).decode()}")
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def pid(self, program: str) -> int:
        [pid] = [state.pid for state in self.stack.state.program_states() if state.name == program]
        assert pid is not None
        return pid


class Eavesdropper:
    """Hears all that is published on Redis, events and broadcasts, in a thread."""

    def __init__(self, connections: Connections) -> None:
        self._client = redis.Redis.from_url(connections.redis_url.get_secret_value())
        self._pubsub = self._client.pubsub()
        self._pubsub.psubscribe("*")
        self._stop = threading.Event()
        self.heard: list[bytes] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while not self._stop.is_set():
            message = self._pubsub.get_message(ignore_subscribe_messages=True, timeout=0.2)
            if message:
                self.heard.append(message["channel"] + b" " + message["data"])

    def end(self) -> bytes:
        self._stop.set()
        self._thread.join(timeout=30)
        self._pubsub.close()
        self._client.close()
        return b"\n".join(self.heard)


def problem_file(folder: Path, grader: str) -> Path:
    """The first problems of the demo's set, with answers of another kind, and columns that tell them too."""
    lines = (EXAMPLES / "problems.jsonl").read_text().splitlines()[:4]
    secrets = {"rationale": f"Because of {ANSWER}.", "choice_index": ANSWER, "tests": [{"input": 1, "output": ANSWER}]}
    rows = [{**json.loads(line), "answer": GRADERS[grader].format(n=n), **secrets} for n, line in enumerate(lines, 1)]
    path = folder / f"{grader}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("leaks")
    with pytest.MonkeyPatch.context() as environment:
        for name, value in ENVIRONMENT.items():
            environment.setenv(name, value)
        # No grader can read the references for "choice", as where an older one had stored them.
        environment.setattr(readiness, "check_references", lambda *_: None)
        settings = Settings(state_dir=folder / "state")
        stack = start_local(settings, small=str(SMALL), large=str(LARGE), flower=True, die_with_parent=True)
        eavesdropper = Eavesdropper(stack.state.connections)
        with Client.connect(settings) as client:
            jobs = tuple(
                client.submit(
                    problem_file(folder, grader),
                    small=SMALL,
                    large=LARGE,
                    grader=grader,
                    policy="speculative-thinking:improved",
                    num_samples=1,
                    max_tokens=300,
                    seed=7,
                )
                for grader in GRADERS
            )
            client.wait(*jobs, timeout_s=300)
            passwords = json.loads(StateFolder.of(stack.state.state_dir).secrets_file.read_text())
            passwords["flower"] = FLOWER_AUTH.partition(":")[2]
            yield Run(stack, client, jobs, eavesdropper.end(), passwords, spoken(stack, jobs[0]))
        stop(folder / "state")


def traces(secret: str) -> list[bytes]:
    """The secret as it is, and as it looks inside base64 at each of the three places where it may begin there."""
    found = [secret.encode()]
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + secret.encode())
        start = (offset * 8 + 5) // 6
        found.append(encoded[start : len(encoded) // 4 * 4 - 4])
    return found


def assert_none(secret: str, places: Mapping[str, bytes]) -> None:
    assert all(places.values()), f"nothing was read at {[name for name, content in places.items() if not content]}"
    leaks = [name for name, content in places.items() if any(trace in content for trace in traces(secret))]
    assert leaks == [], "a secret is there"


def test_traces_are_found_in_base64() -> None:
    for padding in range(4):
        assert any(t in base64.b64encode(b"x" * padding + b"ZQ-7f3a9e5b-2, and more") for t in traces(ANSWER))
    assert not any(t in base64.b64encode(b"something else, and as long as the other one") for t in traces(ANSWER))


def redis_content(run: Run) -> dict[str, bytes]:
    """All keys with their values, and all files that Redis keeps."""
    with redis.Redis.from_url(run.connections.redis_url.get_secret_value()) as client:
        keys = {f"redis key {key!r}": key + (client.dump(key) or b"") for key in client.scan_iter()}
        files = {f"redis file {path.name}": path.read_bytes() for path in run.folder.redis.iterdir()}
    del files["redis file redis.conf"]
    return {**keys, **files}


def flower_content(run: Run) -> dict[str, bytes]:
    pages = [
        "/", "/tasks", "/broker", "/metrics", "/api/workers?refresh=1", "/api/tasks?limit=10000", "/api/task/types",
        "/api/queues/length",
    ]  # fmt: skip
    tasks = json.loads(run.flower("/api/tasks?limit=10000")[1])
    workers = json.loads(run.flower("/api/workers")[1])
    assert {task["name"] for task in tasks.values()} >= {"draft", "assist", "grade", "follow"}
    pages += [f"/task/{task}" for task in list(tasks)[:20]] + [f"/worker/{worker}" for worker in workers]
    pages += [f"/api/task/info/{task}" for task in list(tasks)[:20]]
    content = {}
    for page in pages:
        status, content[f"flower {page}"] = run.flower(page)
        assert status == 200, page
    return content


def logs(run: Run) -> dict[str, bytes]:
    """Of all programs, those that were rotated included; an empty one says so."""
    return {f"log {path.name}": path.read_bytes() or b"(empty)" for path in run.folder.logs.iterdir()}


def command_lines() -> dict[str, bytes]:
    """Of all processes of this machine."""
    found = {}
    for process in psutil.process_iter():
        try:
            found[f"command line of {process.pid}"] = " ".join(process.cmdline()).encode() or b"(kernel)"
        except psutil.Error:
            continue
    return found


def environments(run: Run) -> dict[str, bytes]:
    """Of all processes that belong to the pipeline but its servers."""
    programs = [state for state in run.stack.state.program_states() if state.name not in ("postgres", "redis")]
    heads = [psutil.Process(state.pid) for state in programs if state.pid is not None]
    processes = [process for head in heads for process in (head, *head.children(recursive=True))]
    return {f"environment of {p.name()} {p.pid}": Path(f"/proc/{p.pid}/environ").read_bytes() for p in processes}


def spoken(stack: LocalStack, job: Job) -> dict[str, bytes]:
    """What the command line prints for people."""
    commands = [
        ("doctor", "--json"), ("status", str(job.id)), ("up", "--small", str(SMALL), "--large", str(LARGE)),
        ("sql", "SELECT w, j, a.query FROM workers w, jobs j, pg_stat_activity a"),
    ]  # fmt: skip
    start = [sys.executable, "-m", "pipeline.cli", "--state-dir", str(stack.state.state_dir)]
    said = {}
    for command in commands:
        done = subprocess.run([*start, *command], capture_output=True, check=False, timeout=120)
        assert done.returncode == 0, (command, done.stderr)
        said[" ".join(command)] = done.stdout + done.stderr
    return said


def columns(run: Run) -> dict[str, int]:
    """Rows of each table and view that have the answer in some column."""
    names = run.client.sql("""
        SELECT c.relname FROM pg_class c WHERE c.relkind IN ('r', 'v') AND c.relnamespace = 'public'::regnamespace
    """).rows
    found = {}
    for (name,) in names:
        query = f"SELECT count(*) FROM {name} AS t WHERE to_jsonb(t)::text LIKE '%{ANSWER}%'"
        found[name] = run.client.sql(query).rows[0][0]
    return found


def test_run_was_a_whole_one(run: Run) -> None:
    rows = run.client.sql("SELECT state, count(*) FROM samples GROUP BY state").rows
    assert rows == [("graded", 12)]
    assert dict(run.client.sql("SELECT status, count(*) FROM grades GROUP BY status").rows)["error"] >= 4
    assert run.client.sql("SELECT sum(num_takeovers) > 0 FROM samples").rows == [(True,)]


def test_reference_answers_and_what_tells_them_are_in_their_tables_alone(run: Run) -> None:
    found = columns(run)
    assert found.pop("reference_answers") == 12
    assert found.pop("hidden_columns") == 12
    assert len(found) > 20
    assert {name: count for name, count in found.items() if count} == {}


def test_reference_answers_are_nowhere_outside_postgres(run: Run) -> None:
    assert b"celeryev" in run.overheard
    places = {**redis_content(run), **flower_content(run), **logs(run), **environments(run), **command_lines()}
    assert any("appendonly" in place for place in places)
    assert_none(ANSWER, {**places, "events and broadcasts": run.overheard, **run.spoken})


def test_passwords_are_nowhere(run: Run) -> None:
    places = {**redis_content(run), **flower_content(run), **logs(run), **command_lines(), **run.spoken}
    assert {"specthink", "specthink_writer", "specthink_grader", "specthink_upkeep", "redis"} <= set(run.passwords)
    for password in run.passwords.values():
        assert_none(password, {**places, "events and broadcasts": run.overheard})


def test_environments_hold_no_password_but_flowers_own(run: Run) -> None:
    places = environments(run)
    flower = {p.pid for p in (psutil.Process(run.pid("flower")), *psutil.Process(run.pid("flower")).children())}
    for name, password in run.passwords.items():
        own = {place for place in places if name == "flower" and int(place.rsplit(" ", 1)[1]) in flower}
        assert_none(password, {place: content for place, content in places.items() if place not in own})


def test_each_worker_has_the_rights_of_its_role_alone(run: Run) -> None:
    owner = run.connections.database_url.get_secret_value()
    with psycopg.connect(owner) as connection:
        rows = connection.execute(
            "SELECT DISTINCT usename FROM pg_stat_activity WHERE application_name = 'specthink'"
        ).fetchall()
    assert {row[0] for row in rows} == {"specthink_writer", "specthink_grader", "specthink_upkeep"}


def test_state_folder_is_its_owners_alone(run: Run) -> None:
    root = run.stack.state.state_dir
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    open_to_others = [
        str(path.relative_to(root))
        for parent, folders, files in os.walk(root)
        for path in (Path(parent, name) for name in folders + files)
        if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) & 0o077
    ]
    assert open_to_others == []


def test_servers_listen_on_sockets_and_loopback_only(run: Run) -> None:
    listening = {}
    for state in run.stack.state.program_states():
        assert state.pid is not None
        tree = [psutil.Process(state.pid), *psutil.Process(state.pid).children(recursive=True)]
        found = {c.laddr.ip for p in tree for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        listening[state.name] = found
    assert listening["postgres"] == set()
    assert listening["redis"] == {"127.0.0.1"}
    assert listening["flower"] == {"127.0.0.1"}
    assert set().union(*listening.values()) <= {"127.0.0.1", "::1"}


ORDERS = (
    "worker/shutdown/{worker}", "worker/pool/restart/{worker}", "worker/pool/grow/{worker}?n=3",
    "worker/pool/shrink/{worker}?n=1", "worker/pool/autoscale/{worker}?min=1&max=9",
    "worker/queue/add-consumer/{worker}?queue=x", "worker/queue/cancel-consumer/{worker}?queue=grade",
    "task/revoke/{task}?terminate=true", "task/timeout/grade?hard=1&workername={worker}",
    "task/rate-limit/grade?ratelimit=1&workername={worker}", "task/apply/grade", "task/async-apply/grade",
    "task/send-task/grade", "task/abort/{task}",
)  # fmt: skip


def test_flower_obeys_nobody(run: Run) -> None:
    worker = next(iter(json.loads(run.flower("/api/workers")[1])))
    task = next(iter(json.loads(run.flower("/api/tasks?limit=1")[1])))
    pids = {state.name: state.pid for state in run.stack.state.program_states()}
    for order in ORDERS:
        status, answer = run.flower("/api/" + order.format(worker=worker, task=task), method="POST")
        assert status == 403, (order, status, answer)
    assert {state.name: state.pid for state in run.stack.state.program_states()} == pids


@pytest.mark.parametrize("auth", [None, "watcher:wrong", ":", "watcher:"])
def test_flower_shows_nothing_without_its_password(run: Run, auth: str | None) -> None:
    for page in ("/", "/tasks", "/broker", "/metrics", "/api/workers", "/api/tasks", "/api/queues/length"):
        status, _ = run.flower(page, auth=auth)
        assert status == 401, page
    for order in ORDERS:
        assert run.flower("/api/" + order.format(worker="x", task="y"), method="POST", auth=auth)[0] in (401, 403)


def test_flower_without_a_password_is_for_this_machine_alone(run: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SPECTHINK_FLOWER")}
    environment |= {"SPECTHINK_STATE_DIR": str(run.stack.state.state_dir), "SPECTHINK_FLOWER__PORT": str(port)}
    command = [sys.executable, "-m", "workers", "flower"]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, env=environment, stderr=log) as flower:
        try:
            wait_for(lambda: asked(port, "localhost") is not None)
            assert asked(port, "localhost") == (200, None)
            assert asked(port, f"127.0.0.1:{port}") == (200, None)
            assert asked(port, "rebound.example") == (421, None)
        finally:
            flower.terminate()


def asked(port: int, host: str) -> tuple[int, str | None] | None:
    """Status and who else may read it, for a web page that calls this machine so; None where nobody answers."""
    headers = {"Host": host, "Origin": "https://elsewhere.example"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/tasks", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.headers["Access-Control-Allow-Origin"]
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Access-Control-Allow-Origin"]
    except OSError:
        return None


def test_worker_needs_no_owner(run: Run) -> None:
    """Nothing that a generating worker does is done by the owner's login: it goes on when that may not log in."""
    owner = run.connections.database_url.get_secret_value()
    with psycopg.connect(owner, autocommit=True) as connection:
        job = run.client.submit(
            problem_file(run.folder.path.parent, "exact"), small=SMALL, large=LARGE, num_samples=1, max_tokens=100
        )
        run.client.close()
        connection.execute("ALTER ROLE specthink NOLOGIN")
        try:
            query = "SELECT state FROM jobs WHERE id = %s"
            wait_for(lambda: connection.execute(query, (job.id,)).fetchone() == ("completed",))
        finally:
            connection.execute("ALTER ROLE specthink LOGIN")


def wait_for(condition: Callable[[], Any], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
