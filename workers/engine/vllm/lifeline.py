"""The other side of an engine that has a process of its own: it ends with the worker that started it.

vLLM's engine core does not notice when its parent is killed: it would stay, and hold its memory. The executors here
run in that process. Imported by workers.engine.vllm.arguments only, and by the engine's process when it starts.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from workers.engine.failures import leave_failure
from workers.engine.vllm.sockets import remove_told_folder


class TiedUniProcExecutor(UniProcExecutor):
    """The model runs in the engine's own process."""

    def _init_executor(self) -> None:
        _end_with_parent()
        try:
            super()._init_executor()
        except Exception as error:
            leave_failure(error)
            raise


class TiedMultiprocExecutor(MultiprocExecutor):
    """The model runs in one more process per rank; vLLM ends those when the engine's process ends."""

    def _init_executor(self) -> None:
        _end_with_parent()
        try:
            super()._init_executor()
        except Exception as error:
            leave_failure(error)
            raise


def _end_with_parent() -> None:
    """End this process as soon as its parent is gone, however that ended; leave the terminal's ^C to the parent.

    A parent-death signal would not do: it comes when the parent's *thread* ends that started this process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("these executors are for an engine in a process of its own")

    def wait_and_end() -> None:
        parent.join()
        remove_told_folder()
        os._exit(1)  # at once: this process may be inside a step, and nobody is left to answer

    threading.Thread(target=wait_and_end, name="lifeline", daemon=True).start()
