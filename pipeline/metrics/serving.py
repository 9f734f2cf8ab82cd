"""Serves a registry by HTTP, in a thread of the process whose metrics these are."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server

from pipeline.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A server of metrics that answers. stop: ends it."""

    port: int
    stop: Callable[[], None]


def serve(registry: CollectorRegistry, address: str, port: int, *, num_ports: int = 1) -> Served:
    """Serve at the first free port of so many, from port on. Raises ConfigurationError where none of them is free."""
    reason = ""
    for tried in range(port, min(port + num_ports, 65536)):
        try:
            server, thread = start_http_server(tried, address, registry)
        except OSError as error:
            reason = error.strerror or str(error)
            continue

        return Served(port=tried, stop=partial(_stop, server, thread))
    last = port + num_ports - 1
    ports = f"port {port}" if num_ports == 1 else f"no port from {port} to {last}"
    raise ConfigurationError(
        f"metrics cannot be served on {address}, {ports}: {reason}; choose another port or address"
    )


def _stop(server: WSGIServer, thread: threading.Thread) -> None:
    server.shutdown()
    server.server_close()
    thread.join()
