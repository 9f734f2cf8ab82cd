"""What a person asks for: pools of equal workers, and what a plan makes of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.accelerators import parse_accelerator, with_full_path
from pipeline.devices.machine import GIB, Machine
from pipeline.errors import ConfigurationError
from pipeline.samples import ModelRole
from pipeline.settings import SERVER_URL_FORM, EngineKind, EngineSettings, is_server_url


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Workers of one role with one model. What is None is chosen.

    model: a local folder or hub id. devices: GPUs by nvidia-smi's index. on_cpu: asked for by ``@cpu``. tp: GPUs per
    worker. share: of each GPU's memory. threads: of a worker on a CPU. accelerate: what drafts tokens, draft_tokens at
    a time (pipeline.accelerators). arguments: vLLM's own, as text. server: the address of the server that has the
    model; server_model: its name there. environment: added to that of its workers.
    """

    role: ModelRole
    model: str
    devices: tuple[int, ...] | None = None
    on_cpu: bool = False
    workers: int | None = None
    tp: int | None = None
    share: float | None = None
    threads: int | None = None
    revision: str | None = None
    name: str | None = None
    max_in_flight: int | None = None
    max_model_len: int | None = None
    accelerate: str | None = None
    draft_tokens: int | None = None
    arguments: Mapping[str, str] = field(default_factory=dict)
    server: str | None = None
    server_model: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """How messages name it."""
        return f"{self.role.value} {self.model}"

    def require_servers_own(self) -> None:
        """Raise ConfigurationError for an address that is none, and for what only a server itself can be told."""
        if self.server is None:
            if self.server_model:
                raise ConfigurationError(f"{self.title}: a server's name for the model needs the server's address too")
            return
        if not is_server_url(self.server):
            raise ConfigurationError(f"{self.title}: the server's address {SERVER_URL_FORM}")
        own = (self.devices, self.on_cpu or None, self.tp, self.share, self.threads, self.accelerate,
               self.draft_tokens, self.arguments or None)  # fmt: skip
        if any(given is not None for given in own):
            raise ConfigurationError(
                f"{self.title}: devices, tp, share, threads, accelerators and engine arguments are the business of the "
                f"server at {self.server}: leave them out"
            )

    def require_accelerator(self) -> None:
        """Raise ConfigurationError for an accelerator that is none, and for the length of drafts that nobody makes."""
        if self.accelerate is not None:
            parse_accelerator(self.accelerate)
        elif self.draft_tokens is not None:
            raise ConfigurationError(f"{self.title}: draft tokens go with an accelerator: give accelerate too")

    def engine_settings(self, settings: EngineSettings) -> EngineSettings:
        """The settings of its engines, but for what a plan chooses."""
        drafts = {"accelerate": self.accelerate, "draft_tokens": self.draft_tokens}
        vllm = settings.vllm.model_copy(
            update={"arguments": {**settings.vllm.arguments, **self.arguments}}
            | {name: value for name, value in drafts.items() if value is not None}
        )
        own = {"max_in_flight": self.max_in_flight, "max_model_len": self.max_model_len}
        given: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
        if self.server is not None:
            server = settings.server.model_copy(update={"url": self.server, "model": self.server_model})
            given |= {"kind": EngineKind.SERVER, "server": server}
        return settings.model_copy(update={"vllm": vllm, **given})


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedWorker:
    """One worker process.

    devices: its GPUs; () on a CPU, and where a server has the model. share: of each one's memory. threads: on a CPU.
    weights: bytes on each of its GPUs. cache_tokens: about how many tokens its KV cache will hold. Both None where the
    model's files say nothing. engine: its settings.
    """

    pool: Pool
    engine: EngineSettings
    weights: int | None
    cache_tokens: int | None
    devices: tuple[int, ...] = ()
    share: float | None = None
    threads: int | None = None

    @property
    def arguments(self) -> tuple[str, ...]:
        """Of ``python -m workers``: role, model, and what goes with it."""
        folder = Path(self.pool.model).expanduser()  # programs run elsewhere: a folder by its full path
        model = str(folder.resolve()) if folder.is_dir() else self.pool.model
        named = ("--name", self.pool.name) if self.pool.name else ()
        revision = ("--revision", self.pool.revision) if self.pool.revision else ()
        return (self.pool.role.value, "--model", model, *named, *revision)

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process this worker, also at every restart; what the settings say already is left out."""
        made: dict[str, str] = {}
        if self.devices:
            made["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # nvidia-smi's order; CUDA's own begins with the fastest GPU
            made["CUDA_VISIBLE_DEVICES"] = ",".join(str(index) for index in self.devices)
            made["SPECTHINK_ENGINE__VLLM__TENSOR_PARALLEL_SIZE"] = str(len(self.devices))
            made["SPECTHINK_ENGINE__VLLM__GPU_MEMORY_UTILIZATION"] = f"{self.share:.3f}"
        elif self.threads is not None and self.threads != self.engine.vllm.cpu_threads:
            made["SPECTHINK_ENGINE__VLLM__CPU_THREADS"] = str(self.threads)
        if self.pool.max_in_flight is not None:
            made["SPECTHINK_ENGINE__MAX_IN_FLIGHT"] = str(self.pool.max_in_flight)
        if self.pool.max_model_len is not None:
            made["SPECTHINK_ENGINE__MAX_MODEL_LEN"] = str(self.pool.max_model_len)
        if self.pool.arguments:
            made["SPECTHINK_ENGINE__VLLM__ARGUMENTS"] = json.dumps(dict(self.engine.vllm.arguments), sort_keys=True)
        if self.engine.vllm.accelerate is not None:
            made["SPECTHINK_ENGINE__VLLM__ACCELERATE"] = with_full_path(self.engine.vllm.accelerate)
        if self.pool.draft_tokens is not None:
            made["SPECTHINK_ENGINE__VLLM__DRAFT_TOKENS"] = str(self.pool.draft_tokens)
        if self.pool.server is not None:
            made["SPECTHINK_ENGINE__KIND"] = EngineKind.SERVER.value
            made["SPECTHINK_ENGINE__SERVER__URL"] = self.pool.server
        if self.pool.server_model is not None:
            made["SPECTHINK_ENGINE__SERVER__MODEL"] = self.pool.server_model
        return {**made, **self.pool.environment}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which workers run where. notes: why so, a sentence each."""

    machine: Machine
    workers: tuple[PlannedWorker, ...]
    notes: tuple[str, ...] = ()

    @property
    def machine_line(self) -> str:
        """The machine in one line."""
        memory = f"{self.machine.cores} cores, {self.machine.memory_gib:.0f} GiB of memory"
        if not self.machine.gpus:
            return f"no GPU, {memory}"
        gpus = ", ".join(f"{gpu.index}: {gpu.free_gib:.0f} of {gpu.memory_gib:.0f} GiB" for gpu in self.machine.gpus)
        return f"free on GPU {gpus}; {memory}"

    def rows(self) -> list[list[str | int | float | None]]:
        """One per worker, in the columns of ``COLUMNS``."""
        return [
            [
                worker.pool.role.value,
                worker.pool.model,
                ",".join(str(index) for index in worker.devices) or ("server" if worker.pool.server else "cpu"),
                len(worker.devices) or None,
                worker.share,
                worker.threads,
                None if worker.weights is None else round(worker.weights / GIB, 1),
                worker.cache_tokens,
                worker.engine.max_in_flight,
            ]
            for worker in self.workers
        ]


COLUMNS = ("role", "model", "GPUs", "tp", "share", "threads", "weights GiB", "KV tokens", "in flight")
"""Of a plan's table; weights on each GPU."""
