"""The protocol between the workers and an inference engine.

An engine takes token ids and gives token ids; text exists so that a stop rule can read along. ``Engine`` is what the
worker loop sees; ``VllmEngine`` (workers/engine/vllm/adapter.py) is the real one, ``ScriptedEngine``
(workers/engine/scripted.py) answers from a script in unit tests and in measurements of everything but the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.samples import Piece, SegmentFinish
from pipeline.signals import NUM_TOP, Readings, Signal, SignalValues


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn. Source of the defaults: the released code of arXiv 2504.12329."""

    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 50
    """0: off."""
    min_p: float = 0.0
    """0: off."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    """1: off."""


class StopRule(Protocol):
    """Reads a request's text as it streams and says when to end it."""

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        """text: what the next token added. readings: its signals, None where the request asks for none. True: end the
        request now. Not called again after that."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """One request: go on after these ids.

    request_id: unique in the process. prompt_ids: the rendered prompt and all kept output, as this model's ids.
    priority: lower goes first. watcher: reads each token's text and signals; its True ends the request.
    seed: fixes the request's noise, None for none.
    signals: what to read of each token. think_end_id: the closing think tag's id, for FIRST_MARGIN; None where the tag
        is no single token.
    written: ids that an earlier request wrote for this one: the first of its piece, and of its max_tokens. Where
        signals or the first token are read there are none.
    labels: by name the ids that count for it; the log-probability of each as the first token is read. reads_top: so are
        those of the most likely first tokens.
    context: the number of the text that it goes on with; what an earlier request of the same number left in the prefix
        cache is found again. None: of a text that does not come again.
    """

    request_id: str
    prompt_ids: Sequence[int]
    max_tokens: int
    sampling: Sampling
    seed: int | None = None
    priority: int = 0
    watcher: StopRule | None = field(default=None, compare=False)
    signals: frozenset[Signal] = frozenset()
    think_end_id: int | None = None
    labels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    reads_top: bool = False
    written: Sequence[int] = ()
    context: int | None = None

    @property
    def context_ids(self) -> Sequence[int]:
        """What the engine goes on after."""
        return [*self.prompt_ids, *self.written] if self.written else self.prompt_ids

    @property
    def max_new_tokens(self) -> int:
        """Most tokens that the engine generates."""
        return self.max_tokens - len(self.written)

    @property
    def reads_first(self) -> bool:
        """Whether the distribution of the first token is part of the answer."""
        return self.reads_top or bool(self.labels)

    @property
    def num_logprobs(self) -> int | None:
        """How many of the most likely tokens the engine must report with each token; 1 where only the drawn one
        matters, None where no log-probability does."""
        if not self.signals and not self.reads_first:
            return None
        return NUM_TOP if self.reads_first or self.signals != {Signal.LOGPROB} else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateResult:
    """What a request gave.

    piece: all tokens the engine produced but EOS, those after the watcher's word included.
    num_generated_tokens: as the engine counts them, EOS included; not those that were written before.
    num_prompt_tokens: given; num_cached_tokens: of these, found in the prefix cache (not computed).
    queue_seconds: from submit to the engine's first work on it; first_token_seconds: from submit to the first token
    here; total_seconds: from submit to the end.
    signals: those that were asked for, each with one entry per token of the piece.
    labels: log-probability of each label as the first token, all its ids together; None where none of them was among
        the most likely. top: of the most likely first tokens, greatest first; () where it was not asked for, or no
        token came.
    """

    request_id: str
    piece: Piece
    finish: SegmentFinish
    num_generated_tokens: int
    num_prompt_tokens: int
    num_cached_tokens: int
    queue_seconds: float
    first_token_seconds: float
    total_seconds: float
    signals: SignalValues = field(default_factory=dict)
    labels: Mapping[str, float | None] = field(default_factory=dict)
    top: tuple[float, ...] = ()


Done = Callable[["GenerateResult | Exception"], None]
"""Called once per request: must be quick, and may submit. An exception is a PipelineError.

From the engine's thread, or from within submit() where the request is refused and within abort() where it ends.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What an engine is: stored once per distinct content, beside every segment that it wrote."""

    kind: str
    """"vllm", "server" or "scripted"."""
    version: str
    settings: dict[str, str | int | float | bool | None]
    """All that may change its numbers: model, revision, dtype, device, torch, block size, process mode, ..."""
    has_own_device: bool = False
    """Whether it computes elsewhere than on the cores of its worker. Not stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Running totals since the start, from the engine's own counters."""

    num_generated_tokens: int
    num_lost_tokens: int
    """Of these, by requests that ended with an exception: nobody got them."""
    num_prompt_tokens: int
    num_cached_tokens: int
    num_running: int
    num_waiting: int
    cache_usage: float
    """Share of the KV cache in use by running requests, 0 to 1."""
    cache_tokens: int | None
    """Tokens that the KV cache holds; None: it has no end."""
    last_token_age_s: float
    """Seconds since any request got a token; 0.0 while nothing runs. A stalled engine is found by this."""
    prefill_s: float = 0.0
    """About how long a step may take because of the prompts that wait for their first token: silence is no stall until
    it has lasted longer."""
    num_drafts: int = 0
    """Steps of a request for which an accelerator drafted tokens."""
    num_draft_tokens: int = 0
    """In these drafts."""
    num_accepted_tokens: int = 0
    """Of these, taken over: generated tokens like any other."""
    is_dead: bool = False
    """The engine will answer no more requests. An engine that dies while idle shows it only here."""


class Engine(Protocol):
    """One loaded model that answers many requests at once."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and output together."""
        ...

    @property
    def max_in_flight(self) -> int:
        """Requests it runs at the same time; more wait inside it."""
        ...

    def why_not(self, sampling: Sampling) -> str | None:
        """Why it draws no tokens so, with what can be done; None where it does."""
        ...

    def submit(self, request: GenerateRequest, done: Done) -> None:
        """Hand in a request; returns at once. Thread-safe.

        done gets PromptTooLong, EngineUnavailable, EngineDied, or another EngineError for a request that cannot be
        carried out, where there is no result. Raises ValueError for a request_id that is in use.
        """
        ...

    def abort(self, request_id: str) -> None:
        """End a request early; its ``done`` gets what was written so far, with finish WATCH. Unknown ids: no effect."""
        ...

    def written(self, request_id: str) -> Sequence[int] | None:
        """The ids that a running request has written so far, ``request.written`` included; None where none runs."""
        ...

    def stats(self) -> EngineStats: ...

    def close(self) -> None:
        """Stop; requests still running get EngineDied. Idempotent."""
        ...
