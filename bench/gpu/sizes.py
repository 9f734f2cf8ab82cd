"""How much is measured: the models, the texts, the takeovers, and in which order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.jobs import Work
from bench.shapes import ENGINE_ARGUMENTS, SHAPES, make_model
from pipeline.devices import Machine, Pool, plan_workers
from pipeline.samples import WRITING_ROLES, ModelRole
from pipeline.settings import EngineSettings, VllmSettings

TAKEOVERS_PER_1000 = 7.7
"""Of the tokens of a text, and their lengths: as in traces of real pairs, where a takeover has 20 tokens and goes on to
the next end of a sentence, or has 125 at most."""
_SHORTEST, _LONGEST = 20, 125
_BREAK_EVERY = 40
"""Tokens per break in what the made models write: each so manieth of their words ends a paragraph."""
_MEAN_TAKEOVER = 27
"""Tokens: a sentence of theirs ends at each eighth word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is run. pairs: names of shapes, small and large. in_flight: of each engine; a large one's KV cache is
    dear, and it has a fifth of the tokens to write. one_by_one: samples of the loop of one at a time.

    job_seconds: a job is as large as engines alone could write in so long. problems: of the set; each has 1 to
    ``most_samples`` samples.
    """

    pairs: tuple[tuple[str, str], ...]
    max_tokens: int
    in_flight: Mapping[ModelRole, int]
    problems: int
    most_samples: int
    one_by_one: int
    alone: int
    job_seconds: float

    def samples_per_problem(self, tokens_per_second: float) -> int:
        """How many, where the engine writes so fast."""
        fitting = self.job_seconds * tokens_per_second / (self.problems * self.max_tokens)
        return max(1, min(self.most_samples, int(fitting)))


REAL = Size(
    pairs=(("1.5b", "7b"), ("1.5b", "32b")), max_tokens=512,
    in_flight={ModelRole.SMALL: 256, ModelRole.LARGE: 64}, problems=200, most_samples=5, one_by_one=4, alone=4,
    job_seconds=30.0,
)  # fmt: skip
TOY = Size(
    pairs=(("toy-small", "toy-large"),), max_tokens=160, in_flight=dict.fromkeys(WRITING_ROLES, 16), problems=8,
    most_samples=2, one_by_one=2, alone=1, job_seconds=30.0,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A thing to measure. least_s: not begun with less time left, since its engines alone would take that long."""

    name: str
    pair: tuple[str, str]
    least_s: float

    @property
    def title(self) -> str:
        """How figures and notes name it."""
        return f"{self.pair[0]} + {self.pair[1]}: {self.name}"


LEAST_S = {"bare small": 25.0, "bare large": 30.0, "pipeline": 70.0, "loops": 70.0, "AsyncLLM": 30.0}
"""By part, on a GPU; guesses at the start of its engines."""


def parts_of(size: Size) -> list[Part]:
    """In the order of what is worth most: later ones are left out where the time is up."""
    parts = []
    for place, pair in enumerate(size.pairs):
        names = ["bare small", "bare large", "pipeline", "loops"] if place == 0 else ["bare large", "pipeline"]
        parts += [Part(name=name, pair=pair, least_s=LEAST_S[name]) for name in names]
    return [*parts, Part(name="AsyncLLM", pair=size.pairs[0], least_s=LEAST_S["AsyncLLM"])]


def delegating(small: Path, large: Path, size: Size) -> Work:
    """The job whose takeovers are as many and as long as those of real pairs: random weights write no cues."""
    small_tokens = 1000 - TAKEOVERS_PER_1000 * _MEAN_TAKEOVER
    values = {
        "at": "break", "rate": round(TAKEOVERS_PER_1000 / (small_tokens / _BREAK_EVERY), 3), "tokens": _LONGEST,
        "handback": "sentence", "handback_from": _SHORTEST / _LONGEST,
    }  # fmt: skip
    return Work(small=small, large=large, policy="random", policy_values=values, max_tokens=size.max_tokens)


def hopping(work: Work) -> Work:
    """A job that hands over as often as it can, for how long that takes: one token each, at a tenth of the tokens."""
    values = {"at": "token", "rate": 0.1, "tokens": 1, "handback": "tokens"}
    return replace(work, policy_values=values)


def alone(work: Work) -> Work:
    """The small model's job."""
    return replace(work, large=None, policy="small-only", policy_values={})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two made models, their workers, and the settings of their engines as they share the machine."""

    work: Work
    pools: tuple[Pool, ...]
    engines: Mapping[ModelRole, EngineSettings]
    gpu: int | None

    def model(self, role: ModelRole) -> Path:
        """The folder."""
        model = self.work.small if role is ModelRole.SMALL else self.work.large
        assert model is not None
        return model


SETTINGS = EngineSettings(vllm=VllmSettings(arguments=ENGINE_ARGUMENTS, cpu_kv_cache_gib=0.25))
"""Of every engine here, but for what its pool says and what a plan chooses."""
VARIABLES = {
    "SPECTHINK_ENGINE__VLLM__ARGUMENTS": json.dumps(ENGINE_ARGUMENTS),
    "SPECTHINK_ENGINE__VLLM__CPU_KV_CACHE_GIB": "0.25",
    "SPECTHINK_LEASE__DRAIN_S": "1",
}
"""The same for worker processes, which do not linger when the time is up."""


def make_pair(names: tuple[str, str], size: Size, folder: Path, machine: Machine) -> Pair:
    """Write the models and plan their engines as ``up`` does. Raises ConfigurationError where they do not fit."""
    small, large = (folder / name if (folder / name).is_dir() else make_model(SHAPES[name], folder) for name in names)
    models = dict(zip(WRITING_ROLES, (small, large), strict=True))
    pools = [
        Pool(role=role, model=str(model), workers=1, max_in_flight=size.in_flight[role])
        for role, model in models.items()
    ]
    planned = plan_workers(pools, machine, SETTINGS)
    engines = {}
    for worker in planned.workers:
        chosen = {"gpu_memory_utilization": worker.share, "cpu_threads": worker.threads}
        given: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
        given |= {"process": "separate"} if worker.devices else {}
        vllm = worker.engine.vllm.model_copy(update=given)
        engines[worker.pool.role] = worker.engine.model_copy(update={"vllm": vllm})
    return Pair(
        work=delegating(small, large, size),
        pools=tuple(pools),
        engines=engines,
        gpu=machine.gpus[0].index if machine.gpus else None,
    )
