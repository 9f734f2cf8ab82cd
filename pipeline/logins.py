"""The login roles of the database: one for each part of the pipeline, beside the owner, who migrates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import SecretStr

from pipeline.workforce import WorkerKind


class DatabaseRole(StrEnum):
    """Who connects, by what it is let do; ``pipeline.db.grants`` says what that is."""

    WRITER = "writer"  # small and large workers: everything but reference answers and grades
    GRADER = "grader"  # grading workers: reference answers too
    UPKEEP = "upkeep"  # upkeep workers: states, leases and totals; no reference answers
    SUBMITTER = "submitter"  # people who submit: stores jobs, cancels, pauses, retries; writes no text and no grade
    MONITOR = "monitor"  # metrics and autoscalers: counts states, tokens and workers; no text, no answer
    GATEWAY = "gateway"  # the gateway: what a submitter may, with files, batches and keys; no reference answers
    READER = "reader"  # a person's questions: reads everything, changes nothing


ROLE_OF_KIND: Mapping[WorkerKind, DatabaseRole] = {
    WorkerKind.SMALL: DatabaseRole.WRITER,
    WorkerKind.LARGE: DatabaseRole.WRITER,
    WorkerKind.JUDGE: DatabaseRole.WRITER,
    WorkerKind.GRADE: DatabaseRole.GRADER,
    WorkerKind.UPKEEP: DatabaseRole.UPKEEP,
}

SESSION_SETTINGS: Mapping[DatabaseRole, Mapping[str, str]] = {
    # A writer's statements find a few rows by their keys. The plan is always the same; a commit spent a fifth of its
    # time in the server on making it anew.
    DatabaseRole.WRITER: {"plan_cache_mode": "force_generic_plan"},
    DatabaseRole.READER: {
        "default_transaction_read_only": "on",
        "statement_timeout": "30s",
        "idle_in_transaction_session_timeout": "10min",  # results may be read page by page
        "idle_session_timeout": "1h",
        "temp_file_limit": "1GB",  # a sort or a join that does not fit into memory fills the server's disk
    },
}
"""Parameters that each session of a role begins with."""
SUPERUSER_SETTINGS = frozenset({"temp_file_limit"})
"""Of these, what a superuser alone may set; elsewhere the server's own value holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """The name and the password under which a role connects."""

    name: str
    password: SecretStr | None
    """None: somebody else created it, and its password is none of ours."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Parameters that each of its sessions begins with."""
