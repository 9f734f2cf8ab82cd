import pytest

from pipeline.errors import ConfigurationError
from pipeline.policies import Policy, parse_policy
from pipeline.policies.baselines import LargeOnlySpec, SmallOnlySpec
from pipeline.policies.protocol import SampleContext
from pipeline.policies.requests import Finish, Generate, Written
from pipeline.samples import FinishReason, ModelRole, Piece, SegmentFinish
from pipeline.signals import Signal
from tests.decisions import Keep, decided

CONTEXT = SampleContext(
    job_seed=1, problem_id="2", sample_index=3, max_tokens=10, think_end="</think>", num_prompt_tokens=5
)
BOTH = pytest.mark.parametrize(
    ("policy", "role"),
    [(SmallOnlySpec().build(), ModelRole.SMALL), (LargeOnlySpec().build(), ModelRole.LARGE)],
)


def written(role: ModelRole, num_tokens: int, finish: SegmentFinish, start_token: int = 0) -> Written:
    piece = Piece(token_ids=(1,) * num_tokens, texts=("\n\nWait,",) * num_tokens)
    return Written(role=role, piece=piece, finish=finish, start_token=start_token)


@BOTH
def test_one_model_writes_from_the_start_unwatched(policy: Policy, role: ModelRole) -> None:
    start = policy.start(CONTEXT)
    assert policy.roles == {role}
    assert decided(start) == (Generate(role=role, max_tokens=10, trigger="start"),)
    assert policy.watcher(CONTEXT, start.state) is None


@BOTH
@pytest.mark.parametrize(
    ("num_tokens", "finish", "reason"),
    [
        (4, SegmentFinish.EOS, FinishReason.EOS),
        (0, SegmentFinish.EOS, FinishReason.EOS),
        (10, SegmentFinish.LENGTH, FinishReason.LENGTH),
        (10, SegmentFinish.EOS, FinishReason.EOS),
        (4, SegmentFinish.LENGTH, FinishReason.CONTEXT),
    ],
)
def test_the_sample_ends_as_its_model_does(
    policy: Policy, role: ModelRole, num_tokens: int, finish: SegmentFinish, reason: FinishReason
) -> None:
    state = policy.start(CONTEXT).state
    after = policy.advance(CONTEXT, state, written(role, num_tokens, finish))
    assert decided(after) == (Keep(num_tokens=num_tokens), Finish(reason=reason))


@BOTH
def test_a_request_that_was_cut_short_goes_on_within_the_budget(policy: Policy, role: ModelRole) -> None:
    state = policy.start(CONTEXT).state
    after = policy.advance(CONTEXT, state, written(role, 4, SegmentFinish.WATCH))
    assert decided(after) == (Keep(num_tokens=4), Generate(role=role, max_tokens=6, trigger="start"))
    end = policy.advance(CONTEXT, after.state, written(role, 6, SegmentFinish.LENGTH, start_token=4))
    assert decided(end) == (Keep(num_tokens=6), Finish(reason=FinishReason.LENGTH))


@BOTH
def test_the_other_model_is_refused(policy: Policy, role: ModelRole) -> None:
    other = ModelRole.LARGE if role is ModelRole.SMALL else ModelRole.SMALL
    with pytest.raises(ValueError, match=f"the {role} model was to write"):
        policy.advance(CONTEXT, policy.start(CONTEXT).state, written(other, 1, SegmentFinish.EOS))


@pytest.mark.parametrize(
    ("given", "signals"),
    [
        (None, ()),
        ("all", tuple(Signal)),
        ("logprob,first_entropy", (Signal.LOGPROB, Signal.FIRST_ENTROPY)),
        (["margin"], (Signal.MARGIN,)),
    ],
)
def test_a_pilot_asks_for_the_signals_that_it_is_told_of(given: object, signals: tuple[Signal, ...]) -> None:
    for name in ("small-only", "large-only"):
        policy = parse_policy(name, None if given is None else {"signals": given}).build()
        start = policy.start(CONTEXT)
        assert isinstance(start.then, Generate)
        assert start.then.signals == set(signals)
        after = policy.advance(CONTEXT, start.state, written(start.then.role, 4, SegmentFinish.WATCH))
        assert isinstance(after.then, Generate)
        assert after.then.signals == set(signals)


def test_a_signal_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"signals.*'logprob', 'margin', 'first_entropy' or 'first_margin'"):
        parse_policy("small-only", {"signals": "logprob,entropy"})
