"""Servers of this machine, each started for a while: Postgres, PgBouncer, Redis, Sentinel. All end with this one."""

from __future__ import annotations

import json
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import redis

from pipeline.embedded import launcher
from tests.servers.certificates import Certificate

OWNER = "owner"
PASSWORD = f"p{secrets.token_hex(12)}"
"""Of every server here; whoever shows it in a log or an error fails."""
_START_S = 60.0


class NotHere(Exception):
    """This machine has not what is needed."""


def server_user() -> tuple[int, int] | None:
    """Whom servers run as that refuse to be root; None: this user."""
    if os.geteuid() != 0:
        return None
    entry = pwd.getpwnam("nobody")
    return entry.pw_uid, entry.pw_gid


def find_program(*names: str) -> Path:
    """Where the first of these is. Raises NotHere."""
    for name in names:
        found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
        if found:
            return Path(found)
    raise NotHere(f"no {names[0]} here")


def postgres_folders() -> dict[int, Path]:
    """Folders of Postgres's programs, by major version: Debian's, and those that PATH and POSTGRES_BINS name."""
    named = [Path(part) for part in os.environ.get("POSTGRES_BINS", "").split(":") if part]
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    found: dict[int, Path] = {}
    for folder in [*named, *debian]:
        if (folder / "initdb").exists():
            said = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
            number = re.search(r"\d+", said)
            assert number is not None
            found.setdefault(int(number[0]), folder)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """A server that runs. log: what it said."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path
    data: Path = field(default_factory=Path)


def make_folder(path: Path) -> Path:
    """A folder for a server's user."""
    path.mkdir(mode=0o700)
    user = server_user()
    if user is not None:
        os.chown(path, *user)
    return path


@contextmanager
def running(argv: Sequence[str], folder: Path, port: int, answers: Callable[[], bool]) -> Iterator[Server]:
    """A program until the end of this; returns once it answers. Raises RuntimeError, with its last words."""
    log = folder / f"{Path(argv[0]).name}-{port}.log"
    spec = folder / f"{Path(argv[0]).name}-{port}.json"
    launch = {
        "argv": [str(part) for part in argv], "env": {"PATH": os.defpath, "LC_ALL": "C"}, "inherit_env": False,
        "cwd": "/", "output": str(log), "death_signal": "SIGINT", "parent_pid": os.getpid(),
    }  # fmt: skip
    spec.write_text(json.dumps(launch | {"user": server_user()}))
    process = subprocess.Popen([sys.executable, "-I", "-S", launcher.__file__, str(spec)])
    try:
        deadline = time.monotonic() + _START_S
        while not answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{argv[0]} does not answer: {log.read_text()[-500:]}")
            time.sleep(0.1)
        yield Server(port=port, process=process, log=log, data=folder)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# -- Postgres ---------------------------------------------------------------------------------------------------------


@contextmanager
def postgres(programs: Path, folder: Path, *, tls: Certificate | None = None) -> Iterator[Server]:
    """A new cluster with a superuser OWNER. tls: it takes no connection without."""
    data = make_folder(folder / "data")
    _init(programs, folder, data)
    kind = "hostssl" if tls else "host"
    (data / "pg_hba.conf").write_text(f"{kind} all all 127.0.0.1/32 scram-sha-256\n")
    port = free_port()
    settings = {
        "listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": "", "fsync": "off",
        "max_connections": "300", "log_error_verbosity": "terse",
    }  # fmt: skip
    if tls:
        settings |= {"ssl": "on", "ssl_cert_file": str(tls.certificate), "ssl_key_file": str(tls.key)}
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    with running([str(programs / "postgres"), "-D", str(data), *options], folder, port, lambda: _opens(port)) as server:
        yield server


def _init(programs: Path, folder: Path, data: Path) -> None:
    user = server_user()
    password = folder / "password"
    password.write_text(PASSWORD)
    if user is not None:
        os.chown(password, *user)
    spec = folder / "initdb.json"
    options = ["-U", OWNER, f"--pwfile={password}", "--auth=scram-sha-256", "-E", "UTF8", "--locale=C"]
    launch = {"argv": [str(programs / "initdb"), "-D", str(data), *options], "env": {"LC_ALL": "C"}, "cwd": "/"}
    spec.write_text(json.dumps(launch | {"user": user, "inherit_env": False}))
    command = [sys.executable, "-I", "-S", launcher.__file__, str(spec)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(f"initdb ended with {done.returncode}: {done.stderr[-500:]}")


def _opens(port: int) -> bool:
    """Whether it takes connections, with a login or without: an answer is enough."""
    try:
        psycopg.connect(host="127.0.0.1", port=port, user="nobody", dbname="postgres", connect_timeout=5).close()
    except psycopg.OperationalError as error:
        return (
            "no password supplied" in str(error) or "authentication failed" in str(error) or "no pg_hba" in str(error)
        )
    return True


@contextmanager
def pgbouncer(folder: Path, postgres_port: int, *, mode: str) -> Iterator[Server]:
    """A pooler before a Postgres of ``postgres``. mode: session, transaction or statement."""
    program = find_program("pgbouncer")
    port = free_port()
    users = folder / "users.txt"
    users.write_text(f'"{OWNER}" "{PASSWORD}"\n')
    configuration = folder / "pgbouncer.ini"
    configuration.write_text(
        f"[databases]\n* = host=127.0.0.1 port={postgres_port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
        f"listen_port = {port}\nunix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {users}\n"
        f"auth_user = {OWNER}\npool_mode = {mode}\nmax_client_conn = 500\ndefault_pool_size = 60\n"
        "server_idle_timeout = 1\n"
    )
    if (user := server_user()) is not None:
        for path in (users, configuration):
            os.chown(path, *user)
    with running([str(program), str(configuration)], folder, port, lambda: _listens(port)) as server:
        yield server


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# -- Redis ------------------------------------------------------------------------------------------------------------


@contextmanager
def redis_server(folder: Path, *options: str, tls: Certificate | None = None, login: bool = True) -> Iterator[Server]:
    """An empty Redis. options: as on its command line. tls: it has no port without. login: with PASSWORD."""
    program = find_program("redis-server", "valkey-server")
    port = free_port()
    place = ["--port", str(port)]
    if tls:
        place = ["--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no"]
        place += ["--tls-cert-file", str(tls.certificate), "--tls-key-file", str(tls.key)]
        place += ["--tls-ca-cert-file", str(tls.certificate)]
    data = make_folder(folder / f"redis-{port}")
    common = ["--bind", "127.0.0.1", "--dir", str(data), "--save", "", "--appendonly", "no"]
    password = ["--requirepass", PASSWORD, "--masterauth", PASSWORD] if login else []
    argv = [str(program), *place, *common, *password, *options]
    with running(argv, folder, port, lambda: _listens(port)) as server:
        yield server


@contextmanager
def sentinel(folder: Path, master_port: int) -> Iterator[Server]:
    """A Sentinel that watches one server under the name main, and makes a replica the master after a second."""
    program = find_program("redis-sentinel", "redis-server")
    port = free_port()
    place = make_folder(folder / f"sentinel-{port}")
    configuration = place / "sentinel.conf"
    configuration.write_text(
        f"port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {master_port} 1\n"
        f"sentinel auth-pass main {PASSWORD}\nsentinel down-after-milliseconds main 1000\n"
        "sentinel failover-timeout main 5000\n"
    )
    if (user := server_user()) is not None:
        os.chown(configuration, *user)
    with running([str(program), str(configuration), "--sentinel"], folder, port, lambda: _knows(port)) as server:
        yield server


def _knows(port: int) -> bool:
    """Whether it has found the replica."""
    try:
        with redis.Redis(port=port) as client:
            return bool(client.sentinel_slaves("main"))
    except redis.RedisError:
        return False
