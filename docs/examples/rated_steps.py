"""A policy of one's own that asks: large rates each step of small, and writes the step itself where it rates it low.

small tries a step, which is not kept yet: an aside
large rates it by one digit
the digit is min_rating or more: the step is taken into the text
it is less: large writes the step, and that one is taken
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, Field

from pipeline.breaks import BreakFinder
from pipeline.policies import Policy, PolicySpec
from pipeline.policies.protocol import PolicyState, Reading, SampleContext, Transition
from pipeline.policies.requests import Answered, Ask, Event, Finish, Take
from pipeline.policies.turns import whole_characters
from pipeline.samples import FinishReason, ModelRole, SegmentFinish
from pipeline.signals import Readings

DIGITS = tuple("0123456789")


class RatedStepsSpec(PolicySpec):
    """Every number of the policy, as a job stores it."""

    name: Literal["rated-steps"] = "rated-steps"
    min_rating: Annotated[int, Field(ge=0, le=9)] = 7
    """The least digit at which a step of small stays. A guess."""
    step_tokens: Annotated[int, Field(ge=1)] = 256
    """Most tokens of one step. A guess."""
    question: str = "Rate the last step of this solution. Answer with one digit from 0 (wrong) to 9 (right)."
    """What large is asked, in a user message of its own."""

    def build(self) -> Policy:
        return RatedStepsPolicy(self)


class _State(BaseModel):
    """What is stored with a sample: what is written now; of the step that small tried, its aside, how many of its
    tokens are the step, and why the text ends with it, None where it goes on."""

    at: Literal["try", "rate", "write"]
    index: int = 0
    num_tokens: int = 0
    end: FinishReason | None = None


class _StepWatcher:
    """Ends a request where the step ends: at a break that something stands before."""

    def __init__(self) -> None:
        self._breaks = BreakFinder()
        self._is_begun = False

    def feed(self, text: str, readings: Readings | None = None) -> bool:
        self._is_begun = self._is_begun or bool(text.strip())
        return self._breaks.feed(text) and self._is_begun


class RatedStepsPolicy:
    """The policy of a spec. Immutable."""

    roles: ClassVar[frozenset[ModelRole]] = frozenset(ModelRole)

    def __init__(self, spec: RatedStepsSpec) -> None:
        self._spec = spec
        self._rate = Ask(role=ModelRole.LARGE, purpose="rate", question=spec.question, turn=True, labels=DIGITS)

    @property
    def asks(self) -> tuple[Ask, ...]:
        return (self._write(ModelRole.SMALL, 1), self._rate, self._write(ModelRole.LARGE, 1))

    def start(self, context: SampleContext) -> Transition:
        return Transition(
            state=_State(at="try").model_dump(mode="json"), then=self._write(ModelRole.SMALL, context.max_tokens)
        )

    def watcher(self, context: SampleContext, state: PolicyState) -> _StepWatcher | None:
        return None if _State.model_validate(state).at == "rate" else _StepWatcher()

    def advance(self, context: SampleContext, state: PolicyState, event: Event) -> Transition:
        assert isinstance(event, Answered)  # this policy generates nothing
        stored, room = _State.model_validate(state), context.max_tokens - event.start_token
        if stored.at == "rate":
            return self._take_or_write(stored, event, room)
        step = self._step_of(event, room)
        if stored.at == "try" and step.num_tokens:
            rate = replace(self._rate, after=((step.index, step.num_tokens),))
            return Transition(state=step.model_dump(mode="json"), then=rate)
        return self._take(step, room)

    def _step_of(self, event: Answered, room: int) -> _State:
        """The step that an aside begins with, to be rated. room: output tokens that were left for it."""
        texts, watcher = event.piece.texts, _StepWatcher()
        stop = next((place for place, text in enumerate(texts, start=1) if watcher.feed(text)), None)
        end = None
        if stop is None and event.finish is SegmentFinish.EOS:
            end = FinishReason.EOS
        elif stop is None and event.finish is SegmentFinish.LENGTH and len(texts) < min(self._spec.step_tokens, room):
            end = FinishReason.CONTEXT
        num_tokens = len(texts) if stop is None else stop
        whole = whole_characters(texts, num_tokens) or num_tokens
        return _State(at="rate", index=event.index, num_tokens=whole, end=end)

    def _take_or_write(self, step: _State, event: Answered, room: int) -> Transition:
        """What the rating decides; a step that could not be rated stays."""
        read = {label: value for label, value in event.labels.items() if value is not None}
        rating = int(max(read, key=lambda label: read[label])) if read else None
        if rating is None:
            return self._take(step, room)
        is_low = rating < self._spec.min_rating
        outcome = "write" if is_low else "take"
        reading = Reading(value=rating, threshold=self._spec.min_rating, outcome=outcome)
        if not is_low:
            return replace(self._take(step, room), reading=reading)
        state = _State(at="write").model_dump(mode="json")
        return Transition(state=state, then=self._write(ModelRole.LARGE, room), reading=reading)

    def _take(self, step: _State, room: int) -> Transition:
        """Take a step into the text, and let small try the next one."""
        insert = (Take(index=step.index, num_tokens=step.num_tokens),) if step.num_tokens else ()
        room -= step.num_tokens
        end = step.end or (FinishReason.LENGTH if room < 1 else None)
        if end is not None:
            return Transition(state={}, insert=insert, then=Finish(reason=end))
        return Transition(
            state=_State(at="try").model_dump(mode="json"), insert=insert, then=self._write(ModelRole.SMALL, room)
        )

    def _write(self, role: ModelRole, room: int) -> Ask:
        return Ask(role=role, purpose="step", max_tokens=min(self._spec.step_tokens, room), greedy=False)
