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

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.policies.protocol import PolicyState, SampleContext, Transition, Watcher
from pipeline.policies.reading.cues import LooseReading, SentenceClass, read_loosely
from pipeline.policies.requests import Event, Finish, Generate, Insert, Trigger, Written
from pipeline.policies.speculative_thinking.rules import ReflectionState, Rules, Tokens, most_tokens
from pipeline.policies.turns import whole_characters, written_by
from pipeline.samples import FinishReason, ModelRole, SegmentFinish
from pipeline.signals import Readings

BREAK = "\n\n"


class CodeSpec(Rules):
    """Every number of the preset ``code``; the defaults are those of the released configurations for a pair of
    reasoning models.

    ``n1`` is one number there, too: of the peek, of large's answer to it, and of the last tokens in which an end stops
    the sample. ``threshold`` counts in what is kept of peeks and of large's answers to them, nowhere else.
    """

    name: Literal["speculative-thinking"] = "speculative-thinking"
    preset: Literal["code"] = "code"
    choose_large: bool = True
    """Whether large's answer to a peek is kept in any case; off: only where the classes disagree, one of them being a
    reflection. Code: on in every released configuration."""
    draft_tokens: Tokens = 1024
    """Most tokens of one draft of the small model. Code: 1024."""
    break_within: Annotated[int, Field(ge=1)] = 5
    """The break must be among so many last tokens of the draft. Code: 5."""


class _Peek(BaseModel):
    """What small peeked at, while large answers; stored only where it may still be kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    num_tokens: int
    ended: bool


class _State(ReflectionState):
    """All that is stored of the policy with a sample."""

    phase: Literal["opening", "draft", "peek", "answer", "verify", "check"]
    """What is being written: a draft or a peek by small, the others by large. answer: to a peek; verify: R2; check:
    R3."""
    max_tokens: int
    trigger: Trigger
    cue: str = ""
    eos_at: int | None = None
    """Output tokens before the last end of sequence that was kept."""
    peek: _Peek | None = None

    @property
    def role(self) -> ModelRole:
        return ModelRole.SMALL if self.phase in ("draft", "peek") else ModelRole.LARGE

    @property
    def generate(self) -> Generate:
        return Generate(
            role=self.role,
            max_tokens=self.max_tokens,
            trigger=self.trigger,
            takes_over=self.phase in ("answer", "check"),  # R2 goes on where large's answer to the peek brought it in
            cue=self.cue,
        )


class CodePolicy:
    """The policy of a spec. Immutable."""

    def __init__(self, spec: CodeSpec) -> None:
        self._spec = spec

    @property
    def roles(self) -> frozenset[ModelRole]:
        return frozenset(ModelRole)

    def start(self, context: SampleContext) -> Transition:
        spec = self._spec
        state = _State(
            phase="opening" if spec.opening_tokens else "draft",
            max_tokens=min(spec.opening_tokens or spec.draft_tokens, context.max_tokens),
            trigger=Trigger.OPENING if spec.opening_tokens else Trigger.START,
            n3=spec.n3,
            threshold=spec.threshold,
        )
        return _go(state)

    def watcher(self, context: SampleContext, state: PolicyState) -> Watcher | None:
        return BreakWatcher() if _State.model_validate(state).phase == "draft" else None

    def advance(self, context: SampleContext, state: PolicyState, event: Event) -> Transition:
        stored = _State.model_validate(state)
        event = written_by(stored.role, event)
        if stored.phase == "draft":
            return self._after_draft(context, stored, event)
        if event.finish is SegmentFinish.WATCH:  # nobody watches the others: it was cut short, and is asked for again
            return _go(stored, 0)
        if stored.phase == "peek":
            return self._after_peek(context, stored, event)
        keep = _kept(event)
        if _has_no_room(stored, event):
            return _end(FinishReason.CONTEXT, keep)
        if stored.phase == "answer":
            return self._after_answer(context, stored, event)
        end = event.start_token + keep
        return self._end_round(context, _read_end(stored, event, end), end, keep)

    # The small model wrote.

    def _after_draft(self, context: SampleContext, state: _State, event: Written) -> Transition:
        texts = event.piece.texts
        watcher = BreakWatcher()
        num_kept = next((count for count, text in enumerate(texts, 1) if watcher.feed(text)), None)
        if num_kept is None:
            if event.finish is SegmentFinish.WATCH:
                return _go(state, 0)
            if event.finish is SegmentFinish.EOS:
                return _end(FinishReason.EOS, len(texts))
            num_kept = _kept(event)
            if _has_no_room(state, event):
                return _end(FinishReason.CONTEXT, num_kept)
        end = event.start_token + num_kept
        if BREAK not in "".join(texts[:num_kept][-self._spec.break_within :]):
            return self._end_round(context, state, end, num_kept)
        if state.reflections >= state.threshold:
            return self._check_all(context, state, end, num_kept)
        return self._ask(context, state, end, num_kept, phase="peek", max_tokens=self._spec.n1, trigger=Trigger.PEEK)

    def _check_all(self, context: SampleContext, state: _State, end: int, keep: int) -> Transition:
        """R3: insert the sentence and let the large model look for wrong steps."""
        insert = Insert(text=self._spec.inserted_sentence, trigger=Trigger.TOO_MUCH_REFLECTION)
        end += most_tokens(insert.text)
        if end >= context.max_tokens:
            return _end(FinishReason.LENGTH, keep)
        n3 = state.n3
        state = state.model_copy(update=state.after_check(self._spec))
        return self._ask(
            context,
            state,
            end,
            keep,
            insert,
            phase="check",
            max_tokens=n3,
            trigger=Trigger.TOO_MUCH_REFLECTION,
        )

    def _after_peek(self, context: SampleContext, state: _State, event: Written) -> Transition:
        if _has_no_room(state, event):
            return _end(FinishReason.CONTEXT, 0)
        reading = self._read(event.piece.text)
        if reading.sentence_class is SentenceClass.STATEMENT and not self._spec.every_break:
            return self._end_round(context, state, event.start_token, 0, trigger=Trigger.SAMPLE_AGAIN)
        ended = event.finish is SegmentFinish.EOS
        if not self._spec.choose_large:
            peek = _Peek(text=event.piece.text, num_tokens=len(event.piece), ended=ended)
            state = state.model_copy(update={"peek": peek})
        is_statement = reading.sentence_class is SentenceClass.STATEMENT
        return self._ask(
            context,
            state,
            event.start_token,
            0,
            phase="answer",
            max_tokens=self._spec.n1,
            trigger=Trigger.EVERY_BREAK if is_statement else Trigger(reading.sentence_class),
            cue=reading.cue,
        )

    # The large model wrote.

    def _after_answer(self, context: SampleContext, state: _State, event: Written) -> Transition:
        num_kept = _kept(event)
        reading = self._read(event.piece.head(num_kept).text)
        if state.peek is not None and not _disagree(self._read(state.peek.text), reading):
            return self._keep_peek(context, state, state.peek, event)
        end = event.start_token + num_kept
        return self._after_choice(context, _read_end(state, event, end), reading, end, num_kept)

    def _keep_peek(self, context: SampleContext, state: _State, peek: _Peek, event: Written) -> Transition:
        end = event.start_token
        insert: tuple[Insert, ...] = ()
        if peek.text:
            end += peek.num_tokens
            insert = (Insert(text=peek.text, trigger=Trigger.PEEK_KEPT),)
        if peek.ended:
            state = state.model_copy(update={"eos_at": end})
        return self._after_choice(context, state, self._read(peek.text), end, 0, *insert)

    def _after_choice(
        self, context: SampleContext, state: _State, reading: LooseReading, end: int, keep: int, *insert: Insert
    ) -> Transition:
        """Count what was kept, and let the large model verify (R2)."""
        is_reflection = reading.sentence_class is SentenceClass.REFLECTION
        state = state.model_copy(update={"reflections": state.reflections + is_reflection, "peek": None})
        if not reading.verify:
            return self._end_round(context, state, end, keep, *insert)
        return self._ask(
            context,
            state,
            end,
            keep,
            *insert,
            phase="verify",
            max_tokens=self._spec.n2,
            trigger=Trigger.VERIFY,
            cue=reading.verify,
        )

    # Rounds.

    def _end_round(
        self,
        context: SampleContext,
        state: _State,
        end: int,
        keep: int,
        *insert: Insert,
        trigger: Trigger | None = None,
    ) -> Transition:
        """Where the loop's end and its top meet: stop, or let small write the next draft. end: output tokens kept.

        trigger: of the draft; by default it goes on as the last one, or after the large model.
        """
        if state.eos_at is not None and end - state.eos_at < self._spec.n1:
            return _end(FinishReason.EOS, keep, *insert)
        if context.num_prompt_tokens + end > context.max_tokens:
            return _end(FinishReason.LENGTH, keep, *insert)
        if trigger is None:
            trigger = state.trigger if state.phase == "draft" else Trigger.RESUME
        max_tokens = self._spec.draft_tokens
        return self._ask(context, state, end, keep, *insert, phase="draft", max_tokens=max_tokens, trigger=trigger)

    def _ask(
        self,
        context: SampleContext,
        state: _State,
        end: int,
        keep: int,
        *insert: Insert,
        phase: str,
        max_tokens: int,
        trigger: Trigger,
        cue: str = "",
    ) -> Transition:
        """The next request, clamped to what max_tokens leaves. end: output tokens kept, at most."""
        room = context.max_tokens - end
        if room < 1:
            return _end(FinishReason.LENGTH, keep, *insert)
        asked = {"phase": phase, "max_tokens": min(max_tokens, room), "trigger": trigger, "cue": cue}
        state = state.model_copy(update=asked)
        return _go(state, keep, *insert)

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


def _kept(event: Written) -> int:
    """Tokens of what was written up to its last whole character; all where there is none."""
    return whole_characters(event.piece.texts, len(event.piece)) or len(event.piece)


def _has_no_room(state: _State, event: Written) -> bool:
    return event.finish is SegmentFinish.LENGTH and len(event.piece) < state.max_tokens


def _read_end(state: _State, event: Written, end: int) -> _State:
    return state.model_copy(update={"eos_at": end}) if event.finish is SegmentFinish.EOS else state


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


def _go(state: _State, keep: int | None = None, *insert: Insert) -> Transition:
    return Transition(state=state.model_dump(mode="json"), keep=keep, insert=insert, then=state.generate)


def _end(reason: FinishReason, keep: int, *insert: Insert) -> Transition:
    return Transition(state={}, keep=keep, insert=insert, then=Finish(reason=reason))
