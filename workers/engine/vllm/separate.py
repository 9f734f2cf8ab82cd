"""The engine whose core has a process of its own: one thread here reads what it sends."""

from __future__ import annotations

import contextlib
import queue
from typing import TYPE_CHECKING, cast

from pipeline.chat.model import ChatModel
from pipeline.errors import EngineError
from workers.engine.base import EngineInfo
from workers.engine.failures import one_line
from workers.engine.vllm.adapter import Parts, VllmEngine

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.core_client import SyncMPClient

_LOOK_S = 0.5
"""How often an idle reader looks whether the engine's process is still there."""

_KILLED_S = 10.0
"""How long to wait for the end of the engine's process after it was killed."""


class SeparateEngine(VllmEngine):
    """The core in its own process; the engine's thread reads what it sends.

    The socket to the core is used with the lock held only: it is not thread-safe.
    """

    def __init__(self, name: str, info: EngineInfo, chat: ChatModel, parts: Parts) -> None:
        super().__init__(name, info, chat, parts)
        self._client: SyncMPClient = cast("SyncMPClient", parts.client)
        self._sockets = parts.sockets
        self._thread.start()

    def _run(self) -> None:
        while self._death is None:
            try:
                outputs = self._client.outputs_queue.get(timeout=_LOOK_S)
            except queue.Empty:
                self._client.ensure_alive()  # a killed core sends nothing, not even an error
                continue
            if isinstance(outputs, Exception):
                raise outputs
            self._handle(outputs)

    def _add(self, core_id: str, core_request: EngineCoreRequest) -> None:
        core_request.request_id = core_id
        try:
            self._client.add_request(core_request)
        except Exception as error:
            if not self._is_core_dead():  # else the engine's thread finds and reports it
                raise EngineError(self._name, f"request not sent to the engine: {one_line(error)}") from error

    def _is_core_dead(self) -> bool:
        try:
            self._client.ensure_alive()
        except Exception:
            return True
        return False

    def _drop(self, core_id: str) -> None:
        with contextlib.suppress(Exception):
            self._client.abort_requests([core_id])

    def _shut_down(self) -> None:
        manager = self._client.resources.engine_manager
        self._client.shutdown()  # kills what does not end by itself, and does not wait for it
        for process in getattr(manager, "processes", ()):
            process.join(_KILLED_S)
        if self._sockets is not None:
            self._sockets.remove()
