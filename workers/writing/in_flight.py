"""The register of what a worker holds: claims that start, samples in flight, and claims that nobody here works on."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence

from workers.writing.active import ActiveSample


class InFlight:
    """What one writer has claimed. Thread-safe.

    Told to stop, it lets nothing more be claimed; once drained, nothing more be handed to the engine.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._starting: dict[int, int] = {}
        """Claimed and not yet in flight: sample id → epoch."""
        self._active: dict[int, ActiveSample] = {}
        self._orphaned: set[tuple[int, int]] = set()
        """Claims that were held at the last heartbeat, and neither starting nor in flight: sample id and epoch."""
        self._num_claiming = 0
        self._stopping = False
        self._drained = False

    def __len__(self) -> int:
        """Samples in flight."""
        return len(self._active)

    @property
    def num_claimed(self) -> int:
        """Samples in flight, and those that start."""
        return len(self._active) + len(self._starting)

    @property
    def is_stopping(self) -> bool:
        return self._stopping

    @property
    def is_idle(self) -> bool:
        """Nothing is in flight and no claim is under way."""
        with self._lock:
            return not (self._active or self._num_claiming)

    def holds_only(self, claim: tuple[int, int]) -> bool:
        """Nothing is in flight, and nothing starts or is being claimed but this. claim: sample id and epoch."""
        with self._lock:
            return not (self._active or self._num_claiming) and self._starting == dict([claim])

    def samples(self) -> list[ActiveSample]:
        """What is being written now."""
        with self._lock:
            return list(self._active.values())

    # A claim's way.

    def begin_claiming(self) -> bool:
        """A claim is about to be made; False: the worker stops, and none may be."""
        with self._lock:
            if self._stopping:
                return False
            self._num_claiming += 1
            return True

    def end_claiming(self) -> None:
        """All that a claim got is registered."""
        with self._lock:
            self._num_claiming -= 1

    def claimed(self, claims: Iterable[tuple[int, int]]) -> None:
        """These start. claims: sample id and epoch."""
        with self._lock:
            self._starting.update(claims)

    def started(self, active: ActiveSample) -> bool:
        """A sample goes to the engine; False: the worker is drained, and it must go back."""
        sample_id, epoch = active.claim
        with self._lock:
            if self._drained:
                return False
            self._active[sample_id] = active
            if self._starting.get(sample_id) == epoch:
                del self._starting[sample_id]
            return True

    def ended(self, claims: Iterable[tuple[int, int]]) -> None:
        """Nobody here works on these any more: they are stored, handed back or dropped."""
        with self._lock:
            for sample_id, epoch in claims:
                if self._starting.get(sample_id) == epoch:
                    del self._starting[sample_id]
                active = self._active.get(sample_id)
                if active is not None and active.claim == (sample_id, epoch):
                    del self._active[sample_id]

    # Against the database.

    def find_lost(self, before: Sequence[ActiveSample], held: Mapping[int, int]) -> list[ActiveSample]:
        """What the database no longer gives to this worker (cancelled, rescued).

        before: ``samples`` taken before held (sample id → epoch) was read, so that a claim made between the two is not
        taken for lost. What is on its way to the database is not: that decides.
        """
        still_held = held.items()
        return [active for active in before if active.claim not in still_held and not active.committing]

    def find_orphaned(self, before: Sequence[ActiveSample], held: Mapping[int, int]) -> dict[int, int]:
        """What the database says this worker holds and nobody here works on: a claim whose answer was lost.

        before, held: as for ``find_lost``. Only what is found by two heartbeats in a row, so that a claim under way is
        not taken for one.
        """
        with self._lock:
            in_flight = {active.claim for active in (*before, *self._active.values())}
            orphaned = held.items() - in_flight - self._starting.items()
            found_twice = orphaned & self._orphaned
            self._orphaned = orphaned
        return dict(found_twice)

    # Stopping.

    def stop(self) -> None:
        """Nothing more is claimed."""
        with self._lock:
            self._stopping = True

    def drain(self) -> list[ActiveSample]:
        """Nothing more goes to the engine; what is in flight."""
        with self._lock:
            self._drained = True
            return list(self._active.values())
