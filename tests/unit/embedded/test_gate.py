"""Whom the gate lets through at Postgres, by the first message; what --listen and a token may be."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pipeline.embedded.gate import Refused, check_startup
from pipeline.embedded.joining import Token
from pipeline.embedded.opening import PORT, Listen
from pipeline.errors import ConfigurationError

WRITER = frozenset({"specthink_writer"})


def startup(version: int = 3 << 16, **given: str) -> bytes:
    """The message that libpq sends, without its length."""
    pairs = b"".join(f"{name}\0{value}\0".encode() for name, value in given.items())
    return struct.pack("!I", version) + pairs + b"\0"


@pytest.mark.parametrize("version", [3 << 16, (3 << 16) + 2], ids=["3.0", "3.2"])
def test_a_writer_may_come_to_the_database(version: int) -> None:
    body = startup(version, user="specthink_writer", database="specthink", application_name="a worker")
    check_startup(body, logins=WRITER, database="specthink")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"user": "specthink", "database": "specthink"}, "login"),
        ({"user": "specthink_grader", "database": "specthink"}, "login"),
        ({"database": "specthink"}, "login"),
        ({"user": "specthink_writer", "database": "postgres"}, "database"),
        ({"user": "specthink_writer"}, "database"),
        ({"user": "specthink_writer", "database": "specthink", "replication": "true"}, "database"),
    ],
)
def test_nobody_else_and_nowhere_else(given: dict[str, str], reason: str) -> None:
    with pytest.raises(Refused, match=reason) as refused:
        check_startup(startup(3 << 16, **given), logins=WRITER, database="specthink")
    assert refused.value.reply[:1] == b"E", "Postgres' form of an error"
    assert struct.unpack("!I", refused.value.reply[1:5])[0] == len(refused.value.reply) - 1


def test_another_protocol_is_refused() -> None:
    with pytest.raises(Refused, match="no startup message"):
        check_startup(
            startup(2 << 16, user="specthink_writer", database="specthink"), logins=WRITER, database="specthink"
        )


@pytest.mark.parametrize(
    ("place", "host", "port"),
    [
        ("10.0.0.1", "10.0.0.1", PORT),
        ("node-7:7000", "node-7", 7000),
        ("[fd00::1]:7000", "fd00::1", 7000),
        ("fd00::1", "fd00::1", PORT),
    ],
)
def test_an_address_may_have_a_port(place: str, host: str, port: int) -> None:
    assert Listen.parse(place) == Listen(host=host, port=port)


@pytest.mark.parametrize("place", ["", ":7432", "host:", "host:0", "host:99999", "host:seven"])
def test_no_address_is_refused(place: str) -> None:
    if place == "host:":
        assert Listen.parse(place).port == PORT
        return
    with pytest.raises(ConfigurationError, match="ADDRESS:PORT"):
        Listen.parse(place)


def test_no_network_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"--allow '10\.0\.0\.1/8'"):
        Listen.parse("10.0.0.1", networks=("10.0.0.1/8",))


SECRET = "the-password-of-a-writer"


def written(path: Path, **changed: object) -> Path:
    token = Token(
        host="10.0.0.1", port=7432, database="specthink", login="specthink_writer", database_password=SECRET,
        redis_password=SECRET, authority="PEM",
    )  # fmt: skip
    path.write_text(token.model_copy(update=changed).model_dump_json())
    path.chmod(0o600)
    return path


def test_a_token_is_read_again_and_shows_no_password(tmp_path: Path) -> None:
    token = Token.read(written(tmp_path / "token"))
    assert SECRET not in repr(token)
    ca = Path("/ca folder/ca.pem")
    assert token.database_url(ca).get_secret_value() == (
        f"postgresql://specthink_writer:{SECRET}@10.0.0.1:7432/specthink?sslmode=verify-full&sslrootcert=%2Fca%20folder"
        "%2Fca.pem"
    )
    assert token.redis_url(ca).get_secret_value() == (
        f"rediss://specthink_writer:{SECRET}@10.0.0.1:7432/0?ssl_ca_certs=%2Fca%20folder%2Fca.pem"
    )


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_token_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path / "token")
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        Token.read(path)


@pytest.mark.parametrize("text", ["", "{}", f'{{"version": 2, "database_password": "{SECRET}"}}', "\udcff"])
def test_what_is_no_token_is_refused_in_one_line_without_what_it_holds(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    path.chmod(0o600)
    with pytest.raises(ConfigurationError) as refused:
        Token.read(path)
    assert SECRET not in str(refused.value)
    assert "\n" not in str(refused.value)
