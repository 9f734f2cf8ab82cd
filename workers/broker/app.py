"""The Celery application, every option with its reason."""

from __future__ import annotations

from typing import Any

from celery import Celery
from pydantic import SecretStr

from pipeline.redis_address import CONNECT_TIMEOUT_S, RedisAddress
from workers.broker.queues import PRIORITY_STEPS
from workers.broker.transport import guard_redis

CONFIG: dict[str, Any] = {
    # Postgres is the truth: no result is kept anywhere else.
    "task_ignore_result": True,
    "result_backend": None,
    # Ids only, as JSON: a message can neither carry code nor grow. The transport checks each first.
    "task_serializer": "json",
    "accept_content": ["json"],
    # Early ack and no prefetch: after a connection reset, late ack starts the same task twice in parallel, and a
    # prefetched message ends a 5.7.0 worker when Redis is away for two seconds. What a killed worker loses is found
    # again by its lease in Postgres.
    "task_acks_late": False,
    "worker_disable_prefetch": True,
    # The line above alone bounds what a worker takes: under a prefetch limit, each acknowledgement that a broken
    # connection swallows uses up a slot for good (kombu 5.7 then never counts its message as done), and a grader with
    # one child was deaf after one.
    "worker_prefetch_multiplier": 0,
    # True ends a threads worker at the first lost connection: its pool cannot kill a task.
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "worker_enable_prefetch_count_reduction": False,
    # The broker may be away for as long as it likes; the lease decides who is dead.
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    # Redis may refuse writes for a while (its disk or its memory is full): else that ends every worker.
    "broker_channel_error_retry": True,
    "broker_transport_options": {
        "priority_steps": PRIORITY_STEPS,
        "queue_order_strategy": "priority",
        "health_check_interval": 3,  # a half-open connection of the consumer costs 4 to 7 s; with 10: 11 to 21
        # How long a dead connection holds up a thread, also the one that stores segments and publishes between commits.
        "socket_timeout": 5,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
    },
    # A publish that fails is not lost (upkeep publishes again), so it must not hold up the worker for long.
    "task_publish_retry_policy": {
        "max_retries": 2,
        "interval_start": 0.1,
        "interval_step": 0.2,
        "interval_max": 0.5,
    },
    # Flower lives on events; nobody else reads them.
    "worker_send_task_events": True,
    "worker_consumer": "workers.broker.consumer:SparingConsumer",
    "task_send_sent_event": False,
    "event_queue_expires": 60,
    # Our own log says what matters; Celery's root logger hijack would repeat it.
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
}


def make_app(redis_url: SecretStr) -> Celery:
    """The application for a broker; tasks are added by workers.broker.tasks."""
    guard_redis()
    address = RedisAddress.parse(redis_url)
    app = Celery("specthink", broker=address.broker_url, set_as_current=False)
    app.conf.update(CONFIG)
    if address.tls is not None:
        app.conf.broker_use_ssl = address.tls
    if address.master_name is not None:
        app.conf.broker_transport_options = CONFIG["broker_transport_options"] | _by_sentinel(address)
    return app


def _by_sentinel(address: RedisAddress) -> dict[str, Any]:
    """Options of the transport that finds its server by asking Sentinels."""
    timeouts = {"socket_timeout": CONNECT_TIMEOUT_S, "socket_connect_timeout": CONNECT_TIMEOUT_S}
    return {"master_name": address.master_name, "sentinel_kwargs": timeouts | address.sentinel_login}
