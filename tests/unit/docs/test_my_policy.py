"""The policy that docs/policies/write-your-own.md shows, on texts written by scripts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from docs.examples.my_policy import LongStepSpec
from pipeline.policies.protocol import Policy, SampleContext, Transition
from pipeline.policies.requests import Finish, Generate, Written
from pipeline.samples import FinishReason, ModelRole, Piece, SegmentFinish

SPEC = LongStepSpec(step_tokens=5, takeover_tokens=3)
WORD, BREAK = "so ", ".\n\n"


class Kept(NamedTuple):
    """One request, and what of its answer was kept."""

    role: ModelRole
    asked: int
    takes_over: bool
    text: str


def context(max_tokens: int = 100) -> SampleContext:
    return SampleContext(
        job_seed=1, problem_id="p", sample_index=0, max_tokens=max_tokens, think_end="</think>", num_prompt_tokens=4
    )


def write(policy: Policy, state: object, request: Generate, script: Iterator[str], sample: SampleContext) -> Piece:
    """What an engine writes: tokens of its model's script, until the watcher says so or the request is used up."""
    watcher = policy.watcher(sample, dict(state))  # type: ignore[call-overload]
    texts = []
    for text in script:
        texts.append(text)
        if len(texts) == request.max_tokens or (watcher and watcher.feed(text)):
            break
    return Piece(token_ids=tuple(range(len(texts))), texts=tuple(texts))


def solve(*, small: list[str], large: list[str], max_tokens: int = 100) -> tuple[list[Kept], FinishReason]:
    """The whole sample; a script that is used up ends with the model's end of sequence."""
    policy, sample = SPEC.build(), context(max_tokens)
    scripts = {ModelRole.SMALL: iter(small), ModelRole.LARGE: iter(large)}
    kept: list[Kept] = []
    step: Transition = policy.start(sample)
    position = 0
    while not isinstance(step.then, Finish):
        request = step.then
        assert isinstance(request, Generate)
        piece = write(policy, step.state, request, scripts[request.role], sample)
        ended = len(piece) < request.max_tokens and not any(True for _ in peek(policy, step, piece, sample))
        finish = SegmentFinish.EOS if ended else SegmentFinish.WATCH
        finish = SegmentFinish.LENGTH if len(piece) == request.max_tokens else finish
        step = policy.advance(
            sample, step.state, Written(role=request.role, piece=piece, finish=finish, start_token=position)
        )
        assert step.keep is not None
        kept.append(Kept(request.role, request.max_tokens, request.takes_over, piece.head(step.keep).text))
        position += step.keep
    return kept, step.then.reason


def peek(policy: Policy, step: Transition, piece: Piece, sample: SampleContext) -> Iterator[str]:
    """The token at which the watcher ends the piece, where it does."""
    watcher = policy.watcher(sample, step.state)
    assert watcher is not None
    yield from (text for text in piece.texts if watcher.feed(text))


def test_short_steps_are_never_interrupted() -> None:
    kept, reason = solve(small=[WORD, WORD, BREAK] * 4, large=[])
    assert kept == [Kept(ModelRole.SMALL, 100, False, (WORD * 2 + BREAK) * 4)]
    assert reason is FinishReason.EOS


def test_large_goes_on_with_a_long_step_to_its_end() -> None:
    kept, reason = solve(small=[WORD] * 5 + [WORD, BREAK], large=["large ", BREAK, "never read"])
    assert kept == [
        Kept(ModelRole.SMALL, 100, False, WORD * 5),
        Kept(ModelRole.LARGE, 3, True, "large " + BREAK),
        Kept(ModelRole.SMALL, 93, False, WORD + BREAK),
    ]
    assert reason is FinishReason.EOS


def test_takeover_without_a_break_ends_at_its_limit() -> None:
    kept, _ = solve(small=[WORD] * 6, large=["large "] * 9)
    assert [piece.text for piece in kept] == [WORD * 5, "large " * 3, WORD]


@pytest.mark.parametrize("max_tokens", range(1, 14))
def test_budget_is_never_exceeded(max_tokens: int) -> None:
    kept, reason = solve(small=[WORD] * 50, large=["large "] * 50, max_tokens=max_tokens)
    assert sum(len(piece.text.split()) for piece in kept) == max_tokens
    assert reason is FinishReason.LENGTH


def test_full_context_ends_the_sample() -> None:
    policy, sample = SPEC.build(), context()
    nothing = Piece(token_ids=(), texts=())
    event = Written(role=ModelRole.SMALL, piece=nothing, finish=SegmentFinish.LENGTH, start_token=7)
    step = policy.advance(sample, policy.start(sample).state, event)
    assert step.then == Finish(reason=FinishReason.CONTEXT)
