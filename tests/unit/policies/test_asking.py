"""Policies that ask, inside the parts that are around every policy: nothing changes, and taken text is read."""

from __future__ import annotations

import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.policies import Policy
from pipeline.policies.composition import compose
from pipeline.policies.exits import CutExit
from pipeline.policies.guards import LoopGuard
from pipeline.policies.mentor import MentorSpec
from pipeline.policies.protocol import SampleContext
from pipeline.policies.reading.beginning import read_beginning
from pipeline.policies.requests import Answered, Ask, Finish, Generate, Take, Written
from pipeline.policies.specreason import DoubtedSpec, RatedSpec
from pipeline.policies.stops import Stopping
from pipeline.policies.thoughts import AsThought
from pipeline.samples import FinishReason, ModelRole, Piece, SegmentFinish
from tests.asking_pair import Driver, Pair, pairs
from tests.by_hand import context_of

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE
SPECS = [
    RatedSpec(steps_per_review=2, self_check=6, threshold=5),
    DoubtedSpec(answer_role=LARGE, step_tokens=8),
    MentorSpec(rate=0.5, chunk=4, draft_tokens=8),
    MentorSpec(rate=0.5, chunk=2, chooser="mentor"),
]


@settings(max_examples=120, derandomize=True, database=None, deadline=None)
@given(
    spec=st.sampled_from(SPECS),
    pair=pairs("Wait", " the", limits=(10_000, 10_000, 40)),
    max_tokens=st.sampled_from([20, 90]),
    overrun=st.integers(0, 2**16),
)
def test_the_parts_around_a_policy_change_nothing_where_they_have_nothing_to_say(
    spec: RatedSpec | DoubtedSpec | MentorSpec, pair: Pair, max_tokens: int, overrun: int
) -> None:
    context = context_of(max_tokens)
    alone = Driver(spec.build(), pair, context, random.Random(overrun)).play()
    assume(read_beginning(context, "", alone.text)[1] is not False)  # else it is told that it does not think
    composed = compose(spec.build(), exit=CutExit(thinking_tokens=10_000), guards=[LoopGuard(repeats=1000)])
    around = Stopping(AsThought(composed), {SMALL: ("@@",), LARGE: ("@@",)})
    inside = Driver(around, pair, context, random.Random(overrun)).play()
    assert (inside.tokens, inside.segments, inside.reason) == (alone.tokens, alone.segments, alone.reason)
    assert [(aside.purpose, aside.verdict) for aside in inside.asides] == [
        (aside.purpose, aside.verdict) for aside in alone.asides
    ]  # not their texts: a beginning without a word may be ended late


class Walk:
    """A sample whose requests are answered by hand, one after the other."""

    def __init__(self, policy: Policy, context: SampleContext) -> None:
        self.policy, self.context = policy, context
        self.last = policy.start(context)
        self.num_tokens = self.num_asides = 0

    def answers(self, *texts: str, finish: SegmentFinish = SegmentFinish.WATCH, **labels: float) -> None:
        piece = Piece(token_ids=tuple(range(len(texts))), texts=texts)
        request = self.last.then
        assert isinstance(request, Generate | Ask)
        event: Written | Answered
        if isinstance(request, Generate):
            event = Written(role=request.role, piece=piece, finish=finish, start_token=self.num_tokens)
        else:
            event = Answered(
                index=self.num_asides, role=request.role, piece=piece, finish=finish, start_token=self.num_tokens,
                labels=labels,
            )  # fmt: skip
            self.num_asides += 1
        self.last = self.policy.advance(self.context, self.last.state, event)
        self.num_tokens += (self.last.keep or 0) + sum(
            part.num_tokens for part in self.last.insert if isinstance(part, Take)
        )


def test_a_stop_string_is_found_behind_a_closing_tag_that_was_taken() -> None:
    policy = Stopping(AsThought(DoubtedSpec().build()), {SMALL: ("Q:",), LARGE: ()})
    walk = Walk(policy, context_of(100))
    walk.answers("a", "</think>")
    walk.answers(Wait=-9.0)
    watcher = policy.watcher(walk.context, walk.last.state)
    assert watcher is not None
    assert [watcher.feed(text) for text in ("8", "Q:")] == [False, True]
    walk.answers("8", "Q:")
    assert walk.last.then == Finish(reason=FinishReason.STOP)


def test_a_stop_string_in_thoughts_that_were_taken_ends_nothing() -> None:
    policy = Stopping(AsThought(DoubtedSpec().build()), {SMALL: ("Q:",), LARGE: ("Q:",)})
    walk = Walk(policy, context_of(100))
    walk.answers("a", ".\n\n")
    walk.answers(Wait=-0.1)
    watcher = policy.watcher(walk.context, walk.last.state)
    assert watcher is not None
    assert not watcher.feed("Q:")


@pytest.mark.parametrize("opening", ["<think>", "So"])
def test_the_beginning_of_a_text_is_known_where_it_was_taken(opening: str) -> None:
    """Large's first piece is not taken for the beginning of the text."""
    context = SampleContext(
        job_seed=0, problem_id="p", sample_index=0, max_tokens=100, think_end="</think>", num_prompt_tokens=0,
        think_start="<think>", think_opened=False,
    )  # fmt: skip
    policy = AsThought(DoubtedSpec().build())
    walk = Walk(policy, context)
    walk.answers(opening, " a", ".\n\n")
    walk.answers(Wait=-9.0)
    walk.answers("b", ".\n\n")
    walk.answers(Wait=-0.1)
    walk.answers("B", "</think>")
    thinks = opening == "<think>"
    assert isinstance(walk.last.then, Generate if thinks else Ask), "without thoughts the tag is text like any other"
