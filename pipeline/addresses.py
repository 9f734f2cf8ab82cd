"""The database's address in the form that each tool takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from pipeline.errors import ConfigurationError

if TYPE_CHECKING:  # help lists the tools
    from pydantic import SecretStr
    from sqlalchemy import URL

_POSTGRES_PORT = 5432
_GRAFANA_MODES = ("disable", "require", "verify-ca", "verify-full")


class Tool(StrEnum):
    """Who is given the address, by what it takes."""

    PSQL = "psql"  # the address as libpq takes it: psql, pandas, most tools
    DUCKDB = "duckdb"  # the statement that attaches it
    DBEAVER = "dbeaver"  # the address as JDBC takes it
    GRAFANA = "grafana"  # a file for provisioning/datasources


def address_for(tool: Tool, database_url: SecretStr) -> str:
    """In one line; with the password. Raises ConfigurationError for a tool that cannot connect there."""
    from sqlalchemy import make_url

    return _FORMS[tool](make_url(database_url.get_secret_value()))


def _libpq(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def _duckdb(url: URL) -> str:
    address = _libpq(url).replace("'", "''")
    return f"ATTACH '{address}' AS specthink (TYPE postgres, READ_ONLY);"


def _jdbc(url: URL) -> str:
    host = _host(url)
    if host.startswith("/"):
        raise ConfigurationError(
            "the database listens on a socket file alone, which Java cannot open; "
            f"socat TCP-LISTEN:{_POSTGRES_PORT},bind=127.0.0.1,fork UNIX-CONNECT:{_socket(url)} brings it to a port, "
            "where DBeaver finds it with the name and password of specthink url"
        )
    place = f"{f'[{host}]' if ':' in host else host}:{url.port or _POSTGRES_PORT}"
    given = {name: value for name, value in _options(url).items() if name in ("sslmode", "sslrootcert")}
    options = urlencode({"user": url.username or "", "password": url.password or "", **given}, quote_via=quote)
    return f"jdbc:postgresql://{place}/{quote(url.database or '', safe='')}?{options}"


def _grafana(url: URL) -> str:
    """YAML takes JSON."""
    mode = _options(url).get("sslmode", "")
    source = {
        "name": "specthink",
        "uid": "specthink-postgres",
        "type": "grafana-postgresql-datasource",
        "url": _host(url) if _host(url).startswith("/") else f"{_host(url)}:{url.port or _POSTGRES_PORT}",
        "user": url.username or "",
        "jsonData": {"database": url.database or "", "sslmode": mode if mode in _GRAFANA_MODES else "disable"},
        "secureJsonData": {"password": url.password or ""},
    }
    return json.dumps({"apiVersion": 1, "datasources": [source]})


def _options(url: URL) -> dict[str, str]:
    return {name: value if isinstance(value, str) else value[0] for name, value in url.query.items()}


def _host(url: URL) -> str:
    """A name, or the folder of a socket file."""
    return url.host or _options(url).get("host", "localhost")


def _socket(url: URL) -> str:
    return f"{_host(url)}/.s.PGSQL.{url.port or _options(url).get('port') or _POSTGRES_PORT}"


_FORMS: Mapping[Tool, Callable[[URL], str]] = {
    Tool.PSQL: _libpq,
    Tool.DUCKDB: _duckdb,
    Tool.DBEAVER: _jdbc,
    Tool.GRAFANA: _grafana,
}
