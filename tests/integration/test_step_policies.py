"""Policies of steps and sentences on a real Postgres, with engines that write by rote: stored and replayed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from sqlalchemy import Engine as DbEngine
from sqlalchemy import text

from pipeline.db.invariants import check_job, snapshot
from pipeline.db.matching import measure_delegation
from pipeline.db.replays import get_stored_sample
from pipeline.db.session import transaction
from pipeline.db.submissions import insert_job, put_problem_set
from pipeline.jobs.config import JobConfig, ModelSpec, SamplingSpec
from pipeline.jobs.matching import matched_values
from pipeline.policies import PolicySpec, parse_policy
from pipeline.policies.protocol import SampleContext
from pipeline.policies.requests import Generate
from pipeline.problems import ProblemSet, content_sha256
from pipeline.results.replay import replay
from pipeline.results.stored import StoredSample
from pipeline.samples import WRITING_ROLES, Author, ModelRole, SampleState
from pipeline.signals import Signal
from tests.integration.test_asides import write_all
from tests.integration.test_invariants import CHAT, PROBLEMS, hire
from workers.engine.base import GenerateRequest
from workers.engine.scripted import Drawn

WORDS = (
    "First", " add", " 3", ",", " 4", " So", " the", " result", " is", ".\n\n", "\n\n", "Wait", " Let", " check", ".",
    " Then", " so",
)  # fmt: skip
POLICIES: dict[str, dict[str, Any]] = {
    "glimpse": {"first_steps": 2, "threshold": 0.9},
    "first-steps": {"first_steps": 3, "answer_role": "large"},
    "redo": {"threshold": -0.9},
    "redo:trig": {"first_steps": 1, "threshold": 0.6, "streak": 1},
    "relay": {"switch_cues": ["so", "then"]},
}


def rote(request: GenerateRequest) -> Iterator[Drawn]:
    """Words drawn by the text before them alone, and how likely each was."""
    draws = Random(str(list(request.prompt_ids)))
    while draws.random() > 0.003:
        word = "</think>" if draws.random() < 0.01 else draws.choice(WORDS)
        for token_id in CHAT.encode_text(word):
            likely = draws.randint(1, 4)
            others = {other: -math.log(likely) for other in range(likely)}
            yield Drawn(token_id, -draws.choice([0.01, 0.01, 0.02, 0.5, 1.0]) * draws.randint(1, 2), others)


@pytest.fixture(params=POLICIES)
def job(request: pytest.FixtureRequest, db_engine: DbEngine) -> tuple[int, list[StoredSample]]:
    """A complete job of the policy, as it is stored."""
    spec = parse_policy(request.param, POLICIES[request.param])
    job = submit(db_engine, spec)
    members = [hire(db_engine, role, script=rote) for role in (ModelRole.SMALL, ModelRole.LARGE)]
    write_all(db_engine, *members)
    for member in members:
        member.writer.close()
        member.engine.close()
    with transaction(db_engine) as connection:
        ids = connection.execute(text("SELECT id FROM samples ORDER BY id")).scalars().all()
        samples = [get_stored_sample(connection, sample_id) for sample_id in ids]
    assert {sample.state for sample in samples} == {SampleState.FINISHED}
    return job, samples


def submit(db_engine: DbEngine, spec: PolicySpec) -> int:
    problem_set = ProblemSet(name="sums", content_sha256=content_sha256(PROBLEMS), problems=PROBLEMS)
    config = JobConfig(
        small=ModelSpec(name="small"), large=ModelSpec(name="large"), policy=spec, num_samples=4,
        sampling=SamplingSpec(max_tokens=300),
    )  # fmt: skip
    context = SampleContext(
        job_seed=0, problem_id="p", sample_index=0, max_tokens=300, think_end="</think>", num_prompt_tokens=1
    )
    first = config.build_policy().start(context).then
    assert isinstance(first, Generate)
    with transaction(db_engine) as connection:
        return insert_job(
            connection, name="job", policy=spec.name, problem_set_id=put_problem_set(connection, problem_set),
            num_problems=len(PROBLEMS), config=config, first_role=first.role, versions={},
        )  # fmt: skip


def test_stored_samples_balance_and_replay(db_engine: DbEngine, job: tuple[int, list[StoredSample]]) -> None:
    number, samples = job
    check_what_decided(samples)
    check_forged_values(samples)
    with snapshot(db_engine) as connection:
        assert check_job(connection, number) == []
    assert [replay(sample).divergence for sample in samples] == [None] * 12
    with transaction(db_engine) as connection:
        written = measure_delegation(connection, number)
    if samples[0].config.policy.name != "first-steps":  # its large model writes answers here
        assert parse_policy("random", matched_values(written)).build().roles == set(WRITING_ROLES)


def check_what_decided(samples: list[StoredSample]) -> None:
    """What decided is stored with its piece."""
    spec = samples[0].config.policy
    segments = [segment for sample in samples for segment in sample.segments]
    triggers = Counter(segment.trigger for segment in segments if segment.takes_over)
    decided = [segment for segment in segments if segment.outcome is not None]
    readings = [(segment.value or 0.0, segment.threshold or 0.0) for segment in decided]
    match spec.name:
        case "glimpse":
            assert triggers["glimpse"] == len(decided) > 5
            assert all(value >= threshold == 0.9 for value, threshold in readings)
            assert all(len(segment.discarded_ids) >= 1 for segment in decided)
        case "first-steps":
            assert not triggers
            assert Counter(segment.trigger for segment in segments)["opening"] == 12
        case "redo":
            outcomes = Counter(segment.outcome for segment in decided)
            assert outcomes == triggers
            assert outcomes.total() > 5
            for segment, (value, threshold) in zip(decided, readings, strict=True):
                assert len(segment.signals[Signal.LOGPROB]) == len(segment.token_ids) + len(segment.discarded_ids)
                if segment.outcome == "redo":
                    assert value < threshold == -0.9
                    assert value in segment.signals[Signal.LOGPROB][len(segment.token_ids) :]
            if getattr(spec, "preset", None) == "trig":
                assert set(outcomes) == {"offload", "hesitation"}
        case "relay":
            assert set(triggers) == {"lead"}
            assert triggers["lead"] > 5
            assert not decided
            cues = {segment.cue for segment in segments if segment.trigger == "relay"}
            assert cues == {"so", "then"}
            assert all(segment.author == Author.SMALL for segment in segments if segment.trigger == "relay")


def check_forged_values(samples: list[StoredSample]) -> None:
    """Replay finds a value that did not decide."""
    for sample in samples:
        for place, segment in enumerate(sample.segments):
            if segment.value is None:
                continue
            changed = replace(segment, value=segment.value + 1)
            forged = replace(changed, content_sha256=changed.sha256)
            segments = (*sample.segments[:place], forged, *sample.segments[place + 1 :])
            found = replay(replace(sample, segments=segments)).divergence
            assert found is not None
            assert (found.segment_index, found.what) == (place, "value")
