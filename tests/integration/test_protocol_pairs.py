"""Pairs of operations that meet in a running pipeline, each stopped at every statement while the other one runs.

The machine of test_protocol_machine draws such meetings; here the ones that matter are made, each from a scene.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
from sqlalchemy import Connection, Engine

from pipeline.db.upkeep_statements import Settled
from pipeline.samples import ALONE_AFTER
from pipeline.workforce import WorkerEnd
from tests.integration import protocol_model as pm
from tests.integration.interleaving import Op
from tests.integration.protocol_pipeline import KINDS, LONG
from tests.integration.test_protocol_machine import ProtocolMachine, quick_engine
from workers.broker.messages import SamplesMessage

__all__ = ["quick_engine"]  # a fixture


def held(machine: ProtocolMachine) -> None:
    """The first worker writes all samples of the first two jobs."""
    machine.begin(is_fresh=True)


def waiting(machine: ProtocolMachine) -> None:
    """Samples wait, their messages are under way."""
    held(machine)
    for hand in machine.hands:
        machine.do(machine.releasing_of(hand, hand.epochs))


def beside(machine: ProtocolMachine) -> None:
    """The first worker writes one sample that a worker died with once, and others that none did."""
    held(machine)
    hand = machine.hands[0]
    _, *others = sorted(hand.epochs.items())
    machine.do(machine.releasing_of(hand, dict(others)))
    machine.do(machine.lapsing(0))
    machine.do(machine.heartbeat(hand))
    for other in machine.hands[1:]:
        machine.do(machine.ending(machine.hands.index(other), 0, 0))
    machine.go_on(7)
    deaths = sorted(machine.model.samples[sample].num_rescues for sample in hand.epochs)
    assert deaths[-2:] == [0, 1], deaths


def cancelled(machine: ProtocolMachine) -> None:
    """The first worker writes for a job that was cancelled."""
    held(machine)
    machine.do(machine.cancelling(JOB))


def paused(machine: ProtocolMachine) -> None:
    """The first worker writes for a job that was paused."""
    held(machine)
    machine.do(machine.pausing(JOB))


def half_held(machine: ProtocolMachine) -> None:
    """The first worker writes the last sample of a cancelled job, and has the others in its cache, which wait."""
    held(machine)
    *others, _ = sorted(machine.hands[0].epochs.items())
    machine.do(machine.releasing_of(machine.hands[0], dict(others)))
    machine.do(machine.cancelling(JOB))


def regained(machine: ProtocolMachine) -> None:
    """The first worker has lost samples, and has them again."""
    waiting(machine)
    machine.go_on(7)


def over(machine: ProtocolMachine) -> None:
    """Of the first worker's samples some were cut and graded, the others failed."""
    held(machine)
    machine.write_all(machine.hands[0], "cut", "fail")
    machine.grade_all()


def being_graded(machine: ProtocolMachine) -> None:
    """Gradings were begun twice and long ago, and not ended."""
    held(machine)
    machine.write_all(machine.hands[0], "finish")
    for _ in range(pm.GRADING_TRIES):
        machine.grade_all(ends=False)
        machine.do(machine.passing(LONG))


def suspected(machine: ProtocolMachine) -> None:
    """Workers of the cancelled job's samples died with them again and again."""
    machine.begin(is_fresh=False)
    machine.do(machine.cancelling(JOB))
    machine.do(machine.passing(LONG))


def accused(machine: ProtocolMachine) -> None:
    """The first worker alone holds a sample that must be alone; others that nobody suspects wait."""
    held(machine)
    hand = machine.hands[0]
    for other in list(machine.hands[1:]):
        machine.do(machine.ending_of(other, WorkerEnd.STOPPED))
    (accused, _), *others = sorted(hand.epochs.items())
    machine.do(machine.releasing_of(hand, dict(others)))
    for _ in range(ALONE_AFTER):
        machine.do(machine.lapsing(0))
        machine.do(machine.heartbeat(hand))
        sample = machine.model.samples[accused]
        machine.do(machine.claiming_by(hand, SamplesMessage(job_id=sample.job, samples=[(accused, sample.epoch)])))
    [work] = hand.works.values()
    assert work.must_be_alone, work.num_rescues


Maker = Callable[[ProtocolMachine], Op | None]
JOB = 1
"""A job of which the first worker has several samples."""


def claim(machine: ProtocolMachine, who: int = 0) -> Op:
    """Of a message that is for this worker."""
    hand = machine.hands[who]
    return machine.claiming_by(hand, next(m for m in reversed(machine.post.sent) if machine.is_for(m, hand)))


def claim_elsewhere(machine: ProtocolMachine) -> Op:
    return claim(machine, len(KINDS))


def write(machine: ProtocolMachine) -> Op | None:
    return machine.writing(0, 0, 0)


def release(machine: ProtocolMachine) -> Op:
    return machine.releasing_of(machine.hands[0], machine.hands[0].epochs)


def defer(machine: ProtocolMachine) -> Op | None:
    return machine.deferring(0, 0, 1)


def commit_late(machine: ProtocolMachine) -> Op:
    """Of what the first worker wrote before it lost its samples and had them again."""
    hand = machine.hands[0]
    works = [replace(work, epoch=work.epoch - 2) for work in hand.works.values()]
    return machine.committing(hand, [machine.made_of(hand, work, "finish") for work in works])


def grade(machine: ProtocolMachine) -> Op:
    sample = next(i for i, g in machine.model.grading.items() if g.status == "running")
    return machine.grading_of(sample, machine.model.samples[sample].epoch, begins=False)


def by(name: str, which: int = 0) -> Maker:
    """An operation by its name; which: the worker or the job."""
    return lambda machine: getattr(machine, name)(which, 0, 0)


def die(machine: ProtocolMachine) -> Op:
    return machine.ending_of(machine.hands[0], WorkerEnd.ENGINE_DIED)


def die_and_settle(machine: ProtocolMachine) -> Op:
    """The engine of the first worker dies, and upkeep settles it."""
    end, settle = die(machine), machine.settling()

    def run(connection: Connection) -> Settled | None:
        end.run(connection)
        settled: Settled | None = settle.run(connection)
        return settled

    def predict(model: pm.Model) -> object:
        end.predict(model)
        return settle.predict(model)

    return Op(f"{end.what} and {settle.what}", run, predict, see=settle.see)


def begin_trial(machine: ProtocolMachine) -> Op:
    hand = machine.hands[0]
    return machine.trying_of(hand, next(iter(hand.works.values())))


def claim_beside_a_trial(machine: ProtocolMachine) -> Op:
    """What no worker does: it claims others after the trial began."""
    machine.do(begin_trial(machine))
    return claim(machine)


def store_part(machine: ProtocolMachine) -> Op:
    hand = machine.hands[0]
    return machine.storing_of(hand, next(iter(hand.works.values())), 0, 3)


lapse = by("lapsing")
PAIRS: dict[str, tuple[Callable[[ProtocolMachine], None], Maker, Maker]] = {
    "claim, lapse": (waiting, claim, lapse),
    "claim, end": (waiting, claim, by("ending")),
    "claim, claim elsewhere": (waiting, claim, claim_elsewhere),
    "claim, pause": (waiting, claim, by("pausing", JOB)),
    "claim, cancel": (waiting, claim, by("cancelling", JOB)),
    "claim, publish again": (waiting, claim, by("publishing_again")),
    "commit, lapse": (held, write, lapse),
    "commit, the same again": (held, write, by("committing_again")),
    "commit, release": (held, write, release),
    "commit, renew": (held, write, by("beating")),
    "commit, late commit": (regained, write, commit_late),
    "commit, cancel samples": (cancelled, write, by("cancelling_samples", JOB)),
    "commit, release job": (paused, write, by("releasing_job", JOB)),
    "commit, halt": (paused, write, by("halting")),
    "release, lapse": (held, release, lapse),
    "defer, lapse": (held, defer, lapse),
    "defer, release": (held, defer, release),
    "renew, lapse": (held, by("beating"), lapse),
    "lapse beside others, renew": (beside, lapse, by("beating")),
    "die beside others, settle": (beside, die, by("settling")),
    "store part, lapse": (held, store_part, lapse),
    "store part, commit": (held, store_part, write),
    "store part, release": (held, store_part, release),
    "store part, the same again": (held, store_part, store_part),
    "store part, halt": (paused, store_part, by("halting")),
    "begin trial, die": (accused, begin_trial, die_and_settle),
    "claim beside a trial, die": (accused, claim_beside_a_trial, die_and_settle),
    "lapse, cancel samples": (half_held, lapse, by("cancelling_samples", JOB)),
    "lapse, release job": (paused, lapse, by("releasing_job", JOB)),
    "end of grading, reap": (being_graded, grade, by("reaping_grades")),
    "end of grading, cancel samples": (being_graded, grade, by("cancelling_samples", JOB)),
    "retry failed, retry cut": (over, by("retrying_failed", JOB), by("retrying_cut", JOB)),
    "retry failed, again": (over, by("retrying_failed", JOB), by("retrying_failed", JOB)),
    "retry failed, close": (over, by("retrying_failed", JOB), by("closing")),
    "retry cut, close": (over, by("retrying_cut", JOB), by("closing")),
    "try suspects, cancel samples": (suspected, by("trying_suspects"), by("cancelling_samples", JOB)),
}


def run_pair(db_engine: Engine, name: str) -> None:
    """Stop each operation of a pair after its first, second, … statement, and let the other one run meanwhile."""
    prepare, *makers = PAIRS[name]
    for first, second in ((0, 1), (1, 0)):
        for num_statements in itertools.count(1):
            machine = ProtocolMachine(db_engine)
            try:
                prepare(machine)
                ops = [op for op in (make(machine) for make in makers) if op is not None]
                assert len(ops) == len(makers), "a scene has both"
                actors = machine.race(ops, [first] * num_statements + [second] * 50)
            finally:
                machine.clear()
            if actors[first].num_advances <= num_statements:
                break


@pytest.mark.parametrize("name", PAIRS)
def test_two_at_a_time_are_as_one_after_the_other(name: str, quick_engine: Engine) -> None:
    run_pair(quick_engine, name)
