"""The jobs that one worker writes for: how each is set up here, and which are refused and why."""

from __future__ import annotations

from functools import lru_cache

import structlog
from sqlalchemy import Connection

from pipeline.chat.model import ChatModel
from pipeline.chat.translation import ThinkPhase, settle_think_phase
from pipeline.db.job_configs import fix_identity, fix_think_phase, get_job_config, get_think_phase
from pipeline.errors import ConfigurationError, EngineRefused, EngineUnavailable
from pipeline.jobs.config import JobConfig, ModelSpec
from pipeline.samples import ModelRole
from workers.engine.base import Engine
from workers.writing.job_setup import JobSetup, sampling_of
from workers.writing.store import Store

log = structlog.get_logger()

MAX_SETUPS = 64
"""Jobs that are set up at a time."""
MAX_REFUSALS_SHOWN = 16
"""Refused jobs, the last ones, that a heartbeat tells of."""


class Jobs:
    """What a writer knows of the jobs that it was told of. The claimer's thread asks; any thread may read refusals."""

    def __init__(
        self,
        store: Store,
        chat: ChatModel,
        engine: Engine,
        *,
        role: ModelRole,
        weights: str | None,
        revision: str | None,
    ) -> None:
        self._store = store
        self._chat = chat
        self._role = role
        self._engine = engine
        self._weights = weights
        self._revision = revision
        self._setup = lru_cache(maxsize=MAX_SETUPS)(self._load)
        self._refusals: dict[int, str] = {}
        """Jobs whose texts this process cannot write, and why. It never claims for them again."""
        self._misfits: set[int] = set()
        """Those of them that another model writes."""
        self._served: set[int] = set()
        """Jobs that were set up and not refused."""

    def refusal(self, job_id: int) -> str | None:
        """Why nothing of this job is written here; None where something may be."""
        return self._refusals.get(job_id)

    def last_refusals(self) -> dict[int, str]:
        """What a heartbeat tells."""
        return dict(list(self._refusals.items())[-MAX_REFUSALS_SHOWN:])

    def is_misfit(self, job_id: int) -> bool:
        """Whether another model is known to write this job."""
        return job_id in self._misfits

    def find_misfit(self, job_id: int) -> bool:
        """Whether a claim got nothing because another model writes the job; it is refused from now on. Raises
        ServiceUnavailable."""
        reason = None if job_id in self._served else self._store.find_misfit(job_id)
        if reason is None:
            return False
        self._misfits.add(job_id)
        self._refuse(job_id, reason)
        return True

    def set_up(self, job_id: int) -> JobSetup | None:
        """None where this worker cannot write a job's texts: it refuses the job from now on, and no sample pays."""
        try:
            setup = self._setup(job_id)
        except EngineUnavailable as error:  # no process can be started at the moment
            log.warning("job not set up", job_id=job_id, reason=str(error))
            return None
        except Exception as error:  # a plug-in may break in any way
            if isinstance(error, EngineRefused):  # of two models that began at the same time the other was first
                self._misfits.add(job_id)
            self._refuse(job_id, f"{type(error).__name__}: {error}")
            return None
        self._served.add(job_id)
        return setup

    def _refuse(self, job_id: int, reason: str) -> None:
        self._refusals[job_id] = reason
        log.error("job refused", job_id=job_id, reason=reason)

    def _load(self, job_id: int) -> JobSetup:
        config = self._store.patiently(lambda connection: get_job_config(connection, job_id))
        if reason := self._engine.why_not(sampling_of(config, self._role)):
            raise ConfigurationError(reason)
        wanted = config.model(self._role)
        if wanted is not None:
            self._require(wanted)
            own = ModelSpec(
                name=wanted.name, fingerprint=self._chat.fingerprint, weights=self._weights, revision=self._revision
            )
            self._require(self._store.patiently(lambda connection: fix_identity(connection, job_id, self._role, own)))
        chat = self._chat.asked(config.asking(self._role))
        think = self._store.patiently(lambda connection: self._think_phase(connection, job_id, config, chat))
        return JobSetup.of(config, think, chat, role=self._role, max_model_len=self._engine.max_model_len)

    def _think_phase(self, connection: Connection, job_id: int, config: JobConfig, chat: ChatModel) -> ThinkPhase:
        """A judge is asked of what others wrote, and has no say in it."""
        if self._role is ModelRole.JUDGE:
            return get_think_phase(connection, job_id)
        phase = settle_think_phase(chat, other_is_unknown=len(config.build_policy().roles) > 1)
        return fix_think_phase(connection, job_id, phase)

    def _require(self, wanted: ModelSpec) -> None:
        """Raises EngineRefused where this worker's model is not the one that the job asks for, or has."""
        reason = wanted.why_not(fingerprint=self._chat.fingerprint, weights=self._weights, revision=self._revision)
        if reason is not None:
            raise EngineRefused(wanted.name, reason)
