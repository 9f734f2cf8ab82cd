"""A TCP proxy whose network can be broken: it forwards, waits, swallows, or cuts.

It stands between a process and its server in one thread of the harness. A hole here is worse than a dropped packet:
the proxy's kernel still acknowledges what is sent into it, so that no TCP timer ever fires, as with a load balancer or
a frozen machine in between. Only a deadline of the program's own finds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

CHUNK_BYTES = 65536


class Proxy:
    """Forwards every connection made to ``port`` on the loopback address to a target, until told otherwise.

    target: (host, port), or the path of a socket file. Thread-safe; in use from the constructor to ``close``.
    """

    def __init__(self, target: tuple[str, int] | Path) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._delay_s = 0.0
        self._links: set[_Link] = set()
        self._accepting_silently = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    @property
    def num_connections(self) -> int:
        """Connections that are open now, swallowed ones included."""
        return len(self._links)

    def black_hole(self) -> None:
        """Stop forwarding on every connection, present or new, and close none. ``forward`` lets it all through."""
        self._do(self._set_forwarding(forward=False))

    def forward(self) -> None:
        """Forward again, what was held back first; connections that were forgotten stay dead."""
        self._do(self._set_forwarding(forward=True))

    def forget(self) -> int:
        """Never forward on the present connections again and close none: half-open for ever. Returns how many."""
        return self._do(self._forget())

    def delay(self, seconds: float) -> None:
        """Hold every chunk back for so long, both ways; 0.0: none."""
        self._delay_s = seconds

    def cut(self) -> int:
        """Reset the present connections. Returns how many."""
        return self._do(self._cut())

    def close(self) -> None:
        """Cut everything and end. Idempotent."""
        if not self._loop.is_running():
            return
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)

    def _do(self, coroutine: Any) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result(timeout=30)

    async def _set_forwarding(self, *, forward: bool) -> None:
        self._accepting_silently = not forward
        for link in self._links:
            if forward and not link.forgotten:
                link.open.set()
            elif not forward:
                link.open.clear()

    async def _forget(self) -> int:
        for link in self._links:
            link.forgotten = True
            link.open.clear()
        return len(self._links)

    async def _cut(self) -> int:
        links = list(self._links)
        for link in links:
            link.reset()
        return len(links)

    async def _end(self) -> None:
        self._server.close()
        tasks = [link.task for link in self._links if link.task is not None]
        for link in list(self._links):
            link.reset()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(reader, writer)
        self._links.add(link)
        if self._accepting_silently:
            link.open.clear()
        pumps: list[asyncio.Task[None]] = []
        try:
            await link.open.wait()
            link.to_server = await self._reach()
            pumps = [
                asyncio.create_task(self._pump(link, reader, link.to_server[1])),
                asyncio.create_task(self._pump(link, link.to_server[0], writer)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except (OSError, asyncio.CancelledError):
            pass  # the server cannot be reached, or the connection is reset
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            link.close()
            self._links.discard(link)

    async def _reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._target, Path):
            return await asyncio.open_unix_connection(str(self._target))
        return await asyncio.open_connection(*self._target)

    async def _pump(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            chunk = await reader.read(CHUNK_BYTES)
            if self._delay_s:
                await asyncio.sleep(self._delay_s)
            await link.open.wait()  # also before an end is passed on: a hole tells nobody that a side has gone
            if not chunk:
                return
            writer.write(chunk)
            await writer.drain()


class _Link:
    """One connection through the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.task = asyncio.current_task()
        self.to_client = (reader, writer)
        self.to_server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.open = asyncio.Event()
        self.open.set()
        self.forgotten = False

    def reset(self) -> None:
        """End it, unsent data dropped."""
        self.close()
        if self.task is not None:
            self.task.cancel()

    def close(self) -> None:
        for _, writer in filter(None, (self.to_client, self.to_server)):
            with contextlib.suppress(Exception):
                writer.transport.abort()


def target_of(url: str) -> tuple[str, int] | Path:
    """Where a server's address leads: (host, port), or the socket file of a Postgres in a folder."""
    parts = urlsplit(url)
    folder = parse_qs(parts.query).get("host", [""])[0]
    if folder.startswith("/"):
        return Path(folder) / ".s.PGSQL.5432"
    if parts.hostname is None or parts.port is None:
        raise ValueError(f"no host and port in {parts._replace(netloc='…').geturl()!r}")
    return parts.hostname, parts.port


def through(url: str, proxy: Proxy) -> str:
    """The same address by way of the proxy."""
    parts = urlsplit(url)
    who = parts.netloc.rpartition("@")[0]
    netloc = f"{who}@127.0.0.1:{proxy.port}" if who else f"127.0.0.1:{proxy.port}"
    query = "&".join(
        f"{name}={quote(value, safe='')}"
        for name, values in parse_qs(parts.query).items()
        for value in values
        if name not in ("host", "port")
    )
    return parts._replace(netloc=netloc, query=query).geturl()
