"""What a policy is: a pure function from (state, event) to (state, what to keep, what to add, what is next).

A policy does no I/O, reads no clock, and draws random numbers only from seeds made of (job seed, problem, sample
index, its own decision counter). Its state is small JSON stored with the sample, so that any worker can go on with
it, and a stored run can be replayed through it, signals and asides included.

The cycle: ``start`` gives the first transition. Its last decision is carried out by a worker of its role and answered
by one event; ``advance`` answers that with the next transition. A request for the role that the worker already has is
carried out at once, under the same claim; a hand-over happens only when the role changes.

A policy = one delegation, at most one exit, and guards (``pipeline.policies.composition``). A piece may be ended by
another part's watcher: a policy that does not find its own trigger in a piece keeps it and goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from pipeline.policies.requests import Ask, Event, Finish, Insert, Request, Take
from pipeline.samples import ModelRole
from pipeline.signals import Readings

PolicyState: TypeAlias = dict[str, Any]
"""Small JSON: strings, numbers, booleans, None, and lists and dicts of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleContext:
    """What a policy knows of a sample beside its own state; the same in every call for one sample."""

    job_seed: int
    problem_id: str
    """The problem's id in its file, so that seeds do not depend on a database."""
    sample_index: int
    max_tokens: int
    """Most output tokens the sample may keep, all authors together."""
    think_end: str
    """The tag that ends the think phase, as text, e.g. ``</think>``; '' for models without one."""
    num_prompt_tokens: int
    """Tokens of the rendered prompt, as the model that wrote first reads it."""
    think_start: str = ""
    """The tag that opens the think phase; '' for models without one."""
    think_opened: bool = True
    """Whether the prompt has opened it; else the text may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The number that decided, stored with the segment or aside that it was read from."""

    value: float
    threshold: float
    outcome: str
    """What was decided, e.g. "take_over"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One step of a policy.

    state: the next state.
    keep: how many of the first tokens that were written stay, the rest is discarded and booked to its author; given
        exactly where the event was ``Written``, else None.
    insert: what is put into the text after that, in order.
    then: what is next.
    reading: the number that decided, where one did.
    """

    state: PolicyState
    keep: int | None = None
    insert: tuple[Take | Insert, ...] = ()
    then: Request | Finish
    reading: Reading | None = None


class Watcher(Protocol):
    """Reads a model's text as it streams and says when to end the request. A watcher decides nothing else: the
    policy's ``advance`` finds the same place again in the whole piece, however many tokens came after it."""

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        """text: what the next token added. readings: its signals, None where none were asked for. True: end the request
        now. Not called again after that."""
        ...


class Policy(Protocol):
    """A rule for who writes what. Instances are immutable; everything about a sample is in its state."""

    @property
    def roles(self) -> frozenset[ModelRole]:
        """The roles this policy can call for; a job needs models for these only."""
        ...

    @property
    def asks(self) -> tuple[Ask, ...]:
        """One Ask of each kind that this policy makes; () where it makes none.

        Its question, turn, opening and labels are tried on the model of its role when a worker takes up the job, so
        that none of a job's samples is begun that could not be asked.
        """
        ...

    def start(self, context: SampleContext) -> Transition:
        """The first transition for a sample with no output yet; it keeps nothing."""
        ...

    def watcher(self, context: SampleContext, state: PolicyState) -> Watcher | None:
        """The watcher for the request that this state waits for; None where nothing may end it early."""
        ...

    def advance(self, context: SampleContext, state: PolicyState, event: Event) -> Transition:
        """What to keep of what was written, and what to do next."""
        ...
