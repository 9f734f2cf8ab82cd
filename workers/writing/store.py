"""What a writer does in the database, as the worker that it is.

Claims are not tried again: upkeep finds their samples. Whatever stores or hands back is, for as long as Postgres is
away.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import structlog
from sqlalchemy import Connection
from sqlalchemy import Engine as DbEngine
from sqlalchemy.exc import DataError, IntegrityError, OperationalError

from pipeline.db.claims import (
    ClaimedSample,
    begin_trial,
    claim_samples,
    defer_samples,
    find_fitting_queue,
    find_misfit,
    held_epochs,
    release_samples,
)
from pipeline.db.commits import Committed, SampleCommit, StoredRow, commit_samples
from pipeline.db.context_cache import ContextCache
from pipeline.db.parts import Part, store_parts
from pipeline.db.runnable import Runnable, select_runnable
from pipeline.db.session import transaction
from pipeline.db.worker_leases import settle_late_tokens
from pipeline.errors import EngineUnavailable, ServiceUnavailable
from pipeline.samples import RUNNABLE_STATE, ModelRole
from workers.writing.turn import failed

log = structlog.get_logger()

_T = TypeVar("_T")

CACHED = 16
"""Samples whose contexts are cached, for each one that the engine can have in flight."""
RETRY_PAUSE_S = 0.5
"""Between two tries to reach Postgres."""
_ABOUT_CONTENT = (DataError, IntegrityError, OperationalError)
"""Postgres refuses a commit for what is in it: a value, a state, a size. What else is called operational passes, and is
ServiceUnavailable by then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The worker that writes, and its engine."""

    worker_id: int
    engine_id: int


class Store:
    """The database as one writer uses it. identity: who it is now; it changes when the lease was lost.

    Claims are made as that one. What comes of a claim is stored as the one that made it (worker_id): a life that is
    over stores nothing of what the next one holds.
    """

    def __init__(
        self, db_engine: DbEngine, identity: Identity, *, role: ModelRole, max_in_flight: int, max_attempts: int
    ) -> None:
        self.db_engine = db_engine
        self.identity = identity
        self._role = role
        self._max_attempts = max_attempts
        self._cache = ContextCache(max_samples=CACHED * max_in_flight)
        self._stored: deque[StoredRow] = deque()

    def claim(self, job_id: int, epochs: Mapping[int, int]) -> list[ClaimedSample]:
        """epochs: sample id → epoch. Raises as ``transaction``."""
        with transaction(self.db_engine) as connection:
            return claim_samples(
                connection,
                worker_id=self.identity.worker_id,
                role=self._role,
                epochs=epochs,
                job_id=job_id,
                cache=self._cache,
            )

    def find_misfit(self, job_id: int) -> str | None:
        """Why this worker's model may not write for a job; None where it may. Raises as ``transaction``."""
        with transaction(self.db_engine) as connection:
            return find_misfit(connection, worker_id=self.identity.worker_id, job_id=job_id)

    def for_another_worker(self, job_id: int, sample_ids: Sequence[int]) -> list[Runnable]:
        """Samples of a job that this worker may not claim now, addressed to a live worker that may; empty where there
        is none. Raises as ``transaction``."""
        worker_id = self.identity.worker_id
        with transaction(self.db_engine) as connection:
            queue = find_fitting_queue(connection, worker_id=worker_id, role=self._role, job_id=job_id)
            if queue is None:
                return []
            found = select_runnable(connection, sample_ids)
        waiting = [sample for sample in found if sample.job_id == job_id and sample.state is RUNNABLE_STATE[self._role]]
        return [replace(sample, home_queue=queue) for sample in waiting]

    def begin_trial(self, claim: tuple[int, int], *, worker_id: int) -> bool:
        """Whether a claimed sample has this worker to itself from now on. Raises LeaseLost where it is not held."""
        return self.patiently(lambda connection: begin_trial(connection, worker_id=worker_id, claim=claim))

    def commit(self, commits: Sequence[SampleCommit], *, worker_id: int) -> Committed:
        """Store commits. One that Postgres refuses for its content is set aside with the reason, no other with it."""
        if not commits:
            return Committed(claims=frozenset(), samples=[])
        committed = self._commit(commits, worker_id)
        self._stored += committed.rows
        for commit in commits:
            if commit.to_state not in RUNNABLE_STATE.values():
                self._cache.forget(commit.sample_id)
        return committed

    def _commit(self, commits: Sequence[SampleCommit], worker_id: int) -> Committed:
        try:
            return self._commit_together(commits, worker_id)
        except _ABOUT_CONTENT as error:
            if len(commits) == 1:
                return self._set_aside(commits[0], worker_id, error.orig or error)
        one_by_one = [self._commit([commit], worker_id) for commit in commits]
        return Committed(
            claims=frozenset(claim for committed in one_by_one for claim in committed.claims),
            samples=[sample for committed in one_by_one for sample in committed.samples],
            rows=tuple(row for committed in one_by_one for row in committed.rows),
        )

    def take_stored(self) -> list[StoredRow]:
        """A row of each commit since the last call. Thread-safe."""
        return [self._stored.popleft() for _ in range(len(self._stored))]

    def _set_aside(self, commit: SampleCommit, worker_id: int, error: BaseException) -> Committed:
        log.error("commit refused", sample_id=commit.sample_id, reason=str(error))
        return replace(self._commit_together([failed(commit, error)], worker_id), claims=frozenset())

    def _commit_together(self, commits: Sequence[SampleCommit], worker_id: int) -> Committed:
        engine_id = self.identity.engine_id
        return self.patiently(
            lambda connection: commit_samples(
                connection,
                worker_id=worker_id,
                engine_id=engine_id,
                commits=commits,
            )
        )

    def parts(self, parts: Sequence[Part], *, worker_id: int) -> frozenset[int]:
        """Store what running requests have written; of which samples. Raises as ``transaction``."""
        with transaction(self.db_engine) as connection:
            return store_parts(connection, worker_id=worker_id, parts=parts)

    def release(self, epochs: Mapping[int, int], *, worker_id: int) -> list[Runnable]:
        """Hand samples back at their last commit. epochs: sample id → epoch."""
        if not epochs:
            return []
        return self.patiently(lambda connection: release_samples(connection, worker_id=worker_id, epochs=epochs))

    def defer(self, claim: tuple[int, int], error: EngineUnavailable, *, worker_id: int) -> None:
        """Hand a sample back that the engine refused for the moment."""
        self.patiently(
            lambda connection: defer_samples(
                connection,
                worker_id=worker_id,
                epochs=dict([claim]),
                error=f"{type(error).__name__}: {error}",
                max_attempts=self._max_attempts,
            )
        )

    def held(self, worker_id: int) -> dict[int, int]:
        """What the database says a worker holds: sample id → epoch."""
        with transaction(self.db_engine) as connection:
            return held_epochs(connection, worker_id)

    def settle_late_tokens(self, late: Mapping[int, int]) -> None:
        """Mend the rows of earlier lives. late: worker id → tokens that are committed and count as dropped there."""
        with transaction(self.db_engine) as connection:
            for worker_id, tokens in late.items():
                settle_late_tokens(connection, worker_id, tokens=tokens)

    def patiently(self, statement: Callable[[Connection], _T]) -> _T:
        """Try again for as long as Postgres is away or in trouble of its own (a full disk, a standby, a lock): what was
        written stays in memory until then. Raises at once what would stay wrong: DBAPIError, ConfigurationError."""
        while True:
            try:
                with transaction(self.db_engine) as connection:
                    return statement(connection)
            except ServiceUnavailable as error:
                log.warning("writer waits for Postgres", reason=str(error))
                time.sleep(RETRY_PAUSE_S)
