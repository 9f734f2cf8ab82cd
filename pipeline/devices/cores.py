"""Gives workers on a CPU their threads, and looks whether their memory suffices.

Threads per worker: the cores but one, divided by the workers; never more than one for each _PARAMETERS_PER_THREAD of
the model. A machine of two cores gives each of two workers one thread: with two, a step takes ten times as long.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.devices.machine import GIB, Machine
from pipeline.devices.placing import Request
from pipeline.devices.pools import PlannedWorker
from pipeline.errors import ConfigurationError

RUNTIME = 3 * GIB // 2
"""Of a worker's process on a CPU beside weights and KV cache: Python, torch and vLLM."""
_PARAMETERS_PER_THREAD = 50_000_000
"""A smaller model's step is over before its threads have met."""


def place_on_cores(requests: Sequence[Request], machine: Machine, *, beside: int = 0) -> list[PlannedWorker]:
    """A worker for every pool, or as many as it says.

    beside: workers that run already. Raises ConfigurationError where the memory is not there.
    """
    num_workers = beside + sum(request.pool.workers or 1 for request in requests)
    planned = [
        _worker(request, _threads(request, machine.cores, num_workers))
        for request in requests
        for _ in range(request.pool.workers or 1)
    ]
    _require_memory(planned, machine)
    return planned


def _threads(request: Request, cores: int, num_workers: int) -> int:
    """As asked for by the pool, else by the settings where they ask for more than one, else by the rule."""
    asked = request.pool.threads or (request.engine.vllm.cpu_threads if request.engine.vllm.cpu_threads > 1 else None)
    if asked:
        return asked
    by_size = max(1, request.size.num_parameters // _PARAMETERS_PER_THREAD)
    return max(1, min(by_size, (cores - 1) // num_workers))


def _worker(request: Request, threads: int) -> PlannedWorker:
    cache = int(request.engine.vllm.cpu_kv_cache_gib * GIB)
    number_bytes = 4 if "F32" in request.size.stored else 2
    return PlannedWorker(
        pool=request.pool,
        engine=request.engine,
        weights=request.size.weight_bytes(request.engine.vllm.dtype, on_gpu=False),
        cache_tokens=cache // request.size.kv_bytes(1, number_bytes=number_bytes),
        threads=threads,
    )


def _require_memory(planned: Sequence[PlannedWorker], machine: Machine) -> None:
    needs = [worker.weights + int(worker.engine.vllm.cpu_kv_cache_gib * GIB) + RUNTIME for worker in planned]
    if sum(needs) > machine.memory_gib * GIB:
        each = ", ".join(f"{worker.pool.title} {need / GIB:.1f}" for worker, need in zip(planned, needs, strict=True))
        raise ConfigurationError(
            f"the workers need {sum(needs) / GIB:.1f} GiB of memory ({each}: weights, KV cache and 1.5 GiB each), and "
            f"the machine has {machine.memory_gib:.1f} GiB"
        )
