"""What a machine has: its GPUs with their memory, its cores, its memory. By nvidia-smi, or from a JSON file."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
from pathlib import Path
from typing import Annotated

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import ConfigurationError

GIB = 2**30
_MIB = 2**20
_QUERY = ("index", "uuid", "name", "memory.total", "memory.free", "mig.mode.current")
_TIMEOUT_S = 60.0
"""A machine whose GPUs keep no driver loaded takes seconds for each to answer."""


class Gpu(BaseModel):
    """One GPU, in nvidia-smi's order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: Annotated[int, Field(ge=0)]
    memory_gib: Annotated[float, Field(gt=0)]
    free_gib: Annotated[float, Field(ge=0)]
    name: str = "GPU"
    uuid: str = ""
    is_sliced: bool = False
    """Whether it is in MIG mode: a process then gets a slice, never the whole."""

    @property
    def memory(self) -> int:
        """Bytes."""
        return int(self.memory_gib * GIB)

    @property
    def free(self) -> int:
        """Bytes."""
        return int(self.free_gib * GIB)


class Machine(BaseModel):
    """What workers are planned on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpus: tuple[Gpu, ...] = ()
    cores: Annotated[int, Field(ge=1)]
    memory_gib: Annotated[float, Field(gt=0)]
    notes: tuple[str, ...] = ()
    """What was found that a person should know."""

    @model_validator(mode="before")
    @classmethod
    def _written_shortly(cls, content: object) -> object:
        """In a file a GPU may have a count, and leave out its index and, where nobody uses it, what is free."""
        if not isinstance(content, dict) or not isinstance(content.get("gpus", []), list | tuple):
            return content
        gpus: list[object] = []
        for entry in content.get("gpus", []):
            if not isinstance(entry, dict):
                gpus.append(entry)
                continue
            one = {"free_gib": entry.get("memory_gib"), **entry}
            count = one.pop("count", 1)
            gpus += [{"index": len(gpus) + place, **one} for place in range(count if isinstance(count, int) else 1)]
        return {**content, "gpus": gpus}

    @model_validator(mode="after")
    def _has_each_gpu_once(self) -> Machine:
        if len({gpu.index for gpu in self.gpus}) < len(self.gpus):
            raise ValueError("two GPUs have the same index")
        return self

    def gpu(self, index: int) -> Gpu | None:
        """The GPU of this index; None where there is none."""
        return next((gpu for gpu in self.gpus if gpu.index == index), None)


def read_machine(file: Path) -> Machine:
    """A machine that a JSON file describes.

    E.g. {"cores": 64, "memory_gib": 512, "gpus": [{"count": 8, "memory_gib": 80}]}.
    Raises ConfigurationError that names the file and the fault.
    """
    try:
        return Machine.model_validate_json(file.read_text(encoding="utf-8-sig"))
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise ConfigurationError(f"{file}: {place + ': ' if place else ''}{fault['msg']}") from error
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}") from error


def probe() -> Machine:
    """This machine. Where CUDA_VISIBLE_DEVICES is set, with the GPUs that it names alone.

    Raises ConfigurationError where CUDA_VISIBLE_DEVICES names what nvidia-smi does not show.
    """
    gpus, note = _probe_gpus()
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpus and allowed is not None:
        gpus = chosen_by_environment(gpus, allowed)
    return Machine(gpus=gpus, cores=_cores(), memory_gib=_memory() / GIB, notes=(note,) if note else ())


def _probe_gpus() -> tuple[tuple[Gpu, ...], str]:
    """The GPUs, or none and why where nvidia-smi is there and cannot say."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return (), ""
    command = [program, f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), f"nvidia-smi gave no answer ({error}): taken as a machine without GPUs"
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip().splitlines() or [f"exit code {done.returncode}"]
        return (), f"nvidia-smi sees no GPU ({said[0]}): taken as a machine without GPUs"
    return parse_gpus(done.stdout), ""


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """The GPUs in nvidia-smi's CSV; memory in MiB. One whose memory is not told is left out."""
    gpus = []
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(row) != len(_QUERY) or not row[3].isdigit():
            continue
        index, uuid, name, memory, free, mig = row
        gpus.append(
            Gpu(
                index=int(index),
                uuid=uuid,
                name=name,
                memory_gib=int(memory) * _MIB / GIB,
                free_gib=int(free) * _MIB / GIB if free.isdigit() else 0.0,
                is_sliced=mig == "Enabled",
            )
        )
    return tuple(gpus)


def chosen_by_environment(gpus: tuple[Gpu, ...], allowed: str) -> tuple[Gpu, ...]:
    """Those that CUDA_VISIBLE_DEVICES names, by index or by the beginning of their UUID."""
    chosen = []
    for word in filter(None, (word.strip() for word in allowed.split(","))):
        if word == "-1":
            break
        found = [
            gpu for gpu in gpus if str(gpu.index) == word or (word.startswith("GPU-") and gpu.uuid.startswith(word))
        ]
        if len(found) != 1:
            raise ConfigurationError(
                f"CUDA_VISIBLE_DEVICES names {word}, and nvidia-smi shows no such GPU; unset it, or start workers one "
                "by one with `specthink worker`"
            )
        chosen += found
    return tuple(chosen)


def _cores() -> int:
    """Cores that this process may use, also in a container with a quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _cgroup("cpu.max").partition(" ")
    return max(1, min(cores, round(int(quota) / int(period)))) if quota.isdigit() and period.isdigit() else cores


def _memory() -> int:
    """Bytes that this process may use, also in a container with a limit."""
    limit = _cgroup("memory.max")
    total = psutil.virtual_memory().total
    return min(total, int(limit)) if limit.isdigit() and int(limit) > 0 else total


def _cgroup(name: str) -> str:
    try:
        return (Path("/sys/fs/cgroup") / name).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
