"""Celery's consumer, which sends the events for Flower a few times a second instead of after each turn of its loop."""

from __future__ import annotations

from typing import Any

from celery.worker.consumer import Consumer

EVENTS_EVERY_S = 0.25


class SparingConsumer(Consumer):  # type: ignore[misc]  # Celery has no types
    """An event costs as much to send as ten of them, a third of what a message costs its worker."""

    _events_timer: Any = None

    def on_ready(self) -> None:
        """The loop starts, for the first time or on a new connection."""
        super().on_ready()
        if self.hub:
            if self._events_timer is not None:
                self._events_timer.cancel()
            self._events_timer = self.hub.call_repeatedly(EVENTS_EVERY_S, self._flush_events)

    def on_send_event_buffered(self) -> None:
        """An event waits; Celery would send it at once, and a full buffer still is."""
