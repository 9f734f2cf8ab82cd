"""The gate on real servers: TLS, who may come, what is refused, and that closing it ends everything."""

from __future__ import annotations

import datetime as dt
import json
import socket
import ssl
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import redis
from pydantic import SecretStr
from typer.testing import CliRunner

from pipeline.cli import doctor
from pipeline.cli.app import app
from pipeline.db import migrate
from pipeline.db.grants import grant_roles
from pipeline.db.session import open_database, transaction
from pipeline.embedded import EMBEDDED_LOGINS, EmbeddedState, Listen, certificates, renew_gate, start, stop
from pipeline.embedded.certificates import make_certificate
from pipeline.embedded.folder import StateFolder
from pipeline.embedded.joining import Token, authority_file, find_token
from pipeline.errors import ConfigurationError
from pipeline.redis_address import RedisAddress

pytestmark = pytest.mark.integration

HOST = "127.0.0.1"


def free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass
class Open:
    """An open gate, and a host that has joined."""

    state: EmbeddedState
    port: int
    joined: Path

    @property
    def token(self) -> Token:
        found = find_token(self.joined)
        assert found is not None
        return found

    def database_url(self, **changed: str) -> str:
        """As the joined host has it. changed: parts of it that are to be others."""
        url = self.token.database_url(authority_file(self.joined)).get_secret_value()
        for part, other in changed.items():
            assert part in url
            url = url.replace(part, other)
        return url


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    folder = tmp_path_factory.mktemp("gate")
    state = start(folder / "servers", die_with_parent=True)
    owner = open_database(state.connections.database_url)
    migrate.upgrade(owner)
    with transaction(owner) as connection:
        grant_roles(connection, EMBEDDED_LOGINS)
    owner.dispose()
    port = free_port()
    opening = state.open_to_others(Listen(host=HOST, port=port))
    assert (opening.was_open, opening.networks) == (False, ("127.0.0.0/8",))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SPECTHINK_DATABASE_URL", "SPECTHINK_REDIS_URL"):
            patch.delenv(name, raising=False)
        told = CliRunner().invoke(app, ["--state-dir", str(folder / "joined"), "join", str(opening.token_file)])
    assert told.exit_code == 0, told.output
    secret = Token.read(opening.token_file).database_password.get_secret_value()
    assert secret not in told.output
    yield Open(state, port, folder / "joined")
    stop(state.state_dir)


def test_what_others_are_given_is_theirs_alone(opened: Open) -> None:
    servers = StateFolder.of(opened.state.state_dir)
    files = [
        servers.token_file,
        servers.tls / "ca.key",
        servers.tls / "gate.key",
        opened.joined / "joined/servers.json",
    ]
    assert [oct(path.stat().st_mode & 0o777) for path in files] == ["0o600"] * 4
    assert opened.token.login == "specthink_writer"


def test_a_writer_comes_in_by_tls_and_may_what_a_writer_may(opened: Open) -> None:
    with psycopg.connect(opened.database_url(), connect_timeout=30) as connection:
        assert connection.pgconn.ssl_in_use
        assert connection.execute("SELECT current_user").fetchone() == ("specthink_writer",)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT answer FROM reference_answers")


@pytest.mark.parametrize(
    ("part", "other", "reason"),
    [
        ("sslmode=verify-full", "sslmode=disable", "TLS is wanted here"),
        ("specthink_writer:", "specthink:", "this login may not come from another host"),
        ("/specthink?", "/postgres?", "only the database specthink"),
        ("/specthink?", "/specthink?replication=database&", "only the database specthink"),
        ("127.0.0.1:", "localhost.localdomain:", "localhost.localdomain|could not|resolve|translate"),
    ],
)
def test_postgres_lets_nobody_else_in(opened: Open, part: str, other: str, reason: str) -> None:
    with pytest.raises(psycopg.OperationalError, match=reason):
        psycopg.connect(opened.database_url(**{part: other}), connect_timeout=30)


def test_a_renewed_certificate_is_shown_to_the_next_connection_and_believed(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ssl.get_server_certificate((HOST, opened.port))
    monkeypatch.setattr(certificates, "RENEW_BEFORE", dt.timedelta(days=400))
    assert renew_gate(opened.state.state_dir) is not None
    assert ssl.get_server_certificate((HOST, opened.port)) != before
    psycopg.connect(opened.database_url(), connect_timeout=30).close()


def test_doctor_of_a_joined_host_tells_what_its_login_may_see(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "check_engine", lambda python: iter(()))  # takes half a minute, and asks no server
    for name in ("SPECTHINK_DATABASE_URL", "SPECTHINK_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    done = CliRunner().invoke(app, ["--state-dir", str(opened.joined), "doctor", "--json"])
    found = {finding["check"]: finding for finding in json.loads(done.output)}
    assert done.exit_code == 0, done.output
    assert [found[check]["verdict"] for check in ("postgres", "schema", "grants")] == ["ok"] * 3
    for check in ("reference answers", "workers and jobs"):
        assert found[check]["verdict"] == "warning"
        assert found[check]["remedy"].endswith("see doctor on the host of the servers")
    assert found["redis"]["found"] == "this login may not ask for it (INFO)"
    asked = CliRunner().invoke(app, ["--state-dir", str(opened.joined), "status"])
    assert isinstance(asked.exception, ConfigurationError)
    assert str(asked.exception).endswith("submit jobs and ask about them on the host of the servers")


def test_a_server_that_cannot_prove_who_it_is_is_not_believed(opened: Open, tmp_path: Path) -> None:
    other = StateFolder.of(tmp_path / "other")
    other.create()
    authority = make_certificate(other, HOST, HOST, None)
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        psycopg.connect(opened.token.database_url(authority).get_secret_value(), connect_timeout=30)
    with pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        RedisAddress.parse(opened.token.redis_url(authority)).connect().ping()


def test_redis_lets_a_worker_do_what_it_needs_and_nothing_dangerous(opened: Open) -> None:
    url = opened.token.redis_url(authority_file(opened.joined))
    client = RedisAddress.parse(url).connect()
    assert client.ping()
    assert client.lpush("q", "x") == 1
    assert client.delete("q") == 1
    for command in ("FLUSHALL", "CONFIG GET requirepass", "ACL LIST"):
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.execute_command(*command.split())
    client.close()
    with pytest.raises(redis.exceptions.AuthenticationError):
        RedisAddress.parse(
            SecretStr(url.get_secret_value().replace("rediss://specthink_writer:", "rediss://:"))
        ).connect().ping()


def test_bytes_before_the_handshake_are_no_part_of_what_comes_after_it(opened: Open) -> None:
    with socket.create_connection((HOST, opened.port), timeout=10) as client:
        client.sendall(struct.pack("!II", 8, 80877103) + struct.pack("!II", 8, 3 << 16))
        assert client.recv(1) == b"S"
        context = ssl.create_default_context(cafile=str(authority_file(opened.joined)))
        with pytest.raises((ssl.SSLError, ConnectionError)):
            context.wrap_socket(client, server_hostname=HOST)


def test_a_host_of_another_network_is_refused(opened: Open) -> None:
    opened.state.open_to_others(Listen(host=HOST, port=opened.port, networks=("10.99.0.0/16",)))
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(opened.database_url(), connect_timeout=30)
    again = opened.state.open_to_others(Listen(host=HOST, port=opened.port))
    assert not again.was_open
    with psycopg.connect(opened.database_url(), connect_timeout=30):
        assert opened.state.open_to_others(Listen(host=HOST, port=opened.port)).was_open, "who has joined stays in"


@pytest.mark.parametrize(
    ("host", "reason"), [("0.0.0.0", "the one address"), ("192.0.2.1", "no address of this machine")]
)
def test_an_address_that_others_cannot_use_is_refused(opened: Open, host: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        opened.state.open_to_others(Listen(host=host, port=opened.port))
    with psycopg.connect(opened.database_url(), connect_timeout=30):
        pass


def test_closing_ends_what_is_open_and_leaves_the_servers_as_they_were(opened: Open) -> None:
    inside = psycopg.connect(opened.database_url(), connect_timeout=30)
    assert opened.state.close_to_others()
    with pytest.raises(psycopg.OperationalError):
        inside.execute("SELECT 1")
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((HOST, opened.port), timeout=5)
    folder = StateFolder.of(opened.state.state_dir)
    assert not folder.token_file.exists()
    assert "specthink_writer" not in (folder.redis / "redis.conf").read_text()
    assert [program.name for program in opened.state.program_states()] == ["postgres", "redis"]
    assert not opened.state.close_to_others(), "it was closed"
    with psycopg.connect(opened.state.connections.database_url.get_secret_value()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_without_tls_it_opens_for_a_network_that_is_trusted_and_a_taken_port_is_said(opened: Open) -> None:
    with socket.create_server((HOST, 0)) as taken, pytest.raises(ConfigurationError, match="in use"):
        opened.state.open_to_others(Listen(host=HOST, port=taken.getsockname()[1], insecure=True))
    assert [program.name for program in opened.state.program_states()] == ["postgres", "redis"]
    opening = opened.state.open_to_others(Listen(host=HOST, port=free_port(), insecure=True))
    token = Token.read(opening.token_file)
    assert token.authority is None
    nowhere = Path("/nonexistent")
    with psycopg.connect(token.database_url(nowhere).get_secret_value(), connect_timeout=30) as connection:
        assert not connection.pgconn.ssl_in_use
    assert RedisAddress.parse(token.redis_url(nowhere)).connect().ping()
    assert opened.state.close_to_others()
