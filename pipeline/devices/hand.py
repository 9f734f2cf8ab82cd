"""The short form of a pool: ``MODEL``, ``MODEL:tp=2``, ``MODEL@0,1``, ``MODEL@2-5:tp=2``, ``MODEL@cpu:threads=4``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pipeline.devices.pools import Pool
from pipeline.errors import ConfigurationError
from pipeline.samples import ModelRole

_TAIL = re.compile(r"(?P<devices>cpu|[\d,-]*)(?P<options>(?::[^:@]*)*)")
_NUMBERS = {"tp": int, "workers": int, "threads": int, "share": float, "max_in_flight": int, "max_model_len": int}


def parse_pool(role: ModelRole, text: str) -> Pool:
    """A pool as ``--small`` and ``--large`` take it. A folder whose own name has an @ or a : is taken as it is.

    Raises ConfigurationError that shows the form.
    """
    if not text:
        raise ConfigurationError(f"--{role.value} is empty: give a model's folder or hub id")
    if Path(text).expanduser().is_dir():
        return Pool(role=role, model=text)
    model, separator, tail = text.rpartition("@")
    if not separator:
        model, separator, tail = text.partition(":")
        tail = separator + tail
    if not separator:
        return Pool(role=role, model=text)
    found = _TAIL.fullmatch(tail)
    if found is None or not model:
        raise ConfigurationError(f"--{role.value} {text}: write MODEL@0,1 or MODEL@2-5:tp=2 or MODEL@cpu:threads=4")
    named = found["devices"]
    on_cpu = named == "cpu"
    return Pool(
        role=role,
        model=model,
        devices=parse_devices(named) if named and not on_cpu else None,
        on_cpu=on_cpu,
        **_options(role, text, found["options"]),
    )


def parse_devices(text: str) -> tuple[int, ...]:
    """GPUs as "0,1" or "2-5" or both. Raises ConfigurationError for another form and for one named twice."""
    devices: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if found is None or (found[2] and int(found[2]) < int(found[1])) or len(part) > 9:
            raise ConfigurationError(f"GPUs {text!r}: write their numbers as 0,1 or 2-5")
        devices += range(int(found[1]), int(found[2] or found[1]) + 1)
    if len(set(devices)) < len(devices):
        raise ConfigurationError(f"GPUs {text!r}: one is named twice")
    return tuple(devices)


def _options(role: ModelRole, text: str, options: str) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for option in filter(None, options.split(":")):
        name, _, value = option.partition("=")
        if name not in _NUMBERS:
            raise ConfigurationError(f"--{role.value} {text}: {name} is none of {', '.join(_NUMBERS)}")
        if name in chosen:
            raise ConfigurationError(f"--{role.value} {text}: {name} is given twice")
        try:
            number = _NUMBERS[name](value)
        except ValueError:
            raise ConfigurationError(f"--{role.value} {text}: {name} must be a number, not {value!r}") from None
        chosen[name] = number
    require_bounds(f"--{role.value} {text}", chosen)
    return chosen


def require_bounds(where: str, numbers: dict[str, Any]) -> None:
    """Raise ConfigurationError for a number that can be none of a pool's."""
    for name, number in numbers.items():
        if name == "share" and not 0 < number <= 1:
            raise ConfigurationError(f"{where}: share must be above 0 and at most 1, not {number}")
        least = 16 if name == "max_model_len" else 1
        if name != "share" and number < least:
            raise ConfigurationError(f"{where}: {name} must be {least} or more, not {number}")
