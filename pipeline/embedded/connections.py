"""The addresses of Postgres and Redis, wherever they come from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import SecretStr

from pipeline.embedded.folder import StateFolder, read_json, write_private
from pipeline.embedded.processes import ProcessIdentity
from pipeline.errors import ServiceUnavailable
from pipeline.settings import Settings


@dataclass(frozen=True, slots=True)
class Connections:
    """Where the servers are; each address holds its password."""

    database_url: SecretStr
    redis_url: SecretStr
    reader_url: SecretStr | None
    """The database as a role that reads what the migrations let it; None where no such role is known."""


def write_running(folder: StateFolder, supervisord: ProcessIdentity, connections: Connections) -> None:
    """Record that the servers answer at these addresses for as long as this supervisord lives."""
    content = {
        "supervisord": asdict(supervisord),
        "database_url": connections.database_url.get_secret_value(),
        "redis_url": connections.redis_url.get_secret_value(),
        "reader_url": connections.reader_url.get_secret_value() if connections.reader_url else None,
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
    )


def is_running(state_dir: Path) -> bool:
    """Whether the state folder's servers were started and their supervisord lives."""
    return find_connections(state_dir) is not None


def resolve_connections(settings: Settings) -> Connections:
    """The addresses in the settings, and for those left out the embedded ones.

    Raises ServiceUnavailable when an embedded server is meant and none runs.
    """
    if settings.database_url is not None and settings.redis_url is not None:
        return Connections(settings.database_url, settings.redis_url, None)
    embedded = find_connections(settings.state_dir)
    if embedded is None:
        raise ServiceUnavailable(
            f"no servers run for the state folder {settings.state_dir}; start them with `specthink up`, "
            "or name servers of your own by SPECTHINK_DATABASE_URL and SPECTHINK_REDIS_URL"
        )
    return Connections(
        database_url=settings.database_url or embedded.database_url,
        redis_url=settings.redis_url or embedded.redis_url,
        reader_url=embedded.reader_url if settings.database_url is None else None,
    )
