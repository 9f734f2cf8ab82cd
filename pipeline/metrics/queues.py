"""How long the broker's queues are, for the metrics."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing

import redis
from pydantic import SecretStr

from pipeline.redis_address import RedisAddress

_LATER = "\x06\x166"
"""Kombu's mark behind a queue's name for its messages of the later priority (workers.broker.queues.LATER)."""
_SHARED = ("grade", "upkeep")


def shared_queues(own: Iterable[str]) -> list[str]:
    """The queues that several workers read: graders', upkeep's, and one for each model.

    own: the workers' own queues; that of a model's worker is named after the model's, with one part more. Own ones are
    no series: each worker's life has a new one.
    """
    models = {name.rpartition(".")[0] for name in own if name.startswith(("small.", "large."))}
    return sorted({*_SHARED, *models})


def queue_lengths(redis_url: SecretStr, own: Iterable[str]) -> dict[str, int] | None:
    """Messages by shared queue; None: the broker does not answer."""
    names = shared_queues(own)
    try:
        with closing(RedisAddress.parse(redis_url).connect()) as client:
            pipe = client.pipeline(transaction=False)
            for name in names:
                pipe.llen(name)
                pipe.llen(f"{name}{_LATER}")
            lengths = [int(length) for length in pipe.execute()]
    except (redis.RedisError, OSError):
        return None
    return {name: sum(lengths[2 * place : 2 * place + 2]) for place, name in enumerate(names)}
