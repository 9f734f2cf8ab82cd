"""SQL fragments about states and roles, made from ``pipeline.samples``.

Statements in Python are put together from these, so that a state or a role is spelled in one place. The files in
``sql/`` spell them out; a test compares them with ``pipeline.samples``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipeline.samples import FINAL_STATES, RUNNABLE_STATE, WRITING_STATE, ModelRole, SampleState


def _listed(states: Iterable[SampleState]) -> str:
    """Of the states in their own order, e.g. ``('ready', 'drafting')``."""
    wanted = frozenset(states)
    return f"({', '.join(repr(state.value) for state in SampleState if state in wanted)})"


RUNNABLE = _listed(RUNNABLE_STATE.values())
"""Wait for a model."""
WRITING = _listed(WRITING_STATE.values())
"""Are held by a worker."""
PUBLISHED = _listed([*RUNNABLE_STATE.values(), SampleState.FINISHED])
"""Have a message under way: to a model, or to a grader."""
COMPLETE = _listed([SampleState.FINISHED, SampleState.GRADED])
"""Have their whole text."""
FINAL = _listed(FINAL_STATES)

# Indexes of samples name no column that a hand-over changes: each update of a row would renew its entries in all of
# them, and could not be made in place. The phase changes at admission and at the end only; a statement that is to use
# such an index names the phase, and the state beside it.
_HANDED_OVER = (*RUNNABLE_STATE.values(), *WRITING_STATE.values())
_CASES = " ".join(f"WHEN '{state.value}'::text THEN 'admitted'::character varying" for state in _HANDED_OVER)
PHASE = f"CASE state {_CASES} ELSE state END"
"""The column ``phase`` of samples, as Postgres writes it: the state, and one for all that a hand-over leads to."""
PENDING = "phase = 'pending'"
"""Wait for admission. Index: ix_samples_pending."""
ADMITTED = "phase = 'admitted'"
"""Are in the pipeline, with a worker or on the way to one. Index: ix_samples_in_work."""
OPEN = "phase IN ('pending', 'admitted', 'finished')"
"""Have not ended. Index: ix_samples_open."""
IN_WORK = "phase IN ('admitted', 'finished')"
"""Are admitted and have not ended. Index: ix_samples_in_work."""
FINISHED = "phase = 'finished'"
"""Wait for a grader. Index: ix_samples_finished."""
FAILED = "phase = 'failed'"
"""Index: ix_samples_failed."""

_ROLE_OF_STATE = {state: role for states in (RUNNABLE_STATE, WRITING_STATE) for role, state in states.items()}


def _case(subject: str, values: Mapping[SampleState, str] | Mapping[ModelRole, str]) -> str:
    """One of some SQL expressions, by the value of subject; NULL for any other value."""
    return f"CASE {subject} {' '.join(f'WHEN {key.value!r} THEN {value}' for key, value in values.items())} END"


def role_of(state: str) -> str:
    """The role that writes, or is waited for, in an admitted state. state: an SQL expression, as below."""
    return _case(state, {key: repr(role.value) for key, role in _ROLE_OF_STATE.items()})


def waiting_again(state: str) -> str:
    """The state that an admitted sample goes back to when it is taken from its worker."""
    return _case(state, {key: repr(RUNNABLE_STATE[role].value) for key, role in _ROLE_OF_STATE.items()})


def runnable_state_of(role: str) -> str:
    """The state in which a sample waits for a role."""
    return _case(role, {key: repr(state.value) for key, state in RUNNABLE_STATE.items()})


def model_of(role: str, *, job: str = "j") -> str:
    """The model that a job has for a role. job: the alias of its row."""
    return _case(role, {key: f"{job}.{key.value}_model" for key in ModelRole})


def model_waited_for(state: str, *, job: str = "j") -> str:
    """The model that a sample waits for; NULL where it waits for none."""
    return _case(state, {key: f"{job}.{role.value}_model" for role, key in RUNNABLE_STATE.items()})


def home_worker(state: str, *, sample: str = "s") -> str:
    """The worker that has the context of a waiting sample cached. sample: the alias of its row."""
    return _case(state, {key: f"{sample}.{role.value}_worker_id" for role, key in RUNNABLE_STATE.items()})


def first_claim_of(job: str) -> str:
    """When a worker first took a sample of a job; NULL where none did. job: the alias of its row."""
    return f"(SELECT min(e.at) FROM events e WHERE e.job_id = {job}.id AND e.to_state IN {WRITING})"


def why_not_served(role: ModelRole, *, job: str = "j", engine: str = "e") -> str:
    """Why an engine may not write a role of a job; NULL where it may. job, engine: the aliases of their rows."""
    return (
        f"why_not_served({job}.config->{role.value!r}, {job}.{role.value}_identity, {engine}.model_fingerprint, "
        f"{engine}.weights_sha256, {engine}.revision)"
    )
