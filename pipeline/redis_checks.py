"""What a Redis must be like to carry messages: it lets this login in, proves who it is, and takes the commands we use.

A Redis that is away is waited for. One that answers like this will not do, however long somebody waits.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import redis
from pydantic import SecretStr

from pipeline.db.faults import first_line
from pipeline.errors import ConfigurationError, ServiceUnavailable
from pipeline.redis_address import RedisAddress

_PLACE = "SPECTHINK_REDIS_URL"
_PERMIT = "let the login use what workers need: ACL SETUSER name ~* &* +@all -@dangerous -@admin"
_ONE_SERVER = "it is a cluster, and workers need one server: use one with cluster mode off"
_REMEDIES: Mapping[str, str] = {
    "CERTIFICATE_VERIFY_FAILED": f"name its CA by ssl_ca_certs=/path/ca.pem in {_PLACE}, and the server as its "
    "certificate does",
    "No such file or directory": f"correct the path of the certificates in {_PLACE}",
    "WRONGPASS": f"correct the user or password in {_PLACE}",
    "invalid username-password": f"correct the user or password in {_PLACE}",
    "NOAUTH": f"it wants a password: name it in {_PLACE}",
    "Authentication required": f"it wants a password: name it in {_PLACE}",
    "without any password configured": f"it has no password: leave it out of {_PLACE}",
    "NOPERM": _PERMIT,
    "no permissions": _PERMIT,
    "unknown command": "workers need it: rename it back, or use another server",
    "MOVED": _ONE_SERVER,
    "CROSSSLOT": _ONE_SERVER,
    "CLUSTERDOWN": _ONE_SERVER,
    "DB index is out of range": f"name a database that it has, such as 0, in {_PLACE}",
}
"""By what the error says."""


def require_broker(redis_url: SecretStr) -> None:
    """Raise ConfigurationError, in one line with the remedy, where Redis answers and will not do."""
    try:
        with closing(RedisAddress.parse(redis_url).connect()) as client:
            try_commands(client)
    except (redis.RedisError, OSError) as error:
        remedy = remedy_of(error)
        if remedy is not None:
            raise ConfigurationError(f"Redis cannot be used: {first_line(error)}: {remedy}") from error


def reach_broker(redis_url: SecretStr) -> None:
    """The same, and raise ServiceUnavailable where it does not answer now: for a person's command, which waits for
    nobody."""
    require_broker(redis_url)
    try:
        with closing(RedisAddress.parse(redis_url).connect()) as client:
            client.ping()
    except (redis.RedisError, OSError) as error:
        raise ServiceUnavailable(f"Redis cannot be reached: {first_line(error)}") from error


def remedy_of(error: Exception) -> str | None:
    """What to do about an answer that will stay the same; None for any other error."""
    return next((remedy for sign, remedy in _REMEDIES.items() if sign in str(error)), None)


def try_commands(client: Any) -> None:
    """Ask for what the transport and Flower ask for, with keys that nobody else has, and which are gone afterwards.

    Raises redis.RedisError.
    """
    name = f"specthink.try.{uuid.uuid4().hex}"
    queue, members, fields, scores = (f"{name}.{part}" for part in ("queue", "members", "fields", "scores"))
    commands: list[tuple[str | int, ...]] = [
        ("LPUSH", queue, "x"), ("RPUSH", queue, "x"), ("LLEN", queue), ("BRPOP", queue, 1), ("RPOP", queue),
        ("SADD", members, "x"), ("SMEMBERS", members), ("SREM", members, "x"),
        ("HSET", fields, "x", "x"), ("HGET", fields, "x"), ("HDEL", fields, "x"),
        ("ZADD", scores, 1, "x"), ("ZRANGE", scores, 0, -1), ("ZREVRANGEBYSCORE", scores, 1, 0), ("ZREM", scores, "x"),
        ("SET", name, "x", "NX", "PX", 1000), ("EXISTS", name), ("PEXPIRE", name, 1000),
        ("EVAL", "return redis.call('get', KEYS[1])", 1, name), ("DEL", queue, members, fields, scores, name),
        ("PUBLISH", name, "x"),
    ]  # fmt: skip
    with client.pipeline(transaction=True) as ask:  # the transport uses transactions too
        for command in commands:
            ask.execute_command(*command)
        ask.execute()
    _try_listening(client, name)


def _try_listening(client: Any, name: str) -> None:  # redis-py has no types here
    with closing(client.pubsub()) as listener:
        listener.subscribe(name)
        listener.psubscribe(f"{name}.*")
        for _ in range(2):
            listener.get_message(timeout=1.0)
