"""Faults of engines: one that dies, stalls, writes nothing or rubbish, refuses, or takes its process with it.

What goes wrong with one sample is asked for by its problem: the strike submits a second job whose first problems are
bad ones, beside the job of the run. That one, and the other problems of the second, must come through untouched.
"""

from __future__ import annotations

import os
import random
import re
import signal
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.db.invariants import check_job, snapshot
from pipeline.errors import EngineRefused, EngineUnavailable
from pipeline.problems import Problem, ProblemSet, content_sha256
from pipeline.samples import ModelRole
from tests.chaos.faults import Fault, Strike
from tests.chaos.harness import Broken, Harness
from tests.chaos.models import MODELS
from tests.chaos.worker import ENGINE_VARIABLE, MAX_IN_FLIGHT, STEP_S, Order
from tests.chaos.workload import ChaosJob
from workers.engine.base import GenerateRequest

NUM_SOUND = 3
"""Problems of the second job that come after the bad ones."""
STALL_AFTER_S = 1.5
MAX_ATTEMPTS = 4
MAX_DEATHS = 7
"""Workers that one bad sample may take with it: two until it is a suspect, one that tries it beside others, one that
it has to itself, some more where it vanishes with them or others beside it became suspects too."""
TEXT = "So the result is 5.\n</think>\n\nThe result is \\boxed{5}."
_MARK = re.compile(r"Engine fault ([a-z_]+),")
_BYTES = {"nul": b"\x00", "bad_bytes": b"\xff\xc3", "surrogate": b"\xed\xa0\x80", "outside": b""}
"""What a mode writes before TEXT."""

ENVIRONMENT = {
    ENGINE_VARIABLE: f"{__name__}:broken_engine",
    "SPECTHINK_ENGINE__STALL_AFTER_S": str(STALL_AFTER_S),
    "SPECTHINK_ENGINE__MAX_ATTEMPTS": str(MAX_ATTEMPTS),
}


# -- in the worker's process ------------------------------------------------------------------------------------------


def broken_engine(role: ModelRole, chat: Any, model: str, phases: Any) -> Any:
    """The harness's engine, and what a problem's mark asks for."""
    from tests.chaos.texts import make_script
    from workers.engine.scripted import ScriptedEngine

    good = make_script(chat, role)
    stalled: list[bool] = []
    actions = sys.modules[type(phases).__module__].ACTIONS  # of the running program, which is __main__
    actions["stall"] = lambda order: stalled.append(True)

    def mode_of(request: GenerateRequest) -> str:
        prompt = chat.tokenizer.decode(list(request.prompt_ids), skip_special_tokens=False)
        mark = _MARK.search(prompt)
        return mark[1] if mark else ""

    def script(request: GenerateRequest) -> Iterable[int]:
        mode = mode_of(request)
        if not mode:
            return good(request)
        if mode == "empty":
            return ()
        rubbish = _outside(chat) if mode == "outside" else _ids_of(chat, _BYTES.get(mode, b""))
        return [*rubbish, *chat.encode_text(TEXT)]

    class BrokenEngine(ScriptedEngine):
        def _prepare(self, request: GenerateRequest) -> GenerateRequest:
            mode, epoch = mode_of(request), int(request.request_id.rpartition("-")[2])
            if mode == "refused":
                raise EngineRefused(model, "this engine takes no such request")
            if mode == "never" or (mode == "unavailable" and epoch <= 2):
                raise EngineUnavailable(model, "no memory left just now")
            return request

        def _step(self) -> Any:
            if self._writing:
                phases.passed("generating")
            for core_id in self._writing:
                running = self._running[core_id]
                mode = mode_of(running.request) if running.num_generated_tokens == 3 else ""
                if mode == "poison":
                    os.kill(os.getpid(), signal.SIGKILL)
                if mode == "stall":
                    stalled.append(True)
            return [] if stalled else super()._step()

    return BrokenEngine(
        script,
        chat.decode_stream,
        model=model,
        max_model_len=chat.max_model_len or 2048,
        max_in_flight=MAX_IN_FLIGHT,
        step_s=STEP_S,
    )


def _ids_of(chat: Any, content: bytes) -> list[int]:
    """The tokens of single bytes, as a byte-level vocabulary has them."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in kept]
    letters = {byte: chr(byte) for byte in kept} | {byte: chr(256 + place) for place, byte in enumerate(moved)}
    ids = [chat.tokenizer.token_to_id(letters[byte]) for byte in content]
    if None in ids:
        raise LookupError(f"{content!r} cannot be written in this vocabulary")
    return ids


def _outside(chat: Any) -> list[int]:
    """Ids that the vocabulary does not have, as a model with padded embeddings may write."""
    return [chat.tokenizer.get_vocab_size() + 5, chat.tokenizer.get_vocab_size() + 7]


# -- in the harness ---------------------------------------------------------------------------------------------------


class EngineFault(Fault):
    """A fault of the small workers' engines."""

    component = "engine"

    def setup(self, harness: Harness) -> None:
        harness.change_programs(dict.fromkeys(harness.names("small"), ENVIRONMENT))

    def teardown(self, harness: Harness) -> None:
        harness.change_programs(dict.fromkeys(harness.names("small")))


class Ordered(EngineFault):
    """The whole engine of one worker fails in mid-job."""

    def __init__(self, name: str, action: str, end: str) -> None:
        self.name = name
        self._action = action
        self._end = end

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        victim = rng.choice(harness.names("small"))
        harness.order(victim, Order(phase="generating", n=rng.randint(1, 80), action=self._action))
        fired = harness.wait_fired(victim, job)
        return Strike(at=fired.at, pids=[fired.pid], kind="small")

    def check(self, harness: Harness, job: ChaosJob, strike: Strike) -> list[str]:
        rows = harness.rows(
            "SELECT end_reason FROM workers WHERE pid = :pid ORDER BY id DESC LIMIT 1", pid=strike.pids[0]
        )
        return [] if rows == [(self._end,)] else [f"the struck worker ended as {rows}, not {self._end}"]


class BadSamples(EngineFault):
    """Some samples of another job bring an engine to do something odd, each with its own; the others are sound."""

    def __init__(self, name: str, modes: Mapping[str, str | None]) -> None:
        """modes: what goes wrong → the class of error that its sample is set aside with; None: it is graded."""
        self.name = name
        self._modes = modes
        self._bad: int | None = None
        self.lasts_s = 20.0

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        self._bad = None
        harness.at_some_moment(job, rng, latest=0.4)
        strike = Strike(is_blow=False)
        self._bad = harness.client.submit(
            self._problems(job.seed),
            small=MODELS[ModelRole.SMALL], large=MODELS[ModelRole.LARGE], seed=job.seed, max_tokens=1000,
            name=f"{self.name} {job.seed}",
        ).id  # fmt: skip
        return strike

    def _problems(self, seed: int) -> ProblemSet:
        modes = [*self._modes, *["none"] * NUM_SOUND]
        problems = tuple(
            Problem(
                external_id=str(number),
                prompt=f"Engine fault {mode}, {seed}, {number}.\nWhat is the result?",
                answer="5",
            )
            for number, mode in enumerate(modes)
        )
        return ProblemSet(name=f"odd-{seed}", content_sha256=content_sha256(problems), problems=problems)

    def heal(self, harness: Harness, job: ChaosJob) -> None:
        if self._bad is not None:
            bad = ChaosJob(self._bad, job.seed)
            try:
                harness.wait_over(bad, timeout_s=90)
            except Broken:
                harness.client.cancel(self._bad)
                raise

    def check(self, harness: Harness, job: ChaosJob, strike: Strike) -> list[str]:
        assert self._bad is not None
        rows = harness.rows(
            "SELECT p.position, s.state, s.error_class, s.error, s.score, s.num_attempts, s.epoch, s.num_rescues "
            "FROM samples s JOIN problems p ON p.id = s.problem_id WHERE s.job_id = :job ORDER BY p.position",
            job=self._bad,
        )
        state = harness.rows("SELECT state FROM jobs WHERE id = :job", job=self._bad)[0][0]
        found = []
        for (mode, error_class), row in zip(self._modes.items(), rows, strict=False):
            if row[1:3] != (("failed", error_class) if error_class else ("graded", None)):
                found.append(f"the sample that {mode} befell is {row}")
        found += [
            f"a sample beside it is {row}" for row in rows[len(self._modes) :] if row[1] != "graded" or row[4] != 1.0
        ]
        if state != ("completed_with_errors" if any(self._modes.values()) else "completed"):
            found.append(f"its job is {state}")
        with snapshot(harness.db_engine) as connection:
            found += [f"{each.invariant}: {each.where} {each.what}" for each in check_job(connection, self._bad)]
        deaths = harness.rows(
            "SELECT count(*) FROM workers w WHERE kind = 'small' AND end_reason <> 'stopped' "
            "AND ended_at > to_timestamp(:at) AND NOT EXISTS "  # a busy machine: the process lives on with a new lease
            "(SELECT FROM workers later WHERE later.pid = w.pid AND later.id > w.id)",
            at=strike.at,
        )[0][0]
        if deaths > MAX_DEATHS:
            found.append(f"{deaths} workers died")
        return found


FAULTS: list[Fault] = [
    Ordered("dies", "raise", "engine_died"),
    Ordered("stalls silently", "stall", "engine_stalled"),
    BadSamples(
        "writes nothing, NUL, no UTF-8, half a surrogate pair, ids outside its vocabulary",
        {"empty": None, "nul": None, "bad_bytes": None, "surrogate": None, "outside": None},
    ),
    BadSamples(
        "refuses one sample, one twice, one each time as if for the moment",
        {"refused": "engine_refused", "unavailable": None, "never": "engine_refused"},
    ),
    BadSamples("dies of one sample", {"poison": "engine_died"}),
    BadSamples("stalls with one sample", {"stall": "timed_out"}),
]
