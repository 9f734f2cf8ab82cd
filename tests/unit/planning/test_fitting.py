"""Rates from timings: requests that were timed by known rates give these back."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pipeline.errors import JobError
from pipeline.planning.fitting import MIN_REQUESTS, Sharing, fit, sharing_of
from pipeline.planning.measured import MeasuredJob, MeasuredRequest, MeasuredWorker
from pipeline.planning.pools import EngineRates, PartCosts, Piece, Trajectory
from pipeline.samples import ModelRole

SMALL, LARGE = ModelRole.SMALL, ModelRole.LARGE
RATES = EngineRates(step_s=0.004, token_s=0.0003, request_s=0.015, prompt_token_s=0.00002)


def batches(rates: EngineRates, *, worker_id: int, seed: int, pace: float = 1.0) -> Iterator[MeasuredRequest]:
    """Groups of requests that begin together and are equally long, one group after the other. pace: of the engine."""
    draw = random.Random(seed)
    clock = 1_000.0 * seed
    for _ in range(30):
        size, tokens, computed = draw.randint(1, 60), draw.randint(5, 80), draw.randint(0, 900)
        seconds = tokens * rates.step_seconds(size) + size * (rates.request_s + computed * rates.prompt_token_s)
        clock += seconds / pace
        for _ in range(size):
            yield MeasuredRequest(
                worker_id=worker_id, tokens=tokens, computed_tokens=computed, wait_s=draw.choice([0.01, 0.02, 0.03]),
                engine_s=seconds / pace, ended_at=clock,
            )  # fmt: skip
        clock += 0.5


def job(*requests: MeasuredRequest, trajectories: tuple[Trajectory, ...] | None = None) -> MeasuredJob:
    return MeasuredJob(
        job_id=7,
        num_samples=20,
        trajectories=((Piece(role=SMALL, tokens=10),),) if trajectories is None else trajectories,
        workers={
            worker_id: MeasuredWorker(role=SMALL, max_in_flight=64, in_one_process=True)
            for worker_id in {request.worker_id for request in requests} or {1}
        },
        requests=requests,
    )


def values(rates: EngineRates) -> list[float]:
    return [rates.step_s, rates.token_s, rates.request_s, rates.prompt_token_s]


def test_rates_come_back_from_timings() -> None:
    found = fit(job(*batches(RATES, worker_id=1, seed=1), *batches(RATES, worker_id=2, seed=2)))
    assert values(found.rates[SMALL]) == pytest.approx(values(RATES), rel=1e-6)
    assert (found.slots[SMALL], found.num_workers[SMALL]) == (64, 2)
    assert found.delay_s == pytest.approx(0.02)


def test_wait_for_a_commit_is_no_work_of_the_engine_but_a_part_of_the_delay() -> None:
    draw = random.Random(3)
    requests = []
    for number, request in enumerate(batches(RATES, worker_id=1, seed=1)):
        held_s = draw.choice([0.1, 0.2, 0.3])
        late = replace(request, ended_at=request.ended_at + held_s, held_s=held_s)
        first = replace(request, ended_at=request.ended_at + 0.2)  # how long it was held is not known
        requests.append(first if number % 10 == 0 else late)
    found = fit(job(*requests))
    assert values(found.rates[SMALL]) == pytest.approx(values(RATES), rel=1e-6)
    assert found.delay_s == pytest.approx(0.22)


def test_requests_that_begin_beside_others_are_told_apart_from_slow_steps() -> None:
    """One long request, and short ones that begin and end in its time: as a job's engines are used."""
    step_s, token_s, request_s = 0.01, 0.002, 0.01
    rates = EngineRates(step_s=step_s, token_s=token_s, request_s=request_s)
    requests = []
    for number in range(60):
        start, beside = 100.0 * number, number % 7 + 1
        alone_s = request_s + 20 * rates.step_seconds(1)
        together_s = beside * request_s + 10 * rates.step_seconds(beside + 1)
        end = start + alone_s + together_s
        requests.append(MeasuredRequest(worker_id=1, tokens=30, computed_tokens=0, wait_s=None,
                                        engine_s=alone_s + together_s, ended_at=end))  # fmt: skip
        requests += [
            MeasuredRequest(worker_id=1, tokens=10, computed_tokens=0, wait_s=None, engine_s=together_s, ended_at=end)
        ] * beside
    found = fit(job(*requests)).rates[SMALL]
    assert values(found)[:3] == pytest.approx([step_s, token_s, request_s], rel=0.03)


def test_rates_are_never_negative() -> None:
    draw = random.Random(3)
    noisy = [
        MeasuredRequest(worker_id=1, tokens=draw.randint(1, 50), computed_tokens=draw.randint(0, 50), wait_s=0.0,
                        engine_s=draw.uniform(0.1, 2.0), ended_at=draw.uniform(0, 100))
        for _ in range(200)
    ]  # fmt: skip
    found = fit(job(*noisy)).rates[SMALL]
    assert min(values(found)) >= 0
    assert found.step_seconds(1) > 0


def test_engines_that_shared_cores_are_rated_as_if_they_had_one_each() -> None:
    """Two engines at the same time on one core, as seen from outside: at half their speed."""
    requests = [*batches(RATES, worker_id=1, seed=1, pace=0.5)]
    beside = [
        MeasuredRequest(worker_id=2, tokens=r.tokens, computed_tokens=r.computed_tokens, wait_s=r.wait_s,
                        engine_s=r.engine_s, ended_at=r.ended_at)
        for r in requests
    ]  # fmt: skip
    found = fit(job(*requests, *beside), Sharing(cores=1, servers=0.0)).rates[SMALL]
    assert values(found) == pytest.approx(values(RATES), rel=1e-6)


@pytest.mark.parametrize(
    ("cores", "servers", "engines", "speed"), [(2, 0, 1, 1), (2, 0, 2, 1), (2, 0, 3, 2 / 3), (2, 0.5, 2, 0.8)]
)
def test_speed_is_an_equal_part_of_the_cores(cores: float, servers: float, engines: int, speed: float) -> None:
    assert Sharing(cores=cores, servers=servers).speed(engines) == pytest.approx(speed)


def test_servers_part_follows_from_hand_overs_per_second() -> None:
    requests = [
        MeasuredRequest(worker_id=1, tokens=1, computed_tokens=0, wait_s=None, engine_s=1.0, ended_at=1.0 + number / 99)
        for number in range(991)
    ]
    limits = PartCosts(postgres_ms=2, redis_ms=0.5, postgres_cores=8, worker_ms=2, worker_token_us=9)
    assert sharing_of(job(*requests), 2.0, limits).servers == pytest.approx(991 / 11 * 0.0025, rel=0.01)


def test_a_job_that_says_too_little_is_refused() -> None:
    few = list(itertools.islice(batches(RATES, worker_id=1, seed=1), MIN_REQUESTS - 1))
    with pytest.raises(JobError, match="job 7: it has 49 texts by the small model"):
        fit(job(*few))
    with pytest.raises(JobError, match="no complete sample"):
        fit(job(*few, trajectories=()))
