"""The policy that asks, which docs/policies/write-your-own.md shows: on scripted texts, and in a worker's turns."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import count

import pytest

from docs.examples.rated_steps import DIGITS, RatedStepsSpec
from pipeline.policies import PluginSpec, Policy, parse_policy
from pipeline.policies.protocol import SampleContext, Transition
from pipeline.policies.requests import Answered, Ask, Finish, Take
from pipeline.samples import WRITING_ROLES, Author, FinishReason, ModelRole, Piece, SegmentFinish
from tests.turns import babble, setup_of, walk
from workers.engine.base import GenerateRequest, GenerateResult

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE
CONTEXT = SampleContext(
    job_seed=1, problem_id="p", sample_index=0, max_tokens=100, think_end="</think>", num_prompt_tokens=4
)
GOOD, POOR = "9", "2"
WATCH, EOS, LENGTH = SegmentFinish.WATCH, SegmentFinish.EOS, SegmentFinish.LENGTH


class Play:
    """A sample of the policy, one answer after the other."""

    def __init__(self, policy: Policy, context: SampleContext = CONTEXT) -> None:
        self.policy, self.context = policy, context
        self.step: Transition = policy.start(context)
        self.text: list[str] = []
        self._asides: list[tuple[str, ...]] = []
        self._index = count()

    @property
    def ask(self) -> Ask:
        assert isinstance(self.step.then, Ask)
        return self.step.then

    def _answer(self, piece: Piece, finish: SegmentFinish, labels: dict[str, float | None]) -> None:
        event = Answered(
            index=next(self._index), role=self.ask.role, piece=piece, finish=finish, start_token=len(self.text),
            labels=labels,
        )  # fmt: skip
        self._asides.append(piece.texts)
        self.step = self.policy.advance(self.context, self.step.state, event)
        for taken in self.step.insert:
            assert isinstance(taken, Take)
            self.text += self._asides[taken.index][: taken.num_tokens]

    def writes(self, *texts: str, finish: SegmentFinish = WATCH) -> None:
        self._answer(Piece(token_ids=tuple(range(len(texts))), texts=texts), finish, {})

    def rates(self, digit: str | None) -> None:
        assert (self.ask.role, self.ask.purpose, self.ask.labels) == (LARGE, "rate", DIGITS)
        labels = {} if digit is None else {**dict.fromkeys(DIGITS, None), POOR: -3.0, GOOD: -3.0, digit: -0.1}
        self._answer(Piece(token_ids=(1,), texts=("x",)), LENGTH, labels)


def test_a_step_rated_high_is_taken() -> None:
    play = Play(RatedStepsSpec().build())
    play.writes("a", ".\n\n", "b")  # what came after the break is no part of the step
    assert play.ask.after == ((0, 2),)
    assert play.text == []
    play.rates(GOOD)
    assert (play.text, play.ask.role, play.ask.max_tokens) == (["a", ".\n\n"], SMALL, 98)


def test_a_step_rated_low_is_written_by_large() -> None:
    play = Play(RatedStepsSpec().build())
    play.writes("a", ".\n\n")
    play.rates(POOR)
    assert (play.text, play.ask.role) == ([], LARGE)
    assert play.step.reading is not None
    assert play.step.reading.outcome == "write"
    play.writes("A", "B", ".\n\n")
    assert (play.text, play.ask.role) == (["A", "B", ".\n\n"], SMALL)


def test_a_step_that_cannot_be_rated_stays() -> None:
    play = Play(RatedStepsSpec().build())
    play.writes("a", ".\n\n")
    play.rates(None)
    assert play.text == ["a", ".\n\n"]


@pytest.mark.parametrize(
    ("finish", "reason"), [(EOS, FinishReason.EOS), (LENGTH, FinishReason.CONTEXT)], ids=["eos", "context"]
)
def test_the_last_step_is_rated_before_it_ends_the_text(finish: SegmentFinish, reason: FinishReason) -> None:
    play = Play(RatedStepsSpec().build())
    play.writes("a", finish=finish)
    play.rates(GOOD)
    assert (play.text, play.step.then) == (["a"], Finish(reason=reason))


def test_where_nothing_more_comes_the_text_ends() -> None:
    play = Play(RatedStepsSpec().build())
    play.writes(finish=EOS)
    assert play.step.then == Finish(reason=FinishReason.EOS)


@pytest.mark.parametrize("max_tokens", range(1, 8))
def test_the_budget_is_never_exceeded(max_tokens: int) -> None:
    play = Play(RatedStepsSpec(step_tokens=3).build(), replace(CONTEXT, max_tokens=max_tokens))
    while isinstance(play.step.then, Ask):
        if play.ask.purpose == "rate":
            play.rates(POOR)
        else:
            play.writes(*["a"] * play.ask.max_tokens, finish=LENGTH)
    assert len(play.text) == max_tokens
    assert play.step.then == Finish(reason=FinishReason.LENGTH)


def test_a_newline_at_the_start_is_no_step() -> None:
    policy = RatedStepsSpec().build()
    watcher = policy.watcher(CONTEXT, policy.start(CONTEXT).state)
    assert watcher is not None
    assert [watcher.feed(text) for text in ("\n", "\n", "a", ".\n\n")] == [False, False, False, True]


def test_a_worker_carries_it_out() -> None:
    """The demo pair's own template and tokens, from the file as a user names it; a draw stands for the engine."""
    spec = parse_policy("docs/examples/rated_steps.py:RatedStepsSpec", {"step_tokens": "20"})
    assert isinstance(spec, PluginSpec)
    setups = {role: setup_of(spec.build(), role) for role in WRITING_ROLES}
    for setup in setups.values():
        for ask in setup.policy.asks:
            setup.questions.get(ask)

    def write(request: GenerateRequest) -> GenerateResult:
        drawn = random.Random(len(request.prompt_ids)).choice(DIGITS)
        labels = {} if request.watcher else {digit: -1.0 if digit == drawn else -5.0 for digit in DIGITS}
        return replace(babble(request), labels=labels)

    way = walk(setups, write)
    assert {segment.author for segment in way.segments} == {Author.SMALL, Author.LARGE}
    assert {aside.purpose for aside in way.end.context.asides} == {"step", "rate"}
    assert 0 < sum(segment.num_kept for segment in way.segments) <= 300
