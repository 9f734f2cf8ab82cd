"""A small or large worker as it is, with a scripted engine in place of vLLM: for measuring everything but the model.

    python -m bench.scripted_worker small|large

The environment says the rest (see ``environment``). The demo pair lends tokenizer and chat template.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

from bench.paced_engine import PacedEngine
from bench.sampler import profiling
from bench.scripts import make_script, problem_set
from bench.stack import MODELS, REPOSITORY
from pipeline.chat.files import served_name
from pipeline.chat.model import ChatModel
from pipeline.chat.prompts import render_user_message
from pipeline.embedded import Program
from pipeline.logs import configure_logging
from pipeline.planning.pools import EngineRates
from pipeline.samples import ModelRole
from pipeline.settings import load_settings
from pipeline.workforce import WorkerKind
from workers.engine.base import EngineInfo
from workers.engine.scripted import ScriptedEngine
from workers.engine.threaded import Ended
from workers.processes.base import open_base
from workers.processes.writer import WriterProcess

_NO_BLOCKS = 1_000_000
"""Tokens per block of the pretended prefix cache: so large that hashing blocks costs nothing."""


class InstantEngine(ScriptedEngine):
    """Writes the whole of each request in one step."""

    @property
    def info(self) -> EngineInfo:
        """As a device of its own that takes no time."""
        return replace(super().info, has_own_device=True)

    def _step(self) -> list[Ended]:
        ended: list[Ended] = []
        self._start_waiting()
        while self._writing:
            ended += super()._step()
        return ended


def environment(
    script: str,
    *,
    max_in_flight: int = 128,
    step_s: float = 0.0,
    rates: EngineRates | None = None,
    notes: Path | None = None,
    profile: Path | None = None,
) -> dict[str, str]:
    """What tells a worker what to be.

    script: a name for ``bench.scripts.make_script``. step_s: pause before each token of all running requests;
    0: a request is answered at once. rates: the law of its steps' time instead, which it keeps whatever happens beside
    it (bench/paced_engine.py); notes: the file in which it then says what it has done.
    profile: the file that gets where this process's CPU time goes, while ``PROFILE.on`` is there.
    """
    variables = {"BENCH_SCRIPT": script, "BENCH_MAX_IN_FLIGHT": str(max_in_flight), "BENCH_STEP_S": str(step_s)}
    variables |= {"BENCH_RATES": json.dumps(asdict(rates))} if rates else {}
    variables |= {"BENCH_NOTES": str(notes)} if notes else {}
    return variables | ({"BENCH_PROFILE": str(profile)} if profile else {})


def program(name: str, role: ModelRole, variables: dict[str, str]) -> Program:
    """A worker as supervisord runs it. variables: of ``environment``, and settings."""
    argv = (sys.executable, "-m", "bench.scripted_worker", role.value)
    settings = {key: value for key, value in os.environ.items() if key.startswith("SPECTHINK_")}
    return Program(name=name, argv=argv, env=settings | variables, cwd=REPOSITORY, stop_wait_s=40)


def _make_engine(role: ModelRole, chat: ChatModel) -> ScriptedEngine:
    script = make_script(os.environ["BENCH_SCRIPT"], chat, role)
    model, max_model_len = served_name(MODELS[role.value]), chat.max_model_len or 2048
    max_in_flight, step_s = int(os.environ["BENCH_MAX_IN_FLIGHT"]), float(os.environ["BENCH_STEP_S"])
    if rates := os.environ.get("BENCH_RATES"):
        notes = os.environ.get("BENCH_NOTES")
        return PacedEngine(
            script, chat.decode_stream, rates=EngineRates(**json.loads(rates)), model=model,
            max_model_len=max_model_len, max_in_flight=max_in_flight, notes=Path(notes) if notes else None,
            key_tokens=len(chat.prompt_ids(render_user_message("math", problem_set(1).problems[0]))),
        )  # fmt: skip
    return (ScriptedEngine if step_s else InstantEngine)(
        script, chat.decode_stream, model=model, max_model_len=max_model_len, max_in_flight=max_in_flight,
        step_s=step_s, block_size=_NO_BLOCKS,
    )  # fmt: skip


def run(role: ModelRole) -> int:
    """Until told to stop."""
    settings = load_settings()
    configure_logging(settings)
    base = open_base(settings, WorkerKind(role.value))
    chat = ChatModel.load(MODELS[role.value])
    engine = _make_engine(role, chat)
    with profiling(os.environ.get("BENCH_PROFILE")):
        return WriterProcess(base, role, engine, chat, served_name(MODELS[role.value])).run()


if __name__ == "__main__":
    sys.exit(run(ModelRole(sys.argv[1])))
