"""A scripted engine with a GPU's pace: each step takes as long as a law says, whatever this machine does meanwhile.

It keeps a clock of its own, that of a GPU which is not held up by the worker's Python: a step begins when the one
before it ends, and its tokens are handed out once its end has come. Where Python is late, the tokens of several steps
are handed out one after the other, as those of an engine in a process of its own would be. A request begins in a step
that begins after it was handed in. Where Python is late by more than ``MOST_LATE_S`` the clock is put forward: that
time is lost, and counted.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from bench.trajectories import cached_tokens
from pipeline.planning.pools import EngineRates
from workers.engine.base import EngineInfo
from workers.engine.running import DecodeStream
from workers.engine.scripted import Script, ScriptedEngine

MOST_LATE_S = 0.05
_NOTE_EVERY_S = 0.25


@dataclass(slots=True, kw_only=True)
class Paced:
    """What one engine has done since its start. busy_s: in steps, by its own clock. late_s: by which that was put
    forward. running: requests, summed over steps."""

    steps: int = 0
    busy_s: float = 0.0
    late_s: float = 0.0
    running: int = 0
    tokens: int = 0
    computed_tokens: int = 0

    def since(self, before: Paced) -> Paced:
        return Paced(**{name: getattr(self, name) - getattr(before, name) for name in _COUNTERS})

    @classmethod
    def read(cls, file: Path) -> Paced:
        """As it was noted last, at most ``_NOTE_EVERY_S`` before the engine's last step."""
        return cls(**json.loads(file.read_text())) if file.exists() else cls()


_COUNTERS = tuple(field.name for field in fields(Paced))


class PacedEngine(ScriptedEngine):
    """Answers from a script, at the pace of a law."""

    def __init__(
        self,
        script: Script,
        decode_stream: Callable[[Sequence[int]], DecodeStream],
        *,
        rates: EngineRates,
        model: str,
        max_model_len: int,
        max_in_flight: int,
        key_tokens: int,
        notes: Path | None = None,
    ) -> None:
        """rates: the law. key_tokens: beginning of a prompt that tells texts apart. notes: the file that gets ``Paced``
        every now and then."""
        self._rates = rates
        self._paced = Paced()
        self._notes = notes
        self._noted_at = 0.0
        self._clock = 0.0
        super().__init__(
            script,
            decode_stream,
            model=model,
            max_model_len=max_model_len,
            max_in_flight=max_in_flight,
            prefixes=_Texts(key_tokens),
        )

    @property
    def info(self) -> EngineInfo:
        """As one whose steps are not the worker's Python: a GPU in a process of its own."""
        scripted = super().info
        return EngineInfo(
            kind=scripted.kind,
            version=scripted.version,
            has_own_device=True,
            settings={**scripted.settings, "process": "separate", **asdict(self._rates)},
        )

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._running:
                    self._note()
                    self._changed.wait_for(lambda: self._running or self._death)
                    self._clock = time.monotonic()
                if self._death is not None:
                    return
                step_s = self._begin_step()
            if step_s is None:  # all that is here was handed in after the step would have begun
                self._clock = time.monotonic()
                continue
            self._clock += step_s
            time.sleep(max(0.0, self._clock - time.monotonic()))
            with self._changed:
                ended = self._write_tokens()
            for running, end in ended:
                self._deliver(running, end)
            self._catch_up()

    def _begin_step(self) -> float | None:
        """Seconds that the step takes which begins at the clock's time. Called with the lock held."""
        later = [entry for entry in self._waiting if self._is_later(entry[2])]
        if later:
            self._waiting[:] = sorted(entry for entry in self._waiting if not self._is_later(entry[2]))
        computed = self._start_waiting()
        self._waiting[:] = sorted([*self._waiting, *later])  # a sorted list is a heap
        num_running = len(self._writing)
        if not num_running:
            return None
        step_s = self._rates.step_seconds(num_running) + computed * self._rates.prompt_token_s
        paced = self._paced
        paced.steps += 1
        paced.busy_s += step_s
        paced.running += num_running
        paced.computed_tokens += computed
        return step_s

    def _is_later(self, core_id: str) -> bool:
        running = self._running.get(core_id)
        return running is not None and running.submitted_at > self._clock

    def _catch_up(self) -> None:
        """After a step's tokens are handed out."""
        now = time.monotonic()
        lost_s = now - self._clock - MOST_LATE_S
        if lost_s > 0:
            self._paced.late_s += lost_s
            self._clock += lost_s
        if now - self._noted_at > _NOTE_EVERY_S:
            self._note()

    def _note(self) -> None:
        self._noted_at = time.monotonic()
        if self._notes is None:
            return
        self._paced.tokens = self._tally.stats(num_running=0, num_waiting=0, cache_usage=0.0).num_generated_tokens
        new = self._notes.with_suffix(".new")
        new.write_text(json.dumps(asdict(self._paced)))
        os.replace(new, self._notes)


class _Texts:
    """A prefix cache that never evicts: how many tokens of each text an engine has had. All write the same text."""

    def __init__(self, key_tokens: int) -> None:
        self._key_tokens = key_tokens
        self._seen: dict[tuple[int, ...], int] = {}

    def add(self, token_ids: Sequence[int]) -> None:
        key = tuple(token_ids[: self._key_tokens])
        self._seen[key] = max(self._seen.get(key, 0), len(token_ids))

    def count(self, token_ids: Sequence[int]) -> int:
        return cached_tokens(len(token_ids), self._seen.get(tuple(token_ids[: self._key_tokens]), 0))
