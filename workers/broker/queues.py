"""Names of the broker's queues: each names the role and the model it needs.

A small or large worker reads two: its model's, and its own, where samples go whose context it has cached.
"""

from __future__ import annotations

import hashlib
import re
import secrets

from pipeline.samples import ModelRole

GRADE = "grade"
UPKEEP = "upkeep"

FIRST = 0
"""Priority of resumed samples. In Celery's Redis transport the lower number goes first."""
LATER = 6
"""Priority of fresh samples."""
PRIORITY_STEPS = [FIRST, LATER]


def model_queue(role: ModelRole, model: str) -> str:
    """The queue that all workers of a model read, e.g. ``small.demo-small``: one for each name.

    A name with other characters than a queue's gets part of its hash: ``a/b`` and ``a-b`` are two models.
    """
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", model)
    if plain != model:
        plain = f"{plain}~{hashlib.sha256(model.encode()).hexdigest()[:10]}"
    return f"{role.value}.{plain}"


def own_queue(role: ModelRole, model: str) -> str:
    """A new queue for one worker process, e.g. ``small.demo-small.3f9a2c``."""
    return f"{model_queue(role, model)}.{secrets.token_hex(3)}"
