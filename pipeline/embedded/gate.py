"""The gate: lets other hosts to the embedded servers, by one port. ``python -I -S gate.py SPEC.json``.

Neither embedded server speaks TLS, and neither listens on a network. The gate does both: it ends TLS, lets in hosts of
the named networks alone, and at Postgres the named login and database alone. All else is refused before the server sees
a byte of it. Closing the gate closes both servers, and leaves them as they were.

A first byte tells what a client speaks: Postgres begins with a request for TLS, Redis with a TLS handshake. It knows
nothing of the pipeline and imports the standard library alone.

The specification is a JSON object: address, port, networks, logins, database, postgres_socket, redis_port, and tls
({"certificate", "key"}), null where the network is trusted.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import signal
import socket
import ssl
import struct
import sys
from pathlib import Path
from typing import Any

OPENING_S = 10.0
"""So long a client may take until it is let through."""
MOST_CONNECTIONS = 2000
_TLS_REQUEST, _GSS_REQUEST, _CANCEL_REQUEST = 80877103, 80877104, 80877102
_STARTUP = struct.Struct("!II")
_MOST_STARTUP_BYTES = 10_000
_TLS_HANDSHAKE = 0x16
_CHUNK = 65536

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Refused(Exception):
    """A client that is not let through; the text is told to it. reply: in its protocol's form."""

    def __init__(self, reason: str, reply: bytes) -> None:
        super().__init__(reason)
        self.reply = reply


def refuse_postgres(reason: str) -> Refused:
    fields = b"SFATAL\0VFATAL\0C28000\0M" + f"specthink gate: {reason}".encode() + b"\0\0"
    return Refused(reason, b"E" + struct.pack("!I", len(fields) + 4) + fields)


def refuse_redis(reason: str) -> Refused:
    return Refused(reason, f"-ERR specthink gate: {reason}\r\n".encode())


def check_startup(body: bytes, *, logins: frozenset[str], database: str) -> None:
    """What a client asks of Postgres, without its length; raises Refused unless it may."""
    version, parameters = struct.unpack("!I", body[:4])[0], body[4:].split(b"\0")
    if version >> 16 != 3:
        raise refuse_postgres("this is no startup message of Postgres")
    given = dict(zip(parameters[::2], parameters[1::2], strict=False))
    login = given.get(b"user", b"").decode(errors="replace")
    if login not in logins:
        raise refuse_postgres("this login may not come from another host")
    if given.get(b"database", b"").decode(errors="replace") != database or b"replication" in given:
        raise refuse_postgres(f"only the database {database} may be reached from another host")


class Certificate:
    """The certificate in two files, read again when they change: it is renewed while the gate is open."""

    def __init__(self, certificate: str, key: str) -> None:
        self._files = certificate, key
        self._context, self._stamps = self._read(), self._look()

    def context(self) -> ssl.SSLContext:
        """For the next handshake; that of before where the files do not go together, as between two writes."""
        try:
            stamps = self._look()
            if stamps != self._stamps:
                self._context, self._stamps = self._read(), stamps
                say("the certificate was renewed")
        except (OSError, ssl.SSLError) as error:
            say(f"the certificate of before stays: {error}")
        return self._context

    def _look(self) -> list[tuple[int, int]]:
        return [(found.st_ino, found.st_mtime_ns) for found in map(os.stat, self._files)]

    def _read(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(*self._files)
        return context


class Gate:
    """Lets connections through, each in a task of its own."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._networks = [ipaddress.ip_network(network) for network in spec["networks"]]
        self._logins = frozenset(spec["logins"])
        self._database = spec["database"]
        self._postgres_socket = spec["postgres_socket"]
        self._redis_port = spec["redis_port"]
        self._address = spec["address"], spec["port"]
        self._certificate = Certificate(**spec["tls"]) if spec["tls"] is not None else None
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Until the process is told to stop. Raises OSError where the address cannot be had."""
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        listener = socket.create_server(self._address, family=family, backlog=256)
        listener.setblocking(False)
        accepting = asyncio.ensure_future(self._accept(listener))
        for sign in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sign, accepting.cancel)
        say(f"open at {self._address[0]} port {self._address[1]}, {'TLS' if self._certificate else 'no TLS'}")
        with contextlib.suppress(asyncio.CancelledError):
            await accepting
        listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        say("closed")

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, peer = await loop.sock_accept(listener)
            except OSError as error:  # of one client that has gone, or no file left for another one
                say(f"not accepted: {error.strerror}")
                await asyncio.sleep(0.1)
                continue
            host = ipaddress.ip_address(peer[0].partition("%")[0])
            if len(self._tasks) >= MOST_CONNECTIONS or not any(host in network for network in self._networks):
                say(f"refused {host}: {'too many connections' if self._is_full else 'not of the allowed networks'}")
                client.close()
                continue
            task = asyncio.ensure_future(self._serve_client(client, str(host)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    @property
    def _is_full(self) -> bool:
        return len(self._tasks) >= MOST_CONNECTIONS

    async def _serve_client(self, client: socket.socket, host: str) -> None:
        client.setblocking(False)
        notice_cut_cables(client)
        ends: list[asyncio.StreamWriter] = []
        try:
            inside, outside = await asyncio.wait_for(self._open(client, ends), OPENING_S)
            await pump(inside, outside)
        except Refused as error:
            say(f"refused {host}: {error}")
        except (TimeoutError, OSError, ssl.SSLError, asyncio.IncompleteReadError) as error:
            say(f"{host}: {type(error).__name__} {error}".rstrip())
        finally:
            for end in ends:
                end.transport.abort()
            client.close()

    async def _open(self, client: socket.socket, ends: list[asyncio.StreamWriter]) -> tuple[Streams, Streams]:
        """Both ends of a connection that may be let through. ends: what is to be closed, whatever happens."""
        first = await peek(client)
        speaks_redis = first[0] == _TLS_HANDSHAKE if self._certificate else first[0] != 0
        if not speaks_redis and first[0] != 0:
            raise await refuse(client, refuse_redis("TLS is wanted here: rediss://"))
        startup = None if speaks_redis else await self._greet_postgres(client)
        outside = await streams_of(client, self._certificate.context() if self._certificate else None)
        ends.append(outside[1])
        if speaks_redis:
            inside = await asyncio.open_connection("127.0.0.1", self._redis_port)
        else:
            startup = await self._read_startup(outside, startup or b"")
            inside = await asyncio.open_unix_connection(self._postgres_socket)
            inside[1].write(startup)
        ends.append(inside[1])
        return inside, outside

    async def _greet_postgres(self, client: socket.socket) -> bytes:
        """Answer requests for encryption until TLS may begin; without TLS, what was read of the startup message.

        Not a byte more is read: what a client sends before the handshake must not pass for what comes after it.
        """
        loop = asyncio.get_running_loop()
        while True:
            head = await receive_exactly(client, 8)
            code = _STARTUP.unpack(head)[1]
            if code == _GSS_REQUEST or (code == _TLS_REQUEST and self._certificate is None):
                await loop.sock_sendall(client, b"N")
            elif code == _TLS_REQUEST:
                await loop.sock_sendall(client, b"S")
                return b""
            elif self._certificate is not None:
                raise await refuse(client, refuse_postgres("TLS is wanted here: sslmode=verify-full"))
            else:
                return head

    async def _read_startup(self, outside: Streams, begun: bytes) -> bytes:
        """The startup message, whole. Raises Refused where it asks for what nobody outside may have."""
        reader, writer = outside
        head = begun or await reader.readexactly(8)
        length, code = _STARTUP.unpack(head)
        if not 8 <= length <= _MOST_STARTUP_BYTES:
            raise refuse_postgres("this is no startup message of Postgres")
        message = head + await reader.readexactly(length - 8)
        if code != _CANCEL_REQUEST:
            try:
                check_startup(message[4:], logins=self._logins, database=self._database)
            except Refused as error:
                writer.write(error.reply)
                await writer.drain()
                raise
        return message


def notice_cut_cables(client: socket.socket) -> None:
    """A host that vanishes without a word is given up after some 15 s, so that the server ends what it had begun."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 3)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 15_000)


async def peek(client: socket.socket) -> bytes:
    """A client's first byte, which stays to be read. Raises OSError where it ends before."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(client, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(client)
    found = client.recv(1, socket.MSG_PEEK)
    if not found:
        raise ConnectionError("it ended without a word")
    return found


async def receive_exactly(client: socket.socket, number: int) -> bytes:
    loop, found = asyncio.get_running_loop(), b""
    while len(found) < number:
        part = await loop.sock_recv(client, number - len(found))
        if not part:
            raise ConnectionError("it ended in its first message")
        found += part
    return found


async def refuse(client: socket.socket, error: Refused) -> Refused:
    await asyncio.get_running_loop().sock_sendall(client, error.reply)
    return error


async def streams_of(client: socket.socket, tls: ssl.SSLContext | None) -> Streams:
    """A client's socket as streams, behind its TLS handshake where there is one."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, client, ssl=tls)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def pump(one: Streams, other: Streams) -> None:
    """Carry bytes both ways until one side ends."""
    ways = [asyncio.ensure_future(carry(one[0], other[1])), asyncio.ensure_future(carry(other[0], one[1]))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for writer in (one[1], other[1]):  # the last words of a server are to arrive
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                await asyncio.wait_for(writer.drain(), 1.0)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()


def say(message: str) -> None:
    print(f"specthink gate: {message}", file=sys.stderr, flush=True)


def main() -> None:
    """Serve as the specification says; exit code 1 where its address cannot be had."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    try:
        asyncio.run(Gate(spec).serve())
    except OSError as error:
        say(f"cannot open {spec['address']} port {spec['port']}: {error.strerror}")
        sys.exit(1)


if __name__ == "__main__":
    main()
