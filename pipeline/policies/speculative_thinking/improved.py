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

from typing import Annotated, Literal

from pydantic import Field

from pipeline.policies.composition import compose
from pipeline.policies.guards import LoopGuard
from pipeline.policies.protocol import Policy, SampleContext, Transition, Watcher
from pipeline.policies.reading.cues import Cue, CueKind, CueStream, SentenceClass, cue_finder
from pipeline.policies.reading.handback import HandBack, HandBackFrom, HandBackWatcher
from pipeline.policies.reading.layout import LayoutState, StepEndFinder
from pipeline.policies.reading.loops import LoopFinder
from pipeline.policies.reading.reader import Reader, TakeoverFrom, TextState
from pipeline.policies.requests import Trigger
from pipeline.policies.speculative_thinking.improved_watchers import DraftWatcher, Takeover, TakeoverWatcher
from pipeline.policies.speculative_thinking.rules import (
    INSTRUCT_OPENING,
    SHORT_TAKEOVERS,
    ReflectionState,
    VerifyingRules,
)
from pipeline.policies.turns import Count, PairPolicy, Tokens, Turn, fires, first_turn, whole_characters
from pipeline.samples import ModelRole, SegmentFinish


class ImprovedRules(VerifyingRules):
    """Every number of the preset ``improved`` and of its sibling for a small model that does not reason.

    "Paper" is arXiv 2504.12329, "code" its released code, "ours" a choice made here. ``threshold`` counts in the kept
    text, whoever wrote it. ``n1``, ``n2``, ``n3`` and ``opening_tokens`` are upper limits where ``handback`` is
    "sentence".
    """

    window_tokens: Tokens = 20
    """Tokens after a break in which a cue counts. Code: 20; the paper speaks of a sentence."""
    takeover_from: TakeoverFrom = "earliest"
    """The break from which large writes, where a cue lies in the windows of several. Ours; paper and code look at one
    break at a time."""
    every_break_of: Literal["text", "layout"] = "text"
    """What ``every_break`` means by a break. text: two newlines; paper and code. layout: only where a step ends, not in
    display formulas, blocks of code and items of lists, nor after headings and lines that introduce what follows; ours.
    """
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

    def build(self) -> Policy:
        """In a loop, ``hand_over`` is a rule of the delegation; where that does not apply, a guard ends the sample."""
        return compose(SpeculativeThinkingPolicy(self), guards=[] if self.repetition == "off" else [self._guard])

    @property
    def _guard(self) -> LoopGuard:
        return LoopGuard(
            role=ModelRole.SMALL,
            repeats=self.loop_repeats,
            min_tokens=self.loop_min_tokens,
            max_block_tokens=self.loop_max_block_tokens,
        )

    def loop_finder(self) -> LoopFinder | None:
        """Finds the loops that hand over, where they do."""
        return self._guard.watcher() if self.repetition == "hand_over" else None


class SpeculativeThinkingSpec(ImprovedRules):
    """The preset ``improved``."""

    name: Literal["speculative-thinking"] = "speculative-thinking"
    preset: Literal["improved"] = "improved"


class ImprovedInstructSpec(ImprovedRules):
    """The preset ``improved`` for a small model that does not reason, which has no cues to wait for."""

    name: Literal["speculative-thinking"] = "speculative-thinking"
    preset: Literal["improved-instruct"] = "improved-instruct"
    opening_tokens: Count = INSTRUCT_OPENING
    """Paper and code."""
    every_break: bool = True
    """Paper and code."""
    every_break_of: Literal["text", "layout"] = "layout"
    """Ours: such a model writes headings, lists and display formulas, with breaks inside them."""


class _State(ReflectionState):
    """All that is stored of the policy with a sample; what ``text`` follows is the kept text."""

    limit: int = 0
    """Most tokens of the takeover now under way."""
    inserted: bool = False
    """Whether a sentence was inserted before it."""
    text: TextState
    layout: LayoutState | None = None
    """None where ``every_break_of`` is not "layout", and nobody follows it."""


class SpeculativeThinkingPolicy(PairPolicy[_State]):
    """The policy of a spec. Immutable."""

    _state_type = _State

    def __init__(self, spec: ImprovedRules) -> None:
        self._spec = spec
        self._finder = cue_finder(spec.cues)
        self._verify_finder = cue_finder(spec.cues, CueKind.VERIFY)

    def start(self, context: SampleContext) -> Transition:
        spec = self._spec
        layout = LayoutState() if self._follows_layout else None
        return first_turn(
            _State(**spec.first_state(context), limit=spec.opening_tokens, text=TextState(), layout=layout)
        )

    # The small model wrote.

    def _after_small(self, turn: Turn[_State]) -> Transition:
        watcher = self._draft_watcher(turn.context, turn.state)
        found = fires(watcher, turn.event) or (turn.event.finish is SegmentFinish.EOS and watcher.end())
        if not found:
            return turn.carry_on({"text": watcher.reader.state, "layout": self._layout(turn, len(turn.texts))})
        takeover = watcher.takeover()
        reader = self._reader(turn.context, turn.state)
        for text in turn.texts[: takeover.num_kept]:
            reader.feed(text)
        return self._take_over(turn, reader, takeover)

    def _take_over(self, turn: Turn[_State], reader: Reader, takeover: Takeover) -> Transition:
        spec, keep = self._spec, takeover.num_kept
        may_check = takeover.trigger is not Trigger.REPETITION and reader.state.at_break
        is_due = turn.state.reflections >= turn.state.threshold
        if is_due and may_check and turn.remaining(keep, spec.check) >= 1:
            return self._check_all(turn, reader, takeover)
        limit = spec.n1 if takeover.trigger in SHORT_TAKEOVERS else spec.n2
        return turn.let_write(
            ModelRole.LARGE,
            takeover.trigger,
            {"limit": limit, "inserted": False, "text": reader.state, "layout": self._layout(turn, keep)},
            keep=keep,
            max_tokens=spec.n2,  # R1's are ended at n1 by the watcher
            cue=takeover.cue,
        )

    def _check_all(self, turn: Turn[_State], reader: Reader, takeover: Takeover) -> Transition:
        """R3: insert the sentence and let the large model look for wrong steps."""
        reader.close_windows()
        sentence = self._spec.check.text
        reader.feed(sentence)
        layout = self._layout(turn, takeover.num_kept, sentence)
        state = {"limit": turn.state.n3, "inserted": True, "text": reader.state, "layout": layout}
        return turn.let_write(
            ModelRole.LARGE,
            Trigger.TOO_MUCH_REFLECTION,
            state | turn.state.after_check(self._spec),
            keep=takeover.num_kept,
            insert=[self._spec.check],
            max_tokens=turn.state.n3,
            cue=takeover.cue,
        )

    # The large model wrote.

    def _after_large(self, turn: Turn[_State]) -> Transition:
        watcher = self._takeover_watcher(turn.context, turn.state)
        handed_back = fires(watcher, turn.event)
        keep = whole_characters(turn.texts, watcher.num_kept if handed_back else len(turn.texts))
        reason = turn.why_not_back(keep, handed_back=handed_back)
        if reason is not None:
            return turn.end(reason, keep)
        text, reflections = self._read_kept(turn, keep)
        state = {
            "limit": 0,
            "inserted": False,
            "text": text,
            "layout": self._layout(turn, keep),
            "reflections": turn.state.reflections + reflections,
        }
        return turn.let_write(ModelRole.SMALL, Trigger.RESUME, state, keep=keep)

    def _read_kept(self, turn: Turn[_State], keep: int) -> tuple[TextState, int]:
        """Read what is kept of a takeover: the state after it, and how many reflective sentences are in it."""
        reader = self._reader(turn.context, turn.state)
        cues = [reader.feed(text) for text in turn.texts[:keep]]
        cues.append(reader.end())  # a cue at the end is the large model's, whatever the small one adds to it
        if not keep and not turn.state.inserted:
            reader.close_windows()  # the large model has nothing to say here: small passes this place unwatched
        return reader.state, sum(_is_reflective(cue) for cue in cues)

    def _layout(self, turn: Turn[_State], keep: int, *inserted: str) -> LayoutState | None:
        """The layout's state after what is kept and inserted, where it is followed."""
        if turn.state.layout is None:
            return None
        ends = StepEndFinder(turn.state.layout)
        for text in (*turn.texts[:keep], *inserted):
            ends.feed(text)
        return ends.state

    # Readers and watchers.

    @property
    def _follows_layout(self) -> bool:
        return self._spec.every_break and self._spec.every_break_of == "layout"

    def _watch_small(self, context: SampleContext, state: _State) -> Watcher | None:
        return self._draft_watcher(context, state) if state.text.thinking else None

    def _watch_large(self, context: SampleContext, state: _State) -> Watcher | None:
        return self._takeover_watcher(context, state)

    def _reader(self, context: SampleContext, state: _State) -> Reader:
        spec = self._spec
        return Reader(
            state.text,
            self._finder,
            window_tokens=spec.window_tokens,
            think_end=context.think_end,
            takeover_from=spec.takeover_from,
        )

    def _draft_watcher(self, context: SampleContext, state: _State) -> DraftWatcher:
        spec = self._spec
        step_ends = StepEndFinder(state.layout) if state.layout else None
        return DraftWatcher(
            self._reader(context, state), spec.loop_finder(), every_break=spec.every_break, step_ends=step_ends
        )

    def _takeover_watcher(self, context: SampleContext, state: _State) -> TakeoverWatcher:
        spec = self._spec
        back = HandBackWatcher(
            self._reader(context, state),
            limit=state.limit,
            handback=spec.handback,
            handback_from=spec.handback_from,
        )
        extends = state.trigger in SHORT_TAKEOVERS
        verify = CueStream(self._verify_finder, state.text.tail) if extends else None
        return TakeoverWatcher(back, verify, window_tokens=spec.window_tokens, extended_limit=spec.n2)


def _is_reflective(cue: Cue | None) -> bool:
    return cue is not None and cue.sentence_class is SentenceClass.REFLECTION
