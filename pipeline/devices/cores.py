"""Gives workers on a CPU their threads, and looks whether their memory suffices.

Threads per worker: the cores but one, divided by the workers; never more than one for each _PARAMETERS_PER_THREAD of
the model. A machine of two cores gives each of two workers one thread: with two, a step takes ten times as long.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.devices.machine import GIB, Machine
from pipeline.devices.pools import PlannedWorker, Pool
from pipeline.devices.sizes import ModelSize
from pipeline.errors import ConfigurationError
from pipeline.settings import EngineSettings

_PARAMETERS_PER_THREAD = 50_000_000
"""A smaller model's step is over before its threads have met."""


def place_on_cores(
    pools: Sequence[Pool],
    sizes: Sequence[ModelSize | None],
    machine: Machine,
    settings: EngineSettings,
    *,
    beside: int = 0,
) -> list[PlannedWorker]:
    """A worker for every pool, or as many as it says.

    sizes: of each pool's model; None where it cannot be read, which the worker itself will say best. beside: workers
    that run already. Raises ConfigurationError where the memory is not there.
    """
    num_workers = beside + sum(pool.workers or 1 for pool in pools)
    planned = []
    for pool, size in zip(pools, sizes, strict=True):
        engine = pool.engine_settings(settings)
        asked = pool.threads or (engine.vllm.cpu_threads if engine.vllm.cpu_threads > 1 else None)
        threads = asked or _threads(size, machine.cores, num_workers)
        planned += [_worker(pool, engine, size, threads)] * (pool.workers or 1)
    _require_memory(planned, machine)
    return planned


def _threads(size: ModelSize | None, cores: int, num_workers: int) -> int:
    by_size = size.num_parameters // _PARAMETERS_PER_THREAD if size else 1
    return max(1, min(by_size, (cores - 1) // num_workers))


def _worker(pool: Pool, engine: EngineSettings, size: ModelSize | None, threads: int) -> PlannedWorker:
    if size is None:
        return PlannedWorker(pool=pool, engine=engine, weights=None, cache_tokens=None, threads=threads)
    number_bytes = 4 if "F32" in size.stored else 2
    return PlannedWorker(
        pool=pool,
        engine=engine,
        weights=size.weight_bytes(engine.vllm.dtype, on_gpu=False),
        cache_tokens=int(engine.vllm.cpu_kv_cache_gib * GIB) // size.kv_bytes(1, number_bytes=number_bytes),
        threads=threads,
    )


def _require_memory(planned: Sequence[PlannedWorker], machine: Machine) -> None:
    needs = [(worker.weights or 0) + int(worker.engine.vllm.cpu_kv_cache_gib * GIB) for worker in planned]
    if sum(needs) > machine.memory_gib * GIB:
        each = ", ".join(f"{worker.pool.title} {need / GIB:.1f}" for worker, need in zip(planned, needs, strict=True))
        raise ConfigurationError(
            f"the workers need {sum(needs) / GIB:.1f} GiB of memory ({each}: weights and KV cache), and the "
            f"machine has {machine.memory_gib:.1f} GiB"
        )
