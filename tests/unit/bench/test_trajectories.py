"""Scripted texts and the ways they go: as often and as long taken over as they are meant to be."""

from __future__ import annotations

import pytest

from bench.jobs import POLICY
from bench.loops import LoopJob
from bench.scripts import LONG_TAKEOVER, SHORT_TAKEOVER, make_script, paced_text, problem_set
from bench.stack import MODELS
from bench.trajectories import cached_tokens, play
from pipeline.chat.model import ChatModel
from pipeline.planning.pools import Trajectory
from pipeline.samples import ModelRole

NUM_TEXTS = 24


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    return ChatModel.load(MODELS["small"])


def played(chat: ChatModel, script: str, policy: str = POLICY) -> list[Trajectory]:
    job = LoopJob(policy=policy, seed=1, max_tokens=2000, samples=[])
    return play(problem_set(NUM_TEXTS).problems, make_script(script, chat, ModelRole.SMALL), chat, job)


@pytest.fixture(scope="module")
def paced(chat: ChatModel) -> list[Trajectory]:
    return played(chat, "paced:1")


def test_large_writes_what_is_meant_for_it(paced: list[Trajectory]) -> None:
    pieces = [piece for trajectory in paced for piece in trajectory]
    large = [piece.tokens for piece in pieces if piece.role is ModelRole.LARGE]
    assert set(large) <= {SHORT_TAKEOVER, *range(LONG_TAKEOVER[0], LONG_TAKEOVER[1] + 1)}
    assert 7 <= 1000 * len(large) / sum(piece.tokens for piece in pieces) <= 8.4


def test_a_text_is_written_once_but_for_its_cues(chat: ChatModel, paced: list[Trajectory]) -> None:
    for number, trajectory in enumerate(paced):
        written = sum(piece.tokens for piece in trajectory)
        kept = len(chat.encode_text(paced_text(number, 1))) + 1  # and EOS
        takeovers = sum(piece.role is ModelRole.LARGE for piece in trajectory)
        assert takeovers <= written - kept <= 4 * takeovers


def test_texts_without_cues_are_written_in_one_go(chat: ChatModel) -> None:
    assert {len(trajectory) for trajectory in played(chat, "drafts:1")} == {1}


def test_problems_beyond_the_distinct_ones_have_the_same_texts_again(chat: ChatModel) -> None:
    script = make_script("paced:1", chat, ModelRole.LARGE)
    job = LoopJob(policy="large-only", seed=1, max_tokens=2000, samples=[])
    first, again = (play(problem_set(2, first=number).problems, script, chat, job) for number in (0, 512))
    assert first == again


@pytest.mark.parametrize(("prompt", "seen", "cached"), [(33, 0, 0), (33, 33, 32), (32, 32, 16), (100, 47, 32)])
def test_a_prefix_is_found_in_whole_blocks_and_one_token_is_left(prompt: int, seen: int, cached: int) -> None:
    assert cached_tokens(prompt, seen) == cached
