"""What a harness is for: which programs run on it, which jobs they are given, and what must come out of these."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from pipeline.client import Client
from pipeline.samples import ModelRole
from tests.chaos.models import MODELS
from tests.chaos.texts import NUM_CUES, NUM_PROBLEMS, NUM_SAMPLES, expected_text, problem_set

GRADER = "math"
"""The one that takes its time: in a child of the worker, with a mark that it has begun."""
GRADER_AT_ONCE = "exact"
"""One that takes no time: graded and stored in one transaction. The scripted texts have the same score with both."""


@dataclass(frozen=True, slots=True)
class ChaosJob:
    """A submitted job of the harness. seed: of the run. num_samples: per problem."""

    id: int
    seed: int
    num_samples: int = NUM_SAMPLES


class Ending(NamedTuple):
    """What must come of a sample."""

    text: str
    score: float | None


class Workload(ABC):
    """Programs and jobs."""

    programs: Mapping[str, str]
    """Program → its kind of worker."""
    environment: Mapping[str, str] = MappingProxyType({})
    """Settings of all programs beside the harness's."""
    own_environment: Mapping[str, Mapping[str, str]] = MappingProxyType({})
    """Program → settings of it alone."""
    imports: str = "tests.chaos.supervisor:import_all"
    """``module:function`` that imports what the programs import; see tests.chaos.supervisor."""
    start_timeout_s: float = 60.0
    """How long a program may take to register."""

    @abstractmethod
    def submit(self, client: Client, seed: int, *, num_samples: int, grader: str) -> int:
        """The id of a new job."""

    @abstractmethod
    def num_segments(self, job: ChaosJob) -> int:
        """About how many segments it has in the end."""

    @abstractmethod
    def endings(self, job: ChaosJob) -> Mapping[tuple[str, int], Ending]:
        """By the problem's id in its set and the sample's number: what must come of each."""


class Scripted(Workload):
    """Two small and two large workers with scripted models, whose every text is known beforehand."""

    programs: Mapping[str, str] = MappingProxyType(
        {
            "small-1": "small", "small-2": "small", "large-1": "large", "large-2": "large", "grade": "grade",
            "upkeep": "upkeep",
        }
    )  # fmt: skip

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """environment: settings of all programs beside the harness's."""
        self.environment = environment or {}

    def submit(self, client: Client, seed: int, *, num_samples: int, grader: str) -> int:
        return submit_job(client, seed, num_samples=num_samples, grader=grader)

    def num_segments(self, job: ChaosJob) -> int:
        return NUM_PROBLEMS * job.num_samples * (2 * NUM_CUES + 1)

    def endings(self, job: ChaosJob) -> Mapping[tuple[str, int], Ending]:
        return {
            (str(number), index): Ending(expected_text(job.seed, number, index), 1.0)
            for number in range(NUM_PROBLEMS)
            for index in range(job.num_samples)
        }


def submit_job(client: Client, seed: int, *, num_samples: int = NUM_SAMPLES, grader: str = GRADER) -> int:
    """The id of a new job of the scripted models, with the problems of this seed."""
    job = client.submit(
        problem_set(seed),
        small=MODELS[ModelRole.SMALL],
        large=MODELS[ModelRole.LARGE],
        num_samples=num_samples,
        seed=seed,
        max_tokens=1000,
        grader=grader,
        name=f"chaos {seed}",
    )
    return job.id
