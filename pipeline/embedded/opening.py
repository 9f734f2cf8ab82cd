"""Opens the embedded servers to other hosts by the gate, and closes them again.

Neither server is restarted or listens elsewhere than before: the gate is a process beside them (``gate.py``).
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pipeline.embedded import gate, postgres, redis_server
from pipeline.embedded.folder import StateFolder, read_json, write_private
from pipeline.embedded.joining import Token
from pipeline.embedded.supervision import (
    ProgramPhase,
    Service,
    SupervisorClient,
    tireless_restart,
    wait_until,
    write_service,
)
from pipeline.errors import ConfigurationError, NotFound, ServiceUnavailable
from pipeline.logins import DatabaseRole

GATE = "gate"
PORT = 7432
_OPENS_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Where the gate is to be, and for whom. networks: of the hosts that may come; () for those beside the address."""

    host: str
    port: int = PORT
    networks: tuple[str, ...] = ()
    insecure: bool = False
    """Without TLS: whoever sees the network sees prompts and texts, and may change them."""

    @classmethod
    def parse(cls, place: str, *, networks: tuple[str, ...] = (), insecure: bool = False) -> Listen:
        """ADDRESS or ADDRESS:PORT. Raises ConfigurationError."""
        bare = place.strip()
        if bare.startswith("["):
            host, _, port = bare[1:].partition("]")
            port = port.removeprefix(":")
        elif bare.count(":") > 1:
            host, port = bare, ""
        else:
            host, _, port = bare.partition(":")
        if not host or (port and not (port.isdecimal() and 0 < int(port) < 65536)):
            raise ConfigurationError(f"--listen {place!r}: it is ADDRESS or ADDRESS:PORT, e.g. 10.0.0.1:{PORT}")
        for network in networks:
            _read_network(network)
        return cls(host=host, port=int(port) if port else PORT, networks=networks, insecure=insecure)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An open gate. was_open: it was so already, in this form."""

    address: str
    port: int
    networks: tuple[str, ...]
    insecure: bool
    token_file: Path
    was_open: bool


def open_gate(folder: StateFolder, supervisor: SupervisorClient, listen: Listen, redis_url: str) -> Opened:
    """Open the servers at an address, or leave them open as they are. Call with the folder's lock held.

    Raises ConfigurationError for an address that is not this machine's or a port that is taken, ServiceUnavailable
    where the gate does not open: the servers are closed then.
    """
    # takes a tenth of a second to import
    from pipeline.embedded.certificates import make_certificate, renew_certificate

    address = _own_address(listen.host)
    networks = listen.networks or _networks_of(address)
    user = postgres.service_user(folder)
    spec = _spec(folder, listen, address, networks, redis_url)
    opened = Opened(
        address=address, port=listen.port, networks=networks, insecure=listen.insecure,
        token_file=folder.token_file, was_open=_is_open(folder, supervisor, spec, listen),
    )  # fmt: skip
    if opened.was_open:
        if not listen.insecure:
            renew_certificate(folder)  # the gate reads a new one by itself
        return opened
    close_gate(folder, supervisor, redis_url)
    _require_free(listen, address)
    authority = None if listen.insecure else make_certificate(folder, listen.host, address, user).read_text()
    write_private(folder.gate_file, json.dumps(spec, indent=1), user)
    try:
        redis_server.let_in(folder, user, redis_url)
        _start(folder, supervisor, user, (address, listen.port))
        write_private(folder.token_file, _token(folder, listen, authority).model_dump_json(indent=1))
    except BaseException:
        close_gate(folder, supervisor, redis_url)
        raise
    return opened


def renew_gate(state_dir: Path) -> dt.datetime | None:
    """Renew the certificate of an open gate where it ends within a month; returns when the new one ends, else None.

    Raises ConfigurationError for damaged files, ServiceUnavailable while another process starts or stops the servers.
    """
    folder = StateFolder.of(state_dir)
    if not folder.gate_file.exists() or not (folder.tls / "gate.pem").exists():
        return None
    from pipeline.embedded.certificates import renew_certificate

    with folder.lock():
        return renew_certificate(folder)


def close_gate(folder: StateFolder, supervisor: SupervisorClient, redis_url: str) -> bool:
    """Close the servers to other hosts, and end what these have open; False where they were closed."""
    if not folder.gate_file.exists():
        return False
    try:
        supervisor.ask_to_stop(GATE)
        wait_until(lambda: supervisor.program_state(GATE).pid is None, _OPENS_WITHIN_S)
        supervisor.remove_program(GATE)
    except NotFound:
        pass  # it was opened before the last start of supervisord
    redis_server.let_nobody_in(folder, postgres.service_user(folder), redis_url)
    folder.token_file.unlink(missing_ok=True)
    folder.gate_file.unlink()
    return True


def _spec(
    folder: StateFolder, listen: Listen, address: str, networks: tuple[str, ...], redis_url: str
) -> Mapping[str, Any]:
    return {
        "address": address,
        "port": listen.port,
        "networks": list(networks),
        "logins": [postgres.LOGINS[DatabaseRole.WRITER]],
        "database": postgres.DATABASE,
        "postgres_socket": str(folder.postgres_sockets / ".s.PGSQL.5432"),
        "redis_port": redis_server.port_of(redis_url),
        "tls": None
        if listen.insecure
        else {"certificate": str(folder.tls / "gate.pem"), "key": str(folder.tls / "gate.key")},
    }


def _is_open(folder: StateFolder, supervisor: SupervisorClient, spec: Mapping[str, Any], listen: Listen) -> bool:
    """Whether the gate runs in just this form, and other hosts know it by this name."""
    if read_json(folder.gate_file) != spec or not folder.token_file.exists():
        return False
    try:
        runs = supervisor.program_state(GATE).state is ProgramPhase.RUNNING
    except NotFound:
        return False
    return runs and Token.read(folder.token_file).host == listen.host


def _start(
    folder: StateFolder, supervisor: SupervisorClient, user: tuple[int, int] | None, place: tuple[str, int]
) -> None:
    launch = {
        "argv": [sys.executable, "-I", "-S", gate.__file__, str(folder.gate_file)],
        "env": postgres.server_environment(folder),
        "inherit_env": False,
        "cwd": "/",
        "user": user,
        "death_signal": "SIGTERM",
        **tireless_restart(folder, GATE),
    }
    write_service(folder, Service(name=GATE, launch=launch, priority=30))
    supervisor.add_program(GATE)
    supervisor.start_program(GATE)
    first = supervisor.program_state(GATE).pid

    def answers_or_ended() -> bool:
        return _answers(place) or supervisor.program_state(GATE).pid != first

    wait_until(answers_or_ended, _OPENS_WITHIN_S)
    if supervisor.program_state(GATE).pid != first or not _answers(place):
        raise ServiceUnavailable(f"the gate did not open; {supervisor.last_lines(GATE)}")


def _require_free(listen: Listen, address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        socket.create_server((address, listen.port), family=family).close()
    except OSError as error:
        raise ConfigurationError(
            f"--listen {listen.host}: port {listen.port}: {error.strerror}; choose another one, --listen ADDRESS:PORT"
        ) from error


def _answers(place: tuple[str, int]) -> bool:
    try:
        socket.create_connection(place, timeout=1).close()
    except OSError:
        return False
    return True


def _token(folder: StateFolder, listen: Listen, authority: str | None) -> Token:
    login = postgres.LOGINS[DatabaseRole.WRITER]
    return Token(
        host=listen.host,
        port=listen.port,
        database=postgres.DATABASE,
        login=login,
        database_password=folder.password(login),
        redis_password=folder.password(redis_server.REMOTE_SECRET),
        authority=authority,
    )


def _own_address(host: str) -> str:
    """The address of this machine that a name means. Raises ConfigurationError."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]
    except OSError as error:
        raise ConfigurationError(f"--listen {host}: {error.strerror}; name an address of this machine") from error
    address = ipaddress.ip_address(str(found).partition("%")[0])
    if address.is_unspecified:
        raise ConfigurationError(
            f"--listen {host}: name the one address by which other hosts reach this machine, e.g. 10.0.0.1: they are "
            "given it, and it stands in the certificate"
        )
    if _networks_of(str(address)) == ():
        have = ", ".join(sorted(own for own, _ in _own_networks()))
        raise ConfigurationError(f"--listen {host}: {address} is no address of this machine; it has {have}")
    return str(address)


def _own_networks() -> list[tuple[str, str]]:
    """Each address of this machine with its network."""
    found = []
    for addresses in psutil.net_if_addrs().values():
        for one in addresses:
            if one.family in (socket.AF_INET, socket.AF_INET6) and one.netmask:
                own = one.address.partition("%")[0]
                mask = one.netmask
                length = mask if one.family == socket.AF_INET else str(bin(int(ipaddress.ip_address(mask))).count("1"))
                found.append((own, str(ipaddress.ip_network(f"{own}/{length}", strict=False))))
    return found


def _networks_of(address: str) -> tuple[str, ...]:
    """Those whose hosts reach it without a router between; () for an address that is not this machine's."""
    return tuple(network for own, network in _own_networks() if own == address)


def _read_network(network: str) -> None:
    try:
        ipaddress.ip_network(network)
    except ValueError as error:
        raise ConfigurationError(f"--allow {network!r}: it is a network such as 10.0.0.0/16: {error}") from error
