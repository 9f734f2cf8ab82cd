"""The read-only address in the form that each tool takes."""

from __future__ import annotations

import json
from typing import Any

import duckdb
import psycopg
import pytest
from pydantic import SecretStr

from pipeline.addresses import Tool, address_for
from pipeline.errors import ConfigurationError

SERVER = SecretStr("postgresql+psycopg://reader:p%40ss'%26w@db.example:5433/runs?sslmode=require")
SOCKET = SecretStr("postgresql://reader:pw@/specthink?host=%2Ftmp%2Fpg")


def source(url: SecretStr) -> Any:
    [found] = json.loads(address_for(Tool.GRAFANA, url))["datasources"]
    return found


def test_libpq_reads_what_the_settings_say() -> None:
    found = psycopg.conninfo.conninfo_to_dict(address_for(Tool.PSQL, SERVER))
    assert found == {
        "user": "reader", "password": "p@ss'&w", "host": "db.example", "port": "5433", "dbname": "runs",
        "sslmode": "require",
    }  # fmt: skip
    assert psycopg.conninfo.conninfo_to_dict(address_for(Tool.PSQL, SOCKET))["host"] == "/tmp/pg"


def test_duckdb_parses_the_statement() -> None:
    statement = address_for(Tool.DUCKDB, SERVER)
    [parsed] = duckdb.extract_statements(statement)
    assert parsed.type is duckdb.StatementType.ATTACH
    assert "p%40ss''%26w@" in statement or "p%40ss%27%26w@" in statement
    assert "READ_ONLY" in statement


def test_jdbc_has_name_and_password_as_options() -> None:
    assert address_for(Tool.DBEAVER, SERVER) == (
        "jdbc:postgresql://db.example:5433/runs?user=reader&password=p%40ss%27%26w&sslmode=require"
    )
    assert "//[::1]:5432/runs?" in address_for(Tool.DBEAVER, SecretStr("postgresql://r:p@[::1]/runs"))


def test_a_socket_file_is_brought_to_a_port_for_java() -> None:
    with pytest.raises(ConfigurationError, match=r"socat .*UNIX-CONNECT:/tmp/pg/\.s\.PGSQL\.5432 "):
        address_for(Tool.DBEAVER, SOCKET)


def test_grafana_gets_a_file_for_its_data_sources() -> None:
    found = source(SERVER)
    assert (found["url"], found["user"], found["jsonData"]["sslmode"]) == ("db.example:5433", "reader", "require")
    assert (found["jsonData"]["database"], found["secureJsonData"]) == ("runs", {"password": "p@ss'&w"})
    assert (source(SOCKET)["url"], source(SOCKET)["jsonData"]["sslmode"]) == ("/tmp/pg", "disable")
