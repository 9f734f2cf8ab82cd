"""Serving Flower for this pipeline's broker.

Flower is configured through its environment variables, so that no password appears on a command line.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
from typing import Any

from flower import command
from flower.app import Flower
from flower.views import BaseHandler
from flower.views.monitor import Metrics
from tornado import web
from tornado.ioloop import PeriodicCallback

from pipeline.embedded import resolve_redis
from pipeline.errors import ConfigurationError
from pipeline.redis_checks import require_broker
from pipeline.settings import FlowerSettings, Settings
from workers.broker.app import make_app

REFRESH_S = 5.0
"""How often the workers are asked which queues they read."""


class GuardedFlower(Flower):  # type: ignore[misc]  # flower has no types
    """Flower as we serve it.

    Flower asks workers for their queues once, at its own start: here it asks again, for those that start later. Flower
    shows its metrics without a password: here they need it too. Without a password, any web page that its user visits
    could read it: here headers forbid that, and only requests to a loopback name are answered.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.add_handlers(".*", [(r"/metrics", GuardedMetrics)])

    def start(self) -> None:
        PeriodicCallback(self.update_workers, REFRESH_S * 1000).start()
        super().start()

    def find_handler(self, request: Any, **options: Any) -> Any:
        """Refuse a request by another name: somebody may have made that name point to this machine."""
        if not self.options.basic_auth and not _is_loopback(request.host_name.strip("[]")):
            return self.get_handler_delegate(request, web.ErrorHandler, {"status_code": 421})
        return super().find_handler(request, **options)


class GuardedMetrics(Metrics):  # type: ignore[misc]
    """The numbers for Prometheus, for those who may see the pages."""

    @web.authenticated
    async def get(self) -> None:
        await super().get()


def _set_headers(handler: web.RequestHandler) -> None:
    handler.set_header("X-Content-Type-Options", "nosniff")
    handler.set_header("X-Frame-Options", "DENY")


def run_flower(settings: Settings) -> None:
    """Serve until told to stop. Raises ConfigurationError when others could reach it without a password."""
    flower = settings.flower
    if not _is_loopback(flower.address) and flower.basic_auth is None:
        raise ConfigurationError(
            f"Flower on {flower.address} would be open to others: set SPECTHINK_FLOWER__BASIC_AUTH=user:password, "
            "or use --address 127.0.0.1"
        )
    os.environ.update(_environment(flower))
    command.Flower = GuardedFlower
    BaseHandler.set_default_headers = _set_headers
    redis_url = resolve_redis(settings)
    require_broker(redis_url)
    make_app(redis_url).start(argv=["flower"])


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _environment(flower: FlowerSettings) -> dict[str, str]:
    environment = {
        "FLOWER_ADDRESS": flower.address,
        "FLOWER_PORT": str(flower.port),
        "FLOWER_COOKIE_SECRET": secrets.token_urlsafe(32),
        "FLOWER_READ_ONLY": "true",
        "FLOWER_MAX_TASKS": str(flower.max_tasks),
        "FLOWER_PURGE_OFFLINE_WORKERS": str(flower.purge_offline_after_s),
        "FLOWER_INSPECT_TIMEOUT": "3000",  # ms; a worker busy on a few cores needs more than 1000
        # The uuid is the link to a task's own page: the name leads to the tasks of that name.
        "FLOWER_TASKS_COLUMNS": "name,uuid,state,kwargs,result,received,runtime,worker",
    }
    if flower.basic_auth is not None:
        environment["FLOWER_BASIC_AUTH"] = flower.basic_auth.get_secret_value()
    else:
        environment["FLOWER_UNAUTHENTICATED_API"] = "true"
    return environment
