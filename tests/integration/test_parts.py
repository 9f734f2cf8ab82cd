"""A long segment is stored in parts while it is written: what a lost worker costs, and what comes of the rest."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
from sqlalchemy import Engine as DbEngine
from sqlalchemy import text

from pipeline.db.invariants import check_job, snapshot
from pipeline.db.parts import Part, store_parts
from pipeline.db.replays import get_stored_sample
from pipeline.db.session import transaction
from pipeline.db.upkeep_statements import settle_workers
from pipeline.db.worker_leases import WorkerCounters, end_worker
from pipeline.policies import PolicySpec, parse_policy
from pipeline.results.replay import replay
from pipeline.samples import ALONE_AFTER, ModelRole, SampleState
from pipeline.seeds import segment_seed
from pipeline.workforce import WorkerEnd
from tests.integration.test_invariants import EAGER, PROBLEMS, SOLUTION, Member, hire, submit, waiting, work
from workers.broker.messages import SamplesMessage
from workers.engine.base import GenerateRequest
from workers.writing.parts import last_part

EVERY_S = 0.1
STEP_S = 0.05
SMALL_ONLY = parse_policy("small-only")
SEGMENTS = text("""
    SELECT g.segment_index, g.author, g.token_ids, g.text, g.discarded_ids, g.token_lengths, g.finish, g.resumed_at,
           g.seed, g.tokens_generated FROM segments g WHERE g.sample_id = :sample ORDER BY g.segment_index
""")


@dataclass
class Victim:
    """A slow worker that writes one sample."""

    member: Member
    sample: int
    message: SamplesMessage
    thread: threading.Thread


def seconds(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def tokens_in_parts(db_engine: DbEngine, sample: int) -> int:
    with db_engine.connect() as connection:
        query = text("SELECT part_tokens FROM samples WHERE id = :sample")
        return int(connection.execute(query, {"sample": sample}).scalar_one())


def begin(
    db_engine: DbEngine, policy: PolicySpec = SMALL_ONLY, *, every_s: float = EVERY_S, step_s: float = STEP_S
) -> Victim:
    """A job, and a slow worker that writes its first sample."""
    submit(db_engine, policy=policy)
    member = hire(db_engine, ModelRole.SMALL, step_s=step_s, store_every_s=every_s)
    message = waiting(db_engine)[SampleState.READY][0]
    thread = threading.Thread(target=member.writer.write, args=(message,))
    thread.start()
    return Victim(member, message.samples[0][0], message, thread)


def write_parts(db_engine: DbEngine, victim: Victim, *, num_tokens: int) -> int:
    """Let a worker's heartbeats come until so many tokens are stored; how many are."""

    def beat() -> bool:
        victim.member.writer.reconcile(victim.member.worker_id)
        return tokens_in_parts(db_engine, victim.sample) >= num_tokens

    seconds(beat)
    return tokens_in_parts(db_engine, victim.sample)


def lose(db_engine: DbEngine, victim: Victim) -> None:
    """It dies; what it still writes comes too late."""
    with transaction(db_engine) as connection:
        end_worker(connection, victim.member.worker_id, WorkerCounters(), reason=WorkerEnd.ENGINE_DIED)
        assert settle_workers(connection, silent=()) is not None
    victim.member.writer.lease_lost()
    victim.thread.join()
    victim.member.writer.close()
    victim.member.engine.close()


@pytest.fixture
def crew(db_engine: DbEngine) -> Iterator[Callable[..., Member]]:
    """Hires workers that end with the test."""
    hired: list[Member] = []

    def hire_one(role: ModelRole = ModelRole.SMALL, **options: object) -> Member:
        hired.append(hire(db_engine, role, **options))  # type: ignore[arg-type]  # as hire says
        return hired[-1]

    yield hire_one
    for member in hired:
        member.say_goodbye(db_engine)


Crew = Callable[..., Member]


def finish(db_engine: DbEngine, crew: Crew) -> Member:
    """Others write all that is left."""
    heir = crew()
    work(db_engine, heir, crew(ModelRole.LARGE))
    return heir


def is_whole(db_engine: DbEngine, sample: int) -> bool:
    """Every promise of the sample's job holds, its decisions are its policy's, and no part is left."""
    with snapshot(db_engine) as connection:
        stored = get_stored_sample(connection, sample)
        assert replay(stored).divergence is None
        assert list(check_job(connection, stored.job_id)) == []
        return connection.execute(text("SELECT count(*) FROM segment_parts")).scalar_one() == 0


def test_the_next_worker_goes_on_behind_what_is_stored(db_engine: DbEngine, crew: Crew) -> None:
    victim = begin(db_engine)
    stored = write_parts(db_engine, victim, num_tokens=30)
    lose(db_engine, victim)
    heir = finish(db_engine, crew)
    with db_engine.connect() as connection:
        [segment] = connection.execute(SEGMENTS, {"sample": victim.sample}).all()
    assert segment.token_ids == SOLUTION
    assert segment.resumed_at == [stored]
    assert segment.tokens_generated == len(SOLUTION) + 1 - stored, "it wrote the rest alone"
    assert heir.writer.counters().tokens_generated == 6 * (len(SOLUTION) + 1) - stored
    assert segment.seed == segment_seed(
        job_seed=0, problem_id=PROBLEMS[0].external_id, sample_index=0, segment_index=0, role=ModelRole.SMALL,
        start_token=stored,
    )  # fmt: skip
    assert is_whole(db_engine, victim.sample)


def test_two_losses_are_two_resumptions(db_engine: DbEngine, crew: Crew) -> None:
    victim = begin(db_engine)
    first = write_parts(db_engine, victim, num_tokens=20)
    lose(db_engine, victim)
    member = hire(db_engine, ModelRole.SMALL, step_s=STEP_S, store_every_s=EVERY_S)
    message = next(m for m in waiting(db_engine)[SampleState.READY] if m.samples[0][0] == victim.sample)
    thread = threading.Thread(target=member.writer.write, args=(message,))
    thread.start()
    second = write_parts(db_engine, Victim(member, victim.sample, message, thread), num_tokens=first + 20)
    lose(db_engine, Victim(member, victim.sample, message, thread))
    finish(db_engine, crew)
    with db_engine.connect() as connection:
        [segment] = connection.execute(SEGMENTS, {"sample": victim.sample}).all()
    assert (segment.token_ids, segment.resumed_at) == (SOLUTION, [first, second])
    assert is_whole(db_engine, victim.sample)


def test_watcher_reads_what_was_stored_before_the_rest(db_engine: DbEngine, crew: Crew) -> None:
    """The policy decides as if nothing had been lost, to the token, though its cue is behind the part."""
    victim = begin(db_engine, EAGER, step_s=0.5)  # its cue comes with the tenth token
    write_parts(db_engine, victim, num_tokens=3)
    lose(db_engine, victim)
    finish(db_engine, crew)
    with db_engine.connect() as connection:
        mine = connection.execute(SEGMENTS, {"sample": victim.sample}).all()
        other = connection.execute(SEGMENTS, {"sample": victim.sample + 1}).all()  # of the same problem
    assert mine[0].resumed_at is not None
    assert [row[:7] for row in mine] == [row[:7] for row in other]
    assert is_whole(db_engine, victim.sample)


def test_storing_parts_leaves_the_request_as_it_is(db_engine: DbEngine, crew: Crew) -> None:
    victim = begin(db_engine)
    write_parts(db_engine, victim, num_tokens=20)
    victim.thread.join()
    with db_engine.connect() as connection:
        [segment] = connection.execute(SEGMENTS, {"sample": victim.sample}).all()
    assert (segment.token_ids, segment.resumed_at) == (SOLUTION, None)
    assert segment.tokens_generated == len(SOLUTION) + 1
    assert segment.seed == segment_seed(
        job_seed=0, problem_id=PROBLEMS[0].external_id, sample_index=0, segment_index=0, role=ModelRole.SMALL
    )
    assert tokens_in_parts(db_engine, victim.sample) == 0
    assert is_whole(db_engine, victim.sample)
    victim.member.say_goodbye(db_engine)


@pytest.mark.parametrize(("every_s", "is_stored"), [(EVERY_S, True), (60.0, False), (0.0, False)])
def test_worker_that_stops_stores_what_it_hands_back_where_that_took_long(
    db_engine: DbEngine, crew: Crew, every_s: float, is_stored: bool
) -> None:
    victim = begin(db_engine, every_s=every_s)
    running = f"{victim.sample}-1"
    seconds(lambda: len(victim.member.engine.written(running) or ()) >= 15)
    victim.member.writer.drain(0.0)
    victim.thread.join()
    assert (tokens_in_parts(db_engine, victim.sample) >= 15) is is_stored
    victim.member.say_goodbye(db_engine)
    finish(db_engine, crew)
    with db_engine.connect() as connection:
        [segment] = connection.execute(SEGMENTS, {"sample": victim.sample}).all()
    assert segment.token_ids == SOLUTION
    assert (segment.resumed_at is not None) is is_stored
    assert is_whole(db_engine, victim.sample)


def test_part_of_another_claim_is_refused(db_engine: DbEngine, crew: Crew) -> None:
    victim = begin(db_engine)
    stored = write_parts(db_engine, victim, num_tokens=10)
    late = Part(sample_id=victim.sample, epoch=1, segment_index=0, start_token=stored, token_ids=[1, 2])
    worker = victim.member.worker_id
    lose(db_engine, victim)
    with transaction(db_engine) as connection:
        assert store_parts(connection, worker_id=worker, parts=[late]) == frozenset()
    finish(db_engine, crew)
    assert is_whole(db_engine, victim.sample)


def test_a_part_clears_a_suspect_and_ends_its_trial(db_engine: DbEngine, crew: Crew) -> None:
    submit(db_engine, policy=SMALL_ONLY)
    member = hire(db_engine, ModelRole.SMALL, step_s=STEP_S, store_every_s=EVERY_S)
    messages = waiting(db_engine)[SampleState.READY]
    sample = messages[0].samples[0][0]
    with transaction(db_engine) as connection:
        deaths = text("UPDATE samples SET num_rescues = :deaths WHERE id = :id")
        connection.execute(deaths, {"deaths": ALONE_AFTER, "id": sample})
    thread = threading.Thread(target=member.writer.write, args=(messages[0],))
    thread.start()
    seconds(lambda: len(member.writer.in_flight()) == 1)
    other = threading.Thread(target=member.writer.write, args=(messages[1],))
    other.start()
    write_parts(db_engine, Victim(member, sample, messages[0], thread), num_tokens=5)
    seconds(lambda: len(member.writer.in_flight()) == 2)
    with db_engine.connect() as connection:
        assert connection.execute(text("SELECT max(num_rescues) FROM samples")).scalar_one() == 0
    thread.join()
    other.join()
    finish(db_engine, crew)
    assert is_whole(db_engine, sample)
    member.say_goodbye(db_engine)


def test_sample_with_penalties_of_a_request_is_drawn_again_as_it_was(db_engine: DbEngine) -> None:
    """A penalty counts the tokens of one request: the rest of it alone would be drawn from another distribution."""
    victim = begin(db_engine)
    seconds(lambda: len(victim.member.writer.in_flight()) == 1)
    [active] = victim.member.writer.in_flight()
    request = active.engine_request
    assert isinstance(request, GenerateRequest)
    assert last_part(active, SOLUTION[:9], every_s=1e-9) is not None
    drawn = request.sampling
    for sampling in (replace(drawn, presence_penalty=0.5), replace(drawn, frequency_penalty=0.5)):
        active.engine_request = replace(request, sampling=sampling)
        assert last_part(active, SOLUTION[:9], every_s=1e-9) is None
    active.engine_request = request
    victim.thread.join()
    victim.member.say_goodbye(db_engine)
