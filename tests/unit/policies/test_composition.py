"""Exits and guards around a delegation."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pipeline.policies import Policy, PolicySpec
from pipeline.policies.baselines import LargeOnlySpec, SmallOnlySpec
from pipeline.policies.composition import compose
from pipeline.policies.exits import CutExit, DeerExit
from pipeline.policies.guards import LoopGuard
from pipeline.policies.protocol import PolicyState, SampleContext, Transition
from pipeline.policies.random_delegation import RandomDelegationSpec
from pipeline.policies.requests import Answered, Ask, Event, Finish, Generate, Insert, Take, Written
from pipeline.policies.speculative_thinking.improved import SpeculativeThinkingSpec
from pipeline.policies.speculative_thinking.released_code import CodeSpec
from pipeline.samples import FinishReason, ModelRole, Piece, SegmentFinish
from tests.by_hand import ByHand, context_of
from tests.decisions import Decision, Keep

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE
EOS, LENGTH, WATCH = SegmentFinish.EOS, SegmentFinish.LENGTH, SegmentFinish.WATCH
CLOSING = Insert(text="\n</think>\n\n", trigger="exit")
ROOM = 12
"""Tokens that the closing tag may become."""


class Play(ByHand):
    """One sample of a policy with something around it."""

    def __init__(self, policy: Policy, *, max_tokens: int = 1000, think_end: str = "</think>") -> None:
        super().__init__(policy, context_of(max_tokens, think_end=think_end))

    def watched(self, texts: Sequence[str]) -> int | None:
        return self.stops_after(texts)

    def write(self, texts: Sequence[str], finish: SegmentFinish = WATCH) -> tuple[Decision, ...]:
        return self.has_written(texts, finish)


def cut(spec: PolicySpec, thinking_tokens: int, answer_role: ModelRole = SMALL) -> Policy:
    return compose(spec.build(), exit=CutExit(thinking_tokens=thinking_tokens, answer_role=answer_role))


def words(count: int) -> list[str]:
    return [f" w{index}" for index in range(count)]


def test_nothing_around_a_policy_is_the_policy_itself() -> None:
    policy = SmallOnlySpec().build()
    assert compose(policy) is policy


def test_a_cut_closes_the_think_phase_and_small_answers() -> None:
    play = Play(cut(SmallOnlySpec(), 10))
    assert play.watched(words(20)) == 10
    closed = (Keep(num_tokens=10), CLOSING, Generate(role=SMALL, max_tokens=990 - ROOM, trigger="answer"))
    assert play.write(words(13)) == closed
    assert play.watched(words(500)) is None
    assert play.write(words(40), EOS) == (Keep(num_tokens=40), Finish(reason=FinishReason.EOS))


def test_the_cut_counts_over_requests_that_were_cut_short() -> None:
    play = Play(cut(SmallOnlySpec(), 10))
    assert play.write(words(7))[1] == Generate(role=SMALL, max_tokens=993, trigger="start")
    assert play.watched(words(20)) == 3
    assert play.write(words(3))[:2] == (Keep(num_tokens=3), CLOSING)


def test_large_may_write_the_answer_and_that_is_no_takeover() -> None:
    play = Play(cut(SmallOnlySpec(), 10, LARGE))
    assert play.policy.roles == {SMALL, LARGE}
    assert play.write(words(10))[2] == Generate(role=LARGE, max_tokens=990 - ROOM, trigger="answer")
    assert play.write(words(3), LENGTH) == (Keep(num_tokens=3), Finish(reason=FinishReason.CONTEXT))


def test_a_text_whose_model_closes_the_phase_itself_is_not_cut() -> None:
    play = Play(cut(SmallOnlySpec(), 10))
    texts = [*words(4), "</think>", *words(20)]
    assert play.watched(texts) is None
    assert play.write(texts, EOS) == (Keep(num_tokens=25), Finish(reason=FinishReason.EOS))


def test_a_model_that_does_not_think_is_not_cut() -> None:
    play = Play(cut(SmallOnlySpec(), 10), think_end="")
    assert play.watched(words(20)) is None
    assert play.write(words(20), EOS)[1] == Finish(reason=FinishReason.EOS)


def test_a_cut_keeps_whole_characters() -> None:
    play = Play(cut(SmallOnlySpec(), 3))
    assert play.write(["a", "b", ""])[0] == Keep(num_tokens=2)


def test_the_sample_ends_where_the_closing_tag_has_no_room() -> None:
    play = Play(cut(SmallOnlySpec(), 10), max_tokens=10 + ROOM)
    assert play.write(words(10)) == (Keep(num_tokens=10), Finish(reason=FinishReason.LENGTH))
    play = Play(cut(SmallOnlySpec(), 10), max_tokens=11 + ROOM)
    assert play.write(words(10))[2] == Generate(role=SMALL, max_tokens=1, trigger="answer")


def test_a_takeover_before_the_cut_happens_and_is_not_cut_itself() -> None:
    play = Play(cut(RandomDelegationSpec(rate=1.0), 10))
    texts = [*words(4), ".\n\n", *words(20)]
    assert play.watched(texts) == 5
    assert play.write(texts)[1] == Generate(role=LARGE, max_tokens=20, takes_over=True, trigger="random")
    assert play.watched(words(30)) == 20
    assert play.write(words(20)) == (
        Keep(num_tokens=20),
        CLOSING,
        Generate(role=SMALL, max_tokens=975 - ROOM, trigger="answer"),
    )


def test_a_takeover_at_the_cut_is_dropped() -> None:
    play = Play(cut(RandomDelegationSpec(rate=1.0), 5))
    assert play.write([*words(4), ".\n\n"])[1] == CLOSING


def test_small_goes_on_after_a_takeover_that_ends_before_the_cut() -> None:
    play = Play(cut(RandomDelegationSpec(rate=1.0), 30))
    play.write([*words(4), ".\n\n"])
    assert play.write(words(20))[1] == Generate(role=SMALL, max_tokens=975, trigger="resume")
    assert play.watched(words(9)) == 5


def test_a_peek_of_the_preset_code_cannot_outlast_the_cut() -> None:
    play = Play(cut(CodeSpec(), 10))
    assert play.write([*words(4), ".\n\n"])[1] == Generate(role=SMALL, max_tokens=20, trigger="peek")
    assert play.watched(words(20)) == 5
    assert play.write(words(5))[:2] == (Keep(num_tokens=5), CLOSING)


def test_a_peek_that_is_thrown_away_for_a_trial_is_written_to_its_end() -> None:
    play = Play(compose(CodeSpec().build(), exit=DeerExit(at="step", every_steps=2)))
    assert play.write([" a", ".\n\n"])[1] == Generate(role=SMALL, max_tokens=20, trigger="peek")
    peek = [" so", ".\n\n", " b"]
    assert play.watched(peek) == 2
    assert play.write(peek[:2]) == (Keep(num_tokens=0), Generate(role=SMALL, max_tokens=20, trigger="peek"))
    assert play.watched(peek) is None
    assert play.write(peek, EOS)[1] == Generate(role=SMALL, max_tokens=998, trigger="sample_again")
    assert play.watched(peek) == 2
    assert isinstance(play.write(peek[:2])[1], Ask)


LOOP = [" a", " b"] * 40
GUARD = LoopGuard(repeats=4, min_tokens=16)


@pytest.mark.parametrize("spec", [SmallOnlySpec(), LargeOnlySpec()])
def test_a_guard_ends_a_loop_of_any_policy(spec: PolicySpec) -> None:
    play = Play(compose(spec.build(), guards=[GUARD]))
    assert play.watched(LOOP) == 16
    assert play.write(LOOP, LENGTH) == (Keep(num_tokens=16), Finish(reason=FinishReason.REPETITION))


def test_a_guard_may_watch_one_role_alone() -> None:
    play = Play(compose(LargeOnlySpec().build(), guards=[GUARD.model_copy(update={"role": SMALL})]))
    assert play.watched(LOOP) is None
    assert play.write(LOOP, EOS) == (Keep(num_tokens=80), Finish(reason=FinishReason.EOS))


def test_a_guard_watches_the_answer_after_an_exit() -> None:
    play = Play(compose(SmallOnlySpec().build(), exit=CutExit(thinking_tokens=10), guards=[GUARD]))
    play.write(words(10))
    assert play.watched(LOOP) == 16
    assert play.write(LOOP) == (Keep(num_tokens=16), Finish(reason=FinishReason.REPETITION))


@pytest.mark.parametrize("extra", [0, 3, 64])
def test_what_comes_first_in_the_text_decides(extra: int) -> None:
    spec = SpeculativeThinkingSpec(loop_min_tokens=16, loop_repeats=4)
    takeover = Generate(role=LARGE, max_tokens=125, takes_over=True, trigger="reflection", cue="wait")
    first = ["a", ".\n\n", " wait", ",", *LOOP]
    assert Play(spec.build()).write(first[: 4 + extra]) == (Keep(num_tokens=2), takeover)
    later = [*LOOP, ".\n\n", " wait", ",", *LOOP[:extra]]
    assert Play(spec.build()).write(later) == (Keep(num_tokens=16), Finish(reason=FinishReason.REPETITION))


def test_a_takeover_goes_before_a_guard_at_the_same_token() -> None:
    spec = SpeculativeThinkingSpec(loop_min_tokens=16, loop_repeats=4, every_break=True)
    texts = [" a", " b", " c", ".\n\n"] * 4
    guarded = compose(RandomDelegationSpec(rate=1.0).build(), guards=[GUARD])
    assert Play(guarded).watched(texts) == 4
    assert Play(spec.build()).write(texts)[0] == Keep(num_tokens=4)
    quiet = compose(SmallOnlySpec().build(), guards=[GUARD])
    assert Play(quiet).write(texts) == (Keep(num_tokens=16), Finish(reason=FinishReason.REPETITION))


class AsksTwice:
    """Two candidates for the next step, by small; the first of them is taken."""

    roles = frozenset({SMALL})
    asks = (Ask(role=SMALL, purpose="candidate", max_tokens=9),)

    def start(self, context: SampleContext) -> Transition:
        return Transition(state={}, then=Ask(role=SMALL, purpose="candidate", max_tokens=9))

    def watcher(self, context: SampleContext, state: PolicyState) -> None:
        return None

    def advance(self, context: SampleContext, state: PolicyState, event: Event) -> Transition:
        if isinstance(event, Written):
            return Transition(state={}, keep=len(event.piece), then=Finish(reason=FinishReason.EOS))
        if event.index == 0:
            return self.start(context)
        take = Take(index=0, num_tokens=2)
        return Transition(state={}, insert=(take,), then=Generate(role=SMALL, max_tokens=9, trigger="resume"))


def answered(index: int, *texts: str) -> Answered:
    piece = Piece(token_ids=tuple(range(len(texts))), texts=texts)
    return Answered(index=index, role=SMALL, piece=piece, finish=LENGTH, start_token=0)


@pytest.mark.parametrize(("second", "thinks"), [("on", True), ("</think>", False)])
def test_an_exit_reads_an_older_aside_that_is_taken(second: str, thinks: bool) -> None:
    policy = compose(AsksTwice(), exit=CutExit(thinking_tokens=5))
    context = Play(policy).context
    state = policy.start(context).state
    state = policy.advance(context, state, answered(0, "go ", second, "never")).state
    last = policy.advance(context, state, answered(1, "other")).state
    watcher = policy.watcher(context, last)
    assert (watcher is not None) is thinks
    if watcher is not None:  # two tokens were taken
        assert [watcher.feed("a") for _ in range(3)] == [False, False, True]
