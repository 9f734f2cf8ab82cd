"""Policies that ask, on a real Postgres with engines that answer from a script: stored, booked, replayed, matched."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from functools import partial

import pytest
from sqlalchemy import Engine as DbEngine
from sqlalchemy import text

from pipeline.db.invariants import check_job, snapshot
from pipeline.db.matching import measure_delegation
from pipeline.db.replays import get_stored_sample
from pipeline.db.session import transaction
from pipeline.jobs.matching import matched_values
from pipeline.policies import PolicySpec
from pipeline.policies.mentor import MentorSpec
from pipeline.policies.reading.words import WordStarts
from pipeline.policies.reward import RsdSpec, SpecSearchSpec
from pipeline.policies.specreason import DoubtedSpec, RatedSpec
from pipeline.results.replay import replay
from pipeline.results.stored import StoredSample
from pipeline.samples import Author, ModelRole
from tests.integration.test_asides import write_all
from tests.integration.test_invariants import CHAT, hire, submit
from tests.turns import WORDS
from workers.engine.base import GenerateRequest
from workers.engine.scripted import Drawn

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE
SIGNS = {"good": "+", "bad": "-", "opening": 'The sign of the last step is "'}
"""Labels that the demo's vocabulary has tokens for."""
SPECS = [
    RatedSpec(steps_per_review=3, self_check=5, first_steps=1, threshold=3),
    DoubtedSpec(step_tokens=20, answer_role=LARGE, threshold=0.9),
    MentorSpec(rate=0.3, chunk=6, order="both", draft_tokens=40),
    MentorSpec(rate=0.3, chunk=4, chooser="large"),
    RsdSpec(steps_per_review=2, threshold=0.4, **SIGNS),
    SpecSearchSpec(first_steps=2, decay=0.5, step_tokens=30, **SIGNS),
]


def script(role: ModelRole, request: GenerateRequest) -> Iterator[int | Drawn]:
    """Words that depend on what was read; some label is likely, or none."""
    draws = random.Random(f"{role} {list(request.prompt_ids)}")
    if request.labels:
        ids = [ids[0] for ids in request.labels.values()]
        weights = [draws.random() ** 4 for _ in ids]
        mass = draws.choice([0.2, 0.9, 0.9])
        top = {
            token_id: math.log(mass * weight / sum(weights) + 1e-9)
            for token_id, weight in zip(ids, weights, strict=True)
        }
        best = max(top, key=lambda token_id: top[token_id])
        yield Drawn(best, top[best], dict(sorted(top.items(), key=lambda entry: -entry[1])))
        return
    while True:
        if draws.random() < 0.01:
            return
        word = "</think>" if draws.random() < 0.01 else draws.choice(WORDS)
        yield from CHAT.encode_text(word)


@pytest.fixture(params=SPECS, ids=lambda spec: f"{spec.name}-{SPECS.index(spec)}")
def spec(request: pytest.FixtureRequest) -> PolicySpec:
    return request.param


def test_a_job_is_stored_booked_replayed_and_matched(db_engine: DbEngine, spec: PolicySpec) -> None:
    members = [hire(db_engine, role, script=partial(script, role)) for role in ModelRole]
    job = submit(db_engine, policy=spec, first_role=LARGE if getattr(spec, "first_steps", 0) else SMALL)
    write_all(db_engine, *members)
    for member in members:
        member.say_goodbye(db_engine)
    with transaction(db_engine) as connection:
        ids = connection.execute(text("SELECT id FROM samples ORDER BY id")).scalars().all()
        samples = [get_stored_sample(connection, sample_id) for sample_id in ids]
        words = spec.control_at == "word"
        written = measure_delegation(connection, job, words=words)
    assert len(samples) == 6
    assert {sample.state.value for sample in samples} == {"finished"}
    assert [replay(sample).divergence for sample in samples] == [None] * 6
    with snapshot(db_engine) as connection:
        assert check_job(connection, job) == []
    assert_judged(samples, asks_a_judge=isinstance(spec, RsdSpec | SpecSearchSpec))
    outcomes = {aside.outcome for sample in samples for aside in sample.asides} - {None}
    moves = {"threshold"} if isinstance(spec, SpecSearchSpec) else set()
    judged = {"accept", "reject"} | moves | outcomes & {"no answer"}
    assert outcomes == ({"mentor", "own", "no answer"} if words else judged)
    assert written.num_takeovers == sum(sample.num_takeovers for sample in samples) > 0
    assert written.num_words == (sum(map(words_of, samples)) if words else 0)
    assert (matched_values(written, same_exit=True)["at"] == "word") is words


def assert_judged(samples: list[StoredSample], *, asks_a_judge: bool) -> None:
    """A judge writes asides of one token, and nothing of the text; its tokens are booked as its own."""
    by_judge = [aside for sample in samples for aside in sample.asides if aside.author is Author.JUDGE]
    assert bool(by_judge) is asks_a_judge
    assert all(segment.author is not Author.JUDGE for sample in samples for segment in sample.segments)
    assert sum(sample.aside_judge for sample in samples) == sum(len(aside.token_ids) for aside in by_judge)
    assert {len(aside.token_ids) for aside in by_judge} <= {0, 1}
    assert all(aside.prompt_tokens for aside in by_judge if aside.token_ids)


def words_of(sample: StoredSample) -> int:
    """Words that small wrote before the step with the closing tag, and takeovers."""
    tag = "</think>"
    closing = next((step.start_token for step in sample.steps if tag in step.text), None)
    starts, place, found = WordStarts(), 0, 0
    for segment in sample.segments:
        for each in segment.kept.texts:
            begins = starts.feed(each)
            found += begins and segment.author is Author.SMALL and (closing is None or place < closing)
            place += 1
    return found + sample.num_takeovers
