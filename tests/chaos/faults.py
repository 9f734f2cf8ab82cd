"""What a fault is: something done to a harness while a job runs, and what was seen of it."""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.chaos.harness import Harness
from tests.chaos.texts import NUM_SAMPLES
from tests.chaos.workload import GRADER, GRADER_AT_ONCE, ChaosJob

EITHER_GRADER = (GRADER, GRADER_AT_ONCE)


@dataclass(kw_only=True)
class Strike:
    """When something was broken, and who was struck. at: seconds since 1970. pids: the processes that were struck;
    none: the whole pipeline. kind: the kind of worker whose commits show that it goes on; None: any."""

    at: float = field(default_factory=time.time)
    pids: Sequence[int] = ()
    kind: str | None = None
    note: str = ""
    is_blow: bool = True
    """Whether it happened at one moment, from which recovery can be counted."""
    more: Sequence[Strike] = ()
    """What else was broken in the same run, independently; recovery is the slower one's."""


def as_one(strikes: Sequence[Strike]) -> Strike:
    """The first strike of a run, with the others beside it."""
    strikes[0].more = strikes[1:]
    return strikes[0]


class Fault(ABC):
    """One line of the matrix. A run is: prepare, submit, strike, wait for the job's end, heal, check.

    name, component: as the table shows them. setup and teardown happen once before and after all runs of the cell.
    timeout_s: how long the job may take after the strike.
    """

    name: str
    component: str
    timeout_s: float = 45.0
    is_on_vllm: bool = False
    """Whether it happens to the demo pair on vLLM instead of to scripted models."""
    graders: Sequence[str] = (GRADER,)
    """One of them is drawn for a run's job."""
    num_samples: int = NUM_SAMPLES
    """Of each problem in a run's job."""
    lasts_s: float = 6.0
    """About how long a run takes; the longest cells are begun first."""

    def setup(self, harness: Harness) -> None:  # noqa: B027  # most faults need none
        """Before the first run, on a healthy harness."""

    def teardown(self, harness: Harness) -> None:  # noqa: B027  # most faults need none
        """After the last run; must leave a harness that becomes healthy."""

    def prepare(self, harness: Harness, rng: random.Random) -> None:  # noqa: B027  # most faults need none
        """Before the job of a run is submitted."""

    def submit(self, harness: Harness, rng: random.Random, seed: int) -> ChaosJob:
        return harness.submit(seed, num_samples=self.num_samples, grader=rng.choice(self.graders))

    @abstractmethod
    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        """Break something. Raises Broken where it could not be broken, or where what must follow did not."""

    def heal(self, harness: Harness, job: ChaosJob) -> None:  # noqa: B027  # most faults need none
        """After the job ended or ran out of time, also where strike failed. The harness is waited for afterwards."""

    def check(self, harness: Harness, job: ChaosJob, strike: Strike) -> list[str]:
        """What else must hold after this fault, beside the invariants: what does not, in words."""
        return []

    @property
    def column(self) -> str:
        """The component as the table shows it."""
        return f"{self.component} (vLLM)" if self.is_on_vllm else self.component

    def __str__(self) -> str:
        return f"{self.column}: {self.name}"


class Together(Fault):
    """Several faults in one job, each at a moment of its own: mostly the same one of several kinds of worker."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        """faults: their strikes must need no order among them, and only the first submits."""
        self.name = ", ".join(dict.fromkeys(fault.name for fault in faults))
        self.component = "+".join(fault.component for fault in faults)
        self._faults = faults

    def setup(self, harness: Harness) -> None:
        for fault in self._faults:
            fault.setup(harness)

    def teardown(self, harness: Harness) -> None:
        for fault in self._faults:
            fault.teardown(harness)

    def submit(self, harness: Harness, rng: random.Random, seed: int) -> ChaosJob:
        return self._faults[0].submit(harness, rng, seed)

    def prepare(self, harness: Harness, rng: random.Random) -> None:
        for fault in self._faults:
            fault.prepare(harness, rng)

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        return as_one([fault.strike(harness, job, rng) for fault in self._faults])

    def heal(self, harness: Harness, job: ChaosJob) -> None:
        for fault in self._faults:
            fault.heal(harness, job)

    def check(self, harness: Harness, job: ChaosJob, strike: Strike) -> list[str]:
        strikes = zip(self._faults, [strike, *strike.more], strict=True)
        return [what for fault, its in strikes for what in fault.check(harness, job, its)]
