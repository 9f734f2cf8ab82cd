"""Faults of processes: killed, told to end, frozen, cut off from a server, absent, with a wrong clock."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

import psutil

from tests.chaos.faults import EITHER_GRADER, Fault, Strike, Together
from tests.chaos.harness import Broken, Harness
from tests.chaos.models import REPOSITORY
from tests.chaos.texts import problem_set
from tests.chaos.worker import ORDERS_VARIABLE, PROGRAM_VARIABLE, Order, fired_file
from tests.chaos.workload import GRADER_AT_ONCE, ChaosJob

CLIENT = "client"
"""The program of a client that submits."""


class Nothing(Fault):
    """No fault: what the others are compared with."""

    name, component = "nothing", "none"

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        harness.at_some_moment(job, rng)
        return Strike(is_blow=False)


# -- kill -9 ----------------------------------------------------------------------------------------------------------


class KillIdle(Fault):
    """kill -9 of a worker that holds nothing, just before there is work."""

    name = "kill -9 while idle"

    def __init__(self, kind: str) -> None:
        self.component = kind
        self._pid = 0
        self._at = 0.0

    def prepare(self, harness: Harness, rng: random.Random) -> None:
        self._at = time.time()
        self._pid = harness.kill(rng.choice(harness.names(self.component)))

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        return Strike(at=self._at, pids=[self._pid], kind=self.component)


class KillIn(Fault):
    """kill -9 at a passage of a phase that is drawn; see tests.chaos.worker for the phases."""

    def __init__(self, kind: str, phase: str, *, passages: int, name: str | None = None, action: str = "kill") -> None:
        """passages: the last one at which it may happen."""
        self.name = name or f"kill -9 while {phase}"
        self.component = kind
        self._phase = phase
        self._passages = passages
        self._action = action
        self._victim = ""

    def prepare(self, harness: Harness, rng: random.Random) -> None:
        self._victim = rng.choice(harness.names(self.component))
        harness.order(self._victim, Order(phase=self._phase, n=rng.randint(1, self._passages), action=self._action))

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        fired = harness.wait_fired(self._victim, job)
        return Strike(at=fired.at, pids=[fired.pid], kind=self.component)


class KillStoring(KillIn):
    """kill -9 of a grader in the transaction that stores grades which took no time, of one sample or of several."""

    graders = (GRADER_AT_ONCE,)

    def __init__(self) -> None:
        super().__init__("grade", "committing", passages=3, name="kill -9 while committing grades that take no time")


class KillAdmitting(KillIn):
    """kill -9 of upkeep in the transaction that lets samples in; of a job that is let in bit by bit."""

    num_samples = 6

    def __init__(self) -> None:
        super().__init__("upkeep", "admitting", passages=3)


class KillRescuer(Fault):
    """kill -9 of a small worker, and of upkeep in the transaction that gives back what it held."""

    name, component = "kill -9 while settling", "upkeep"

    def prepare(self, harness: Harness, rng: random.Random) -> None:
        harness.order("upkeep", Order(phase="settling"))

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        harness.at_some_moment(job, rng)
        pid = harness.kill(rng.choice(harness.names("small")))
        fired = harness.wait_fired("upkeep", job)
        return Strike(at=fired.at, pids=[pid, fired.pid], kind="upkeep")


class KillAll(Fault):
    """kill -9 of every worker at the same moment: a power cut."""

    name, component = "kill -9 of all at once", "all"
    graders = EITHER_GRADER
    lasts_s = 12.0

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        harness.at_some_moment(job, rng)
        states = [state for state in harness.state.program_states() if state.name in harness.names_of_all()]
        strike = Strike(pids=[state.pid for state in states if state.pid])
        for pid in strike.pids:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                for each in [process, *process.children(recursive=True)]:
                    with suppress(psutil.NoSuchProcess):
                        each.kill()
        return strike


class KillClient(Fault):
    """kill -9 of a client that submits: nothing half stored; where it was stored, the job runs."""

    component = CLIENT

    def __init__(self, phase: str, name: str) -> None:
        self.name = name
        self._phase = phase
        self._at = 0.0

    def submit(self, harness: Harness, rng: random.Random, seed: int) -> ChaosJob:
        Order(phase=self._phase).write(harness.orders, CLIENT)
        environment = {
            **os.environ, **harness.environment, ORDERS_VARIABLE: str(harness.orders), PROGRAM_VARIABLE: CLIENT,
            "SPECTHINK_STATE_DIR": str(harness.state.state_dir), "CHAOS_SEED": str(seed),
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "tests.chaos.worker", "submit"], cwd=REPOSITORY, env=environment, check=False,
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        fired = harness.fired(CLIENT)
        fired_file(harness.orders, CLIENT).unlink(missing_ok=True)
        if done.returncode != -signal.SIGKILL or fired is None:
            raise Broken(f"the client was not killed; exit code {done.returncode}, {done.stderr[-500:]}")
        self._at = fired.at
        stored = harness.rows("SELECT id FROM jobs WHERE name = :name", name=f"chaos {seed}")
        if self._phase == "committed":
            return ChaosJob(stored[0][0], seed)
        sets = harness.rows(
            "SELECT id FROM problem_sets WHERE content_sha256 = :sha", sha=problem_set(seed).content_sha256
        )
        if stored or sets:
            raise Broken(f"half stored: jobs {stored}, problem sets {sets}")
        return harness.submit(seed)

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        return Strike(at=self._at)


# -- SIGTERM ----------------------------------------------------------------------------------------------------------


class Terminate(Fault):
    """SIGTERM of one program; it must end with exit code 0, hold nothing then, and say goodbye."""

    def __init__(self, kind: str, name: str, environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.component = kind
        self._environment = environment
        self._victim = ""
        self._found: list[str] = []

    def prepare(self, harness: Harness, rng: random.Random) -> None:
        self._victim = rng.choice(harness.names(self.component))

    def setup(self, harness: Harness) -> None:
        if self._environment is not None:
            harness.change_programs(dict.fromkeys(harness.names(self.component), self._environment))

    def teardown(self, harness: Harness) -> None:
        if self._environment is not None:
            harness.change_programs(dict.fromkeys(harness.names(self.component)))

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        harness.at_some_moment(job, rng)
        harness.until_busy(job, self._victim)
        return self._terminate(harness, job)

    def _terminate(self, harness: Harness, job: ChaosJob) -> Strike:
        victim, self._found = self._victim, []
        strike = Strike(pids=[harness.pid(victim)], kind=self.component)
        harness.signal(victim, signal.SIGTERM, children=False)
        harness.until(lambda: harness.exit_code(victim) is not None, f"{victim} to end", timeout_s=20)
        if harness.exit_code(victim) != 0:
            self._found.append(f"{victim} ended with exit code {harness.exit_code(victim)}")
        held = harness.holds(job, strike.pids[0])
        if held:
            self._found.append(f"{victim} has ended and holds {held} samples")
        harness.start_program(victim)
        return strike

    def check(self, harness: Harness, job: ChaosJob, strike: Strike) -> list[str]:
        ends = harness.rows(
            "SELECT end_reason, tokens_dropped FROM workers WHERE pid = :pid ORDER BY id DESC LIMIT 1",
            pid=strike.pids[0],
        )
        found = [f"its life ended as {reason!r}" for reason, _ in ends if reason != "stopped"]
        if self._environment is None:  # time to drain: nothing is thrown away
            found += [f"it dropped {dropped} tokens" for _, dropped in ends if dropped]
        return self._found + found


class TerminateEarly(Terminate):
    """SIGTERM of a program that has just registered: its lease is given back, whether or not Celery listens yet."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind, "SIGTERM as soon as it has registered")

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        harness.at_some_moment(job, rng)
        killed = harness.kill(self._victim)
        harness.until(lambda: harness.pid(self._victim) != killed, f"{self._victim} to start again")
        harness.wait_registered(self._victim)
        time.sleep(rng.choice((0.0, rng.uniform(0.0, 0.3))))
        return self._terminate(harness, job)


class RollingRestart(Fault):
    """Every program ended and started again, one after the other, two of them at most not yet back; a longer job."""

    name, component = "rolling restart", "all"
    num_samples = 6
    lasts_s = 24.0

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        harness.at_some_moment(job, rng, latest=0.1)
        strike = Strike()
        names = harness.names_of_all()
        rng.shuffle(names)
        for pair in zip(names[::2], names[1::2], strict=True):
            for name in pair:
                pid = harness.pid(name)
                harness.stop_program(name)
                if harness.exit_code(name) != 0:
                    raise Broken(f"{name} (pid {pid}) ended with exit code {harness.exit_code(name)}")
                harness.start_program(name)
            for name in pair:
                harness.wait_registered(name)
        strike.note = "over before the last restart" if harness.is_over(job) else ""
        return strike


# -- SIGSTOP ----------------------------------------------------------------------------------------------------------


class Freeze(Fault):
    """SIGSTOP beyond the lease, then SIGCONT: what believes itself alive finds its lease gone."""

    def __init__(self, kind: str) -> None:
        self.name = "SIGSTOP beyond the lease, SIGCONT"
        self.component = kind
        self._frozen: list[str] = []
        self.lasts_s = 9.0

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        harness.at_some_moment(job, rng, latest=0.5)
        victim = rng.choice(harness.names(self.component))
        harness.until_busy(job, victim)
        self._frozen = [victim]
        strike = Strike(kind=self.component)
        strike.pids = [harness.signal(victim, signal.SIGSTOP)]
        self._beyond_lease(harness, rng, strike.pids[0])
        harness.signal(victim, signal.SIGCONT)
        self._frozen = []
        return strike

    def _beyond_lease(self, harness: Harness, rng: random.Random, pid: int) -> None:
        """Until its lease was taken, and somewhat longer; upkeep's lease is taken by nobody."""
        if self.component != "upkeep":
            taken = "SELECT count(*) FROM workers WHERE pid = :pid AND ended_at IS NULL"
            harness.until(lambda: harness.rows(taken, pid=pid)[0][0] == 0, "the lease to lapse")
            time.sleep(rng.uniform(0, 0.5))
        else:
            time.sleep(harness.lease_s * rng.uniform(1.1, 1.5))

    def heal(self, harness: Harness, job: ChaosJob) -> None:
        for name in self._frozen:
            harness.signal(name, signal.SIGCONT)
        self._frozen = []


class FreezeIn(Fault):
    """A worker that freezes in a phase, beyond its lease, and goes on from there."""

    def __init__(self, kind: str, phase: str, *, passages: int) -> None:
        self.name = f"SIGSTOP while {phase}, SIGCONT"
        self.component = kind
        self._phase = phase
        self._passages = passages
        self._pid = 0

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        victim = rng.choice(harness.names(self.component))
        harness.order(victim, Order(phase=self._phase, n=rng.randint(1, self._passages), action="stop"))
        fired = harness.wait_fired(victim, job)
        self._pid = fired.pid
        time.sleep(harness.lease_s * rng.uniform(1.3, 2.0))
        self.heal(harness, job)
        return Strike(at=fired.at, pids=[fired.pid], kind=self.component)

    def heal(self, harness: Harness, job: ChaosJob) -> None:
        if self._pid:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGCONT)
        self._pid = 0


# -- connections, absence, clocks -------------------------------------------------------------------------------------


class CutPostgres(Fault):
    """pg_terminate_backend of every connection of some role, three times in a row."""

    graders = EITHER_GRADER

    def __init__(self, component: str, logins: Sequence[str]) -> None:
        """logins: of the database, as pg_stat_activity shows them."""
        self.name = "pg_terminate_backend"
        self.component = component
        self._logins = list(logins)

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        harness.at_some_moment(job, rng)
        strike = Strike()
        cut = 0
        for _ in range(3):
            cut += harness.rows(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE usename = ANY(:logins) AND application_name = 'specthink'",
                logins=self._logins,
            )[0][0]
            time.sleep(rng.uniform(0.05, 0.3))
        if not cut:
            raise Broken(f"no connection of {self._logins} was there to cut")
        strike.note = f"{cut} cut"
        return strike


class CutRedis(Fault):
    """CLIENT KILL of every connection to Redis, three times in a row."""

    name, component = "CLIENT KILL", "all"

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        harness.at_some_moment(job, rng)
        strike = Strike()
        cut = 0
        with harness.redis() as client:
            for _ in range(3):
                for kind in ("normal", "pubsub"):
                    cut += int(client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"))
                time.sleep(rng.uniform(0.05, 0.3))
        if not cut:
            raise Broken("no connection was there to cut")
        strike.note = f"{cut} cut"
        return strike


class NoLarge(Fault):
    """No large worker for several leases: samples park where nobody holds them, and the job ends once one comes."""

    name, component = "none for 3 leases", "large"
    lasts_s = 14.0

    def prepare(self, harness: Harness, rng: random.Random) -> None:
        harness.absent = set(harness.names("large"))
        for name in harness.absent:
            harness.stop_program(name)

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        states = "SELECT DISTINCT state FROM samples WHERE job_id = :job AND state NOT IN ('pending', 'awaiting_large')"
        harness.until(lambda: harness.rows(states, job=job.id) == [], "every sample to wait for the large model")
        time.sleep(3 * harness.lease_s)
        if found := harness.rows(states, job=job.id):
            raise Broken(f"without a large worker samples are {found}")
        harness.until(lambda: self._in_flight(harness) == 0, "the small workers to have nothing in flight", timeout_s=2)
        strike = Strike(kind="large")
        self._come_back(harness)
        return strike

    def _in_flight(self, harness: Harness) -> int:
        return harness.rows("SELECT coalesce(sum(num_in_flight), 0) FROM workers WHERE ended_at IS NULL")[0][0]

    def _come_back(self, harness: Harness) -> None:
        for name in sorted(harness.absent):
            harness.start_program(name)
        harness.absent = set()

    def heal(self, harness: Harness, job: ChaosJob) -> None:
        self._come_back(harness)


class WrongClock(Fault):
    """One process's clock is minutes off while a worker beside it is killed: leases go by the database's clock."""

    def __init__(self, program: str, kind: str, offset_s: float) -> None:
        self.name = f"clock {offset_s / 60:+g} min, kill -9 beside it"
        self.component = kind
        self._program = program
        self._offset_s = offset_s

    def setup(self, harness: Harness) -> None:
        harness.change_programs({self._program: {"CHAOS_CLOCK_OFFSET_S": str(self._offset_s)}})

    def teardown(self, harness: Harness) -> None:
        harness.change_programs({self._program: None})

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        harness.at_some_moment(job, rng)
        beside = "small-2" if self.component == "upkeep" else self._program.replace("-1", "-2")
        kind = "small" if self.component == "upkeep" else self.component
        strike = Strike(kind=kind)
        strike.pids = [harness.kill(beside)]
        return strike

    def check(self, harness: Harness, job: ChaosJob, strike: Strike) -> list[str]:
        lapsed = harness.rows(
            # Where the server's own clock was ahead in an earlier run, rows of then end in the future.
            "SELECT pid FROM workers WHERE end_reason = 'lapsed' AND ended_at > to_timestamp(:at) "
            "AND ended_at <= clock_timestamp() AND pid <> ALL(:pids)",
            at=strike.at, pids=list(strike.pids),
        )  # fmt: skip
        return [f"the lease of pid {pid} lapsed, which was not killed" for (pid,) in lapsed]


NO_TIME = {"SPECTHINK_LEASE__DRAIN_S": "0"}
_WRITERS, _GRADERS, _UPKEEP = ("specthink_writer",), ("specthink_grader",), ("specthink_upkeep",)

FAULTS: list[Fault] = [
    Nothing(),
    *(
        Together([make(kind) for kind in ("small", "large")])
        for make in (
            KillIdle,
            partial(KillIn, phase="claiming", passages=6),
            partial(KillIn, phase="claimed", passages=6, name="kill -9 once claimed"),
            partial(KillIn, phase="generating", passages=60),
        )
    ),
    Together([KillIn(kind, "committing", passages=6) for kind in ("small", "large", "grade")]),
    Together(
        [
            KillIn(kind, phase, passages=4, name="kill -9 between commit and publish")
            for kind, phase in (("small", "committed"), ("large", "committed"), ("upkeep", "publishing"))
        ]
    ),
    Together([KillIdle(kind) for kind in ("grade", "upkeep")]),
    *(
        fault
        for kind in ("small", "large")
        for fault in (
            Terminate(kind, "SIGTERM with time to drain"),
            Terminate(kind, "SIGTERM with no time", NO_TIME),
            Freeze(kind),
            FreezeIn(kind, "committing", passages=6),
        )
    ),
    KillIn("grade", "claimed", passages=6, name="kill -9 while grading"),
    KillIn("grade", "claimed", passages=6, name="kill -9 of its child while grading", action="kill_child"),
    KillStoring(),
    Freeze("grade"),
    KillAdmitting(),
    KillRescuer(),
    KillIn("upkeep", "closing", passages=1),
    Freeze("upkeep"),
    Together([Terminate(kind, "SIGTERM") for kind in ("grade", "upkeep")]),
    Together([TerminateEarly(kind) for kind in ("small", "large")]),
    Together([TerminateEarly(kind) for kind in ("grade", "upkeep")]),
    KillAll(),
    RollingRestart(),
    KillClient("storing", "kill -9 with the problems stored"),
    KillClient("committing", "kill -9 before the commit"),
    KillClient("committed", "kill -9 before it hears of the commit"),
    CutPostgres("small+large", _WRITERS),
    CutPostgres("grade+upkeep", _GRADERS + _UPKEEP),
    CutRedis(),
    NoLarge(),
    WrongClock("small-1", "small", 300),
    WrongClock("large-1", "large", -300),
    WrongClock("upkeep", "upkeep", 300),
]
