"""What an exit is: a pure reader of the think phase that finds the places where it may end.

An exit either decides at such a place itself, by what it has read, or it has a *trial*: an aside that is asked there,
and whose answer decides. Like a policy it does no I/O and reads no clock; what it remembers of a sample is small JSON,
stored in the state of the policy around which it is put (``pipeline.policies.exits.exiting``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pipeline.policies.protocol import PolicyState, Reading, SampleContext, Watcher
from pipeline.policies.reading.reader import Reader
from pipeline.policies.requests import Answered, Ask
from pipeline.samples import ModelRole
from pipeline.signals import Readings, Signal


@dataclass(frozen=True, slots=True)
class Token:
    """A token of the think phase, as an exit reads it.

    ends_step: whether it ends a step: a run of newlines is one break, at the token that makes it one. begins_step:
        whether it is the first of a step that a break goes before. readings: its signals, where they were read.
    """

    text: str
    ends_step: bool
    begins_step: bool
    readings: Readings | None


class ExitReader(Protocol):
    """Reads the think phase on, token by token, whoever wrote it."""

    num_back: int
    """At a place: how many of the tokens read last are thrown away before the phase ends."""
    reading: Reading | None
    """At a place: the number that decided."""

    @property
    def state(self) -> PolicyState:
        """What is remembered of the tokens read so far."""
        ...

    def feed(self, token: Token) -> bool:
        """Whether the think phase may end here."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an exit makes of its trial's answer. state: what it remembers from here on."""

    accepts: bool
    state: PolicyState
    reading: Reading | None = None


class Trial(Protocol):
    """The aside that an exit asks at a place. Immutable."""

    @property
    def ask(self) -> Ask: ...

    def watcher(self) -> Watcher:
        """Ends the aside where its answer is complete."""
        ...

    def judge(self, state: PolicyState, event: Answered) -> Verdict: ...


class Exit(Protocol):
    """Says where thinking has gone on long enough. Immutable."""

    @property
    def answer_role(self) -> ModelRole: ...

    @property
    def signals(self) -> frozenset[Signal]:
        """What is read of small's tokens for it."""
        ...

    @property
    def trial(self) -> Trial | None:
        """What is asked at a place; None: the exit decides by what it has read."""
        ...

    def reader(self, context: SampleContext, state: PolicyState, num_tokens: int) -> ExitReader:
        """A reader of the think phase from that output token on. state: as its reader or trial left it, at first {}."""
        ...


class PhaseWatcher:
    """Feeds an exit's reader while the think phase goes on."""

    __slots__ = ("exit", "reader")

    def __init__(self, reader: Reader, exit: ExitReader) -> None:
        self.reader = reader
        self.exit = exit

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        reader = self.reader
        reader.feed(text)
        return reader.thinking and self.exit.feed(Token(text, reader.ends_step, reader.begins_step, readings))
