"""The ways that samples of a scripted job take, without any pipeline: each text is played through the policy at once.

What an engine would be asked and would answer, request by request: the very policy, watchers and scripts of the job.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.loops import LoopJob, Text
from bench.scripts import Script
from pipeline.chat.model import ChatModel
from pipeline.planning.pools import Piece, Trajectory
from pipeline.problems import Problem
from pipeline.samples import ModelRole, SegmentFinish
from workers.engine.base import GenerateRequest, GenerateResult
from workers.engine.running import Running

CACHE_BLOCK = 16
"""Tokens: a prefix is found in whole blocks, as vLLM's default is."""


def cached_tokens(prompt_tokens: int, seen_tokens: int) -> int:
    """Of a prompt, those that an engine finds in its cache that has had so many of this text's; one is always left."""
    return min(seen_tokens, prompt_tokens - 1) // CACHE_BLOCK * CACHE_BLOCK


def play(problems: Sequence[Problem], script: Script, chat: ChatModel, job: LoopJob) -> list[Trajectory]:
    """One sample of each problem. job: its policy, seed and limit; both roles speak chat's vocabulary."""
    return [
        _play(Text(job, (problem.external_id, problem.prompt, 0), chat), script, chat) for problem in problems
    ]  # fmt: skip


def _play(text: Text, script: Script, chat: ChatModel) -> Trajectory:
    pieces: list[Piece] = []
    seen: dict[ModelRole, int] = {}
    while (role := text.role) is not None:
        request = text.request()
        result = write(request, script, chat)
        found = cached_tokens(len(request.prompt_ids), seen.get(role, 0))
        computed = len(request.prompt_ids) - found
        seen[role] = len(request.prompt_ids) + len(result.piece.token_ids)
        pieces.append(Piece(role=role, tokens=result.num_generated_tokens, computed_tokens=computed))
        text.hear(result)
    return tuple(pieces)


def write(request: GenerateRequest, script: Script, chat: ChatModel) -> GenerateResult:
    """What a scripted engine answers."""
    running = Running(request, lambda _: None, chat.decode_stream(request.prompt_ids))
    for token_id in script(request):
        running.num_generated_tokens += 1
        assert isinstance(token_id, int)
        if running.take((token_id,)):
            return running.result(SegmentFinish.WATCH)
        if running.num_generated_tokens == request.max_new_tokens:
            return running.result(SegmentFinish.LENGTH)
    running.num_generated_tokens += 1  # EOS
    return running.result(SegmentFinish.EOS)
