"""Speculative Thinking: the large model takes over where the small one starts to doubt or to affirm.

Source: arXiv 2504.12329. The preset ``improved`` follows the paper's rules without the faults of its released code:

    small writes until a cue completes inside the window after a break; its text is kept up to the earliest break
    whose window holds the cue, and the large model writes on from there:
        too many reflective sentences so far (R3)   a fixed sentence is inserted, large writes up to n3 tokens
        a verify cue (R2)                           large writes up to n2 tokens
        any other cue (R1)                          large writes up to n1 tokens; n2 if its first ones hold a verify cue
    then small goes on. Text without a cue in a window is never interrupted and never written again.

For a small model that does not reason, the large one may write the opening, and take over after every break that the
small one writes, besides the cues.

Every cycle of small and large makes progress: either text is kept, or, where the large model wrote nothing, the small
one goes on with the windows at that place closed, so that it can be interrupted only after a further break.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.policies.protocol import PolicyState, SampleContext, Transition, Watcher
from pipeline.policies.reading.cues import Cue, CueKind, CueStream, SentenceClass, cue_finder
from pipeline.policies.reading.handback import HandBack, HandBackFrom, HandBackWatcher
from pipeline.policies.reading.loops import LoopGuard
from pipeline.policies.reading.reader import Reader, TextState
from pipeline.policies.requests import Event, Finish, Generate, Insert, Trigger, Written
from pipeline.policies.speculative_thinking.rules import SHORT_TAKEOVERS, ReflectionState, Rules, Tokens, most_tokens
from pipeline.policies.turns import finish_reason, whole_characters, written_by
from pipeline.samples import FinishReason, ModelRole, SegmentFinish
from pipeline.signals import Readings


class SpeculativeThinkingSpec(Rules):
    """Every number of the preset ``improved``.

    "Paper" is arXiv 2504.12329, "code" its released code, "ours" a choice made here. ``threshold`` counts in the kept
    text, whoever wrote it. ``n1``, ``n2``, ``n3`` and ``opening_tokens`` are upper limits where ``handback`` is
    "sentence".
    """

    name: Literal["speculative-thinking"] = "speculative-thinking"
    preset: Literal["improved"] = "improved"
    window_tokens: Tokens = 20
    """Tokens after a break in which a cue counts. Code: 20; the paper speaks of a sentence."""
    handback: HandBack = "sentence"
    """Where a takeover ends. Ours; paper and code: tokens."""
    handback_from: HandBackFrom = 0.5
    """Share of its n tokens that a takeover has at least written before the end of a sentence ends it: "Wait." alone
    would be no help. Ours, for steps of 10 to 20 tokens."""
    repetition: Literal["off", "finish", "hand_over"] = "finish"
    """What happens when small writes the same block again and again. finish: the sample ends as ``repetition``.
    hand_over: in the think phase the text is kept up to the first block's end and large writes up to n2 tokens;
    after it the sample ends. Ours: small models fail by looping, and a loop costs tokens up to the limit."""
    loop_repeats: Annotated[int, Field(ge=2)] = 4
    """Equal blocks in a row that make a loop. Ours, cautious: tables and lists repeat lines, seldom four times."""
    loop_min_tokens: Annotated[int, Field(ge=16)] = 256
    """Least length of a loop, all its blocks together. Ours, cautious: longer than a row of zeros or a rule."""
    loop_max_block_tokens: Tokens = 512
    """Longest block that is recognised. Ours: a long paragraph."""

    @model_validator(mode="after")
    def _verifying_is_longer(self) -> Self:
        if self.n1 > self.n2:
            raise ValueError("n2 must be at least n1: a verify cue lets the large model write on")
        return self


class _State(ReflectionState):
    """All that is stored of the policy with a sample; what ``text`` follows is the kept text."""

    role: ModelRole
    """Who writes now, and below: how much was asked for and why."""
    max_tokens: int
    trigger: Trigger
    limit: int = 0
    """Most tokens of the takeover now under way."""
    inserted: bool = False
    """Whether a sentence was inserted before it."""
    text: TextState


@dataclass(frozen=True, slots=True, kw_only=True)
class _Takeover:
    """Where and why the small model is interrupted: its first num_kept tokens stay."""

    num_kept: int
    trigger: Trigger
    cue: str = ""


class SpeculativeThinkingPolicy:
    """The policy of a spec. Immutable."""

    def __init__(self, spec: SpeculativeThinkingSpec) -> None:
        self._spec = spec
        self._finder = cue_finder(spec.cues)
        self._verify_finder = cue_finder(spec.cues, CueKind.VERIFY)

    @property
    def roles(self) -> frozenset[ModelRole]:
        return frozenset(ModelRole)

    def start(self, context: SampleContext) -> Transition:
        opening = self._spec.opening_tokens
        state = _State(
            role=ModelRole.LARGE if opening else ModelRole.SMALL,
            max_tokens=min(opening or context.max_tokens, context.max_tokens),
            trigger=Trigger.OPENING if opening else Trigger.START,
            limit=opening,
            text=TextState(),
            n3=self._spec.n3,
            threshold=self._spec.threshold,
        )
        return _go(state)

    def watcher(self, context: SampleContext, state: PolicyState) -> Watcher | None:
        stored = _State.model_validate(state)
        if stored.role is ModelRole.LARGE:
            return self._takeover_watcher(context, stored)
        if stored.text.thinking or self._spec.repetition != "off":
            return self._draft_watcher(context, stored)
        return None

    def advance(self, context: SampleContext, state: PolicyState, event: Event) -> Transition:
        stored = _State.model_validate(state)
        event = written_by(stored.role, event)
        if event.role is ModelRole.SMALL:
            return self._after_draft(context, stored, event)
        return self._after_takeover(context, stored, event)

    # The small model wrote.

    def _after_draft(self, context: SampleContext, state: _State, event: Written) -> Transition:
        watcher = self._draft_watcher(context, state)
        found = any(map(watcher.feed, event.piece.texts)) or (event.finish is SegmentFinish.EOS and watcher.end())
        if not found:
            return self._go_on(context, state, watcher.reader.state, event)
        takeover = watcher.takeover(hand_over_loops=self._spec.repetition == "hand_over")
        if takeover is None:
            return _end(watcher.reader.position, FinishReason.REPETITION)
        reader = self._reader(context, state)
        for text in event.piece.texts[: takeover.num_kept]:
            reader.feed(text)
        return self._take_over(context, state, reader, takeover, event)

    def _go_on(self, context: SampleContext, state: _State, text: TextState, event: Written) -> Transition:
        """Nothing interrupted the small model: the sample ends, or it goes on where its request was cut short."""
        keep = len(event.piece)
        remaining = context.max_tokens - event.start_token - keep
        reason = finish_reason(event, asked=state.max_tokens, remaining=remaining)
        if reason is not None:
            return _end(keep, reason)
        state = state.model_copy(update={"max_tokens": remaining, "text": text})
        return _go(state, keep)

    def _take_over(
        self, context: SampleContext, state: _State, reader: Reader, takeover: _Takeover, event: Written
    ) -> Transition:
        keep = takeover.num_kept
        remaining = context.max_tokens - event.start_token - keep
        if remaining <= 0:
            return _end(keep, FinishReason.LENGTH)
        room = remaining - most_tokens(self._spec.inserted_sentence)
        may_check = takeover.trigger is not Trigger.REPETITION and reader.state.at_break
        if state.reflections >= state.threshold and may_check and room >= 1:
            return self._check_all(state, reader, takeover, keep, room)
        limit = self._spec.n1 if takeover.trigger in SHORT_TAKEOVERS else self._spec.n2
        state = state.model_copy(
            update={
                "role": ModelRole.LARGE,
                "max_tokens": min(self._spec.n2, remaining),  # R1's are ended at n1 by the watcher
                "trigger": takeover.trigger,
                "limit": limit,
                "inserted": False,
                "text": reader.state,
            }
        )
        return _go(state, keep, cue=takeover.cue)

    def _check_all(self, state: _State, reader: Reader, takeover: _Takeover, keep: int, room: int) -> Transition:
        """R3: insert the sentence and let the large model look for wrong steps."""
        insert = Insert(text=self._spec.inserted_sentence, trigger=Trigger.TOO_MUCH_REFLECTION)
        reader.close_windows()
        reader.feed(insert.text)
        state = state.model_copy(
            update={
                "role": ModelRole.LARGE,
                "max_tokens": min(state.n3, room),
                "trigger": Trigger.TOO_MUCH_REFLECTION,
                "limit": state.n3,
                "inserted": True,
                "text": reader.state,
                **state.after_check(self._spec),
            }
        )
        return _go(state, keep, insert, cue=takeover.cue)

    # The large model wrote.

    def _after_takeover(self, context: SampleContext, state: _State, event: Written) -> Transition:
        watcher = self._takeover_watcher(context, state)
        handed_back = any(map(watcher.feed, event.piece.texts))
        num_kept = whole_characters(event.piece.texts, watcher.num_kept if handed_back else len(event.piece))
        text, reflections = self._read_kept(context, state, event.piece.texts[:num_kept], inserted=state.inserted)
        remaining = context.max_tokens - event.start_token - num_kept
        if remaining <= 0:
            return _end(num_kept, FinishReason.LENGTH)
        if not handed_back:
            ends = event.finish is SegmentFinish.EOS and not context.think_end  # no think phase to go on with
            reason = FinishReason.EOS if ends else None
            if event.finish is SegmentFinish.LENGTH:
                reason = finish_reason(event, asked=state.max_tokens, remaining=remaining)
            if reason is not None:
                return _end(num_kept, reason)
        state = state.model_copy(
            update={
                "role": ModelRole.SMALL,
                "max_tokens": remaining,
                "trigger": Trigger.RESUME,
                "limit": 0,
                "inserted": False,
                "text": text,
                "reflections": state.reflections + reflections,
            }
        )
        return _go(state, num_kept)

    def _read_kept(
        self, context: SampleContext, state: _State, texts: Sequence[str], *, inserted: bool
    ) -> tuple[TextState, int]:
        """Read what is kept of a takeover: the state after it, and how many reflective sentences are in it."""
        reader = self._reader(context, state)
        cues = [reader.feed(text) for text in texts]
        cues.append(reader.end())  # a cue at the end is the large model's, whatever the small one adds to it
        if not texts and not inserted:
            reader.close_windows()  # the large model has nothing to say here: small passes this place unwatched
        return reader.state, sum(_is_reflective(cue) for cue in cues)

    # Readers and watchers.

    def _reader(self, context: SampleContext, state: _State) -> Reader:
        return Reader(state.text, self._finder, window_tokens=self._spec.window_tokens, think_end=context.think_end)

    def _draft_watcher(self, context: SampleContext, state: _State) -> _DraftWatcher:
        spec = self._spec
        guard = None
        if spec.repetition != "off":
            guard = LoopGuard(
                num_repeats=spec.loop_repeats,
                min_tokens=spec.loop_min_tokens,
                max_block_tokens=spec.loop_max_block_tokens,
            )
        return _DraftWatcher(self._reader(context, state), guard, every_break=spec.every_break)

    def _takeover_watcher(self, context: SampleContext, state: _State) -> _TakeoverWatcher:
        spec = self._spec
        back = HandBackWatcher(
            self._reader(context, state), limit=state.limit, handback=spec.handback, handback_from=spec.handback_from
        )
        extends = state.trigger in SHORT_TAKEOVERS
        verify = CueStream(self._verify_finder, state.text.tail) if extends else None
        return _TakeoverWatcher(back, verify, window_tokens=spec.window_tokens, extended_limit=spec.n2)


class _DraftWatcher:
    """Ends the small model's request at a cue inside a window, at every break where that is asked for, or in a loop."""

    __slots__ = ("_cue", "_every_break", "_guard", "reader")

    def __init__(self, reader: Reader, guard: LoopGuard | None, *, every_break: bool) -> None:
        self.reader = reader
        self._guard = guard
        self._every_break = every_break
        self._cue: Cue | None = None

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        self._cue = self.reader.feed(text)
        if self._cue is not None or (self._every_break and self.reader.at_break):
            return True
        return self._guard is not None and self._guard.feed(text)

    def end(self) -> bool:
        """After the last token: whether the end of the text makes a cue certain."""
        self._cue = self.reader.end()
        return self._cue is not None

    def takeover(self, *, hand_over_loops: bool) -> _Takeover | None:
        """After a True: the takeover it asks for; None where a loop ends the sample."""
        if self._cue is not None:
            return _Takeover(
                num_kept=self.reader.cue_break,
                trigger=Trigger.VERIFY if self._cue.kind is CueKind.VERIFY else Trigger(self._cue.sentence_class),
                cue=self._cue.words,
            )
        if self._every_break and self.reader.at_break:
            return _Takeover(num_kept=self.reader.position, trigger=Trigger.EVERY_BREAK)
        if self._guard is None or not (hand_over_loops and self.reader.thinking):
            return None
        return _Takeover(num_kept=self._guard.first_block_end(), trigger=Trigger.REPETITION)


class _TakeoverWatcher:
    """Ends the large model's request where the small one goes on, later where a verify cue lets it write on."""

    __slots__ = ("_back", "_extended_limit", "_num_read", "_verify", "_window_tokens")

    def __init__(
        self, back: HandBackWatcher, verify: CueStream | None, *, window_tokens: int, extended_limit: int
    ) -> None:
        """verify: the cues that raise the limit while the window lasts; None where nothing raises it."""
        self._back = back
        self._verify = verify
        self._window_tokens = window_tokens
        self._extended_limit = extended_limit
        self._num_read = 0

    @property
    def num_kept(self) -> int:
        return self._back.num_kept

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        self._num_read += 1
        if self._verify is not None:
            self._look_for_verify(self._verify, text)
        ended = self._back.feed(text)
        if self._verify is not None and self._back.reader.at_break:
            self._verify.reset()
        return ended

    def _look_for_verify(self, verify: CueStream, text: str) -> None:
        closes = self._num_read >= self._window_tokens
        if verify.feed(text) is not None or (closes and verify.end() is not None):
            self._back.limit = self._extended_limit
            self._verify = None
        elif closes:
            self._verify = None


def _is_reflective(cue: Cue | None) -> bool:
    return cue is not None and cue.sentence_class is SentenceClass.REFLECTION


def _go(state: _State, keep: int | None = None, *insert: Insert, cue: str = "") -> Transition:
    takes_over = state.role is ModelRole.LARGE and state.trigger is not Trigger.OPENING
    then = Generate(role=state.role, max_tokens=state.max_tokens, trigger=state.trigger, takes_over=takes_over, cue=cue)
    return Transition(state=state.model_dump(mode="json"), keep=keep, insert=insert, then=then)


def _end(keep: int, reason: FinishReason) -> Transition:
    return Transition(state={}, keep=keep, then=Finish(reason=reason))
