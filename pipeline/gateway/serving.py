"""Runs a gateway: one process, as many threads as requests are served at a time."""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from pydantic import SecretStr

from pipeline.db.revision import require_current
from pipeline.errors import ConfigurationError
from pipeline.gateway.app import make_app
from pipeline.gateway.gate import is_loopback
from pipeline.gateway.state import Gateway
from pipeline.settings import GatewaySettings

STOP_S = 10
"""Requests that are being served may go on for so long when the process is told to stop."""


def serve(
    database_url: SecretStr, settings: GatewaySettings, *, refresh_s: float, on_start: Callable[[str, bool], None]
) -> None:
    """Serve until the process is told to stop.

    refresh_s: so often at most the database is asked for metrics. on_start: called once it listens, with the address
    and whether somebody must make a key before anybody is let in. Raises ConfigurationError for a database of another
    version, and for an address that is not to be had.
    """
    is_local = is_loopback(settings.address)
    gateway = Gateway.open(database_url, settings, is_local=is_local, refresh_s=refresh_s)
    require_current(gateway.db_engine)
    listening = listen(settings.address, settings.port)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    on_start(f"http://{shown}:{port}/v1", not is_local and not gateway.keys.are_there())
    config = uvicorn.Config(
        make_app(gateway, is_local=is_local),
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=STOP_S,
        lifespan="on",
    )
    _Server(config, on_stop=gateway.live.stop).run(sockets=[listening])


class _Server(uvicorn.Server):
    """Ends the pages' streams as soon as it is told to stop: they would have it wait for them."""

    def __init__(self, config: uvicorn.Config, *, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._on_stop()
        super().handle_exit(sig, frame)


def listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((address, port))
    except OSError as error:
        listening.close()
        raise ConfigurationError(
            f"SPECTHINK_GATEWAY__ADDRESS, SPECTHINK_GATEWAY__PORT: {address} port {port} cannot be listened on: "
            f"{error.strerror}"
        ) from error
    listening.listen(1024)
    return listening
