"""Reads ``specthink.toml``: pools of workers, with what their engines and processes are told.

[environment]                   # of every worker
HF_HUB_OFFLINE = "1"

[[pool]]
role = "small"
model = "org/small-1b"
devices = "0,1"                 # left out: chosen
tp = 1
accelerate = "ngram"            # drafts tokens; left out: nothing does

[pool.engine_args]              # vLLM's own
enforce_eager = true
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipeline.devices.hand import parse_devices
from pipeline.devices.pools import Pool
from pipeline.engine_arguments import argument_text, require_free
from pipeline.errors import ConfigurationError
from pipeline.samples import ModelRole

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NOT_HERE = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "SPECTHINK_")
"""What a plan sets, and what settings say for every process."""

Number = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]


class PoolSpec(BaseModel):
    """One [[pool]] of the file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Annotated[ModelRole, Field(strict=False)]
    model: Text
    name: Text | None = None
    """What jobs call the model; left out: the hub id or the folder's name."""
    revision: Text | None = None
    devices: str | list[int] | None = None
    workers: Number | None = None
    tp: Number | None = None
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    threads: Number | None = None
    max_in_flight: Number | None = None
    max_model_len: Annotated[int, Field(ge=16)] | None = None
    accelerate: Text | None = None
    draft_tokens: Annotated[int, Field(ge=1, le=64)] | None = None
    server: str | None = None
    """The address of a server that has the model; then nothing runs on GPUs here."""
    server_model: Text | None = None
    engine_args: dict[str, Any] = Field(default_factory=dict)
    environment: dict[str, str] = Field(default_factory=dict)

    @field_validator("environment")
    @classmethod
    def _is_free(cls, environment: dict[str, str]) -> dict[str, str]:
        return _checked(environment)

    def pool(self, environment: dict[str, str], folder: Path) -> Pool:
        """folder: where the file lies; a model's relative folder is looked for there first."""
        require_free(self.engine_args)
        on_cpu = self.devices == "cpu"
        devices = ",".join(map(str, self.devices)) if isinstance(self.devices, list) else self.devices
        beside = folder / Path(self.model).expanduser()
        return Pool(
            role=self.role,
            model=str(beside) if beside.is_dir() else self.model,
            name=self.name,
            revision=self.revision,
            devices=parse_devices(devices) if devices is not None and not on_cpu else None,
            on_cpu=on_cpu,
            workers=self.workers,
            tp=self.tp,
            share=self.share,
            threads=self.threads,
            max_in_flight=self.max_in_flight,
            max_model_len=self.max_model_len,
            arguments={name: argument_text(value) for name, value in self.engine_args.items()},
            accelerate=_beside(self.accelerate, folder) if self.accelerate else None,
            draft_tokens=self.draft_tokens,
            server=self.server,
            server_model=self.server_model,
            environment={**environment, **self.environment},
        )


class FileSpec(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    pool: Annotated[list[PoolSpec], Field(min_length=1)]
    environment: dict[str, str] = Field(default_factory=dict)

    @field_validator("environment")
    @classmethod
    def _is_free(cls, environment: dict[str, str]) -> dict[str, str]:
        return _checked(environment)


def read_pools(file: Path) -> list[Pool]:
    """The pools of a file, in its order. Raises ConfigurationError, in one line with the place of the fault."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8-sig"))
        spec = FileSpec.model_validate(content)
    except ValidationError as error:
        raise ConfigurationError(f"{file}: {_told(error)}") from error
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}") from error
    try:
        return [pool.pool(spec.environment, file.parent) for pool in spec.pool]
    except ConfigurationError as error:
        raise ConfigurationError(f"{file}: {error}") from error


def _told(error: ValidationError) -> str:
    """The first fault with its place; a key that there is not comes first: what lacks may be meant by it."""
    faults = error.errors()
    fault = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    place = ".".join(str(part + 1 if isinstance(part, int) else part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = FileSpec if len(fault["loc"]) == 1 else PoolSpec
        return f"{place}: there is no such key; there are {', '.join(known.model_fields)}"
    return f"{place}: {fault['msg'].removeprefix('Value error, ')}"


def _beside(accelerate: str, folder: Path) -> str:
    """A draft model's relative folder is looked for beside the file first, as a model's is."""
    method, separator, model = accelerate.partition(":")
    beside = folder / Path(model).expanduser()
    return f"{method}:{beside}" if separator and beside.is_dir() else accelerate


def _checked(environment: dict[str, str]) -> dict[str, str]:
    for name in environment:
        if not _VARIABLE.fullmatch(name) or name.upper().startswith(_NOT_HERE):
            raise ValueError(f"{name} is not to be set here: devices, settings and addresses come by other ways")
    return environment
