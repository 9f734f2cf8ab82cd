"""Token accounts of one engine: every token of a request that ended is pending, committed or dropped.

Pending: gathered under a claim that has not ended. Committed: in a row of the database. Dropped: nobody keeps it, and
it is generated again where somebody needs it. At rest the engine's own counter is the sum of the three.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounts:
    """How many tokens are what."""

    pending: int
    committed: int
    dropped: int


class TokenLedger:
    """The accounts of one worker process, through all its leases. Thread-safe.

    When a lease is lost, its worker's row is closed with all that was not committed by then as dropped. A commit of
    that worker's that is answered after that is late: its tokens count as dropped here, and its worker's row is mended
    later (``late_tokens``).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending = 0
        self._committed = 0
        self._dropped = 0
        self._lost: set[int] = set()
        self._late: Counter[int] = Counter()

    def accounts(self) -> Accounts:
        """All three as of one moment."""
        with self._lock:
            return Accounts(pending=self._pending, committed=self._committed, dropped=self._dropped)

    def lease_lost(self, worker_id: int) -> None:
        """This one's row is about to be closed."""
        with self._lock:
            self._lost.add(worker_id)

    def receive(self, num_tokens: int) -> None:
        """A request ended that generated so many."""
        with self._lock:
            self._pending += num_tokens

    def settle(self, *, received: int, committed: int, worker_id: int) -> None:
        """Claims ended. received: tokens of theirs; committed: those of them that a commit stored, the rest is dropped.

        worker_id: that made the claims.
        """
        with self._lock:
            self._pending -= received
            is_late = worker_id in self._lost
            self._committed += 0 if is_late else committed
            self._dropped += received if is_late else received - committed
            if is_late and committed:
                self._late[worker_id] += committed

    def late_tokens(self) -> Counter[int]:
        """By worker id the tokens that its closed row takes for dropped, and that are committed."""
        with self._lock:
            return self._late.copy()

    def late_settled(self, late: Counter[int]) -> None:
        """So many are now right in those rows."""
        with self._lock:
            self._late -= late  # a zero does not stay
