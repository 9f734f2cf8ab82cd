"""Remembers a plan, so that a second `up` finds the workers that run already where they are: their GPUs are no longer
free, and the same rule would now put them elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.devices.pools import Plan, PlannedWorker, Pool
from pipeline.settings import EngineSettings

_KEPT = ("devices", "share", "threads", "weights", "cache_tokens")


def as_json(plan: Plan, pools: Sequence[Pool]) -> list[dict[str, Any]]:
    """What ``recall`` reads: each pool with its workers."""
    return [
        {"pool": _as_json(pool), "workers": [_kept(worker) for worker in plan.workers if worker.pool is pool]}
        for pool in pools
    ]


def recall(
    content: Sequence[Mapping[str, Any]],
    pools: Sequence[Pool],
    settings: EngineSettings,
    is_running: Callable[[PlannedWorker], bool],
) -> dict[int, list[PlannedWorker]]:
    """By a pool's place in pools its workers of before, where one of them runs."""
    left = list(content)
    found = {}
    for place, pool in enumerate(pools):
        for entry in left:
            if entry["pool"] != _as_json(pool):
                continue
            workers = [_worker(pool, settings, kept) for kept in entry["workers"]]
            if any(is_running(worker) for worker in workers):
                found[place] = workers
                left.remove(entry)
                break
    return found


def _as_json(pool: Pool) -> dict[str, Any]:
    content = dataclasses.asdict(pool)
    return content | {"devices": list(pool.devices) if pool.devices is not None else None, "role": pool.role.value}


def _kept(worker: PlannedWorker) -> dict[str, Any]:
    return {name: getattr(worker, name) for name in _KEPT} | {"devices": list(worker.devices)}


def _worker(pool: Pool, settings: EngineSettings, kept: Mapping[str, Any]) -> PlannedWorker:
    return PlannedWorker(
        pool=pool,
        engine=pool.engine_settings(settings),
        **{name: kept[name] for name in _KEPT if name != "devices"},
        devices=tuple(kept["devices"]),
    )
