"""Speculative Thinking as its authors released it: the preset ``code``.

Source: the released implementation of arXiv 2504.12329 (2025-05), its path with two vLLM engines. Its loop:

    opening, once, where configured: large writes
    while the tokens so far, prompt included, are within max_tokens:
        small writes until a break, its end, or draft_tokens; its end: stop
        a break among the draft's last tokens:
            reflections >= threshold (R3)   the sentence is inserted, large writes n3; looked at before any peek
            else small peeks n1 tokens; anything but a statement, or every_break (R1):
                large writes n1; kept if choose_large or if the two classes disagree, else small's peek is
                a reflection was kept: it counts
                a verify cue was kept (R2): large writes n2 more
            a statement: the peek is thrown away, and small writes the step again
        an end among the last n1 tokens: stop

Its faults are kept, because they are what its published numbers were made with: cues match inside other words, a
statement is sampled twice, R2 comes on top of R1, takeovers go on after the closing think tag, and no request is
clamped to the budget, which is looked at between two rounds only (so that the first draft is always written).

What cannot be reproduced, and what happens instead:

- Budgets beyond any bound: a sample never keeps more than max_tokens of output, so that a request is clamped to what
  max_tokens leaves for output (the prompt not counted), and the sample ends where nothing is left.
- A crash: the code dies where a prompt fills the model's context. Here the sample ends as ``context``.
- Ends inside the text: the code keeps an end-of-sequence id in the text, where R2 makes the large model write on after
  it. Here the id is not part of the text, and what it decides is the same.
- Two vocabularies: the code mixes their ids. Here text is exchanged; a writer's last tokens that make no whole
  character are left to the next one, with one vocabulary, too, so that the stored text is that of the stored ids.
- small's peek kept after large has written (choose_large off): it is by then stored as discarded, so that its text
  comes back as an inserted segment with the trigger "peek_kept", tokenised anew. Until the next request it counts as
  the tokens it was.
- A word inserted before each peek (``help_think_word``): no released configuration has one, so there is none here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from pipeline.policies.protocol import SampleContext, Transition, Watcher
from pipeline.policies.reading.cues import PAPER_CUES, CueLists, LooseReading, SentenceClass, read_loosely
from pipeline.policies.requests import Insert, Trigger
from pipeline.policies.speculative_thinking.rules import INSTRUCT_OPENING, ReflectionState, Rules
from pipeline.policies.turns import Count, PairPolicy, Tokens, Turn, first_turn, whole_characters
from pipeline.samples import FinishReason, ModelRole, SegmentFinish
from pipeline.signals import Readings

Phase: TypeAlias = Literal["opening", "draft", "peek", "answer", "verify", "check"]
"""What is being written: a draft or a peek by small, the others by large. answer: to a peek; verify: R2; check: R3."""
BREAK = "\n\n"


class CodeRules(Rules):
    """Every number of the preset ``code``; the defaults are those of the released configurations for a pair of
    reasoning models.

    ``n1`` is one number there, too: of the peek, of large's answer to it, and of the last tokens in which an end stops
    the sample. ``threshold`` counts in what is kept of peeks and of large's answers to them, nowhere else.
    """

    cues: CueLists = PAPER_CUES
    """Paper, appendix; the same in every configuration of the code."""
    choose_large: bool = True
    """Whether large's answer to a peek is kept in any case; off: only where the classes disagree, one of them being a
    reflection. Code: on in every released configuration."""
    draft_tokens: Tokens = 1024
    """Most tokens of one draft of the small model. Code: 1024."""
    break_within: Annotated[int, Field(ge=1)] = 5
    """The break must be among so many last tokens of the draft. Code: 5."""

    def build(self) -> CodePolicy:
        return CodePolicy(self)


class CodeSpec(CodeRules):
    """The preset ``code``."""

    name: Literal["speculative-thinking"] = "speculative-thinking"
    preset: Literal["code"] = "code"


class CodeInstructSpec(CodeRules):
    """The preset ``code`` for a small model that does not reason."""

    name: Literal["speculative-thinking"] = "speculative-thinking"
    preset: Literal["code-instruct"] = "code-instruct"
    opening_tokens: Count = INSTRUCT_OPENING
    """Code."""
    every_break: bool = True
    """Code."""


class _Peek(BaseModel):
    """What small peeked at, while large answers; stored only where it may still be kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    num_tokens: int
    ended: bool


class _State(ReflectionState):
    """All that is stored of the policy with a sample."""

    phase: Phase
    cue: str = ""
    eos_at: int | None = None
    """Output tokens before the last end of sequence that was kept."""
    peek: _Peek | None = None


class CodePolicy(PairPolicy[_State]):
    """The policy of a spec. Immutable."""

    _state_type = _State

    def __init__(self, spec: CodeRules) -> None:
        self._spec = spec

    def start(self, context: SampleContext) -> Transition:
        first = self._spec.first_state(context, draft_tokens=self._spec.draft_tokens)
        return first_turn(_State(**first, phase="opening" if self._spec.opening_tokens else "draft"))

    def _watch_small(self, context: SampleContext, state: _State) -> Watcher | None:
        return BreakWatcher() if state.phase == "draft" else None

    def _watch_large(self, context: SampleContext, state: _State) -> None:
        return None

    # The small model wrote.

    def _after_small(self, turn: Turn[_State]) -> Transition:
        return self._after_draft(turn) if turn.state.phase == "draft" else self._after_peek(turn)

    def _after_draft(self, turn: Turn[_State]) -> Transition:
        spec, texts, finish = self._spec, turn.texts, turn.event.finish
        watcher = BreakWatcher()
        keep = next((count for count, text in enumerate(texts, 1) if watcher.feed(text)), None)
        if keep is None:
            if finish is SegmentFinish.WATCH:
                return turn.again(turn.state.cue)
            if finish is SegmentFinish.EOS:
                return turn.end(FinishReason.EOS, len(texts))
            keep = _kept(turn)
            if _has_no_room(turn):
                return turn.end(FinishReason.CONTEXT, keep)
        if BREAK not in "".join(texts[:keep][-spec.break_within :]):
            return self._end_round(turn, {}, keep)
        if turn.state.reflections >= turn.state.threshold:
            return self._check_all(turn, keep)
        return self._ask(turn, "peek", Trigger.PEEK, {}, keep=keep, max_tokens=spec.n1)

    def _check_all(self, turn: Turn[_State], keep: int) -> Transition:
        """R3: insert the sentence and let the large model look for wrong steps."""
        check = self._spec.check
        if turn.remaining(keep, check) < 1:
            return turn.end(FinishReason.LENGTH, keep)
        state = turn.state.after_check(self._spec)
        return self._ask(
            turn, "check", Trigger.TOO_MUCH_REFLECTION, state, keep=keep, insert=[check], max_tokens=turn.state.n3
        )

    def _after_peek(self, turn: Turn[_State]) -> Transition:
        event = turn.event
        if event.finish is SegmentFinish.WATCH:  # nobody watches it: it was cut short, and is asked for again
            return turn.again(turn.state.cue)
        if _has_no_room(turn):
            return turn.end(FinishReason.CONTEXT, 0)
        reading = self._read(event.piece.text)
        is_statement = reading.sentence_class is SentenceClass.STATEMENT
        if is_statement and not self._spec.every_break:
            return self._end_round(turn, {}, 0, trigger=Trigger.SAMPLE_AGAIN)
        state: dict[str, Any] = {}
        if not self._spec.choose_large:
            ended = event.finish is SegmentFinish.EOS
            state["peek"] = _Peek(text=event.piece.text, num_tokens=len(event.piece), ended=ended)
        trigger = Trigger.EVERY_BREAK if is_statement else Trigger(reading.sentence_class)
        return self._ask(turn, "answer", trigger, state, keep=0, max_tokens=self._spec.n1, cue=reading.cue)

    # The large model wrote.

    def _after_large(self, turn: Turn[_State]) -> Transition:
        if turn.event.finish is SegmentFinish.WATCH:  # nobody watches it: it was cut short, and is asked for again
            return turn.again(turn.state.cue)
        keep = _kept(turn)
        if _has_no_room(turn):
            return turn.end(FinishReason.CONTEXT, keep)
        if turn.state.phase == "answer":
            return self._after_answer(turn, keep)
        return self._end_round(turn, _read_end(turn, keep), keep)

    def _after_answer(self, turn: Turn[_State], keep: int) -> Transition:
        reading, peek = self._read(turn.event.piece.head(keep).text), turn.state.peek
        if peek is not None and not _disagree(self._read(peek.text), reading):
            return self._keep_peek(turn, peek)
        return self._after_choice(turn, _read_end(turn, keep), reading, keep)

    def _keep_peek(self, turn: Turn[_State], peek: _Peek) -> Transition:
        insert = [Insert(text=peek.text, trigger=Trigger.PEEK_KEPT)] if peek.text else []
        num_tokens = peek.num_tokens if peek.text else 0
        state = {"eos_at": turn.event.start_token + num_tokens} if peek.ended else {}
        return self._after_choice(turn, state, self._read(peek.text), 0, insert=insert, num_inserted=num_tokens)

    def _after_choice(
        self,
        turn: Turn[_State],
        state: dict[str, Any],
        reading: LooseReading,
        keep: int,
        *,
        insert: Sequence[Insert] = (),
        num_inserted: int = 0,
    ) -> Transition:
        """Count what was kept, and let the large model verify (R2)."""
        is_reflection = reading.sentence_class is SentenceClass.REFLECTION
        state = state | {"reflections": turn.state.reflections + is_reflection, "peek": None}
        if not reading.verify:
            return self._end_round(turn, state, keep, insert=insert, num_inserted=num_inserted)
        return self._ask(
            turn,
            "verify",
            Trigger.VERIFY,
            state,
            keep=keep,
            insert=insert,
            max_tokens=self._spec.n2,
            cue=reading.verify,
            room=turn.remaining(keep) - num_inserted,
        )

    # Rounds.

    def _end_round(
        self,
        turn: Turn[_State],
        state: dict[str, Any],
        keep: int,
        *,
        insert: Sequence[Insert] = (),
        num_inserted: int = 0,
        trigger: Trigger | None = None,
    ) -> Transition:
        """Where the loop's end and its top meet: stop, or let small write the next draft.

        num_inserted: tokens of the inserted text. trigger: of the draft; by default it goes on as the last one, or
        after the large model.
        """
        end = turn.event.start_token + keep + num_inserted
        eos_at = state.get("eos_at", turn.state.eos_at)
        if eos_at is not None and end - eos_at < self._spec.n1:
            return turn.end(FinishReason.EOS, keep, *insert)
        if turn.context.num_prompt_tokens + end > turn.context.max_tokens:
            return turn.end(FinishReason.LENGTH, keep, *insert)
        if trigger is None:
            trigger = turn.state.trigger if turn.state.phase == "draft" else Trigger.RESUME
        room = turn.remaining(keep) - num_inserted
        return self._ask(
            turn, "draft", trigger, state, keep=keep, insert=insert, max_tokens=self._spec.draft_tokens, room=room
        )

    def _ask(
        self,
        turn: Turn[_State],
        phase: Phase,
        trigger: Trigger,
        state: dict[str, Any],
        *,
        keep: int,
        max_tokens: int,
        insert: Sequence[Insert] = (),
        cue: str = "",
        room: int | None = None,
    ) -> Transition:
        return turn.let_write(
            ModelRole.SMALL if phase in ("draft", "peek") else ModelRole.LARGE,
            trigger,
            state | {"phase": phase, "cue": cue},
            keep=keep,
            insert=insert,
            max_tokens=max_tokens,
            cue=cue,
            room=room,
        )

    def _read(self, text: str) -> LooseReading:
        return read_loosely(text, self._spec.cues)


class BreakWatcher:
    """Ends a draft once two newlines stand anywhere in its own text; what came before it does not matter."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = ""

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        found = BREAK in self._last + text
        self._last = text[-1:] or self._last
        return found


def _kept(turn: Turn[_State]) -> int:
    """Tokens of what was written up to its last whole character; all where there is none."""
    return whole_characters(turn.texts, len(turn.texts)) or len(turn.texts)


def _has_no_room(turn: Turn[_State]) -> bool:
    return turn.event.finish is SegmentFinish.LENGTH and len(turn.texts) < turn.state.max_tokens


def _read_end(turn: Turn[_State], keep: int) -> dict[str, Any]:
    return {"eos_at": turn.event.start_token + keep} if turn.event.finish is SegmentFinish.EOS else {}


def _disagree(small: LooseReading, large: LooseReading) -> bool:
    """Whether one class is a reflection and the other is not; a statement of small's disagrees with nothing."""
    is_reflection = large.sentence_class is SentenceClass.REFLECTION
    match small.sentence_class:
        case SentenceClass.REFLECTION:
            return not is_reflection
        case SentenceClass.AFFIRMATION:
            return is_reflection
        case SentenceClass.STATEMENT:
            return False
