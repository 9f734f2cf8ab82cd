"""The claim–commit–lease–rescue protocol against a model of it, on a real Postgres.

A Hypothesis state machine lets workers of several models, upkeep, graders and people at a command line do what they do,
in any order: messages arrive late, doubled or never, workers hang, die or come back from the dead, answers are lost,
time passes. After each operation its answer and all rows must be as the model says (protocol_model). Two operations
also run against each other, statement by statement in an order that Hypothesis draws: what comes out must be what one
of them after the other gives, without a deadlock. At the end, upkeep and workers alone must bring every sample home.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from sqlalchemy import Engine, text

from pipeline.db.invariants import check_job
from pipeline.embedded import Connections
from pipeline.results.promises import Invariant
from pipeline.samples import ALONE_AFTER
from tests.conftest import TEMPLATE, with_database
from tests.integration.interleaving import Op
from tests.integration.protocol_model import FINAL
from tests.integration.protocol_pipeline import (
    BRIEFLY,
    DUTIES,
    KINDS,
    LARGE,
    LONG,
    OTHER_LARGE,
    Hand,
    Pipeline,
    open_quickly,
)
from workers.broker.messages import SamplesMessage

FIRST = ("small", "small", "large")
FATES = ("lapses", "lapses", "lapses", "hangs", "wakes", "is killed", "ends", "comes", "comes")
MAX_HANDS, MAX_JOBS = 6, 4
ACTS = (
    "claiming", "claiming", "claiming", "writing", "writing", "writing", "trying_alone", "storing_part",
    "committing_again", "releasing", "deferring", "beating", "ending", "cancelling", "cancelling_samples", "pausing",
    "releasing_job", "resuming", "resuming", "retrying_failed", "retrying_cut", "ranking", "grading", "grading",
)  # fmt: skip
RACED_DUTIES = (*DUTIES, "lapsing", "lapsing")
HOLDING = (
    "claiming",
    "claiming",
    "claiming",
    "writing",
    "writing",
    "trying_alone",
    "releasing",
    "deferring",
    "beating",
)
JOB_ENDS = ("cancelling", "cancelling_samples", "pausing", "releasing_job")
ENDING = ("lapsing", "lapsing", "lapsing", "ending", *JOB_ENDS)
DOCTORS = (Invariant.ROWS, Invariant.CLAIMS, Invariant.EVENTS)
SEEN = (
    "worker commits: done", "worker commits: in vain", "worker claims: in vain", "worker lapses and is settled: done",
    "upkeep tries suspects: done", "upkeep publishes again: done", "upkeep goes on cancelling: done",
    "worker stores a part of: done", "worker stores a part of: in vain", "worker tries alone: done",
    "upkeep closes: done", "retry what was cut of job: done", "cancel job: done",
)  # fmt: skip
"""What a run must have had."""
EVENTS = text("""
    SELECT job_id, sample_id, from_state, to_state, epoch FROM events WHERE job_id = ANY(:jobs) ORDER BY id
""")

Numbers = st.integers(0, 7)
"""What an operation is about: places in lists, counted around."""
Schedules = st.lists(st.integers(0, 1), max_size=12)
"""Who of two is next."""
Acts = st.sampled_from(ACTS)


def deed(name: str, *how: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    """One of the machine's deeds, and its arguments."""
    return st.tuples(st.just(name), *how)


# One rule for all: Hypothesis leaves whole rules out of an example, and time that passes 60 times finds nothing.
Deeds = st.one_of(
    *3 * [deed("go_on", Numbers)],
    deed("deliver", Numbers, Numbers, Numbers),
    *2 * [deed("write", Numbers, Numbers, Numbers)],
    deed("bring_home", Numbers, st.sampled_from(("finish", "cut", "cut"))),
    *2 * [deed("act", Acts, Numbers, Numbers, Numbers)],
    *2 * [deed("upkeep", st.sampled_from((*DUTIES, "all")), Numbers)],
    deed("pass_time", st.sampled_from((BRIEFLY, LONG))),
    *2 * [deed("live", Numbers, st.sampled_from(FATES), Numbers)],
    *2 * [deed("race_acts", Acts, Acts, Numbers, Numbers, Numbers, Schedules)],
    *2 * [deed("race_a_duty", Acts, st.sampled_from(RACED_DUTIES), Numbers, Numbers, Numbers, Schedules)],
    *3 * [deed("race_an_end", st.sampled_from(HOLDING), st.sampled_from(ENDING), Numbers, Numbers, Numbers, Schedules)],
)


class ProtocolMachine(Pipeline, RuleBasedStateMachine):
    """A pipeline in which anything may come next."""

    def __init__(self, db_engine: Engine) -> None:
        RuleBasedStateMachine.__init__(self)
        Pipeline.__init__(self, db_engine)

    @initialize(is_fresh=st.sampled_from((False, False, True)))
    def begin(self, is_fresh: bool) -> None:
        for role, model in (*KINDS, KINDS[0]):
            self.start(role, model)
        self.submit(2, OTHER_LARGE, "small")
        self.submit(3, LARGE, "small")
        self.submit(1, LARGE, "large")
        self.go_on(0)
        if not is_fresh:
            self.get_busy()

    def get_busy(self) -> None:
        """Something of everything: a text that was cut, a grading under way, a failure, suspects, a hand-over."""
        first = self.hands[0]
        self.write_all(first, "cut", "finish", "fail")
        self.grade_all()
        self.submit(3, LARGE, "small")
        self.go_on(0)
        self.write_all(first, "finish", "large", "large")
        self.grade_all(ends=False)
        self.go_on(7)
        for _ in range(2):
            self.do(self.passing(LONG))
            self.do(self.settling())
            for hand in self.hands:
                self.do(self.heartbeat(hand))
            self.do(self.trying_suspects())
            self.go_on(7)
        self.grade_all(ends=False)
        self.submit(2, OTHER_LARGE, "small")

    # -- deeds -------------------------------------------------------------------------------------------------------

    @rule(deed=Deeds)
    def step(self, deed: tuple[Any, ...]) -> None:
        name, *how = deed
        getattr(self, name)(*how)

    def deliver(self, who: int, which: int, how: int) -> None:
        """Any message that was ever sent comes to any worker; now and then the claim's answer is lost."""
        self.do(self.claiming(who, which, how), is_answered=how != 7)

    def go_on(self, how_many: int) -> None:
        """New samples are let in, and the newest messages come to whom they are for."""
        self.do(self.admitting())
        for message, hand in itertools.product(self.post.sent[-4 - how_many :], list(self.hands)):
            if self.is_for(message, hand):
                self.do(self.claiming_by(hand, message))

    def is_for(self, message: SamplesMessage, hand: Hand) -> bool:
        """Whether a worker would get something."""
        return bool(self.model.claimable(hand.worker_id, message.epochs, message.job_id))

    def bring_home(self, who: int, outcome: str) -> None:
        """A worker ends all it has, and what is complete is graded."""
        hand = self.hand_at_work(who)
        if hand is not None:
            self.write_all(hand, outcome)
        self.grade_all()

    def write(self, who: int, what: int, how_many: int) -> None:
        """A worker commits; now and then the answer is lost, and it sends the same again."""
        op = self.writing(who, what, how_many)
        self.do(op, is_answered=how_many != 7)
        if how_many == 7:
            self.do(op)

    def act(self, act: str, a: int, b: int, c: int) -> None:
        """Somebody does something."""
        self.do(getattr(self, act)(a, b, c))

    def upkeep(self, duty: str, a: int) -> None:
        """One duty, or all in upkeep's order."""
        if duty == "all":
            self.round()
        else:
            self.do(getattr(self, duty)(a, a, a))

    def round(self) -> None:
        for duty in DUTIES:
            self.do(getattr(self, duty)())

    def pass_time(self, time_s: float) -> None:
        """Time passes; whoever is not hung renews meanwhile."""
        self.do(self.passing(time_s))
        for hand in list(self.hands):
            if not hand.is_hung:
                self.do(self.heartbeat(hand))

    def live(self, who: int, fate: str, how: int) -> None:
        """Something happens to a worker, or a new one comes, or a new job."""
        hand = self.hand(who)
        if hand is None or fate == "comes":
            self.come(how)
        elif fate == "lapses":
            self.do(self.lapsing(who))
        elif fate == "is killed":
            self.hands.remove(hand)
            self.start(hand.role, hand.model)
        elif fate == "ends":
            self.do(self.ending(who, how, 0))
            self.start(hand.role, hand.model)
        else:
            hand.is_hung = fate == "hangs"

    def come(self, how: int) -> None:
        if how < len(KINDS) and len(self.hands) < MAX_HANDS:
            self.start(*KINDS[how])
        elif len(self.model.jobs) < MAX_JOBS:
            self.submit(1 + how % 3, (LARGE, OTHER_LARGE)[how % 2], FIRST[how % 3])

    def race_acts(self, first: str, second: str, a: int, b: int, c: int, schedule: list[int]) -> None:
        self.race_two(getattr(self, first)(a, b, c), getattr(self, second)(a, c, b), schedule)

    def race_a_duty(self, act: str, duty: str, a: int, b: int, c: int, schedule: list[int]) -> None:
        self.race_two(getattr(self, act)(a, b, c), getattr(self, duty)(a, 0, 0), schedule)

    def race_an_end(self, act: str, end: str, who: int, b: int, c: int, schedule: list[int]) -> None:
        """A worker's own doings against what ends it, or the job it works for."""
        hand = self.hand(who) if act == "claiming" else self.hand_at_work(who)
        if hand is None:
            return
        who = self.hands.index(hand)
        jobs = [list(self.model.jobs).index(work.job_id) for work in hand.works.values()] or [who]
        messages = [message for message in self.post.sent if self.is_for(message, hand)]
        claim = self.claiming_by(hand, messages[b % len(messages)]) if act == "claiming" and messages else None
        which = jobs[b % len(jobs)] if end in JOB_ENDS else who
        self.race_two(claim or getattr(self, act)(who, b, c), getattr(self, end)(which, 0, 4 * c), schedule)

    def race_two(self, first: Op | None, second: Op | None, schedule: list[int]) -> None:
        if first is None or second is None:
            self.do(first or second)
        else:
            self.race([first, second], schedule)

    # -- the end -----------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Whatever has happened, upkeep and workers alone bring every sample home, once."""
        try:
            if self.model.jobs and sys.exc_info()[0] is None:
                self.come_home()
                self.compare_events()
                self.look_at_the_convicted()
                self.consult_doctor()
        finally:
            self.clear()

    def come_home(self) -> None:
        for job in self.model.jobs:
            if self.model.jobs[job].state == "paused":
                self.do(self.resuming(list(self.model.jobs).index(job)))
        self.hands = [hand for hand in self.hands if hand.works and not hand.is_hung]
        self.finish_works()
        self.hands = [self.start(role, model) for role, model in KINDS]
        for _ in range(30):
            if all(s.state in FINAL for s in self.model.samples.values()) and not self.model.open_jobs():
                return
            self.pass_time(LONG)
            mark = len(self.post.sent)
            self.round()
            for message in self.post.sent[mark:]:
                self.serve(message)
        raise AssertionError(f"still open: {[s for s in self.model.samples.values() if s.state not in FINAL]}")

    def serve(self, message: SamplesMessage) -> None:
        """Do what a message asks for, as well as can be."""
        for hand in self.hands:
            if self.is_for(message, hand):
                self.do(self.claiming_by(hand, message))
        self.finish_works()
        self.grade_all()

    def compare_events(self) -> None:
        """The log has every change of state, in order, and nothing else; the segments are of those who held then."""
        rows = self.eye.execute(EVENTS, {"jobs": list(self.model.jobs)}).all()
        found: dict[int, list[tuple[Any, ...]]] = {}
        for row in rows:
            found.setdefault(row.sample_id or -row.job_id, []).append(tuple(row)[2:])
        wanted: dict[int, list[tuple[Any, ...]]] = {s.id: list(s.events) for s in self.model.samples.values()}
        wanted |= {-job.id: [(*event, None) for event in job.events] for job in self.model.jobs.values()}
        assert found == {key: events for key, events in wanted.items() if events}

    def look_at_the_convicted(self) -> None:
        """Whoever is blamed for a death had a worker to itself, as a suspect, whatever the model's own rule says."""
        blamed = [s for s in self.model.samples.values() if s.error_class in ("engine_died", "timed_out")]
        assert all(s.num_rescues > ALONE_AFTER and s.trial_epoch == s.epoch - 1 for s in blamed), blamed

    def consult_doctor(self) -> None:
        """What doctor says of each job, where the machine's made-up texts and counters do not matter to it."""
        for job in self.model.jobs:
            with self.db_engine.connect() as connection:
                assert [v for v in check_job(connection, job) if v.invariant in DOCTORS] == []


def run_machine(db_engine: Engine, *, num_examples: int, derandomize: bool = True) -> None:
    """Run the machine; raises what it finds. derandomize: draw the same as ever."""

    class Machine(ProtocolMachine):
        def __init__(self) -> None:
            super().__init__(db_engine)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=num_examples,
            stateful_step_count=60,
            derandomize=derandomize,
            database=None,
            deadline=None,
            phases=[Phase.generate],  # to shrink a failure takes minutes: add Phase.shrink by hand
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture(scope="module")
def quick_engine(servers: Connections) -> Iterator[Engine]:
    """A database for all tests of a module: each example has jobs and workers of its own."""
    name = f"machine_{uuid.uuid4().hex[:12]}"
    owner = open_quickly(servers.database_url)
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}"))
    db_engine = open_quickly(with_database(servers.database_url, name))
    yield db_engine
    db_engine.dispose()
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    owner.dispose()


@pytest.mark.slow
@pytest.mark.timeout(450)
def test_protocol_does_what_its_model_says(quick_engine: Engine) -> None:
    """SPECTHINK_MACHINE_EXAMPLES: a longer run, which draws anew each time."""
    Pipeline.happened.clear()
    Pipeline.num_raced.clear()
    start = time.monotonic()
    longer = os.environ.get("SPECTHINK_MACHINE_EXAMPLES")
    run_machine(quick_engine, num_examples=int(longer or 45), derandomize=longer is None)
    happened, num_raced = Pipeline.happened, Pipeline.num_raced.total()
    speed = happened.total() / (time.monotonic() - start)
    print(f"{happened.total()} steps, {num_raced} of them in races, {speed:.0f} steps/s")
    for what, times in sorted(happened.items()):
        print(f"{times:6} {what}")
    assert happened.total() > 3000
    assert num_raced > 300
    assert not [what for what in SEEN if not happened[what]], "it seldom was so quiet"
