"""Delegation of steps in the think phase: what the policies share that differ in which steps large writes.

    large writes the first steps, where the job says so
    small writes until a watcher calls large in; large writes a step, or several, and small goes on
    after the think phase one model writes the answer, undisturbed

A policy brings the watcher of small's text (``DraftWatcher``), which says in a ``Call`` where large is called in and
why. Where large then has nothing to say, the place is closed: no step is looked at before a further break, so that the
two make progress.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from pipeline.policies.protocol import Reading, SampleContext, Transition, Watcher
from pipeline.policies.reading.handback import HandBackWatcher, StepsWatcher
from pipeline.policies.reading.reader import Reader, TextState
from pipeline.policies.requests import Trigger
from pipeline.policies.specs import PolicySpec
from pipeline.policies.step_delegation import StepPolicy, StepState, read_kept, text_reader
from pipeline.policies.turns import NO_SIGNALS, Count, Tokens, Turn, fires, first_turn
from pipeline.samples import ModelRole, WritingRole
from pipeline.signals import Readings, Signal


class ThinkingStepsSpec(PolicySpec):
    """The numbers that all of them have."""

    first_steps: Count = 0
    """Steps that large writes first of all, before the policy's rule begins; 0: small begins. TrigReason: 20; the code
    of SpecReason has it, too."""
    step_tokens: Tokens = 512
    """Most tokens of one step of large. Code of GlimpRouter and of SpecReason: 512."""
    answer_role: WritingRole = ModelRole.SMALL
    """Who writes the answer after the think phase. Ours; code of GlimpRouter: large; a fork of it: small."""


class ThinkingStepsState(StepState):
    """All that is stored of such a policy with a sample, at least."""

    is_open: bool
    """Whether the next token that is no newline is the first of a step, and that step is to be looked at."""


StateT = TypeVar("StateT", bound=ThinkingStepsState)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Where large is called in, and why. keep: tokens of the piece before that. update: of the policy's state."""

    keep: int
    trigger: Trigger
    reading: Reading
    cue: str = ""
    update: Mapping[str, Any] = field(default_factory=dict)


class DraftWatcher:
    """Ends the small model's request where large is called in; where large answers, also at the end of the think phase.

    A run of newlines is one break, whose step begins after the last of them.
    """

    __slots__ = ("_ends_phase", "call", "is_open", "reader")

    def __init__(self, reader: Reader, state: ThinkingStepsState, *, ends_phase: bool) -> None:
        """reader: of the state's text."""
        self.reader = reader
        self.is_open = state.is_open
        """As in the state."""
        self.call: Call | None = None
        """What ended the request; None where the end of the think phase did."""
        self._ends_phase = ends_phase

    @property
    def update(self) -> Mapping[str, Any]:
        """What changes in the policy's state, besides ``text``, where small goes on."""
        return {"is_open": self.is_open}

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        self.reader.feed(text)
        if not self.reader.lengthens_break:
            self.call = self._read(text, readings or {})
        return self.call is not None or (self._ends_phase and not self.reader.thinking)

    def _read(self, text: str, readings: Readings) -> Call | None:
        """Read a token that does not only lengthen a break; says whether large is called in. Here it never is."""
        self.is_open = self.reader.at_break
        return None


class ThinkingStepsPolicy(StepPolicy[StateT]):
    """What these policies do besides their rule."""

    _signals: ClassVar[frozenset[Signal]] = NO_SIGNALS
    """What the rule reads of small's tokens."""

    def __init__(self, spec: ThinkingStepsSpec) -> None:
        super().__init__(handback="break")
        self._numbers = spec

    def start(self, context: SampleContext) -> Transition:
        numbers = self._numbers
        if not numbers.first_steps:
            first = self._first_state(ModelRole.SMALL, context.max_tokens, Trigger.START)
            return first_turn(first, self._signals_after(first.text))
        asked = min(numbers.first_steps * numbers.step_tokens, context.max_tokens)
        return first_turn(self._first_state(ModelRole.LARGE, asked, Trigger.OPENING))

    @abstractmethod
    def _first_state(self, role: ModelRole, max_tokens: int, trigger: Trigger) -> StateT:
        """The state that begins a sample with that request."""

    @abstractmethod
    def _draft_watcher(self, context: SampleContext, state: StateT) -> DraftWatcher: ...

    def _num_steps(self, trigger: Trigger) -> int:
        """How many steps large writes in one go."""
        return self._numbers.first_steps if trigger is Trigger.OPENING else 1

    @property
    def _ends_phase(self) -> bool:
        return self._numbers.answer_role is ModelRole.LARGE

    # The small model wrote.

    def _watch_small(self, context: SampleContext, state: StateT) -> Watcher | None:
        return self._draft_watcher(context, state) if state.text.thinking else None

    def _after_small(self, turn: Turn[StateT]) -> Transition:
        if not turn.state.text.thinking:
            return turn.carry_on({})
        watcher = self._draft_watcher(turn.context, turn.state)
        if not fires(watcher, turn.event):
            text = watcher.reader.state
            return turn.carry_on({"text": text, **watcher.update}, signals=self._signals_after(text))
        if watcher.call is None:
            return self._answer(turn, watcher.reader.position, watcher.reader.state)
        return self._take_over(turn, watcher.call)

    def _take_over(self, turn: Turn[StateT], call: Call) -> Transition:
        """Throw away what is not kept, and let large write on from there."""
        return turn.let_write(
            ModelRole.LARGE,
            call.trigger,
            {"text": read_kept(turn, call.keep), "is_open": False, **call.update},
            keep=call.keep,
            max_tokens=self._num_steps(call.trigger) * self._numbers.step_tokens,
            cue=call.cue,
            reading=call.reading,
        )

    # The large model wrote.

    def _watch_large(self, context: SampleContext, state: StateT) -> HandBackWatcher | None:
        if state.trigger is Trigger.ANSWER:
            return None
        return StepsWatcher(
            text_reader(context, state.text),
            num_steps=self._num_steps(state.trigger),
            step_tokens=self._numbers.step_tokens,
        )

    def _after_large(self, turn: Turn[StateT]) -> Transition:
        return turn.carry_on({}) if turn.state.trigger is Trigger.ANSWER else super()._after_large(turn)

    def _after_step(self, turn: Turn[StateT], keep: int, text: TextState) -> Transition:
        if not text.thinking:
            return self._answer(turn, keep, text)
        update = {"text": text, "is_open": keep > 0 and text.at_break}  # large wrote nothing: the place is closed
        return turn.let_write(ModelRole.SMALL, Trigger.RESUME, update, keep=keep, signals=self._signals_after(text))

    def _answer(self, turn: Turn[StateT], keep: int, text: TextState) -> Transition:
        """The think phase is over: let the answer be written, undisturbed."""
        role = self._numbers.answer_role
        trigger = Trigger.ANSWER if role is ModelRole.LARGE else Trigger.RESUME
        return turn.let_write(role, trigger, {"text": text, "is_open": False}, keep=keep)

    def _signals_after(self, text: TextState) -> frozenset[Signal]:
        return self._signals if text.thinking else NO_SIGNALS
