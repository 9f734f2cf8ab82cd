"""Renews the certificate of the embedded servers' gate while it is open.

Upkeep does it, since it always runs beside the servers, and as the user whose state folder it is.
"""

from __future__ import annotations

import threading
from pathlib import Path

import structlog

from pipeline.embedded import renew_gate
from pipeline.errors import PipelineError

log = structlog.get_logger()

LOOK_EVERY_S = 3600.0


class CertificateKeeper:
    """Looks every hour, from the start on, in a thread of its own."""

    def __init__(self, state_dir: Path, *, every_s: float = LOOK_EVERY_S) -> None:
        self._state_dir = state_dir
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="certificate", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        while True:
            try:
                if ends := renew_gate(self._state_dir):
                    log.info("certificate renewed", ends=ends.date().isoformat())
            except (PipelineError, OSError) as error:
                log.warning("certificate not renewed", reason=str(error))
            if self._stop.wait(self._every_s):
                return
