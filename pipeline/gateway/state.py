"""What all routes of one gateway process share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from sqlalchemy import Connection, Engine

from pipeline.batches import Caller
from pipeline.client import Client
from pipeline.db.session import open_database, transaction
from pipeline.gateway.desk import Desk
from pipeline.gateway.keys import Keys
from pipeline.gateway.live import Live
from pipeline.gateway.measures import Measures
from pipeline.metrics import make_registry
from pipeline.settings import GatewaySettings

_THREADS = 40
"""As many requests are served at a time, each on a connection."""
_DOWNLOADS = 8
"""As many files are read at a time: a slow reader holds a connection as long as it reads."""


@dataclass(kw_only=True)
class Gateway:
    """Connections, and what works beside the requests."""

    settings: GatewaySettings
    client: Client
    db_engine: Engine
    downloads: Engine
    keys: Keys
    desk: Desk
    registry: CollectorRegistry
    """Metrics of all jobs and workers, and this process's own."""
    measures: Measures
    live: Live
    woken: threading.Event = field(default_factory=threading.Event)
    """Set where a batch was created: whoever reads batches looks at once."""

    @classmethod
    def open(
        cls, database_url: SecretStr, settings: GatewaySettings, *, is_local: bool, refresh_s: float = 10.0
    ) -> Gateway:
        """Connections are opened at first use. refresh_s: so often at most the database is asked for metrics."""
        db_engine = open_database(database_url, pool_size=_THREADS, application_name="specthink gateway")
        client = Client(database_url)
        registry = make_registry(db_engine, refresh_s=refresh_s)
        return cls(
            settings=settings,
            client=client,
            db_engine=db_engine,
            downloads=open_database(database_url, pool_size=_DOWNLOADS, application_name="specthink gateway files"),
            keys=Keys(db_engine, is_local=is_local),
            desk=Desk(db_engine, client, settings),
            registry=registry,
            measures=Measures(registry),
            live=Live(db_engine),
        )

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        with transaction(self.db_engine) as connection:
            yield connection

    def close(self) -> None:
        self.client.close()
        self.db_engine.dispose()
        self.downloads.dispose()


def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


TheGateway = Annotated[Gateway, Depends(_gateway)]
TheCaller = Annotated[Caller, Depends(_caller)]
