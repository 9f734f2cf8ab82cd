"""First steps: vectors by hand, and large's opening as one would write it with two engines that block."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.policies.first_steps import FirstStepsSpec
from pipeline.policies.protocol import Policy, PolicyState, SampleContext, Transition
from pipeline.policies.requests import Finish, Generate, Written
from pipeline.samples import WRITING_ROLES, FinishReason, ModelRole, Piece, SegmentFinish
from tests.decisions import Keep, decided
from tests.scripted_pair import Model, StepsLoop, drive, models

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE
EOS, LENGTH, WATCH = SegmentFinish.EOS, SegmentFinish.LENGTH, SegmentFinish.WATCH
CONTEXT = SampleContext(
    job_seed=1, problem_id="p", sample_index=0, max_tokens=1000, think_end="</think>", num_prompt_tokens=9
)


def watched(policy: Policy, state: PolicyState, *texts: str) -> int | None:
    watcher = policy.watcher(CONTEXT, state)
    assert watcher is not None
    return next((count for count, text in enumerate(texts, 1) if watcher.feed(text)), None)


def advance(
    policy: Policy,
    state: PolicyState,
    role: ModelRole,
    *texts: str,
    finish: SegmentFinish = WATCH,
    start_token: int = 0,
) -> Transition:
    piece = Piece(token_ids=tuple(range(len(texts))), texts=texts)
    event = Written(role=role, piece=piece, finish=finish, start_token=start_token)
    return policy.advance(CONTEXT, state, event)


def test_large_writes_the_first_steps_in_one_go_and_small_the_rest_undisturbed() -> None:
    policy = FirstStepsSpec(first_steps=2).build()
    first = policy.start(CONTEXT)
    assert decided(first) == (Generate(role=LARGE, max_tokens=1000, trigger="opening"),)
    assert watched(policy, first.state, "a", ".\n\n", "\n", "b", ".\n\n", "c") == 5
    then = advance(policy, first.state, LARGE, "a", ".\n\n", "b", ".\n\n", "c")
    assert decided(then) == (Keep(num_tokens=4), Generate(role=SMALL, max_tokens=996, trigger="resume"))
    assert policy.watcher(CONTEXT, then.state) is None
    last = advance(policy, then.state, SMALL, "d", ".\n\n", "</think>", "8", finish=EOS, start_token=4)
    assert decided(last) == (Keep(num_tokens=4), Finish(reason=FinishReason.EOS))


def test_a_step_without_a_break_is_over_after_its_tokens() -> None:
    policy = FirstStepsSpec(first_steps=2, step_tokens=3).build()
    first = policy.start(CONTEXT)
    assert decided(first) == (Generate(role=LARGE, max_tokens=6, trigger="opening"),)
    assert watched(policy, first.state, "a", "b", "c", "d", ".\n\n", "e") == 5
    assert watched(policy, first.state, *"abcdef") == 6


def test_the_end_of_the_think_phase_ends_the_opening() -> None:
    policy = FirstStepsSpec().build()
    first = policy.start(CONTEXT)
    assert watched(policy, first.state, "a", "</think>", "8") == 2
    then = advance(policy, first.state, LARGE, "a", "</think>", "8")
    assert decided(then) == (Keep(num_tokens=2), Generate(role=SMALL, max_tokens=998, trigger="resume"))
    large = FirstStepsSpec(answer_role=LARGE).build()
    then = advance(large, large.start(CONTEXT).state, LARGE, "a", "</think>", "8")
    assert decided(then) == (Keep(num_tokens=2), Generate(role=LARGE, max_tokens=998, trigger="answer"))


def test_large_may_write_the_answer_after_smalls_thoughts() -> None:
    policy = FirstStepsSpec(first_steps=1, answer_role=LARGE).build()
    then = advance(policy, policy.start(CONTEXT).state, LARGE, "a", ".\n\n")
    assert watched(policy, then.state, "b", ".\n\n", "</think>", "8") == 3
    last = advance(policy, then.state, SMALL, "b", ".\n\n", "</think>", "8", start_token=2)
    assert decided(last) == (Keep(num_tokens=3), Generate(role=LARGE, max_tokens=995, trigger="answer"))


def test_the_default_is_the_papers() -> None:
    assert FirstStepsSpec().first_steps == 20
    with pytest.raises(ValidationError):
        FirstStepsSpec(first_steps=0)


# The policy as a plain loop.

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


class FirstStepsLoop(StepsLoop):
    def write(self) -> None:
        self.open()
        while self.text.is_thinking:
            self.token(SMALL)
        self.answer(self.numbers.answer_role, after=SMALL)


CASES: dict[str, Any] = {
    "spec": st.builds(
        FirstStepsSpec,
        first_steps=st.sampled_from([1, 2, 5, 20]),
        step_tokens=st.sampled_from([1, 3, 512]),
        answer_role=st.sampled_from(WRITING_ROLES),
    ),
    "model": models(WORDS, cut=SMALL),
    "max_tokens": st.sampled_from([1, 20, 80, 80, 80]),
    "overrun": st.integers(0, 2**16).map(random.Random),
}


@settings(max_examples=2000, derandomize=True, database=None, deadline=None)
@given(**CASES)
def test_first_steps_does_as_the_plain_loop(
    spec: FirstStepsSpec, model: Model, max_tokens: int, overrun: random.Random
) -> None:
    expected = FirstStepsLoop(spec, model, max_tokens=max_tokens).run()
    assert drive(spec.build(), model, max_tokens=max_tokens, overrun=overrun) == expected
