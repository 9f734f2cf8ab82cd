"""The demo pair on real engines: what befalls their processes, and one column of the faults that the scripted have too.

One small worker has its engine inside its process, the other beside it; one large worker. A start takes long here, and
where all workers of a kind are gone, recovery waits for one. What must come of a job is what came of the first one on
this harness, which nothing disturbed: with these engines a text depends on its seed alone.
"""

from __future__ import annotations

import importlib
import random
import signal
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import psutil

from pipeline.client import Client
from pipeline.samples import ModelRole
from pipeline.settings import load_settings
from tests.chaos import faults_servers, faults_workers, supervisor
from tests.chaos.faults import Fault, Strike, Together
from tests.chaos.harness import Broken, Harness, Missed
from tests.chaos.models import MODELS, REPOSITORY
from tests.chaos.worker import ENGINE_VARIABLE, Order, pass_before
from tests.chaos.workload import ChaosJob, Ending, Workload
from workers.engine.vllm.arguments import set_environment

NUM_PROBLEMS, NUM_SAMPLES = 12, 2
JOB_SEED = 1
STALL_AFTER_S = 6.0
MODULES = (
    "vllm.config", "vllm.engine.arg_utils", "vllm.renderers", "vllm.v1.engine.core", "vllm.v1.engine.core_client",
    "vllm.v1.engine.input_processor", "vllm.v1.executor.uniproc_executor", "vllm.v1.worker.cpu_worker",
)  # fmt: skip


def vllm_engine(role: ModelRole, chat: Any, model: str, phases: Any) -> Any:
    """In the worker's process: vLLM, and a phase at each step that brought something."""
    from workers.engine.loading import load_engine

    engine = load_engine(chat, revision=None, role=role, settings=load_settings().engine)
    pass_before(phases, "generating", engine, "_handle")
    return engine


def import_all() -> None:
    """What every worker of this harness imports."""
    set_environment(str(MODELS[ModelRole.SMALL]), load_settings().engine)
    supervisor.import_all()
    for module in MODULES:
        importlib.import_module(module)


class DemoPair(Workload):
    """Two small workers and a large one, with the demo pair on vLLM."""

    programs: Mapping[str, str] = MappingProxyType(
        {"small-1": "small", "small-2": "small", "large-1": "large", "grade": "grade", "upkeep": "upkeep"}
    )
    environment: Mapping[str, str] = MappingProxyType(
        {
            ENGINE_VARIABLE: f"{__name__}:vllm_engine",
            "SPECTHINK_ENGINE__VLLM__PROCESS": "inline",
            "SPECTHINK_ENGINE__VLLM__DTYPE": "float32",  # in bfloat16 a text may depend on what runs beside it
            "SPECTHINK_ENGINE__STALL_AFTER_S": str(STALL_AFTER_S),
            "SPECTHINK_ENGINE__VLLM__CPU_KV_CACHE_GIB": "0.5",
            "SPECTHINK_ENGINE__MAX_IN_FLIGHT": "12",  # so that the first small worker leaves some to the second
            "SPECTHINK_LEASE__TTL_S": "4",
            "SPECTHINK_LEASE__RENEW_INTERVAL_S": "0.8",
        }
    )
    own_environment: Mapping[str, Mapping[str, str]] = MappingProxyType(
        {"small-2": {"SPECTHINK_ENGINE__VLLM__PROCESS": "separate"}}
    )
    imports = f"{__name__}:import_all"
    start_timeout_s = 120.0

    def __init__(self) -> None:
        self._endings: dict[tuple[str, int], Ending] = {}
        self._num_segments = 0

    def submit(self, client: Client, seed: int, *, num_samples: int, grader: str) -> int:
        """The same job each time: the seed of a run decides the moment of its fault alone."""
        job = client.submit(
            REPOSITORY / "examples" / "problems.jsonl",
            small=MODELS[ModelRole.SMALL],
            large=MODELS[ModelRole.LARGE],
            num_samples=NUM_SAMPLES,
            seed=JOB_SEED,
            limit=NUM_PROBLEMS,
            grader=grader,
            max_tokens=64,  # enough for some takeovers in each; an engine's steps are what a run costs
            name=f"chaos {seed}",
        )
        return job.id

    def learn(self, harness: Harness) -> None:
        """Run the job once undisturbed."""
        job = harness.submit(0)
        harness.wait_over(job, timeout_s=60)
        rows = harness.rows(
            "SELECT p.external_id, s.sample_index, s.score, "
            "       (SELECT string_agg(g.text, '' ORDER BY g.segment_index) FROM segments g WHERE g.sample_id = s.id) "
            "FROM samples s JOIN problems p ON p.id = s.problem_id WHERE s.job_id = :job AND s.state = 'graded'",
            job=job.id,
        )
        self._endings = {(problem, index): Ending(text, score) for problem, index, score, text in rows}
        self._num_segments = harness.num_commits(job)
        if len(self._endings) != NUM_PROBLEMS * NUM_SAMPLES:
            raise Broken(f"undisturbed, only {len(self._endings)} samples were graded")

    def num_segments(self, job: ChaosJob) -> int:
        return self._num_segments

    def endings(self, job: ChaosJob) -> Mapping[tuple[str, int], Ending]:
        return self._endings


def start_harness(state_dir: Any) -> Harness:
    """A harness of the demo pair that knows what must come of its job."""
    pair = DemoPair()
    harness = Harness.start(state_dir, pair)
    try:
        pair.learn(harness)
    except BaseException:
        harness.close()
        raise
    return harness


def engine_processes(pid: int) -> list[psutil.Process]:
    """What vLLM runs beside a worker."""
    return [each for each in psutil.Process(pid).children(recursive=True) if "VLLM::" in " ".join(each.cmdline())]


class EngineProcess(Fault):
    """A signal to the engine's own process, beside its worker, in mid-generation; nothing of it may be left."""

    component = "engine"

    def __init__(self, name: str, sign: signal.Signals, end: str) -> None:
        """end: how the worker's life must end."""
        self.name = name
        self._signal = sign
        self._end = end
        self._struck: list[psutil.Process] = []

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        harness.at_some_moment(job, rng, latest=0.4)
        harness.until_busy(job, "small-2")
        if harness.is_over(job):
            raise Missed("small-2 got no sample of the job")
        strike = Strike(pids=[harness.pid("small-2")], kind="small")
        self._struck = engine_processes(strike.pids[0])
        if not self._struck:
            raise Broken("small-2 has no engine beside it")
        for process in self._struck:
            process.send_signal(self._signal)
        harness.until(lambda: harness.pid("small-2") != strike.pids[0], "small-2 to end", timeout_s=30)
        return strike

    def heal(self, harness: Harness, job: ChaosJob) -> None:
        left = [process.pid for process in self._struck if process.is_running() and process.status() != "zombie"]
        for process in self._struck:
            if process.pid in left:
                process.kill()
        if left:
            raise Broken(f"the engine's processes {left} were left")

    def check(self, harness: Harness, job: ChaosJob, strike: Strike) -> list[str]:
        rows = harness.rows(
            "SELECT end_reason FROM workers WHERE pid = :pid ORDER BY id DESC LIMIT 1", pid=strike.pids[0]
        )
        return [] if rows == [(self._end,)] else [f"the struck worker ended as {rows}, not {self._end}"]


class KillBoth(Fault):
    """kill -9 of the worker with its engine beside it: the engine's process must end by itself."""

    name, component = "kill -9 of a worker whose engine is beside it", "engine"

    def strike(self, harness: Harness, job: ChaosJob, rng: random.Random) -> Strike:
        harness.order("small-2", Order(phase="generating", n=rng.randint(1, 60), action="stop"))
        fired = harness.wait_fired("small-2", job)
        engines = engine_processes(fired.pid)
        if not engines:
            raise Broken("small-2 has no engine beside it")
        strike = Strike(pids=[fired.pid], kind="small")
        psutil.Process(fired.pid).kill()
        _, alive = psutil.wait_procs(engines, timeout=20)
        if alive:
            raise Broken(f"the engine's processes {[each.pid for each in alive]} were left")
        return strike


def _on_vllm(fault: Fault) -> Fault:
    fault.is_on_vllm = True
    return fault


FAULTS: list[Fault] = [
    _on_vllm(fault)
    for fault in (
        faults_workers.Nothing(),
        EngineProcess("its process is killed", signal.SIGKILL, "engine_died"),
        EngineProcess("its process stops (SIGSTOP)", signal.SIGSTOP, "engine_stalled"),
        KillBoth(),
        Together([faults_workers.KillIn(kind, "generating", passages=60) for kind in ("small", "large")]),
        faults_workers.Terminate("small", "SIGTERM with time to drain"),
        faults_workers.Freeze("small"),
        faults_workers.Freeze("large"),
        faults_servers.FlushRedis(),
        faults_servers.StopPostgres("stopped at once", signal.SIGQUIT),
        Together([faults_servers.CutAll(), faults_workers.CutRedis()]),
    )
]
