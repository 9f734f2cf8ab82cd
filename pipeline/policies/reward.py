"""Reward: a judge says how good each step of small's is, and large writes those that are not good enough.

Two rules, each a policy. The judge is a third model, a generative process reward model: it reads the problem and the
steps within a frame, and the *reward* of the last one is p(good) / (p(good) + p(bad)) of its next token. It writes
nothing that is kept.

``rsd``: a step stays where its reward is at least the threshold. Source: RSD, arXiv 2501.19324, and its released code
("code"). Its loop, once for every step:

    step = small's next step
    reward = the reward model's for the last step of problem, steps and this one
    reward >= threshold:  the step stays
    else                  large writes the step

What the code does and this does not: it reads a value head; all problems go in lock step, and where none ends for five
rounds every open one is cut; a step that is cut at its limit ends the sample; temperature 0. Its weights other than
this step function are not built: they draw whether a step stays.

``specsearch``: the threshold moves within a sample. Source: SpecSearch, arXiv 2505.02865, its rule of acceptance at
width 1; no tree is searched, and its code is not published. Large writes the first steps; their mean reward is the
threshold. After each further step of large's it becomes

    decay * threshold + (1 - decay) * reward of that step

so that small is held to what large does on this problem. Each step of large's costs a question to the judge.

Fallbacks. The labels have too little mass, or the judge's context has no room: there is no reward, the step does not
stay, and the threshold does not move. Until so many steps of large's have a reward, large writes on. See
``drafted_steps`` for the rest.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, model_validator

from pipeline.policies.drafted_steps import (
    DRAFT,
    SMALL,
    DraftedState,
    DraftedStepsPolicy,
    DraftedStepsSpec,
    Verdict,
    is_blank,
    no_answer,
    verdict,
)
from pipeline.policies.protocol import Reading, Transition
from pipeline.policies.reading.labels import MinMass, probabilities, rounded
from pipeline.policies.reading.reader import TextState
from pipeline.policies.requests import Answered, Ask, Frame, Layout
from pipeline.policies.specs import ThresholdRule
from pipeline.policies.turns import Turn
from pipeline.samples import WRITING_ROLES, ModelRole

JUDGE = ModelRole.JUDGE
REWARD, OF_LARGE = "reward", "reward_of_large"
"""Purposes of the judge's asides: on a step of small's, and of large's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How one kind of judge is asked. good, bad: what it answers."""

    frame: Frame
    good: str
    bad: str


_QUESTION = (
    "\n\nIs the last of these steps correct, and does it follow from the problem and the steps before it? Reply with "
    "one word, Yes or No."
)
FORMS: Mapping[str, Form] = {
    "chat": Form(  # ours, for any model that follows instructions
        frame=Frame(
            layout=Layout.MESSAGE,
            before="Problem:\n{problem}\n\nSteps of a solution:\n\n",
            step="{step}",
            between="\n\n",
        ),
        good="Yes",
        bad="No",
    ),
    "turns": Form(  # as RLHFlow's PRMs were trained (Llama3.1-8B-PRM-Deepseek-Data)
        frame=Frame(layout=Layout.TURNS, before="{problem} ", step="{step}"), good="+", bad="-"
    ),
    "math-shepherd": Form(  # as math-shepherd-mistral-7b-prm was trained (arXiv 2312.08935)
        frame=Frame(layout=Layout.TEXT, before="{problem} ", step="{step} ки", between="\n"), good="+", bad="-"
    ),
    "math-psa": Form(  # as OpenR asks its Math-psa
        frame=Frame(layout=Layout.TEXT, before="{problem} ", step="{step} \n\n\n\n\n", between=" "),
        good="+",
        bad="-",
    ),
}
"""By the names of ``frame``."""


class _Spec(DraftedStepsSpec):
    """What both rules have."""

    frame: Literal["chat", "turns", "math-shepherd", "math-psa"] = "chat"
    """How the judge is shown problem and steps. chat: one message, for a model that follows instructions. turns: a
    message for each step, as RLHFlow's models. math-shepherd, math-psa: plain text with a tag after each step. Take
    the one that the judge was trained with: in another its answers mean nothing."""
    question: str = _QUESTION
    """What the frame chat ends with; the others ask nothing. It has to ask for one of the two labels. Ours."""
    opening: str = ""
    """How its reply begins in the frame chat, so that the label is its next token."""
    good: str = ""
    """What the judge answers to a good step; '': Yes in the frame chat, + in the others."""
    bad: str = ""
    """What it answers to a bad one; '': No in the frame chat, - in the others."""
    min_mass: MinMass = 0.5
    """Least probability of both answers together; below it there is no reward, and the step does not stay. Ours."""

    @model_validator(mode="after")
    def _check_answers(self) -> Self:
        good, bad = self._answers
        if good == bad:
            raise ValueError(f"good and bad must be two answers, and both are {good!r}")
        return self

    @property
    def _answers(self) -> tuple[str, str]:
        form = FORMS[self.frame]
        return self.good or form.good, self.bad or form.bad

    def ask(self, purpose: str) -> Ask:
        """The question to the judge about the last step that it is shown."""
        return Ask(
            role=JUDGE,
            purpose=purpose,
            question=self.question if self.frame == "chat" else "",
            opening=self.opening if self.frame == "chat" else "",
            labels=self._answers,
            frame=FORMS[self.frame].frame,
        )

    def read(self, event: Answered) -> tuple[float | None, float]:
        """What the judge says of a step, from 0 to 1, and the mass of its answers; None where that is too little."""
        good, bad = (probabilities(event.labels).get(label, 0.0) for label in self.ask(REWARD).labels)
        mass = rounded(good + bad)
        return (None if mass < self.min_mass or not mass else rounded(good / (good + bad))), mass


class RsdSpec(_Spec):
    """A step of small's stays where its reward is at least the threshold."""

    name: Literal["rsd"] = "rsd"
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Least reward at which a step stays. Paper and code: 0.7, with a reward model of their own; of another judge take
    a quantile of the rewards in a pilot job."""

    @property
    def threshold_rule(self) -> ThresholdRule:
        return ThresholdRule(statistic=f"aside:{REWARD}", side="below")

    def build(self) -> RsdPolicy:
        return RsdPolicy(self)


class SpecSearchSpec(_Spec):
    """A step of small's stays where its reward is at least what large's steps have on this problem."""

    name: Literal["specsearch"] = "specsearch"
    first_steps: Annotated[int, Field(ge=1)] = 3
    """Steps of large's whose mean reward is the first threshold. Ours; paper: its first thoughts."""
    decay: Annotated[float, Field(ge=0, le=1)] = 0.9
    """How much of the threshold stays after each further step of large's. Paper: 0.8 to 0.95."""

    @property
    def threshold_rule(self) -> None:
        """It is found in each sample."""
        return None

    def build(self) -> SpecSearchPolicy:
        return SpecSearchPolicy(self)


RewardStateT = TypeVar("RewardStateT", bound=DraftedState)


class _RewardPolicy(DraftedStepsPolicy[RewardStateT]):
    """Has the judge asked about each step of a draft, up to the first that does not stay. Immutable."""

    roles = frozenset({*WRITING_ROLES, JUDGE})

    def __init__(self, spec: _Spec) -> None:
        super().__init__(spec)
        self._spec = spec

    @property
    def asks(self) -> tuple[Ask, ...]:
        return Ask(role=SMALL, purpose=DRAFT, greedy=False), self._spec.ask(REWARD)

    @abstractmethod
    def _threshold(self, state: RewardStateT) -> float | None:
        """The least reward at which a step stays; None: none does."""

    def _judge_draft(self, state: RewardStateT, room: int) -> Transition:
        """A step of nothing but newlines, or of the closing tag, is none that a judge could read."""
        if self._threshold(state) is None:
            return self._take_over(state, 0, room)
        unsure = tuple(index for index, step in enumerate(state.steps) if not step.is_blank)
        return self._review(state.model_copy(update={"unsure": unsure}), room)

    def _review(self, state: RewardStateT, room: int, reading: Reading | None = None) -> Transition:
        """Have the next step judged; the draft stays where there is none."""
        if not state.unsure:
            return self._accept(state, room, reading)
        return self._ask(state, self._on_step(self._spec.ask(REWARD), state, state.unsure[0]), reading=reading)

    def _after_judging(self, state: RewardStateT, event: Answered, room: int) -> Transition:
        judged = self._verdict(event, self._threshold(state))
        if not judged.accepts:
            return self._take_over(state, state.unsure[0], room, judged.reading)
        return self._review(state.model_copy(update={"unsure": state.unsure[1:]}), room, judged.reading)

    def _verdict(self, event: Answered, threshold: float | None) -> Verdict:
        reward, mass = self._spec.read(event)
        if reward is None or threshold is None:
            return no_answer(mass, self._spec.min_mass)
        return verdict(reward >= threshold, reward, threshold)


class RsdPolicy(_RewardPolicy[DraftedState]):
    """The policy of a spec. Immutable."""

    _state_type = DraftedState

    def __init__(self, spec: RsdSpec) -> None:
        super().__init__(spec)
        self._limit = spec.threshold

    def _threshold(self, state: DraftedState) -> float:
        return self._limit


class _MovingState(DraftedState):
    """All that is stored of the policy with a sample."""

    first_rewards: tuple[float, ...] = ()
    """Of large's steps, until there are enough."""
    threshold: float | None = None
    """None: until then."""


class SpecSearchPolicy(_RewardPolicy[_MovingState]):
    """The policy of a spec. Immutable."""

    _state_type = _MovingState

    def __init__(self, spec: SpecSearchSpec) -> None:
        super().__init__(spec)
        self._moving = spec

    @property
    def asks(self) -> tuple[Ask, ...]:
        return (*super().asks, self._spec.ask(OF_LARGE))

    def _threshold(self, state: _MovingState) -> float | None:
        return state.threshold

    def _after_step(self, turn: Turn[_MovingState], keep: int, text: TextState) -> Transition:
        """A step of large's moves the threshold, where there is one that a judge could read."""
        if not text.thinking or not keep:
            return super()._after_step(turn, keep, text)
        room, state = turn.remaining(keep), turn.state.model_copy(update={"text": text, "is_closed": False})
        if is_blank(turn.texts[:keep], turn.context):
            return self._go_on(state, room, keep=keep)
        return self._ask(state, self._spec.ask(OF_LARGE), keep=keep)

    def _after_judging(self, state: _MovingState, event: Answered, room: int) -> Transition:
        if state.purpose == REWARD:
            return super()._after_judging(state, event, room)
        reward, mass = self._spec.read(event)
        if reward is None:
            return self._go_on(state, room, reading=no_answer(mass, self._spec.min_mass).reading)
        state, moved = self._moved(state, reward)
        return self._go_on(state, room, reading=Reading(value=reward, threshold=moved, outcome="threshold"))

    def _moved(self, state: _MovingState, reward: float) -> tuple[_MovingState, float]:
        """The state after a reward of large's, and the threshold, or what it would be by now."""
        if state.threshold is not None:
            decay = self._moving.decay
            moved = rounded(decay * state.threshold + (1 - decay) * reward)
            return state.model_copy(update={"threshold": moved}), moved
        rewards = (*state.first_rewards, reward)
        mean = rounded(sum(rewards) / len(rewards))
        if len(rewards) < self._moving.first_steps:
            return state.model_copy(update={"first_rewards": rewards}), mean
        return state.model_copy(update={"first_rewards": (), "threshold": mean}), mean

    def _go_on(
        self, state: _MovingState, room: int, *, keep: int | None = None, reading: Reading | None = None
    ) -> Transition:
        """Large writes on until there is a threshold; then small drafts."""
        go_on = self._open if state.threshold is None else self._draft
        return go_on(state, room, keep=keep, reading=reading)
