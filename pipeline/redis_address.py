"""What an address of Redis says: of a server, with TLS or without, or of one that Sentinels name.

redis://user:password@host:port/0
rediss://user:password@host:port/0?ssl_ca_certs=/path/ca.pem
sentinel://user:password@host:port,host:port/0?master_name=NAME

redis-py, kombu and Flower each take a part of this in another form, so it is read here, once. An address that none of
them would read as it is meant is refused, and no part of it is repeated: it holds a password.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qsl, quote, unquote

from pydantic import SecretStr

if TYPE_CHECKING:
    import redis

Scheme = Literal["redis", "rediss", "sentinel"]
_PORTS: Mapping[str, int] = {"redis": 6379, "rediss": 6379, "sentinel": 26379}
_FORM = "redis://user:password@host:port/0"
_SENTINEL_FORM = "sentinel://user:password@host:port,host:port/0?master_name=NAME"
_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "redis": (),
    "rediss": ("ssl_ca_certs", "ssl_cert_reqs", "ssl_check_hostname", "ssl_certfile", "ssl_keyfile"),
    "sentinel": ("master_name", "sentinel_username", "sentinel_password"),
}
_CERT_REQS = ("required", "optional", "none")
CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    """Where Redis is. hosts: its server, or its Sentinels."""

    scheme: Scheme
    hosts: tuple[tuple[str, int], ...]
    username: str | None
    password: SecretStr | None
    database: int
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, url: SecretStr) -> RedisAddress:
        """Raises ValueError, with what the address must be and nothing of what it is."""
        scheme, separator, rest = url.get_secret_value().partition("://")
        if not separator or scheme not in _PORTS:
            raise ValueError(f"must be {_FORM}, rediss://… for TLS, or {_SENTINEL_FORM}")
        place, _, query = rest.partition("?")
        place, _, database = place.partition("/")
        login, _, listed = place.rpartition("@")
        username, _, password = login.partition(":")
        form = _SENTINEL_FORM if scheme == "sentinel" else _FORM
        if "@" in database + query or "#" in rest or not (database or "0").isdecimal():
            raise ValueError(f"must be {form}; other characters in a password are written like %40 for @")
        return cls(
            scheme=scheme,  # type: ignore[arg-type]  # it is a key of _PORTS
            hosts=_hosts(listed, scheme),
            username=unquote(username) or None,
            password=SecretStr(unquote(password)) if password else None,
            database=int(database or 0),
            options=_options(query, scheme),
        )

    @property
    def tls(self) -> dict[str, Any] | None:
        """What redis-py's TLS connections are told; None where there is no TLS. The server must prove who it is, unless
        the address says otherwise."""
        if self.scheme != "rediss":
            return None
        checks_name = self.options.get("ssl_check_hostname", "true").lower() != "false"
        reqs = self.options.get("ssl_cert_reqs", "required")
        checks: dict[str, Any] = {"ssl_cert_reqs": reqs, "ssl_check_hostname": checks_name and reqs != "none"}
        return dict(self.options) | checks

    @property
    def master_name(self) -> str | None:
        """How the Sentinels call the server; None where there are none."""
        return self.options.get("master_name")

    @property
    def sentinel_login(self) -> dict[str, str]:
        """What the Sentinels themselves are told; empty where they want no login."""
        names = {"sentinel_username": "username", "sentinel_password": "password"}
        return {names[name]: value for name, value in self.options.items() if name in names}

    @property
    def broker_url(self) -> str:
        """For kombu and Flower: without options, and one address for each host."""
        secret = self.password.get_secret_value() if self.password else ""
        login = f"{quote(self.username or '', safe='')}:{quote(secret, safe='')}@" if self.username or secret else ""
        return ";".join(
            f"{self.scheme}://{login}{_bracketed(host)}:{port}/{self.database}" for host, port in self.hosts
        )

    def connect(self) -> redis.Redis:
        """A client; nothing is asked yet."""
        import redis
        import redis.sentinel

        timeouts: dict[str, Any] = {"socket_timeout": CONNECT_TIMEOUT_S, "socket_connect_timeout": CONNECT_TIMEOUT_S}
        login: dict[str, Any] = {
            "username": self.username,
            "password": self.password.get_secret_value() if self.password else None,
            "db": self.database,
        }
        if self.master_name is not None:
            make: Any = redis.sentinel.Sentinel  # redis-py has no types here
            sentinels = make(list(self.hosts), sentinel_kwargs=timeouts | self.sentinel_login)
            master: redis.Redis = sentinels.master_for(self.master_name, **login, **timeouts)
            return master
        ((host, port),) = self.hosts
        tls = {} if self.tls is None else {"ssl": True, **self.tls}
        return redis.Redis(host=host, port=port, **login, **timeouts, **tls)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _hosts(listed: str, scheme: str) -> tuple[tuple[str, int], ...]:
    hosts = tuple(_host(each, scheme) for each in listed.split(","))
    if len(hosts) > 1 and scheme != "sentinel":
        raise ValueError(f"names several servers; a server that moves is written {_SENTINEL_FORM}")
    return hosts


def _host(place: str, scheme: str) -> tuple[str, int]:
    if place.startswith("["):
        name, _, port = place[1:].partition("]")
        port = port.removeprefix(":")
    else:
        name, _, port = place.partition(":")
    if not name or (port and not (port.isdecimal() and 0 < int(port) < 65536)):
        form = _SENTINEL_FORM if scheme == "sentinel" else _FORM
        raise ValueError(f"must be {form}; other characters in a password are written like %40 for @")
    return name, int(port) if port else _PORTS[scheme]


def _options(query: str, scheme: str) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    known = _OPTIONS[scheme]
    if any(name.startswith("ssl_") for name in options) and scheme == "redis":
        raise ValueError("has options of TLS: a server with TLS is written rediss://")
    if any(name.startswith("ssl_") for name in options) and scheme == "sentinel":
        raise ValueError("asks for TLS by way of Sentinel, which specthink cannot: name the server itself by rediss://")
    if not set(options) <= set(known):
        raise ValueError(f"has options that specthink does not know; it knows {', '.join(known) or 'none'} here")
    if scheme == "sentinel" and not options.get("master_name"):
        raise ValueError(f"must say how the Sentinels call the server: {_SENTINEL_FORM}")
    if options.get("ssl_cert_reqs", "required") not in _CERT_REQS:
        raise ValueError(f"ssl_cert_reqs must be one of {', '.join(_CERT_REQS)}")
    return options
