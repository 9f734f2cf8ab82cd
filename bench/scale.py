"""A large job: how fast it is stored, and whether anything slows down or grows with what is there.

    python -m bench.scale [--samples 200000]

Two jobs of as many samples are submitted. Of the second one, all but the last samples are made to be done, with ten
segments each (``bench.loaded``). Everything else is real: the statements, upkeep, a grader, Redis, and scripted workers
that work on the first samples of the one job, until it is cancelled, and then on the last ones of the other.
"""

from __future__ import annotations

import datetime as dt
import json
import signal
import statistics
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Any

import psutil
import redis
from sqlalchemy import Connection, text

from bench.loaded import SEGMENTS, load_finished
from bench.measurement import Report, Spread, multiple_of
from bench.scripted_worker import environment, program
from bench.scripts import ANSWER
from bench.stack import MODELS, Stack, running_servers
from pipeline.chat.files import served_name
from pipeline.db import claims, context_cache, grades, rollups
from pipeline.db import job_control as control
from pipeline.db import upkeep_statements as upkeep
from pipeline.db.session import transaction
from pipeline.problems import load_problem_set
from pipeline.results.jobs import Job
from pipeline.samples import WRITING_ROLES, ModelRole

SAMPLES = 1_000_000
"""In each job: eight minutes on two idle cores, and 10 GB of disk."""
NUM_SAMPLES = 8
"""Per problem."""
LEFT = 8_000
"""Samples of the second job that are left to the workers: they last to the end at up to 1,500 hand-overs a second."""
SETTLE_S = 10.0
"""Until every process has done all it does for the first time; no longer than a part of the run."""
CLAIM = 8
"""Samples per claim."""
TAKEOVERS = 5
"""Per sample of the scripted workers."""
RUN_S = 35.0
REST_S = 30.0
WAIT_S = 240.0
"""No wait is longer."""
VIEWS = (
    "job_summary", "job_progress", "job_cost", "truncation", "errors", "token_lengths", "delegation", "pass_at_k",
    "maj_at_k", "length_histogram", "budget_curve", "takeover_flow", "delegation_progress", "step_summary",
)  # fmt: skip
LISTS = ("problem_scores",)
"""A view with a row per problem: no summary, but read for one."""
PENDING = "SELECT count(*) FROM samples WHERE job_id = :job AND state = 'pending'"
REPEATS = 3
CLAIM_REPEATS = 7
MODEL = {role: served_name(MODELS[role.value]) for role in WRITING_ROLES}


def timed(work: Callable[[], Any]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def wait_until(what: str, is_so: Callable[[], bool], pause_s: float) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {WAIT_S:.0f} s: {what}")
        time.sleep(pause_s)


# Submit


def write_problems(path: Path, num_problems: int, words: str) -> None:
    """A file of problems whose prompts differ in a number of seven digits, so that one script fits all of them."""
    with path.open("w") as file:
        for number in range(num_problems):
            prompt = f"Item {number:07}.{words}"
            file.write(json.dumps({"id": str(number), "problem": prompt, "answer": ANSWER, "subject": "sums"}) + "\n")


def submit(stack: Stack, file: Path, name: str) -> Job:
    return stack.client.submit(
        file, small=MODEL[ModelRole.SMALL], large=MODEL[ModelRole.LARGE], num_samples=NUM_SAMPLES, max_tokens=1000,
        name=name,
    )  # fmt: skip


def measure_submits(report: Report, stack: Stack, folder: Path, num_problems: int) -> tuple[Job, Job]:
    """Two jobs: on problems of a usual length (250 characters), and on short ones."""
    samples = num_problems * NUM_SAMPLES
    jobs, rates, parsing = [], [], []
    for name, words in (("first", " A train leaves the station, and another one follows it." * 4), ("second", "")):
        file = folder / f"{name}.jsonl"
        write_problems(file, num_problems, words)
        parsing.append(timed(lambda file=file: load_problem_set(file)))  # type: ignore[misc]
        start = time.perf_counter()
        jobs.append(submit(stack, file, name))
        rates.append(samples / (time.perf_counter() - start))
        with transaction(stack.db_engine) as connection:
            connection.execute(text("SELECT 1"))
    report.add("submit", rates, "samples/s")
    report.goal("submit", "≥", 20_000)
    report.add("of it, reading the file", parsing, "s")
    return jobs[0], jobs[1]


# Plans


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a statement reads. indexes: of samples and segments."""

    name: str
    statement: str
    values: dict[str, Any]
    indexes: frozenset[str]
    """One of these must be used, and no table of the big ones be read through."""


TEN_S = dt.timedelta(seconds=10)
BIG = ("samples", "segments", "steps", "events", "problems", "grades")


def plans(job: int, ids: Sequence[int], worker: int) -> list[Plan]:
    """The statements that run again and again while a job runs."""
    claim = claims._claim_values(worker, ModelRole.SMALL, dict.fromkeys(ids, 0), None)
    key, in_work = frozenset({"pk_samples"}), frozenset({"ix_samples_in_work"})
    age = {"age": TEN_S, "limit": 1000, "longest_delay": upkeep.LONGEST_DELAY}
    whole = {"ids": list(ids), "starts": [0] * len(ids)}
    return [
        Plan(name="claim", statement=claims._CLAIM.text, values=claim, indexes=key),
        Plan(name="context", statement=context_cache._LOAD_SEGMENTS.text, values=whole,
             indexes=frozenset({"pk_segments"})),
        Plan(name="room", statement=upkeep._ROOM.text, values={"ahead": 1.5},
             indexes=in_work),
        Plan(name="admit", statement=upkeep._ADMIT.text, values={"job": job, "room": 64, "first_role": "small"},
             indexes=frozenset({"ix_samples_pending"})),
        Plan(name="publish again", statement=upkeep._OVERDUE.text, values=age,
             indexes=in_work | frozenset({"ix_samples_finished"})),
        Plan(name="rescue", statement=upkeep._RESCUE.text, values={"workers": [worker]},
             indexes=in_work),
        Plan(name="orphans", statement=upkeep._ORPHANED.text, values={"workers": [worker]},
             indexes=in_work),
        Plan(name="suspects", statement=upkeep._TRY.text, values=age,
             indexes=frozenset({"ix_samples_suspect", "ix_samples_in_work"})),
        Plan(name="halt", statement=upkeep._HALT.text, values={}, indexes=in_work),
        Plan(name="close", statement=upkeep._ENDING.text, values={}, indexes=frozenset({"ix_samples_open"})),
        Plan(name="cancel", statement=control._LOCK_ALL.text, values={"job": job, "limit": control.BATCH},
             indexes=frozenset({"ix_samples_open"})),
        Plan(name="late grades", statement=grades._TIME_OUT.text,
             values={"ids": list(ids), "started": [dt.datetime.now(dt.UTC)] * len(ids)}, indexes=key),
        Plan(name="refreshable rollups", statement=rollups._REFRESHABLE.text,
             values={"quiet": TEN_S, "limit": 4, "retry_after": TEN_S},
             indexes=frozenset({"uq_samples_job_id_problem_id_sample_index"})),
    ]  # fmt: skip


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", []):
        yield from nodes(part)


def check_plan(connection: Connection, plan: Plan) -> list[str]:
    """What is wrong with how a statement is done: nothing, or a sentence each. It is planned, not done."""
    (found,) = connection.execute(text(f"EXPLAIN (FORMAT JSON) {plan.statement}"), plan.values).scalar_one()
    parts = list(nodes(found["Plan"]))
    scanned = {part["Relation Name"] for part in parts if part["Node Type"] == "Seq Scan"} & set(BIG)
    used = {part["Index Name"] for part in parts if "Index Name" in part}
    faults = [f"{plan.name} reads through {table}" for table in sorted(scanned)]
    if not used & plan.indexes:
        faults.append(f"{plan.name} uses {', '.join(sorted(used)) or 'no index'}")
    return faults


def measure_plans(report: Report, stack: Stack, job: int, ids: Sequence[int], worker: int) -> None:
    faults: list[str] = []
    checked = plans(job, ids, worker)
    with transaction(stack.db_engine) as connection:
        for plan in checked:
            faults += check_plan(connection, plan)
    report.details["plans"] = {"checked": [plan.name for plan in checked], "faults": faults}
    report.add("statements that do not use their index", len(faults), f"of {len(checked)}")
    report.goal("statements that do not use their index", "≤", 0)


# Claims


def live_worker(connection: Connection) -> int:
    statement = text("""
        INSERT INTO workers (kind, model, host, pid, queue, max_in_flight, expires_at)
        VALUES ('small', :model, 'bench', 0, 'bench', 64, now() + interval '1 h') RETURNING id
    """)
    return int(connection.execute(statement, {"model": MODEL[ModelRole.SMALL]}).scalar_one())


def end_worker(connection: Connection, worker: int) -> None:
    statement = "UPDATE workers SET ended_at = now(), end_reason = 'stopped', settled_at = now() WHERE id = :worker"
    connection.execute(text(statement), {"worker": worker})


def claim_times(connection: Connection, ids: Sequence[int], worker: int) -> list[float]:
    """Milliseconds of each claim of CLAIM of some pending samples; rolled back."""
    connection.execute(text("SET LOCAL session_replication_role = replica"))
    connection.execute(text("UPDATE samples SET state = 'ready' WHERE id = ANY(:ids)"), {"ids": list(ids)})
    connection.execute(text("SET LOCAL session_replication_role = origin"))
    taken = []
    for start in range(0, len(ids), CLAIM):
        epochs = dict.fromkeys(ids[start : start + CLAIM], 0)
        began = time.perf_counter()
        claims.claim_samples(connection, worker_id=worker, role=ModelRole.SMALL, epochs=epochs)
        taken.append(1000 * (time.perf_counter() - began))
    connection.rollback()
    return taken


def pending_ids(connection: Connection, job: int, *, last: bool) -> list[int]:
    """The first or last thousand."""
    order = "DESC" if last else "ASC"
    query = f"SELECT id FROM samples WHERE job_id = :job AND state = 'pending' ORDER BY id {order} LIMIT 1000"
    return sorted(connection.execute(text(query), {"job": job}).scalars())


def measure_claims(report: Report, stack: Stack, first: int, second: int, worker: int) -> None:
    """By turns, so that what else goes on falls on both."""
    repeats: dict[str, list[float]] = {"first": [], "last": []}
    for _ in range(CLAIM_REPEATS):
        for which, job in (("first", first), ("last", second)):
            with stack.db_engine.connect() as connection:
                ids = pending_ids(connection, job, last=which == "last")
                repeats[which].append(statistics.median(claim_times(connection, ids, worker)))
    for which, times in repeats.items():
        report.add(f"claim of {CLAIM} of the {which} thousand", times, "ms")
    ratios = [late / early for early, late in zip(repeats["first"], repeats["last"], strict=True)]
    report.add("claim, last over first", ratios)
    report.goal("claim, last over first", "≤", 1.1)


# Views


def measure_views(report: Report, stack: Stack, job: int, which: str) -> None:
    """Seconds to read each view of a job."""
    worst = 0.0
    for view in (*VIEWS, *LISTS):
        query = text(f"SELECT * FROM {view} WHERE job_id = :job")
        times = []
        for _ in range(REPEATS):
            with transaction(stack.db_engine) as connection:
                times.append(timed(lambda c=connection, q=query: c.execute(q, {"job": job}).all()))  # type: ignore[misc]
        spread = Spread.of(times)
        report.add(f"{view}, {which}", spread, "s")
        if view in VIEWS:
            worst = max(worst, spread.median)
    report.add(f"slowest summary view, {which}", worst, "s")
    report.goal(f"slowest summary view, {which}", "≤", 1.0)


# Run


@dataclass(slots=True)
class Watch:
    """What is seen each second: megabytes by process, messages in the broker, samples handed over."""

    stack: Stack
    names: Sequence[str]
    memory: dict[str, list[float]] = field(default_factory=dict)
    depth: list[int] = field(default_factory=list)
    segments: int = 0

    def look(self, broker: redis.Redis) -> None:
        for name in self.names:
            top = psutil.Process(self.stack.pid(name))
            resident = 0
            for process in (top, *top.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):  # it has ended since it was listed
                    resident += process.memory_info().rss
            self.memory.setdefault(name, []).append(resident / 2**20)
        lists = [key for key in broker.scan_iter(count=1000) if broker.type(key) == b"list"]
        self.depth.append(sum(int(broker.llen(key)) for key in lists))


@contextmanager
def watching(stack: Stack, names: Sequence[str]) -> Iterator[Watch]:
    watch, stop = Watch(stack, names), Event()
    broker = redis.Redis.from_url(stack.connections.redis_url.get_secret_value())

    def run() -> None:
        watch.look(broker)
        while not stop.wait(1.0):
            watch.look(broker)

    thread = Thread(target=run, daemon=True)
    thread.start()
    yield watch
    stop.set()
    thread.join()
    broker.close()


def hand_overs(connection: Connection, job: int, since: float) -> float:
    """Segments stored of a job per second in the last so many seconds."""
    query = """SELECT count(*) FROM events WHERE job_id = :job AND from_state IN ('drafting', 'assisting')
               AND at > clock_timestamp() - make_interval(secs => :since)"""
    return int(connection.execute(text(query), {"job": job, "since": since}).scalar_one()) / since


def measure_run(report: Report, stack: Stack, first: int, second: int, run_s: float) -> None:
    """Workers on the first job's first samples, its cancel, and workers on the second job's last ones."""
    names = ("upkeep", "grade", "small", "large")
    stack.client.set_priority(first, 1)
    stack.start_keepers()
    variables = environment(f"takeovers:{TAKEOVERS}", max_in_flight=64)
    stack.start_programs([program("small", ModelRole.SMALL, variables), program("large", ModelRole.LARGE, variables)])
    time.sleep(min(SETTLE_S, run_s))
    rates = []
    with watching(stack, names) as early:
        time.sleep(run_s)
    with transaction(stack.db_engine) as connection:
        rates.append(hand_overs(connection, first, run_s))
    measure_cancel(report, stack, first)
    time.sleep(min(SETTLE_S, run_s) / 2)
    with watching(stack, names) as late:
        time.sleep(run_s)
    with transaction(stack.db_engine) as connection:
        rates.append(hand_overs(connection, second, run_s))
    if not count(stack, PENDING, second):
        raise RuntimeError("the workers ran out of samples of the second job: give more of them with --left")
    for name, rate in zip(("first", "last"), rates, strict=True):
        report.add(f"hand-overs of the {name} samples", rate, "1/s")
    for name in names:
        growth = statistics.median(late.memory[name]) / statistics.median(early.memory[name])
        report.add(f"memory of {name}", late.memory[name], "MiB")
        report.add(f"memory of {name}, late over early", growth)
        report.goal(f"memory of {name}, late over early", "≤", 1.1)
    report.add("messages in the broker, early", [float(depth) for depth in early.depth])
    report.add("messages in the broker, late", [float(depth) for depth in late.depth])


def measure_cancel(report: Report, stack: Stack, job: int) -> None:
    """How long the command takes, until when somebody still writes, and how long the rest takes in the background."""
    start = time.perf_counter()
    report.add("cancel returns after", timed(lambda: stack.client.cancel(job)), "s")
    report.goal("cancel returns after", "≤", 2.0)
    at_work = """SELECT count(*) FROM samples WHERE job_id = :job
                 AND state IN ('ready', 'drafting', 'awaiting_large', 'assisting')"""
    wait_until("nobody works on the cancelled job", lambda: not count(stack, at_work, job), 0.02)
    report.add("cancel is effective after", time.perf_counter() - start, "s")
    report.goal("cancel is effective after", "≤", 2.0)


def count(stack: Stack, query: str, job: int) -> int:
    with transaction(stack.db_engine) as connection:
        return int(connection.execute(text(query), {"job": job}).scalar_one())


def measure_ends(report: Report, stack: Stack, first: int, second: int) -> None:
    """How upkeep goes on with the first job's cancel, and the end of the second one."""
    left, start = count(stack, PENDING, first), time.perf_counter()
    until = start + REST_S
    while (now_left := count(stack, PENDING, first)) and time.perf_counter() < until:
        time.sleep(0.5)
    report.add("samples left when the cancel had returned and the run had ended", left)
    report.add("of these, ended by upkeep", (left - now_left) / (time.perf_counter() - start), "1/s")
    start = time.perf_counter()
    stack.client.cancel(second)
    kept = "SELECT count(*) FROM job_totals WHERE job_id = :job"
    wait_until("the totals of the ended job are kept", lambda: count(stack, kept, second) > 0, 0.05)
    report.add("totals of the ended job are kept after", time.perf_counter() - start, "s")


def refresh_rollups(report: Report, stack: Stack) -> None:
    """What upkeep does by and by: refresh every rollup of idle samples. Here two at a time."""
    with transaction(stack.db_engine) as connection:
        query = "SELECT job_id, first_problem FROM rollups ORDER BY job_id, first_problem"
        found = [rollups.Rollup(*row) for row in connection.execute(text(query))]

    def refresh_one(rollup: rollups.Rollup) -> float:
        start = time.perf_counter()
        with transaction(stack.db_engine) as connection:
            rollups.refresh_rollup(connection, rollup)
        return 1000 * (time.perf_counter() - start)

    start = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        report.add("refreshing a rollup", Spread.of(list(pool.map(refresh_one, found))), "ms")
    with transaction(stack.db_engine) as connection:
        for job in sorted({rollup.job_id for rollup in found}):
            rollups.compact_lengths(connection, job)
    report.add("refreshing all rollups of both jobs", time.perf_counter() - start, "s")


def vacuum(stack: Stack) -> None:
    """What autovacuum would have done by the time that a job had run so far."""
    with stack.db_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


def run(report: Report, stack: Stack, folder: Path, *, num_problems: int, left: int, run_s: float) -> None:
    first, second = measure_submits(report, stack, folder, num_problems)
    done = num_problems * NUM_SAMPLES - left

    def load() -> None:
        with transaction(stack.db_engine) as connection:
            load_finished(connection, second.id, done=done, small=MODEL[ModelRole.SMALL], large=MODEL[ModelRole.LARGE])

    report.details["load_s"] = timed(load)
    report.details["vacuum_s"] = timed(lambda: vacuum(stack))
    refresh_rollups(report, stack)
    measure_views(report, stack, second.id, "running")
    with transaction(stack.db_engine) as connection:
        worker = live_worker(connection)
        ids = pending_ids(connection, second.id, last=True)[:CLAIM]
    measure_plans(report, stack, second.id, ids, worker)
    measure_claims(report, stack, first.id, second.id, worker)
    with transaction(stack.db_engine) as connection:
        end_worker(connection, worker)
    measure_run(report, stack, first.id, second.id, run_s)
    measure_ends(report, stack, first.id, second.id)
    measure_views(report, stack, second.id, "ended")


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=multiple_of(NUM_SAMPLES), default=SAMPLES, help="of each of the two jobs")
    parser.add_argument("--left", type=int, default=LEFT, help="samples of the second job that are not loaded as done")
    parser.add_argument("--run-s", type=float, default=RUN_S, help="of each of the two parts of the run")
    args = parser.parse_args()
    if not 0 < args.left < args.samples:
        parser.error(f"--left {args.left} is not between 0 and the {args.samples} samples of a job")
    num_problems = args.samples // NUM_SAMPLES
    report = Report(
        bench="scale",
        setting={"samples": args.samples, "left": args.left, "problems": num_problems,
                 "segments": args.samples * SEGMENTS, "repeats": REPEATS, "seed": "none: all lengths follow from ids"},
    )  # fmt: skip
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    try:
        with TemporaryDirectory() as folder, running_servers() as stack:
            run(report, stack, Path(folder), num_problems=num_problems, left=args.left, run_s=args.run_s)
    finally:  # what was measured before a failure is worth knowing
        report.print()


if __name__ == "__main__":
    main()
