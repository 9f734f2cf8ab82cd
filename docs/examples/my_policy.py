"""A policy of one's own: large goes on with a step that small makes too long.

small writes; where a step has step_tokens tokens, large takes over in the middle of it
large writes to the step's end, takeover_tokens tokens at most; then small goes on
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, Field

from pipeline.breaks import BreakFinder
from pipeline.policies import Policy, PolicySpec
from pipeline.policies.protocol import PolicyState, SampleContext, Transition
from pipeline.policies.requests import Ask, Event, Finish, Generate, Trigger, Written
from pipeline.policies.turns import finish_reason, whole_characters, written_by
from pipeline.samples import WRITING_ROLES, FinishReason, ModelRole, SegmentFinish
from pipeline.signals import Readings


class LongStepSpec(PolicySpec):
    """Every number of the policy, as a job stores it."""

    name: Literal["long-step"] = "long-step"
    step_tokens: Annotated[int, Field(ge=1)] = 200
    """Tokens of one step that are too many. A guess."""
    takeover_tokens: Annotated[int, Field(ge=1)] = 64
    """Most tokens of a takeover. A guess."""

    def build(self) -> Policy:
        return LongStepPolicy(self)


class _State(BaseModel):
    """What is stored with a sample: who writes now, how much was asked for, and how long the step is so far."""

    role: ModelRole
    max_tokens: int
    num_step_tokens: int = 0


class _StepWatcher:
    """Ends small's request where a step grows too long, and large's where its step ends."""

    def __init__(self, spec: LongStepSpec, state: _State) -> None:
        self.num_step_tokens = state.num_step_tokens
        self._is_small = state.role is ModelRole.SMALL
        self._limit = spec.step_tokens
        self._breaks = BreakFinder()

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        at_break = self._breaks.feed(text)
        self.num_step_tokens = 0 if at_break else self.num_step_tokens + 1
        return self.num_step_tokens >= self._limit if self._is_small else at_break


class LongStepPolicy:
    """The policy of a spec. Immutable."""

    roles: ClassVar[frozenset[ModelRole]] = frozenset(WRITING_ROLES)
    asks: ClassVar[tuple[Ask, ...]] = ()

    def __init__(self, spec: LongStepSpec) -> None:
        self._spec = spec

    def start(self, context: SampleContext) -> Transition:
        state = _State(role=ModelRole.SMALL, max_tokens=context.max_tokens)
        return Transition(state=state.model_dump(mode="json"), then=self._ask(state, Trigger.START))

    def watcher(self, context: SampleContext, state: PolicyState) -> _StepWatcher:
        return _StepWatcher(self._spec, _State.model_validate(state))

    def advance(self, context: SampleContext, state: PolicyState, event: Event) -> Transition:
        stored = _State.model_validate(state)
        written, watcher = written_by(stored.role, event), self.watcher(context, state)
        texts = written.piece.texts
        stop = next((place for place, text in enumerate(texts, start=1) if watcher.feed(text)), None)
        keep = whole_characters(texts, len(texts) if stop is None else stop)
        remaining = context.max_tokens - written.start_token - keep
        reason = self._end(stored, written, remaining, stopped=stop is not None)
        if reason is not None:
            return Transition(state={}, keep=keep, then=Finish(reason=reason))
        if stored.role is ModelRole.LARGE:
            following, trigger = _State(role=ModelRole.SMALL, max_tokens=remaining), Trigger.RESUME.value
        elif stop is not None:
            limit = min(self._spec.takeover_tokens, remaining)
            following, trigger = _State(role=ModelRole.LARGE, max_tokens=limit), "long_step"
        else:  # another part's watcher ended the piece: small goes on with its step
            following = stored.model_copy(update={"max_tokens": remaining, "num_step_tokens": watcher.num_step_tokens})
            trigger = Trigger.RESUME.value
        return Transition(state=following.model_dump(mode="json"), keep=keep, then=self._ask(following, trigger))

    def _end(self, state: _State, written: Written, remaining: int, *, stopped: bool) -> FinishReason | None:
        """Why the sample ends here; None where it goes on, as after the end of a takeover."""
        handed_back = state.role is ModelRole.LARGE and written.finish is SegmentFinish.EOS
        if stopped or handed_back:
            return FinishReason.LENGTH if remaining <= 0 else None
        return finish_reason(written, asked=state.max_tokens, remaining=remaining)

    def _ask(self, state: _State, trigger: str) -> Generate:
        return Generate(
            role=state.role,
            max_tokens=state.max_tokens,
            trigger=trigger,
            takes_over=state.role is ModelRole.LARGE,
        )
