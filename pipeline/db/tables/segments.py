"""Tables of what was written in a sample: segments, asides, signals and steps."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from pipeline.db.base import Base, Floats, Ids, Instant, choice
from pipeline.samples import (
    Author,
    ModelRole,
    SegmentFinish,
)


class SegmentRow(Base):
    """One uninterrupted piece of writing. Kept ids of segments 0…n-1, joined, are the sample's output."""

    __tablename__ = "segments"
    __table_args__ = (CheckConstraint("author <> 'judge'", name="no_judge"),)

    sample_id: Mapped[int] = mapped_column(
        ForeignKey("samples.id"), primary_key=True, autoincrement=False, comment="the sample"
    )
    segment_index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="from 0 in its sample")
    author: Mapped[Author] = mapped_column(choice(Author, "author"), comment="small, large or inserted")
    trigger: Mapped[str] = mapped_column(comment="why this author wrote here")
    cue: Mapped[str] = mapped_column(comment="the words that pulled the trigger, '' where none did")
    takes_over: Mapped[bool] = mapped_column(
        server_default="false",
        comment="the large model was called in here in the place of the small one: this alone is a takeover",
    )
    taken_from: Mapped[int | None] = mapped_column(
        comment="the aside whose head this is: nothing was generated for it; null: written for itself"
    )
    token_ids: Mapped[Ids] = mapped_column(comment="kept")
    text: Mapped[str] = mapped_column(comment="kept")
    discarded_ids: Mapped[Ids] = mapped_column(comment="written after the kept ones, not kept")
    discarded_text: Mapped[str] = mapped_column(comment="of discarded_ids")
    token_lengths: Mapped[Ids] = mapped_column(comment="characters per token, kept then discarded")
    finish: Mapped[SegmentFinish | None] = mapped_column(
        choice(SegmentFinish, "finish"), comment="null for inserted and taken ones"
    )
    value: Mapped[float | None] = mapped_column(comment="the number that decided about it, where one did")
    threshold: Mapped[float | None] = mapped_column(comment="what value was compared with")
    outcome: Mapped[str | None] = mapped_column(comment="what was decided by value")
    tokens_generated: Mapped[int] = mapped_column(
        comment="as its engine counts: kept, discarded and EOS, from the last of resumed_at on"
    )
    prompt_tokens: Mapped[int] = mapped_column(comment="given to the engine: the prompt and the output so far")
    cached_tokens: Mapped[int] = mapped_column(comment="of the prompt's, not computed again")
    seed: Mapped[int | None] = mapped_column(
        BigInteger,
        comment="null: inserted, taken, greedy, or the job draws without seeds; from the last of resumed_at on",
    )
    resumed_at: Mapped[Ids | None] = mapped_column(
        comment="tokens at which a later claim went on behind a stored part, with other noise; null: in one go"
    )
    epoch: Mapped[int] = mapped_column(comment="of the claim under which it was written")
    worker_id: Mapped[int] = mapped_column(ForeignKey("workers.id"), comment="that stored it")
    engine_id: Mapped[int] = mapped_column(ForeignKey("engines.id"), comment="its author's")
    content_sha256: Mapped[str | None] = mapped_column(
        comment="of what was written, for replay; null: stored before there was one"
    )
    wait_seconds: Mapped[float | None] = mapped_column(comment="from when it could be claimed to the claim")
    queue_seconds: Mapped[float | None] = mapped_column(comment="inside the engine before its first work")
    first_token_seconds: Mapped[float | None] = mapped_column(comment="from handing in to the first token")
    write_seconds: Mapped[float | None] = mapped_column(comment="from handing in to the end")
    held_seconds: Mapped[float | None] = mapped_column(
        comment="from its end to the commit, while more was written under the same claim"
    )
    committed_at: Mapped[Instant] = mapped_column(server_default=func.now(), comment="when it was stored")


class SegmentPartRow(Base):
    """What is written so far of a segment whose request still runs; deleted with the commit of that one.

    After a loss the next claim goes on behind the last one.
    """

    __tablename__ = "segment_parts"

    sample_id: Mapped[int] = mapped_column(
        ForeignKey("samples.id"), primary_key=True, autoincrement=False, comment="the sample"
    )
    segment_index: Mapped[int] = mapped_column(
        primary_key=True, autoincrement=False, comment="of the segment; a part counts while the sample has so many"
    )
    start_token: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="in the segment")
    token_ids: Mapped[Ids] = mapped_column(comment="as the engine wrote them, in its model's vocabulary")
    epoch: Mapped[int] = mapped_column(comment="of the claim under which it was written")
    worker_id: Mapped[int] = mapped_column(ForeignKey("workers.id"), comment="that wrote it")
    stored_at: Mapped[Instant] = mapped_column(server_default=func.now(), comment="when it was stored")


class AsideRow(Base):
    """A short piece on a side branch of a sample, which a policy asked for. It is never kept by itself.

    A segment that takes its head names it in taken_from. Asides of one after_segment come before that segment.
    """

    __tablename__ = "asides"

    sample_id: Mapped[int] = mapped_column(
        ForeignKey("samples.id"), primary_key=True, autoincrement=False, comment="the sample"
    )
    aside_index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="from 0 in its sample")
    after_segment: Mapped[int] = mapped_column(comment="segments that were there when it was asked for")
    author: Mapped[ModelRole] = mapped_column(choice(ModelRole, "author"), comment="small, large or judge")
    purpose: Mapped[str] = mapped_column(comment="what the policy asked it for")
    question: Mapped[str] = mapped_column(comment="fixed text after the kept text, '' for none")
    turn: Mapped[bool] = mapped_column(comment="the question was a new user message")
    opening: Mapped[str] = mapped_column(comment="what the reply was begun with, '' for nothing")
    after_asides: Mapped[list[list[int]]] = mapped_column(
        JSONB, comment="asides whose heads stood before the question: [index, number of tokens] of each"
    )
    token_ids: Mapped[Ids] = mapped_column(comment="as written, without EOS")
    text: Mapped[str] = mapped_column(comment="of token_ids")
    token_lengths: Mapped[Ids] = mapped_column(comment="characters per token")
    finish: Mapped[SegmentFinish] = mapped_column(choice(SegmentFinish, "finish"), comment="why it ended")
    top: Mapped[Floats] = mapped_column(
        comment="log-probabilities of the most likely first tokens, greatest first; empty where nothing was read"
    )
    labels: Mapped[dict[str, float | None]] = mapped_column(
        JSONB, comment="log-probability of each label as the first token; null: not among the most likely"
    )
    value: Mapped[float | None] = mapped_column(comment="the number that decided about it, where one did")
    threshold: Mapped[float | None] = mapped_column(comment="what value was compared with")
    outcome: Mapped[str | None] = mapped_column(comment="what was decided by value")
    tokens_generated: Mapped[int] = mapped_column(comment="as its engine counts: the ids and EOS")
    prompt_tokens: Mapped[int] = mapped_column(comment="kept text, heads of asides and question")
    cached_tokens: Mapped[int] = mapped_column(comment="of the prompt's, not computed again")
    seed: Mapped[int | None] = mapped_column(BigInteger, comment="null: greedy, or the job draws without seeds")
    epoch: Mapped[int] = mapped_column(comment="of the claim under which it was written")
    worker_id: Mapped[int] = mapped_column(ForeignKey("workers.id"), comment="that wrote it")
    engine_id: Mapped[int] = mapped_column(ForeignKey("engines.id"), comment="that worker's")
    content_sha256: Mapped[str] = mapped_column(comment="of what was written, for replay")
    wait_seconds: Mapped[float | None] = mapped_column(comment="from when it could be claimed to the claim")
    queue_seconds: Mapped[float | None] = mapped_column(comment="inside the engine before its first work")
    first_token_seconds: Mapped[float | None] = mapped_column(comment="from handing in to the first token")
    write_seconds: Mapped[float | None] = mapped_column(comment="from handing in to the end")
    held_seconds: Mapped[float | None] = mapped_column(
        comment="from its end to the commit, while more was written under the same claim"
    )
    committed_at: Mapped[Instant] = mapped_column(server_default=func.now(), comment="when it was stored")


class SignalRow(Base):
    """What a policy had read of the tokens of a segment (the discarded ones too) or an aside."""

    __tablename__ = "signals"
    __table_args__ = (CheckConstraint("kind IN ('segment', 'aside')", name="kind"),)

    sample_id: Mapped[int] = mapped_column(
        ForeignKey("samples.id"), primary_key=True, autoincrement=False, comment="the sample"
    )
    kind: Mapped[str] = mapped_column(primary_key=True, comment="segment or aside")
    index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="segment_index or aside_index")
    name: Mapped[str] = mapped_column(primary_key=True, comment="pipeline.signals.Signal")
    places: Mapped[Ids | None] = mapped_column(comment="tokens that have a value, from 0; null: each has one")
    values: Mapped[Floats] = mapped_column(comment="as the policy saw them; null: out of sight")


class StepRow(Base):
    """One reasoning step: the text between two breaks, whoever wrote it."""

    __tablename__ = "steps"

    sample_id: Mapped[int] = mapped_column(
        ForeignKey("samples.id"), primary_key=True, autoincrement=False, comment="the sample"
    )
    step_index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, comment="from 0 in its sample")
    text: Mapped[str] = mapped_column(comment="with the break that ends it")
    author: Mapped[Author] = mapped_column(choice(Author, "author"), comment="who wrote most of its tokens")
    tokens_small: Mapped[int] = mapped_column(comment="by the small model")
    tokens_large: Mapped[int] = mapped_column(comment="by the large model")
    tokens_inserted: Mapped[int] = mapped_column(comment="put in by the policy")
    start_token: Mapped[int] = mapped_column(comment="place of its first token in the output")
    sentence_class: Mapped[str] = mapped_column(comment="statement, reflection or affirmation")
    trigger: Mapped[str | None] = mapped_column(comment="of the takeover that begins in it")
