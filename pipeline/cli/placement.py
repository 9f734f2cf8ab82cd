"""What `up` is asked to run, and the plan it shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from pipeline.cli.render import table

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.devices import Plan, Pool
    from pipeline.samples import ModelRole
    from pipeline.settings import Settings


def chosen_pools(
    models: Mapping[ModelRole, Sequence[str]],
    file: Path | None,
    arguments: Mapping[ModelRole, Sequence[str]],
    servers: Mapping[ModelRole, str | None] = MappingProxyType({}),
    accelerators: Mapping[ModelRole, str | None] = MappingProxyType({}),
    draft_tokens: int | None = None,
) -> list[Pool]:
    """The pools of the options, then those of the file. arguments: vLLM's own by role, which win over the file's, as
    accelerators do, with drafts of draft_tokens. servers: by role the address of that which has the options' models.

    Raises ConfigurationError.
    """
    from pipeline.devices import parse_pool
    from pipeline.devices.file import read_pools
    from pipeline.engine_arguments import parse_arguments
    from pipeline.errors import ConfigurationError

    for role, server in servers.items():
        if server and not models[role]:
            raise ConfigurationError(
                f"--{role.value}-server needs the model that it has: give --{role.value} MODEL too"
            )
    pools = [
        dataclasses.replace(parse_pool(role, model), server=servers.get(role))
        for role, given in models.items()
        for model in given
    ]
    pools += read_pools(file) if file else []
    added = {role: parse_arguments(given) for role, given in arguments.items()}
    pools = [
        pool if pool.server else dataclasses.replace(pool, arguments={**pool.arguments, **added[pool.role]})
        for pool in pools
    ]
    return [_accelerated(pool, accelerators.get(pool.role), draft_tokens) for pool in pools]


def _accelerated(pool: Pool, accelerate: str | None, draft_tokens: int | None) -> Pool:
    if accelerate is not None:
        return dataclasses.replace(pool, accelerate=accelerate, draft_tokens=draft_tokens)
    own = pool.accelerate is not None and draft_tokens is not None
    return dataclasses.replace(pool, draft_tokens=draft_tokens) if own else pool


def pool_of_worker(role: ModelRole, model: str | None, file: Path | None) -> Pool:
    """What one worker is: the model given, or the file's pool of its role, of this model where one is named as well.

    Raises ConfigurationError where neither says a model, or the file has several pools or none for it.
    """
    from pipeline.chat.files import served_name
    from pipeline.devices import Pool
    from pipeline.devices.file import read_pools
    from pipeline.errors import ConfigurationError

    if model == "":
        raise ConfigurationError("--model is empty: give a model's folder or hub id")
    if file is None:
        if model is None:
            raise ConfigurationError("give --model, or a --file that says it")
        return Pool(role=role, model=model)
    pools = [pool for pool in read_pools(file) if pool.role is role]
    if model is not None:
        pools = [pool for pool in pools if model in (pool.model, pool.name, served_name(pool.model))]
    if len(pools) != 1:
        wanted = f"{role.value} pool" + (f" of {model}" if model else "")
        remedy = "; name one by --model" if pools else ""
        raise ConfigurationError(f"{file} has {len(pools)} entries for a {wanted}, not one{remedy}")
    return pools[0]


def look(settings: Settings, pools: Sequence[Pool], machine: Path | None) -> Plan:
    """The plan for the machine of a file, else for this one."""
    from pipeline.devices import plan_workers, read_machine
    from pipeline.local import plan_here

    return (
        plan_here(settings, pools) if machine is None else plan_workers(pools, read_machine(machine), settings.engine)
    )


def print_plan(out: Console, plan: Plan) -> None:
    """Which workers run where; nothing where there are none."""
    from pipeline.devices import COLUMNS

    if not plan.workers:
        return
    rows = plan.rows()
    used = [place for place in range(len(COLUMNS)) if any(row[place] is not None for row in rows)]
    out.print(table([COLUMNS[place] for place in used], [[row[place] for place in used] for row in rows]))
    out.print(plan.machine_line, soft_wrap=True)
    for note in plan.notes:
        out.print(note, style="yellow", soft_wrap=True)
