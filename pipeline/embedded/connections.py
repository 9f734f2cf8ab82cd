"""Resolves the addresses of Postgres and Redis."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import SecretStr

from pipeline.embedded.folder import StateFolder, read_json, write_private
from pipeline.embedded.joining import authority_file, find_token
from pipeline.embedded.processes import ProcessIdentity
from pipeline.errors import ConfigurationError, ServiceUnavailable
from pipeline.logins import ROLE_OF_KIND, DatabaseRole
from pipeline.settings import Settings
from pipeline.workforce import WorkerKind


@dataclass(frozen=True, slots=True)
class Connections:
    """Where the servers are; each address holds its password."""

    database_url: SecretStr
    """The database as its owner, or as the login that the settings name."""
    redis_url: SecretStr
    reader_url: SecretStr | None
    """The database as a role that reads what the migrations let it; None where no such role is known."""
    role_urls: Mapping[DatabaseRole, SecretStr] = field(default_factory=dict)
    """The database as the other roles, where they are known."""
    only: DatabaseRole | None = None
    """The one role whose rights these addresses have, on a host that has joined another; None: more, or not known."""

    def worker_url(self, kind: WorkerKind) -> SecretStr:
        """The database for a worker of this kind: with the rights of its role alone, where that is known.

        Raises ConfigurationError where this host has the rights of another role alone.
        """
        if self.only is not None and ROLE_OF_KIND[kind] is not self.only:
            raise ConfigurationError(
                f"this host has joined with the {self.only.value}'s rights alone: run {kind.value} workers on the host "
                "of the servers"
            )
        return self.role_urls.get(ROLE_OF_KIND[kind], self.database_url)

    @property
    def submitter_url(self) -> SecretStr:
        """The database with the rights of a submitter alone, where that login is known.

        Raises ConfigurationError on a host that has joined another one.
        """
        if self.only is not None:
            raise ConfigurationError(
                f"this host has joined with the {self.only.value}'s rights alone: submit jobs and ask about them on "
                "the host of the servers"
            )
        return self.role_urls.get(DatabaseRole.SUBMITTER, self.database_url)

    @property
    def monitor_url(self) -> SecretStr:
        """The database with the rights of a monitor alone, where that login is known."""
        return self.role_urls.get(DatabaseRole.MONITOR, self.database_url)

    @property
    def gateway_url(self) -> SecretStr:
        """The database with the rights of the gateway alone, where that login is known."""
        return self.role_urls.get(DatabaseRole.GATEWAY, self.database_url)


def write_running(folder: StateFolder, supervisord: ProcessIdentity, connections: Connections) -> None:
    """Record that the servers answer at these addresses for as long as this supervisord lives."""
    content = {
        "supervisord": asdict(supervisord),
        "database_url": connections.database_url.get_secret_value(),
        "redis_url": connections.redis_url.get_secret_value(),
        "reader_url": connections.reader_url.get_secret_value() if connections.reader_url else None,
        "role_urls": {role.value: url.get_secret_value() for role, url in connections.role_urls.items()},
    }
    write_private(folder.running_file, json.dumps(content, indent=1))


def find_connections(state_dir: Path) -> Connections | None:
    """The addresses of the state folder's servers; None when they are not running."""
    content = read_json(StateFolder.of(state_dir).running_file)
    if content is None or not ProcessIdentity(**content["supervisord"]).is_alive():
        return None
    reader_url = content["reader_url"]
    return Connections(
        database_url=SecretStr(content["database_url"]),
        redis_url=SecretStr(content["redis_url"]),
        reader_url=SecretStr(reader_url) if reader_url else None,
        role_urls={DatabaseRole(role): SecretStr(url) for role, url in content.get("role_urls", {}).items()},
    )


def find_joined(state_dir: Path) -> Connections | None:
    """The addresses of the servers of another host that the state folder has joined; None: of none."""
    token = find_token(state_dir)
    if token is None:
        return None
    authority = authority_file(state_dir)
    return Connections(
        database_url=token.database_url(authority),
        redis_url=token.redis_url(authority),
        reader_url=None,
        only=DatabaseRole.WRITER,
    )


def is_running(state_dir: Path) -> bool:
    """Whether the state folder's servers were started and their supervisord lives."""
    return find_connections(state_dir) is not None


def resolve_connections(settings: Settings) -> Connections:
    """The addresses in the settings, and for those left out the embedded ones.

    Raises ServiceUnavailable when an embedded server is meant and none runs.
    """
    if settings.database_url is not None and settings.redis_url is not None:
        return Connections(
            settings.database_url,
            settings.redis_url,
            _login_url(settings, DatabaseRole.READER),
            _role_urls(settings),
        )
    embedded = find_connections(settings.state_dir) or find_joined(settings.state_dir)
    if embedded is None:
        raise ServiceUnavailable(
            f"no servers run for the state folder {settings.state_dir}; start them with `specthink up`, "
            "or name servers of your own by SPECTHINK_DATABASE_URL and SPECTHINK_REDIS_URL"
        )
    is_embedded = settings.database_url is None
    return Connections(
        database_url=settings.database_url or embedded.database_url,
        redis_url=settings.redis_url or embedded.redis_url,
        reader_url=embedded.reader_url if is_embedded else _login_url(settings, DatabaseRole.READER),
        role_urls=embedded.role_urls if is_embedded else _role_urls(settings),
        only=embedded.only if is_embedded else None,
    )


def resolve_redis(settings: Settings) -> SecretStr:
    """The broker's address alone, for callers that need no database. Raises as ``resolve_connections``."""
    return settings.redis_url or resolve_connections(settings).redis_url


def resolve_gateway(settings: Settings) -> SecretStr:
    """The database's address for a gateway, which needs no Redis. Raises as ``resolve_connections``."""
    if settings.database_url is None:
        return resolve_connections(settings).gateway_url
    return _login_url(settings, DatabaseRole.GATEWAY) or settings.database_url


def _role_urls(settings: Settings) -> dict[DatabaseRole, SecretStr]:
    """Of the roles that a person has where they type commands; each worker is given its own address."""
    roles = (DatabaseRole.SUBMITTER, DatabaseRole.GATEWAY, DatabaseRole.MONITOR)
    return {role: url for role in roles if (url := _login_url(settings, role)) is not None}


def _login_url(settings: Settings, role: DatabaseRole) -> SecretStr | None:
    """The database of the settings as the login of a role; None where no password is known."""
    from sqlalchemy import make_url

    login = settings.logins.login(role)
    if settings.database_url is None or login is None or login.password is None:
        return None
    url = make_url(settings.database_url.get_secret_value())
    url = url.set(username=login.name, password=login.password.get_secret_value())
    return SecretStr(url.render_as_string(hide_password=False))
