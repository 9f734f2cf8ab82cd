"""Samples: one solution drawn for one problem of one job, and the records it is made of.

A sample moves through the states below; the database refuses any other move (see pipeline/db/sql/).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeAlias


class ModelRole(StrEnum):
    """Which of a job's models."""

    SMALL = "small"
    LARGE = "large"
    JUDGE = "judge"
    """Says how good a step is; writes no text."""


WRITING_ROLES = (ModelRole.SMALL, ModelRole.LARGE)
"""Those whose texts may be kept: a judge writes asides alone."""
WritingRole: TypeAlias = Literal[ModelRole.SMALL, ModelRole.LARGE]
"""One of them, in a spec."""


class Author(StrEnum):
    """Who wrote a piece: one of the models, or the policy (a fixed sentence). Of a judge there are asides alone."""

    SMALL = "small"
    LARGE = "large"
    INSERTED = "inserted"
    JUDGE = "judge"


class SampleState(StrEnum):
    """Where a sample is in its life."""

    PENDING = "pending"  # stored, not yet admitted
    READY = "ready"  # waits for a small worker
    DRAFTING = "drafting"  # a small worker writes
    AWAITING_LARGE = "awaiting_large"  # waits for a large worker
    ASSISTING = "assisting"  # a large worker writes
    AWAITING_JUDGE = "awaiting_judge"  # waits for a judge worker
    JUDGING = "judging"  # a judge worker says how good a step is
    FINISHED = "finished"  # the text is complete, waits for its grade
    GRADED = "graded"  # final: complete and graded (score may be none: unscored)
    FAILED = "failed"  # final: set aside with its error
    CANCELLED = "cancelled"  # final: its job was cancelled


SUSPECT_AFTER = 2
"""A sample whose worker died with it so many times without a commit between them is a suspect: no worker has two."""
ALONE_AFTER = 3
"""From so many deaths on a suspect is tried with nothing else in its engine: a death of that one is its own work."""
GUILTY_AFTER_LAPSES = 5
"""A suspect is blamed for a worker that vanished only after so many losses without a commit between them: a cut cable,
a suspended machine or a reclaimed host is likelier than a sample that takes the whole process with it."""

FINAL_STATES = frozenset({SampleState.GRADED, SampleState.FAILED, SampleState.CANCELLED})
IDLE_STATES = FINAL_STATES | {SampleState.PENDING}
"""Nobody is about to do anything with a sample: what it adds to its job's totals can be kept."""

RUNNABLE_STATE = {
    ModelRole.SMALL: SampleState.READY,
    ModelRole.LARGE: SampleState.AWAITING_LARGE,
    ModelRole.JUDGE: SampleState.AWAITING_JUDGE,
}
"""The state in which a sample waits for a role."""

WRITING_STATE = {
    ModelRole.SMALL: SampleState.DRAFTING,
    ModelRole.LARGE: SampleState.ASSISTING,
    ModelRole.JUDGE: SampleState.JUDGING,
}
"""The state in which a worker of a role has it."""

_S = SampleState
TRANSITIONS: frozenset[tuple[SampleState, SampleState]] = frozenset(
    {
        (_S.PENDING, _S.READY),  # admitted
        (_S.PENDING, _S.AWAITING_LARGE),  # admitted, the large model opens
        (_S.READY, _S.DRAFTING),  # claimed
        (_S.AWAITING_LARGE, _S.ASSISTING),  # claimed
        (_S.DRAFTING, _S.AWAITING_LARGE),  # taken over
        (_S.DRAFTING, _S.READY),  # rescued, or goes on with the same model
        (_S.ASSISTING, _S.READY),  # handed back
        (_S.ASSISTING, _S.AWAITING_LARGE),  # rescued, or goes on with the same model
        (_S.PENDING, _S.AWAITING_JUDGE),  # tried again, where a judge was asked
        (_S.DRAFTING, _S.AWAITING_JUDGE),  # a judge is asked
        (_S.ASSISTING, _S.AWAITING_JUDGE),  # a judge is asked
        (_S.AWAITING_JUDGE, _S.JUDGING),  # claimed
        (_S.JUDGING, _S.READY),  # judged, small goes on
        (_S.JUDGING, _S.AWAITING_LARGE),  # judged, large goes on
        (_S.JUDGING, _S.AWAITING_JUDGE),  # rescued, or goes on with the same model
        (_S.JUDGING, _S.FINISHED),
        (_S.DRAFTING, _S.FINISHED),
        (_S.ASSISTING, _S.FINISHED),
        (_S.FINISHED, _S.GRADED),
        (_S.FAILED, _S.PENDING),  # tried again, from its last committed segment
        (_S.GRADED, _S.PENDING),  # cut by its budget and drawn again with a larger one
    }
    | {(state, end) for state in _S if state not in FINAL_STATES for end in (_S.FAILED, _S.CANCELLED)}
)


class ErrorClass(StrEnum):
    """Why a sample was set aside. Transient failures are tried again before they come to this."""

    BAD_INPUT = "bad_input"  # its problem cannot be made into a prompt
    BUDGET = "budget"  # its prompt leaves no room in the model's context
    ENGINE_REFUSED = "engine_refused"  # the engine will not take it, or would not for too many tries
    ENGINE_DIED = "engine_died"  # its worker died with it, again and alone
    TIMED_OUT = "timed_out"  # its engine gave no token for too long, again and alone
    INTERNAL = "internal"  # a fault of the pipeline


class FinishReason(StrEnum):
    """Why a sample's text ended."""

    EOS = "eos"  # the model said so
    LENGTH = "length"  # the job's max_tokens are used up
    CONTEXT = "context"  # the model's context is full
    REPETITION = "repetition"  # the loop guard ended it
    STOP = "stop"  # it came to a stop string of the job's


ENDED = frozenset({FinishReason.EOS, FinishReason.STOP})
"""The text is whole; what ended otherwise was cut."""


class CutSamples(StrEnum):
    """What a sample counts as that was cut off before it stated an answer."""

    WRONG = "wrong"  # it has given none in what it was given
    UNSCORED = "unscored"  # it is left out of every mean


class SegmentFinish(StrEnum):
    """Why one request to an engine ended."""

    EOS = "eos"  # the model's end of sequence (the EOS id itself is not part of the ids)
    LENGTH = "length"  # max_tokens of the request
    WATCH = "watch"  # the watcher ended it


class GradeStatus(StrEnum):
    """How far one grading of one sample came."""

    RUNNING = "running"  # a grader has it, or died with it
    DONE = "done"
    TIMEOUT = "timeout"  # it ran past the hard limit; the sample stays unscored
    ERROR = "error"  # it broke; the sample stays unscored


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Text as one engine wrote it, token by token.

    token_ids: as generated, without EOS.
    texts: what each token added to the text; characters that span tokens come with the last of theirs, the
    earlier ones add "". ``"".join(texts)`` is the whole text. A character that the last tokens leave unfinished has
    no text: it comes with the next piece where that goes on with these very ids, and never otherwise.
    """

    token_ids: tuple[int, ...]
    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.texts):
            raise ValueError(f"{len(self.token_ids)} token ids but {len(self.texts)} texts")

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def __len__(self) -> int:
        return len(self.token_ids)

    def head(self, num_tokens: int) -> Piece:
        return Piece(token_ids=self.token_ids[:num_tokens], texts=self.texts[:num_tokens])
