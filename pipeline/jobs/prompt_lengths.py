"""Measures prompts with the models that will read them; those of several small jobs at a time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from pipeline.chat.prompts import Prompt
from pipeline.chat.rendering import MAX_CALLS
from pipeline.errors import ConfigurationError
from pipeline.problems import ProblemSet, check_prompt_lengths

if TYPE_CHECKING:
    from pipeline.chat.model import ChatModel


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """The prompts of one job, one for each problem. max_tokens: of each."""

    problems: ProblemSet
    prompts: Sequence[Prompt]
    max_tokens: int


class PromptLengths:
    """The prompts of jobs that are checked together. ``finish`` measures those that still wait.

    Models that make the same ids of a prompt measure it once.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[ChatModel, list[_Asked]]] = {}
        self._num_waiting = 0

    def add(self, problems: ProblemSet, prompts: Sequence[Prompt], chats: Collection[ChatModel]) -> None:
        """Take in a job: one prompt for each of its problems. Raises as ``finish``, for this job or one before."""
        limits: dict[str, int] = {}
        for chat in chats:
            if chat.max_model_len is not None:
                most = chat.max_model_len - 1  # room for one token of output
                limits[chat.prompts_sha256] = min(most, limits.get(chat.prompts_sha256, most))
                self._waiting.setdefault(chat.prompts_sha256, (chat, []))
        for key, most in limits.items():
            self._waiting[key][1].append(_Asked(problems=problems, prompts=prompts, max_tokens=most))
        self._num_waiting += len(prompts)
        if self._num_waiting >= MAX_CALLS:
            self.finish()

    def finish(self) -> None:
        """Raises ProblemSetError for a job with prompts that are too long, ConfigurationError for a chat template that
        does not show them, and EngineUnavailable where this machine can start no process for it."""
        waiting, self._waiting, self._num_waiting = self._waiting, {}, 0
        for chat, asked in waiting.values():
            _measure(chat, asked)


def _measure(chat: ChatModel, jobs: Sequence[_Asked]) -> None:
    lengths = map(len, chat.ids_of_prompts([(each.message, each.earlier) for job in jobs for each in job.prompts]))
    try:
        for job in jobs:
            check_prompt_lengths(job.problems, islice(lengths, len(job.prompts)), job.max_tokens)
    except ConfigurationError:
        if len(jobs) == 1:
            raise
        for job in jobs:  # each has the template's limits for itself, and its own error
            _measure(chat, [job])
