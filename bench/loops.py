"""Speculative Thinking as one would write it without a pipeline: both models loaded in one process, loops that block.

one_by_one: one sample at a time, as the published implementation. lock_step: all samples advance together; in each
round the small model writes for all whose turn it is, then, once the last of them is done, the large one.

The same policy, seeds, watchers and engines as the pipeline's: a loop stops a model as soon as a watcher says so, and
resumes with the very ids, so that the prefix cache hits. What differs is who waits for whom.
"""

from __future__ import annotations

import queue
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.bare import Child, batches
from bench.stack import MODELS
from pipeline.chat.model import ChatModel
from pipeline.chat.prompts import render_user_message
from pipeline.chat.translation import settle_think_phase
from pipeline.policies import parse_policy
from pipeline.policies.protocol import SampleContext, Transition
from pipeline.policies.requests import Finish, Generate, Insert, Written
from pipeline.problems import Problem
from pipeline.samples import WRITING_ROLES, ModelRole
from pipeline.seeds import segment_seed
from pipeline.settings import EngineSettings
from workers.engine.base import Engine, GenerateRequest, GenerateResult, Sampling
from workers.engine.loading import load_engine


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopJob:
    """samples: (problem's id, its text, number of the sample)."""

    policy: str
    seed: int
    max_tokens: int
    samples: list[tuple[str, str, int]]
    policy_values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """token_ids: the output of each sample, in the job's order."""

    token_ids: list[list[int]]
    seconds: float

    @property
    def samples_per_second(self) -> float:
        return len(self.token_ids) / self.seconds


class Loops(Child):
    """The process; ends with the ``with`` block. Both models with the settings of their engines; none: the demo's."""

    def __init__(self, engines: Mapping[ModelRole, tuple[Path, EngineSettings]] | None = None) -> None:
        engines = engines or {role: (MODELS[role], EngineSettings()) for role in WRITING_ROLES}
        pairs = [engines[role] for role in WRITING_ROLES]
        words = [(str(model), settings.model_dump_json()) for model, settings in pairs]
        super().__init__("bench.loops", *(word for pair in words for word in pair))

    def play(self, how: str, job: LoopJob) -> Played:
        """how: "one_by_one" or "lock_step"."""
        self.send({"how": how, "job": asdict(job)})
        return Played(**self.receive())


# -- the process -----------------------------------------------------------------------------------------------------


class Text:
    """One sample on its way."""

    def __init__(self, job: LoopJob, sample: tuple[str, str, int], chat: ChatModel) -> None:
        problem_id, prompt, sample_index = sample
        problem = Problem(external_id=problem_id, prompt=prompt, answer=None)
        self._chat = chat
        self._prompt_ids = chat.prompt_ids(render_user_message("math", problem))
        self._policy = parse_policy(job.policy, job.policy_values).build()
        self._context = SampleContext(
            job_seed=job.seed,
            problem_id=problem_id,
            sample_index=sample_index,
            max_tokens=job.max_tokens,
            think_end=settle_think_phase(chat).end,
            num_prompt_tokens=len(self._prompt_ids),
        )
        self.token_ids: list[int] = []
        self._num_segments = 0
        self._decide(self._policy.start(self._context), None)

    @property
    def role(self) -> ModelRole | None:
        """Who writes next; None: it is complete."""
        return self._next.role if isinstance(self._next, Generate) else None

    def request(self) -> GenerateRequest:
        assert isinstance(self._next, Generate)
        context = self._context
        seed = segment_seed(
            job_seed=context.job_seed,
            problem_id=context.problem_id,
            sample_index=context.sample_index,
            segment_index=self._num_segments,
            role=self._next.role,
        )
        return GenerateRequest(
            request_id=f"{context.problem_id}-{context.sample_index}",
            prompt_ids=[*self._prompt_ids, *self.token_ids],
            max_tokens=self._next.max_tokens,
            sampling=Sampling(),
            seed=seed,
            watcher=self._policy.watcher(context, self._state),
        )

    def hear(self, result: GenerateResult) -> None:
        assert isinstance(self._next, Generate)
        event = Written(role=self._next.role, piece=result.piece, finish=result.finish, start_token=len(self.token_ids))
        self._decide(self._policy.advance(self._context, self._state, event), result)

    def _decide(self, transition: Transition, written: GenerateResult | None) -> None:
        self._state = transition.state
        if transition.keep is not None:
            assert written is not None
            self._add(list(written.piece.token_ids[: transition.keep]))
        for insert in transition.insert:
            assert isinstance(insert, Insert)
            self._add(self._chat.encode_text(insert.text))
        assert isinstance(transition.then, Generate | Finish)
        self._next: Generate | Finish = transition.then

    def _add(self, token_ids: list[int]) -> None:
        self.token_ids += token_ids
        self._num_segments += 1


def write_all(engine: Engine, texts: Sequence[Text]) -> None:
    """Let an engine go on with all of these, and wait for the last."""
    outcomes: queue.SimpleQueue[tuple[Text, GenerateResult | Exception]] = queue.SimpleQueue()
    for text in texts:
        engine.submit(text.request(), lambda outcome, text=text: outcomes.put((text, outcome)))  # type: ignore[misc]
    for _ in texts:
        text, outcome = outcomes.get()
        if isinstance(outcome, Exception):
            raise outcome
        text.hear(outcome)


def one_by_one(engines: Mapping[ModelRole, Engine], texts: Sequence[Text]) -> None:
    for text in texts:
        while text.role is not None:
            write_all(engines[text.role], [text])


def lock_step(engines: Mapping[ModelRole, Engine], texts: Sequence[Text]) -> None:
    while any(text.role for text in texts):
        for role, engine in engines.items():
            write_all(engine, [text for text in texts if text.role is role])


LOOPS = {"one_by_one": one_by_one, "lock_step": lock_step}


def serve() -> None:
    read = batches()
    words = dict(zip(WRITING_ROLES, zip(sys.argv[1::2], sys.argv[2::2], strict=True), strict=True))
    chats = {role: ChatModel.load(model) for role, (model, _) in words.items()}
    engines = {
        role: load_engine(chats[role], revision=None, role=role, settings=EngineSettings.model_validate_json(settings))
        for role, (_, settings) in words.items()
    }
    chat = chats[ModelRole.SMALL]
    for batch, reply in read:
        job = LoopJob(**batch["job"] | {"samples": [tuple(sample) for sample in batch["job"]["samples"]]})
        start = time.perf_counter()
        texts = [Text(job, sample, chat) for sample in job.samples]
        LOOPS[batch["how"]](engines, texts)
        seconds = time.perf_counter() - start
        reply({"token_ids": [text.token_ids for text in texts], "seconds": seconds})
    for engine in engines.values():
        engine.close()


if __name__ == "__main__":
    serve()
