"""What a policy is: a pure function from (state, event) to (state, decisions).

A policy does no I/O, reads no clock, and draws random numbers only from seeds made of (job seed, problem, sample
index, its own decision counter). Its state is small JSON stored with the sample, so that any worker can go on with
it, and a stored run can be replayed through it.

The cycle: ``start`` gives the first decisions. Each ``Generate`` is carried out by a worker of its role and answered
by one ``Written`` event; ``advance`` answers that with what to keep of it and what to do next. Decisions come in the
order ``[Keep] [Insert]* (Generate | Finish)``; ``Keep`` is there exactly when the event was ``Written``.

Left open for later policies (judge scores, entropy triggers, exits): further events and decisions are further
members of the two unions, carried out by the same worker loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from pipeline.samples import FinishReason, ModelRole, Piece, SegmentFinish

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A ``Generate`` was carried out: what the model of that role wrote, and why it stopped.

    start_token: output tokens kept before the piece, all authors together, those of an ``Insert`` included: only who
        tokenises the inserted sentence knows how many it became.
    finish: LENGTH with fewer tokens than were asked for says that the model's context is full.
    """

    role: ModelRole
    piece: Piece
    finish: SegmentFinish
    start_token: int


Event: TypeAlias = Written


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Keep the first num_tokens of what was written; the rest is discarded and booked to its author."""

    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Insert:
    """Put a fixed sentence into the text; it is tokenised by the worker that stores it."""

    text: str
    trigger: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Generate:
    """Let the model of a role go on with the kept text.

    max_tokens: at most so many; already clamped to the sample's remaining budget, at least 1.
    trigger: why this role writes now: "start", "resume" (small goes on after a takeover), or the takeover's trigger,
        e.g. "opening", "reflection", "affirmation", "verify", "too_much_reflection", "every_break", "random". The
        preset ``code`` also has "peek" (small looks ahead) and "sample_again" (it goes on from before its peek).
    cue: the words in the text that pulled the trigger, '' where there are none.
    """

    role: ModelRole
    max_tokens: int
    trigger: str
    cue: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The text is complete."""

    reason: FinishReason


Decision: TypeAlias = Keep | Insert | Generate | Finish


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """The next state and what to do, in order."""

    state: PolicyState
    decisions: tuple[Decision, ...]


class Watcher(Protocol):
    """Reads a model's text as it streams and says when to end the request. A watcher decides nothing else: the
    policy's ``advance`` finds the same place again in the whole piece, however many tokens came after it."""

    def feed(self, text: str) -> bool:
        """text: what the next token added. True: end the request now. Not called again after that."""
        ...


class Policy(Protocol):
    """A rule for who writes what. Instances are immutable; everything about a sample is in its state."""

    @property
    def roles(self) -> frozenset[ModelRole]:
        """The roles this policy can call for; a job needs models for these only."""
        ...

    def start(self, context: SampleContext) -> Transition:
        """The first decisions for a sample with no output yet."""
        ...

    def watcher(self, context: SampleContext, state: PolicyState) -> Watcher | None:
        """The watcher for the ``Generate`` that this state waits for; None where nothing may end it early."""
        ...

    def advance(self, context: SampleContext, state: PolicyState, event: Event) -> Transition:
        """What to keep of what was written, and what to do next."""
        ...
