"""A claimed sample in a worker's hands: what it had, what was gathered since, what is being written."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from pipeline.db.claims import ClaimedSample
from pipeline.errors import PipelineError
from pipeline.policies.protocol import PolicyState, SampleContext
from pipeline.policies.requests import Request
from pipeline.samples import Author
from pipeline.segments import Aside, Segment, WrittenAside, WrittenSegment, take_head
from workers.engine.base import GenerateRequest
from workers.writing.job_setup import JobSetup
from workers.writing.latch import Latch

_SERIALS = itertools.count(1)


@dataclass(slots=True, kw_only=True, eq=False)
class ActiveSample:
    """A claimed sample in this process. Touched by one thread at a time, but for the flags."""

    sample: ClaimedSample
    setup: JobSetup
    context: SampleContext
    prompt_ids: list[int]
    state: PolicyState
    latch: Latch
    serial: int = field(default_factory=_SERIALS.__next__)
    """Its number in this process: after a restore a sample may be claimed again at the same epoch."""
    request: Request | None = None
    """What the engine carries out; None before the first."""
    engine_request: GenerateRequest | None = None
    segments: list[WrittenSegment] = field(default_factory=list)
    """Gathered under this claim, as asides are."""
    asides: list[WrittenAside] = field(default_factory=list)
    num_requests: int = 0
    """Carried out under this claim."""
    num_tokens: int = 0
    """Generated under this claim, whatever became of them."""
    submitted_at: float = 0.0
    """When its running request went to the engine, or a part of that was last stored; by ``time.monotonic``."""
    part_tokens: int = 0
    """Of the running request, stored while it runs."""
    ended_at: float | None = None
    """When its last request ended."""
    abandoned: bool = False
    """Taken away (cancelled, rescued): whatever it still gives is dropped."""
    handed_back: bool = False
    """The worker stops: what is gathered is stored, what is being written is dropped."""
    committing: bool = False
    """It is on the way to the database, which decides from here on."""

    @property
    def claim(self) -> tuple[int, int]:
        """sample id and epoch"""
        return self.sample.sample_id, self.sample.epoch

    @property
    def request_id(self) -> str:
        """Of its request to the engine: one at a time."""
        return f"{self.sample.sample_id}-{self.sample.epoch}-{self.serial}"

    @property
    def text(self) -> list[Segment]:
        """All segments of the sample, those included that are not stored yet."""
        return [*self.sample.context.segments, *self.segments]

    @property
    def num_segments(self) -> int:
        return len(self.sample.context.segments) + len(self.segments)

    @property
    def num_kept(self) -> int:
        """Tokens of the sample's text."""
        return self.sample.context.num_kept + sum(segment.num_kept for segment in self.segments)

    @property
    def num_asides(self) -> int:
        return len(self.sample.context.asides) + len(self.asides)

    @property
    def is_begun(self) -> bool:
        """Some of it is written, by whichever model."""
        stored = self.sample.context
        return self.num_requests > 1 or bool(stored.segments or stored.asides or self.sample.open_segment)

    @property
    def was_here(self) -> bool:
        """The model that has it now wrote some of it."""
        own = Author(self.setup.role.value)
        stored = self.sample.context
        authors = itertools.chain((s.author for s in stored.segments), (a.author for a in stored.asides))
        return self.num_requests > 1 or own in authors

    def aside(self, index: int) -> Aside:
        """One of the sample's asides. Raises PipelineError where there is none of that number."""
        stored = self.sample.context.asides
        if not 0 <= index < self.num_asides:
            raise PipelineError(f"{self.setup.policy_label} names aside {index}, but the sample has {self.num_asides}")
        return stored[index] if index < len(stored) else self.asides[index - len(stored)]

    def take(self, index: int, num_tokens: int, *, takes_over: bool = False) -> WrittenSegment:
        """The head of one of the sample's asides. Raises PipelineError where there is no such head, and where another
        model than large would take over."""
        aside = self.aside(index)
        if not 0 <= num_tokens <= len(aside.piece):
            raise PipelineError(
                f"{self.setup.policy_label} takes {num_tokens} tokens of aside {index}, which has {len(aside.piece)}"
            )
        if aside.author is Author.JUDGE:
            raise PipelineError(f"{self.setup.policy_label} takes aside {index}, which a judge wrote: it is never kept")
        if takes_over and aside.author is not Author.LARGE:
            raise PipelineError(
                f"{self.setup.policy_label} lets {aside.author} take over by aside {index}, but only large is called "
                "in in the place of small; leave takes_over out of this Take"
            )
        return take_head(aside, num_tokens, takes_over=takes_over)
