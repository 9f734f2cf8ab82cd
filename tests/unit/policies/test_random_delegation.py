"""Random delegation: vectors by hand, and the control as one would write it with two engines that block."""

from __future__ import annotations

import hashlib
import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.policies.protocol import Policy, PolicyState, SampleContext
from pipeline.policies.random_delegation import RandomDelegationSpec
from pipeline.policies.requests import Finish, Generate, Written
from pipeline.samples import FinishReason, ModelRole, Piece, SegmentFinish
from tests.decisions import Decision, Keep, decided
from tests.reference_loops import sentence_end
from tests.scripted_pair import Loop, Model, drive, ends_with_break, lengthens_break, models

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE
EOS, LENGTH, WATCH = SegmentFinish.EOS, SegmentFinish.LENGTH, SegmentFinish.WATCH
STEPS = "a| b|.\n\n|" * 50 + "8"


def context(
    *, job_seed: int = 1, problem_id: str = "p", sample_index: int = 0, max_tokens: int = 1000
) -> SampleContext:
    return SampleContext(
        job_seed=job_seed,
        problem_id=problem_id,
        sample_index=sample_index,
        max_tokens=max_tokens,
        think_end="</think>",
        num_prompt_tokens=9,
    )


def advance(
    policy: Policy,
    state: PolicyState,
    role: ModelRole,
    text: str,
    finish: SegmentFinish = WATCH,
    *,
    start_token: int = 0,
    of: SampleContext | None = None,
) -> tuple[PolicyState, tuple[Decision, ...]]:
    texts = tuple(text.split("|")) if text else ()
    piece = Piece(token_ids=tuple(range(len(texts))), texts=texts)
    event = Written(role=role, piece=piece, finish=finish, start_token=start_token)
    transition = policy.advance(of or context(), state, event)
    return transition.state, decided(transition)


def takeovers(of: SampleContext, rate: float, text: str = STEPS) -> list[int]:
    """Where the large model is called in a text of small's; it is silent each time."""
    policy = RandomDelegationSpec(rate=rate).build()
    state, tokens, read = policy.start(of).state, text.split("|"), 0
    places: list[int] = []
    while True:
        watcher = policy.watcher(of, state)
        if watcher is None:
            return places
        stop = next((n for n, token in enumerate(tokens[read:], 1) if watcher.feed(token)), None)
        if stop is None:
            return places
        piece = "|".join(tokens[read : read + stop])
        state, decisions = advance(policy, state, SMALL, piece, of=of)
        assert decisions[0] == Keep(num_tokens=stop)
        read += stop
        places.append(read)
        state, _ = advance(policy, state, LARGE, "", EOS, of=of)


def test_the_large_model_is_called_at_breaks_drawn_at_random() -> None:
    places = takeovers(context(), 0.3)
    assert 5 <= len(places) <= 25
    assert all(place % 3 == 0 for place in places)
    assert takeovers(context(), 0.0) == []
    assert takeovers(context(), 1.0) == [3 * n for n in range(1, 51)]


def test_the_rate_is_met() -> None:
    called = sum(len(takeovers(context(sample_index=index), 0.2)) for index in range(100))
    assert 920 <= called <= 1080  # 5,000 breaks: three standard deviations


def test_the_draws_depend_on_seed_problem_and_sample_alone() -> None:
    assert takeovers(context(), 0.3) == takeovers(context(max_tokens=500), 0.3)
    others = [context(job_seed=2), context(problem_id="q"), context(sample_index=1)]
    assert len({tuple(takeovers(of, 0.3)) for of in [context(), *others]}) == 4


def test_a_higher_rate_calls_at_the_same_breaks_and_more() -> None:
    assert set(takeovers(context(), 0.2)) < set(takeovers(context(), 0.6))


def test_a_run_of_newlines_is_one_break() -> None:
    assert takeovers(context(), 1.0, "a|\n|\n|\n|\n| b|.\n\n|\n| c") == [3, 7]


def test_a_step_of_one_token_ends_with_a_break_of_its_own() -> None:
    assert takeovers(context(), 1.0, "a|.\n\n|)\n\n| c") == [2, 3]


def test_nothing_is_taken_over_after_the_think_phase() -> None:
    assert takeovers(context(), 1.0, "a|.\n\n|</think>|\n\n|b|.\n\n|c") == [2]


def test_what_is_written_late_changes_nothing() -> None:
    policy = RandomDelegationSpec(rate=1.0).build()
    state = policy.start(context()).state
    early = advance(policy, state, SMALL, "a|.\n\n")
    assert advance(policy, state, SMALL, "a|.\n\n|b|.\n\n", EOS) == early
    assert early[1] == (Keep(num_tokens=2), Generate(role=LARGE, max_tokens=20, takes_over=True, trigger="random"))


def test_a_takeover_hands_back_as_the_preset_improved() -> None:
    policy = RandomDelegationSpec(rate=1.0).build()
    state, _ = advance(policy, policy.start(context()).state, SMALL, "a|.\n\n")
    text = "|".join([" w"] * 9 + [".", " So", " w"])
    watcher = policy.watcher(context(), state)
    assert watcher is not None
    assert [watcher.feed(token) for token in text.split("|")].index(True) == 10
    state, decisions = advance(policy, state, LARGE, text, start_token=2)
    assert decisions == (Keep(num_tokens=10), Generate(role=SMALL, max_tokens=988, trigger="resume"))


def test_the_large_model_may_be_silent() -> None:
    policy = RandomDelegationSpec(rate=1.0).build()
    state, _ = advance(policy, policy.start(context()).state, SMALL, "a|.\n\n")
    state, decisions = advance(policy, state, LARGE, "", EOS, start_token=2)
    assert decisions == (Keep(num_tokens=0), Generate(role=SMALL, max_tokens=998, trigger="resume"))
    assert advance(policy, state, SMALL, "\n|b|.\n\n|c", start_token=2)[1][0] == Keep(num_tokens=3)


def test_the_sample_ends_as_its_model_does() -> None:
    policy = RandomDelegationSpec(rate=1.0).build()
    few = context(max_tokens=3)
    state = policy.start(few).state
    assert advance(policy, state, SMALL, "a", EOS, of=few)[1][1] == Finish(reason=FinishReason.EOS)
    assert advance(policy, state, SMALL, "a", LENGTH, of=few)[1][1] == Finish(reason=FinishReason.CONTEXT)
    assert advance(policy, state, SMALL, "a| b|.\n\n", of=few)[1][1] == Finish(reason=FinishReason.LENGTH)
    state, decisions = advance(policy, state, SMALL, "a|.\n\n", of=few)
    assert decisions[1] == Generate(role=LARGE, max_tokens=1, takes_over=True, trigger="random")
    ended = advance(policy, state, LARGE, "b", LENGTH, start_token=2, of=few)[1]
    assert ended == (Keep(num_tokens=1), Finish(reason=FinishReason.LENGTH))


def test_the_other_model_is_refused() -> None:
    policy = RandomDelegationSpec().build()
    with pytest.raises(ValueError, match="the small model was to write, but large did"):
        advance(policy, policy.start(context()).state, LARGE, "a")


# The control as a plain loop.

WORDS = [
    " a", " b", ",", ".\n\n", ".\n\n", "\n", "\n\n", " So", "x\n", " ", "</think>", "END", "é", "", "\ufffd", ".", "!",
    "3", "?) ", "。", " x. y", "c", *[" a", " b", " c", "d"] * 4,
]  # fmt: skip


class RandomLoop(Loop):
    """Small writes; at each place a number is drawn, and where it is below the rate large writes."""

    def __init__(
        self, spec: RandomDelegationSpec, model: Model, *, max_tokens: int, job_seed: int, sample_index: int
    ) -> None:
        super().__init__(model, max_tokens=max_tokens)
        self.spec = spec
        self.seed = (job_seed, sample_index)
        self.begun = 0
        """Tokens before the piece that small writes."""

    def drawn(self, number: int) -> float:
        job_seed, sample_index = self.seed
        digest = hashlib.sha256(f"{job_seed}/{sample_index}/{number}/p".encode()).digest()
        return int.from_bytes(digest[:7]) / 2**56

    def write(self) -> None:
        opening = math.floor(self.spec.opening_tokens + self.drawn(0))
        if opening:
            self.text.ask(LARGE, "opening")
            self.large_writes(opening)
        self.text.ask(SMALL, "resume" if opening else "start")
        num_places, num_takeovers = 0, 0
        passed = 0 if opening and not self.text.tokens else -1
        while True:
            before = list(self.text.tokens)
            self.token(SMALL)
            is_place = self.is_place(before, self.text.tokens[-1]) and self.kept_before(before) != passed
            num_places += is_place
            if not is_place or self.drawn(num_places) >= self.spec.rate:
                if self.text.is_thinking and self.model.is_cut(SMALL, len(self.text)):
                    self.begun = len(self.text)
                continue
            self.text.cut_to(self.kept_before(before), SMALL)
            self.check_budget()
            self.text.ask(LARGE, "random", takes_over=True)
            upper, lower = ((num_takeovers + add) * self.spec.tokens + self.drawn(0) for add in (1, 0))
            num_takeovers += 1
            kept = len(self.text)
            self.large_writes(math.floor(upper) - math.floor(lower))
            passed = kept if len(self.text) == kept else -1  # large had nothing to say there
            self.text.ask(SMALL, "resume")

    def is_place(self, before: list[str], token: str) -> bool:
        if not self.text.is_thinking:
            return False
        match self.spec.at:
            case "break":
                return self.text.at_break and not lengthens_break(before, token)
            case "token":
                return token != "" and not token.endswith("\ufffd")
            case "word":
                text = "".join(before)
                return token.strip() != "" and (token[0].isspace() or not text or text[-1].isspace())

    def kept_before(self, before: list[str]) -> int:
        """Tokens that stay before large writes: a word that is drawn does not."""
        keep = len(self.text)
        if self.spec.at == "word":
            keep = len(before)
            while keep > self.begun and (before[keep - 1] == "" or before[keep - 1].endswith("\ufffd")):
                keep -= 1
        return keep

    def large_writes(self, limit: int) -> None:
        before = list(self.text.tokens)

        def place(written: list[str]) -> int | None:
            end = self.end_of(before, written, limit)
            return len(written) if not self.text.is_thinking or (end is None and len(written) >= limit) else end

        self.visit(LARGE, limit, place)
        self.begun = len(self.text)

    def end_of(self, before: list[str], written: list[str], limit: int) -> int | None:
        """Tokens up to where large hands back with the last of these, before its limit."""
        if self.spec.handback == "tokens":
            return None
        is_break = ends_with_break([*before, *written])
        if self.spec.handback == "break":
            return len(written) if is_break and not lengthens_break([*before, *written[:-1]], written[-1]) else None
        end = len(written) if is_break else sentence_end(written)
        return end if end is not None and end >= max(1, math.ceil(limit * self.spec.handback_from)) else None


CASES: dict[str, Any] = {
    "spec": st.builds(
        RandomDelegationSpec,
        at=st.sampled_from(["break", "token", "word"]),
        rate=st.sampled_from([0.0, 0.2, 0.5, 1.0]),
        tokens=st.sampled_from([1.0, 2.5, 3.0, 20.0]),
        handback=st.sampled_from(["sentence", "break", "tokens"]),
        handback_from=st.sampled_from([0.0, 0.5, 1.0]),
        opening_tokens=st.sampled_from([0.0, 0.0, 2.5, 12.0]),
    ),
    "model": models(WORDS, cut=SMALL),
    "max_tokens": st.sampled_from([1, 20, 80, 80, 80]),
    "overrun": st.integers(0, 2**16).map(random.Random),
    "job_seed": st.integers(0, 2**16),
    "sample_index": st.integers(0, 3),
}


@settings(max_examples=2000, derandomize=True, database=None, deadline=None)
@given(**CASES)
def test_random_does_as_the_plain_loop(
    spec: RandomDelegationSpec, model: Model, max_tokens: int, overrun: random.Random, job_seed: int, sample_index: int
) -> None:
    sample = {"job_seed": job_seed, "sample_index": sample_index}
    expected = RandomLoop(spec, model, max_tokens=max_tokens, **sample).run()
    assert drive(spec.build(), model, max_tokens=max_tokens, overrun=overrun, **sample) == expected
