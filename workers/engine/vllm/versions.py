"""What differs between the releases of vLLM in what the adapter touches, 0.26 to 0.33.

| since | what | here |
|---|---|---|
| 0.30 | ``EngineCoreClient.make_client`` wants the renderer, and warms it up while the core starts | ``make_client`` |

What a release has is asked of itself, not of its number: builds of one's own have numbers of their own.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.engine.core_client import EngineCoreClient
    from vllm.v1.executor import Executor


def make_client(
    config: VllmConfig, executor_class: type[Executor], renderer: Any, *, in_own_process: bool
) -> EngineCoreClient:
    """The engine's core, and what speaks with it. It reports queue times and cache usage with its statistics."""
    from vllm.v1.engine.core_client import EngineCoreClient

    wanted = inspect.signature(EngineCoreClient.make_client).parameters
    options = {"renderer": renderer} if "renderer" in wanted else {}
    return EngineCoreClient.make_client(
        multiprocess_mode=in_own_process,
        asyncio_mode=False,
        vllm_config=config,
        executor_class=executor_class,
        log_stats=True,
        **options,
    )
