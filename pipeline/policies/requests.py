"""What a policy may ask for, and what comes back.

A ``Generate`` goes on with the sample's text. An ``Ask`` writes a short piece on a side branch, an *aside*, which is
never kept by itself: ``Take`` copies the head of one into the text. ``Written`` and ``Answered`` are the events that
carry each of them out.

Adding a field to a request touches this file, the policy that sets it, and ``workers/writing/turn.py``, which carries
it out: the database stores requests as one JSON value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, TypeAlias

import orjson
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as checked_dataclass

from pipeline.errors import DamagedRow
from pipeline.samples import WRITING_ROLES, FinishReason, ModelRole, Piece, SegmentFinish
from pipeline.signals import Signal, SignalValues


class Trigger(StrEnum):
    """Why a segment was written. A policy of another package may have triggers of its own."""

    START = "start"  # the first writing of a sample
    OPENING = "opening"  # large writes first, before the policy's rule begins
    RESUME = "resume"  # small goes on after large
    REFLECTION = "reflection"  # a cue of doubt after a break
    AFFIRMATION = "affirmation"  # a cue of agreement after a break
    VERIFY = "verify"  # a cue that announces a check
    TOO_MUCH_REFLECTION = "too_much_reflection"  # so many reflections that large checks all
    EVERY_BREAK = "every_break"  # the policy delegates at every break
    REPETITION = "repetition"  # small writes in a loop
    RANDOM = "random"  # drawn by the control
    GLIMPSE = "glimpse"  # the first token of a step was uncertain
    REDO = "redo"  # the tokens of a step were too unlikely: large writes it again
    OFFLOAD = "offload"  # the tokens of a step were too likely: large writes it again
    HESITATION = "hesitation"  # words of hesitation in several steps of small in a row
    RELAY = "relay"  # small writes on after a cue of large, to the end of the sentence
    LEAD = "lead"  # large leads on after that sentence
    REJECTED = "rejected"  # large did not accept a step that small drafted
    PEEK = "peek"  # preset code: small looks ahead
    SAMPLE_AGAIN = "sample_again"  # preset code: small goes on from before its peek
    PEEK_KEPT = "peek_kept"  # preset code: small's peek, put back into the text
    EXIT = "exit"  # the closing think tag, put in by an exit
    ANSWER = "answer"  # the answer after an exit from the think phase
    STOP = "stop"  # the beginning of a token in which a stop string begins


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Generate:
    """Let the model of a role go on with the kept text.

    max_tokens: at most so many; already clamped to the sample's remaining budget, at least 1.
    trigger: why this role writes now, a Trigger or a text of the policy's own.
    takes_over: whether large is called in here in the place of small. This is the only meaning of "takeover": whatever
        counts takeovers counts segments whose request said so.
    cue: the words in the text that pulled the trigger, '' where there are none.
    signals: what to read of each token, for the watcher and the policy.
    """

    role: ModelRole
    max_tokens: Annotated[int, Field(ge=1)]
    trigger: str
    takes_over: bool = False
    cue: str = ""
    signals: frozenset[Signal] = frozenset()

    def __post_init__(self) -> None:
        if self.takes_over and self.role is not ModelRole.LARGE:
            raise ValueError(
                f"the policy lets {self.role} take over (trigger {self.trigger!r}), but only large is called in in "
                "the place of small; leave takes_over out of this Generate"
            )
        if self.role not in WRITING_ROLES:
            raise ValueError(f"the policy lets {self.role} write (trigger {self.trigger!r}), which only answers an Ask")


class Layout(StrEnum):
    """How a judge's frame is laid out."""

    MESSAGE = "message"  # one message of a user, in the judge's chat template
    TURNS = "turns"  # a message of a user for each step, each but the last answered by the label of a good one
    TEXT = "text"  # plain text, for a model that was trained without a template


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Frame:
    """What a judge reads: the problem and the steps so far, as it was trained to read them.

    before: what stands before the first step, with {problem} in it. step: what becomes of each step, with {step} in
    it. between: what stands between two steps. The question of the Ask stands behind the last one.
    """

    layout: Layout
    before: str
    step: str
    between: str = ""

    def __post_init__(self) -> None:
        if "{problem}" not in self.before or "{step}" not in self.step:
            raise ValueError("a judge's frame shows no {problem} before the steps, or no {step}")


@checked_dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Ask:
    """Let the model of a role write an aside: after the kept text, the named asides and the question.

    purpose: what it is for, e.g. "rate"; stored and counted by.
    question: fixed text. turn: the question is a new user message, and ``opening`` pre-fills the reply.
    after: (aside index, number of its first tokens) of each aside that stands before the question.
    greedy: the most likely token each time; else the job's sampling.
    labels: texts whose log-probability as the first token is read. labels_begin: a label counts by the first token of
        its own text, where it has no token for itself.
    frame: of a judge, in the place of prompt and kept text: the last step that it shows is the one that is judged.
    An Ask with no room in the model's context is answered with an empty piece and no labels; it never ends the sample.
    """

    role: ModelRole
    purpose: str
    question: str = ""
    turn: bool = False
    opening: str = ""
    after: tuple[tuple[int, int], ...] = ()
    max_tokens: Annotated[int, Field(ge=1)] = 1
    greedy: bool = True
    labels: tuple[str, ...] = ()
    labels_begin: bool = False
    signals: frozenset[Signal] = frozenset()
    frame: Frame | None = None

    def __post_init__(self) -> None:
        fault = next((told for is_there, told in self._faults() if is_there), None)
        if fault is not None:
            raise ValueError(f"the policy's Ask {self.purpose!r} {fault}")

    def _faults(self) -> Iterator[tuple[bool, str]]:
        yield not self.purpose, "has no purpose; say what it is for, since it is counted by that"
        replies = self.turn or (self.frame is not None and self.frame.layout is not Layout.TEXT)
        yield bool(self.opening and not replies), "has an opening but no turn; put that text into the question"
        yield self.labels_begin and not self.labels, "says labels_begin but has no labels; leave it out"
        yield (self.role is ModelRole.JUDGE) is not (self.frame is not None), "must have a frame exactly for a judge"
        yield bool(self.frame and self.turn), "has a frame and a turn; a judge is asked within its frame"
        yield "" in self.labels, "has an empty label, which no token begins; leave it out"
        yield len(set(self.labels)) < len(self.labels), "has a label twice; give each once"
        yield any(index < 0 or num < 1 for index, num in self.after), "stands after no token; leave that aside out"


Request: TypeAlias = Generate | Ask


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The text is complete."""

    reason: FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Insert:
    """Put a fixed sentence into the text; the worker that stores it tokenises it."""

    text: str
    trigger: str

    def __post_init__(self) -> None:
        if not self.text:
            raise ValueError(f"the policy inserts nothing (trigger {self.trigger!r}); leave this Insert out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    """Put the first num_tokens of an aside into the text, as a segment by the aside's author.

    takes_over: as in ``Generate``; the aside is large's, and stands where small would have gone on.
    """

    index: int
    num_tokens: int
    takes_over: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A ``Generate`` was carried out: what the model of that role wrote, and why it stopped.

    start_token: output tokens kept before the piece, all authors together, those of an ``Insert`` included: only who
        tokenises the inserted sentence knows how many it became.
    finish: LENGTH with fewer tokens than were asked for says that the model's context is full; the piece is empty
        where there was no room at all.
    signals: the readings that were asked for, one entry per token.
    """

    role: ModelRole
    piece: Piece
    finish: SegmentFinish
    start_token: int
    signals: SignalValues = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """An ``Ask`` was carried out.

    index: of the aside in its sample, from 0.
    top: log-probabilities of the most likely first tokens, greatest first; () where nothing was read.
    labels: log-probability of each label as the first token, all its spellings together; None where none was among the
        most likely.
    start_token: as in ``Written``.
    """

    index: int
    role: ModelRole
    piece: Piece
    finish: SegmentFinish
    start_token: int
    top: tuple[float, ...] = ()
    labels: Mapping[str, float | None] = field(default_factory=dict)
    signals: SignalValues = field(default_factory=dict)


Event: TypeAlias = Written | Answered


# Requests as the database stores them.

_VERSION = 1
_KINDS: dict[str, TypeAdapter[Any]] = {"generate": TypeAdapter(Generate), "ask": TypeAdapter(Ask)}


def request_to_json(request: Request) -> dict[str, Any]:
    """The request as one versioned JSON value."""
    kind = "ask" if isinstance(request, Ask) else "generate"
    fields = {name: getattr(request, name) for name in request.__dataclass_fields__}
    return {"version": _VERSION, "kind": kind, **fields, "signals": sorted(request.signals)}


def request_from_json(value: Any) -> Request:
    """The request that was stored. Raises DamagedRow for anything that ``request_to_json`` did not write."""
    if not isinstance(value, dict) or not {"version", "kind"} <= value.keys():
        raise DamagedRow(f"no request: {value!r}")
    fields = dict(value)
    version, kind = fields.pop("version"), fields.pop("kind")
    if version != _VERSION:
        raise DamagedRow(f"a request of version {version!r}; this program reads version {_VERSION}")
    try:
        request: Request = _KINDS[kind].validate_json(orjson.dumps(fields), strict=True)
    except (KeyError, TypeError, ValueError) as error:  # a ValidationError is a ValueError
        raise DamagedRow(f"no request: {value!r}") from error
    is_whole = fields.keys() == request.__dataclass_fields__.keys()  # what is missing would be its default
    if not is_whole or fields["signals"] != sorted(request.signals):
        raise DamagedRow(f"no request: {value!r}")
    return request
