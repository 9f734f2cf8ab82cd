"""Glimpse: vectors by hand, and the published loop as one would write it with two engines that block."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.policies.glimpse import GlimpseSpec
from pipeline.policies.protocol import Reading
from pipeline.policies.requests import Finish, Generate
from pipeline.samples import WRITING_ROLES, FinishReason, ModelRole, SegmentFinish
from pipeline.signals import Signal
from tests.by_hand import ByHand, Token, context_of
from tests.decisions import Decision, Keep, decided
from tests.scripted_pair import Model, StepsLoop, drive, lengthens_break, models

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE
EOS, LENGTH, WATCH = SegmentFinish.EOS, SegmentFinish.LENGTH, SegmentFinish.WATCH
ENTROPY = frozenset({Signal.FIRST_ENTROPY})


class Play(ByHand):
    """One sample; the first tokens of steps have an entropy."""

    signal = Signal.FIRST_ENTROPY

    def __init__(self, spec: GlimpseSpec | None = None, *, max_tokens: int = 1000, think_end: str = "</think>") -> None:
        super().__init__((spec or GlimpseSpec()).build(), context_of(max_tokens, think_end=think_end))

    def watched(self, *tokens: Token) -> int | None:
        return self.stops_after(tokens)

    def write(self, *tokens: Token, finish: SegmentFinish = WATCH) -> tuple[Decision, ...]:
        return self.has_written(tokens, finish)


def step_by_large(max_tokens: int = 512) -> Generate:
    return Generate(role=LARGE, max_tokens=max_tokens, takes_over=True, trigger="glimpse")


def resumes(play: Play, *, is_thinking: bool = True) -> Generate:
    signals = ENTROPY if is_thinking else frozenset()
    return Generate(role=SMALL, max_tokens=1000 - play.num_tokens, trigger="resume", signals=signals)


VECTOR: list[Token] = [("Take", 0.2), " it.", "\n\n", ("Then", 0.3), " go.", "\n\n", ("Wait", 1.7), " so", "\n\n"]


def test_small_begins_and_its_first_tokens_are_read() -> None:
    play = Play()
    assert play.policy.roles == {SMALL, LARGE}
    assert decided(play.last) == (Generate(role=SMALL, max_tokens=1000, trigger="start", signals=ENTROPY),)


def test_an_uncertain_first_token_hands_its_step_to_large() -> None:
    play = Play()
    assert play.watched(*VECTOR) == 7
    assert play.write(*VECTOR) == (Keep(num_tokens=6), step_by_large())
    assert play.last.reading == Reading(value=1.7, threshold=1.0, outcome="take_over")


@pytest.mark.parametrize("num_equal", [2, 3, 20])
def test_the_entropy_of_equal_tokens_is_their_numbers_logarithm(num_equal: int) -> None:
    entropy = round(math.log(num_equal), 5)
    assert entropy in (0.69315, 1.09861, 2.99573)
    expected = None if num_equal == 2 else 2
    assert Play().watched(".\n\n", ("So", entropy), " on") == expected


@pytest.mark.parametrize(("entropy", "fires"), [(1.0, True), (0.99999, False)])
def test_the_threshold_itself_is_uncertain(entropy: float, fires: bool) -> None:
    play = Play()
    assert (play.watched(".\n\n", ("So", entropy)) == 2) is fires


def test_a_break_of_several_tokens_is_read_once_after_the_last() -> None:
    play = Play()
    tokens: list[Token] = ["a", "\n\n", "\n", ("So", 1.5)]
    assert play.watched(*tokens) == 4
    assert play.write(*tokens)[0] == Keep(num_tokens=3)


def test_newlines_that_begin_a_request_lengthen_the_break_before_it() -> None:
    play = Play()
    play.write("a", "\n\n", ("So", 1.5))
    play.write("b", ".\n\n", finish=WATCH)
    tokens: list[Token] = [("\n", 2.5), ("So", 0.1), " w"]
    assert play.watched(*tokens) is None
    assert play.watched(("\n", 2.5), ("So", 1.1)) == 2


def test_the_very_first_token_may_be_uncertain() -> None:
    play = Play()
    assert play.watched(("Hm", 1.2)) == 1
    assert play.write(("Hm", 1.2), "a") == (Keep(num_tokens=0), step_by_large())
    play = Play(GlimpseSpec(check_start=False))
    assert play.watched(("Hm", 1.2), "a") is None


def test_the_first_token_of_a_request_in_the_middle_of_a_step_decides_nothing() -> None:
    play = Play()
    assert play.write("a", " b")[1] == Generate(role=SMALL, max_tokens=998, trigger="start", signals=ENTROPY)
    assert play.watched((" c", 2.0), ".\n\n", ("So", 1.0)) == 3


def test_large_hands_back_at_its_break() -> None:
    play = Play()
    play.write(*VECTOR)
    assert play.watched(" Let", " me", ".\n\n", " So") == 3
    assert play.write(" Let", " me", ".\n\n", " So") == (Keep(num_tokens=3), resumes(play))


def test_newlines_that_lengthen_the_break_do_not_end_larges_step() -> None:
    play = Play()
    play.write(*VECTOR)
    assert play.watched("\n", "Let", "\n", "\n") == 4


def test_large_writes_step_tokens_at_most_and_small_goes_on_in_its_step() -> None:
    play = Play(GlimpseSpec(step_tokens=3))
    assert play.write(*VECTOR)[1] == step_by_large(3)
    assert play.watched(" a", " b", " c") == 3
    assert play.write(" a", " b", " c") == (Keep(num_tokens=3), resumes(play))
    assert play.watched((" d", 2.0), ".\n\n", ("So", 1.0)) == 3


def test_large_may_write_two_steps_in_a_row() -> None:
    play = Play()
    play.write(*VECTOR)
    play.write(" Let", ".\n\n")
    assert play.watched(("So", 1.2)) == 1
    assert play.write(("So", 1.2)) == (Keep(num_tokens=0), step_by_large())


def test_where_large_has_nothing_to_say_small_passes_unread() -> None:
    play = Play()
    play.write(*VECTOR)
    assert play.write(finish=EOS) == (Keep(num_tokens=0), resumes(play))
    assert play.watched(("Wait", 1.7), " w", ".\n\n", ("So", 1.0)) == 4
    assert play.watched(("\n", 1.7), "Wait") is None


def test_larges_end_hands_back_while_it_thinks() -> None:
    play = Play()
    play.write(*VECTOR)
    assert play.write(" Let", finish=EOS) == (Keep(num_tokens=1), resumes(play))


def test_nothing_is_taken_over_in_the_answer() -> None:
    play = Play()
    assert play.watched("a", "</think>", "\n\n", ("So", 2.0), ".\n\n", ("So", 2.0)) is None
    play.write("a", "</think>", "\n\n")
    assert play.last.then == Generate(role=SMALL, max_tokens=997, trigger="start")
    assert play.policy.watcher(play.context, play.last.state) is None
    assert play.write("8", finish=EOS)[1] == Finish(reason=FinishReason.EOS)


def test_large_may_write_the_answer_and_that_is_no_takeover() -> None:
    play = Play(GlimpseSpec(answer_role=LARGE))
    assert play.watched("a", "</think>", "\n\n") == 2
    assert play.write("a", "</think>", "\n\n") == (
        Keep(num_tokens=2),
        Generate(role=LARGE, max_tokens=998, trigger="answer"),
    )
    assert play.policy.watcher(play.context, play.last.state) is None
    assert play.write("8", "\n\n", finish=EOS) == (Keep(num_tokens=2), Finish(reason=FinishReason.EOS))
    play = Play(GlimpseSpec(answer_role=LARGE))
    play.write(*VECTOR)
    assert play.write(" so", "</think>")[1] == Generate(role=LARGE, max_tokens=992, trigger="answer")


@pytest.mark.parametrize("by_large", [False, True])
def test_a_full_context_ends_the_sample(by_large: bool) -> None:
    play = Play()
    if by_large:
        play.write(*VECTOR)
    assert play.write(finish=LENGTH) == (Keep(num_tokens=0), Finish(reason=FinishReason.CONTEXT))


def test_requests_are_clamped_to_what_is_left() -> None:
    play = Play(max_tokens=10)
    assert play.write(*VECTOR)[1] == step_by_large(4)
    assert play.write(" a", " b", " c", " d", finish=LENGTH)[1] == Finish(reason=FinishReason.LENGTH)


def test_a_missing_reading_is_no_doubt() -> None:
    assert Play().watched(".\n\n", "So") is None


def test_large_may_write_the_first_steps() -> None:
    play = Play(GlimpseSpec(first_steps=2, step_tokens=4, check_start=False))
    assert decided(play.last) == (Generate(role=LARGE, max_tokens=8, trigger="opening"),)
    assert play.watched("a", ".\n\n", "\n", "b", ".\n\n", "c") == 5
    assert play.watched("a", "b", "c", "d", "e", ".\n\n", "f") == 6, "a step may end without a break"
    assert play.watched("a", "</think>") == 2
    assert play.write("a", ".\n\n", "b", ".\n\n", "c") == (Keep(num_tokens=4), resumes(play))
    assert play.watched(("So", 1.2)) == 1, "the rule begins behind them, whatever check_start says"


def test_an_opening_without_a_word_is_over() -> None:
    play = Play(GlimpseSpec(first_steps=2))
    assert play.write(finish=EOS) == (Keep(num_tokens=0), resumes(play))
    assert play.watched(("So", 1.7), ".\n\n", ("So", 1.7)) == 3, "the place is closed"


# The published loop.

WORDS = [
    " a",
    " b",
    ",",
    ".\n\n",
    ".\n\n",
    "\n",
    "\n\n",
    " So",
    "x\n",
    " ",
    "</think>",
    "END",
    "é",
    "",
    "\ufffd",
    *[" a", " b"] * 6,
]


class GlimpseLoop(StepsLoop):
    """Look at small's next token before each step, and let large write the step where it is uncertain."""

    def __init__(self, spec: GlimpseSpec, model: Model, *, max_tokens: int) -> None:
        super().__init__(spec, model, max_tokens=max_tokens)
        self.spec = spec

    def write(self) -> None:
        is_step = self.open() and (self.spec.first_steps > 0 or self.spec.check_start)
        while self.text.is_thinking:
            lengthens = lengthens_break(self.text.tokens, self.peek(SMALL))
            entropy = self.model.entropy(str(self.text))
            self.token(SMALL)
            if lengthens:
                continue
            if is_step and entropy >= self.spec.threshold:
                decided = ("glimpse", entropy, self.spec.threshold, "take_over")
                is_step = self.take_over(len(self.text) - 1, decided)
            else:
                is_step = self.text.at_break
        self.answer(self.spec.answer_role, after=SMALL)


CASES: dict[str, Any] = {
    "spec": st.builds(
        GlimpseSpec,
        threshold=st.sampled_from([0.0, 0.5, 1.0, 2.5, 9.0]),
        first_steps=st.sampled_from([0, 0, 1, 3]),
        step_tokens=st.sampled_from([1, 3, 512]),
        check_start=st.booleans(),
        answer_role=st.sampled_from(WRITING_ROLES),
    ),
    "model": models(WORDS, cut=SMALL),
    "max_tokens": st.sampled_from([1, 20, 80, 80, 80]),
    "overrun": st.integers(0, 2**16).map(random.Random),
}


@settings(max_examples=2000, derandomize=True, database=None, deadline=None)
@given(**CASES)
def test_glimpse_does_as_the_published_loop(
    spec: GlimpseSpec, model: Model, max_tokens: int, overrun: random.Random
) -> None:
    expected = GlimpseLoop(spec, model, max_tokens=max_tokens).run()
    assert drive(spec.build(), model, max_tokens=max_tokens, overrun=overrun) == expected
