"""The model of a pipeline: what a sample is made of, how fast an engine writes, what a hand-over costs.

Plain values; ``fitting`` makes them from what was measured, ``simulation`` runs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from pipeline.samples import ModelRole


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One request to an engine. computed_tokens: of its prompt, those that the prefix cache does not have. stays: it
    was written under the same claim as the one before it, so that nothing was handed over between them."""

    role: ModelRole
    tokens: int
    computed_tokens: int = 0
    stays: bool = False


Trajectory: TypeAlias = tuple[Piece, ...]
"""The whole way of one sample, as it was measured: simulated samples are drawn from these, each as a whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRates:
    """How fast one engine writes. A step gives each running request one token.

    A step with n requests takes step_s + n × token_s seconds; a request that begins holds all of them up for
    request_s, and for prompt_token_s per computed token of its prompt.
    """

    step_s: float
    token_s: float
    request_s: float = 0.0
    prompt_token_s: float = 0.0

    def step_seconds(self, num_running: int) -> float:
        return self.step_s + num_running * self.token_s

    def start_seconds(self, piece: Piece) -> float:
        """How long a request holds its engine up when it begins."""
        return self.request_s + piece.computed_tokens * self.prompt_token_s

    def tokens_per_second(self, num_running: int) -> float:
        """Of all running requests together, while none begins."""
        return num_running / self.step_seconds(num_running)

    def faster(self, times: float) -> EngineRates:
        """The same engine on hardware that is so many times as fast."""
        return EngineRates(
            step_s=self.step_s / times,
            token_s=self.token_s / times,
            request_s=self.request_s / times,
            prompt_token_s=self.prompt_token_s / times,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The workers of one role. slots: samples that each of them writes at the same time."""

    num_workers: int
    slots: int
    rates: EngineRates


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOverCosts:
    """What passing one sample on costs, each in seconds per hand-over.

    delay_s: from a piece's end to the next claim, when nothing waits. worker_s: of the process that commits, beside its
    engine; postgres_s, redis_s: of the one server that all workers share. A part whose cost is 0 never holds up.
    """

    delay_s: float = 0.0
    worker_s: float = 0.0
    postgres_s: float = 0.0
    redis_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PartCosts:
    """What one hand-over takes of those parts that do not grow with the pools, in time of a core.

    postgres_cores: how many Postgres has. worker_token_us: per token that a worker's process takes in, in microseconds.
    origins: where each of these numbers comes from, by its name.
    """

    postgres_ms: float
    postgres_cores: float
    redis_ms: float
    worker_ms: float
    worker_token_us: float
    origins: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """How samples are let in: in rounds tick_s apart, until there are admit_ahead per slot of those who open them."""

    admit_ahead: float = 1.5
    tick_s: float = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineModel:
    """A pipeline to be simulated.

    cores: None where every worker has a device of its own; else so many cores are shared by all engines and servers,
    each getting at most one.
    """

    pools: Mapping[ModelRole, Pool]
    costs: HandOverCosts = HandOverCosts()
    cores: float | None = None
    admission: Admission = Admission()
