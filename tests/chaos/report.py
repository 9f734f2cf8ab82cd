"""The table of a matrix, from its runs or from the file that it left."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos import faults_vllm
from tests.chaos.harness import SETTINGS
from tests.chaos.matrix import SKIPPED, Run
from tests.chaos.texts import NUM_CUES, NUM_PROBLEMS, NUM_SAMPLES
from tests.chaos.verdict import Verdict

HEAD = ("fault", "component", "runs", "failed", "lost", "doubled", "again", "recovery s")
_MEANING = (
    "again: segments whose claim was lost, so that they were generated again, median / most of a run. recovery: from "
    "the fault until every sample that the struck process held has its next segment stored; where it held none, until "
    "the next step by its kind of worker, median / longest."
)


@dataclass(kw_only=True)
class Record:
    """What a matrix came to. seconds: in all. machine: cores, versions and the like."""

    seed: int
    lanes: int
    machine: dict[str, Any]
    seconds: float = 0.0
    runs: list[Run] = field(default_factory=list)

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False))

    @classmethod
    def read(cls, path: Path) -> Record:
        stored = json.loads(path.read_text())
        runs = [Run(**{**run, "verdict": Verdict(**run["verdict"])}) for run in stored.pop("runs")]
        return cls(**stored, runs=runs)

    def __str__(self) -> str:
        """Everything for people: Markdown."""
        lines = [table(self.runs), "", self._footer(), _MEANING]
        lines += [f"Left out: {fault}: {reason}" for fault, reason in SKIPPED.items()]
        return "\n".join(lines)

    def brief(self) -> str:
        """A line for each fault, whatever component it struck: Markdown."""
        return "\n".join([table(self.runs, key=lambda run: (run.fault,)), "", self._footer(), _MEANING])

    def _footer(self) -> str:
        settings = ", ".join(f"{name.removeprefix('SPECTHINK_').lower()} {value}" for name, value in SETTINGS.items())
        return (
            f"{len(self.runs)} runs in {self.seconds / 60:.1f} min, {self.lanes} beside each other, seed {self.seed}; "
            f"{', '.join(f'{name} {value}' for name, value in self.machine.items())}. Each: a job of "
            f"{NUM_PROBLEMS * NUM_SAMPLES} samples with {NUM_CUES} takeovers each; 2 small and 2 large workers with "
            "scripted models, a grader, upkeep. (vLLM): "
            f"{faults_vllm.NUM_PROBLEMS * faults_vllm.NUM_SAMPLES} samples of the demo pair, 2 small workers and a "
            f"large one, with leases of 4 s. Settings: {settings}."
        )


def table(
    runs: Sequence[Run], *, key: Callable[[Run], tuple[str, ...]] = lambda run: (run.component, run.fault)
) -> str:
    """A line for each cell, in Markdown."""
    cells: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        cells.setdefault(key(run), []).append(run)
    rows = [HEAD, *(_row(cells[cell]) for cell in sorted(cells))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = ["| " + " | ".join(_padded(row, widths)) + " |" for row in rows]
    rules = ["-" * (width + 2) if column < 2 else "-" * (width + 1) + ":" for column, width in enumerate(widths)]
    return "\n".join([lines[0], f"|{'|'.join(rules)}|", *lines[1:]])


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.ljust(width) if column < 2 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def _row(runs: Sequence[Run]) -> tuple[str, ...]:
    verdicts = [run.verdict for run in runs]
    again = [verdict.again for verdict in verdicts]
    recoveries = [verdict.recovery_s for verdict in verdicts if verdict.recovery_s is not None]
    return (
        runs[0].fault,
        ", ".join(dict.fromkeys(run.component for run in runs)),
        str(len(runs)),
        str(sum(not run.is_good for run in runs)),
        str(sum(verdict.lost for verdict in verdicts)),
        str(sum(verdict.doubled for verdict in verdicts)),
        f"{statistics.median(again):g} / {max(again)}",
        f"{statistics.median(recoveries):.1f} / {max(recoveries):.1f}" if recoveries else "–",
    )
