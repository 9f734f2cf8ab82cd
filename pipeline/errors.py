"""Every error the pipeline raises on purpose.

PipelineError
├── ConfigurationError             a setting or option is wrong; the message says which and what it should be
├── MigrationRefused               the database cannot be migrated now; nothing was changed
├── ProblemSetError                a problem file is refused whole; carries its first faults, each with its line
├── ArchiveError(path)             an archive cannot be written, is damaged, or cannot be restored here
├── NotFound                       a job, sample or problem set that does not exist
├── NotComparable                  jobs that were not asked or graded alike
├── QueryRefused                   a query that Postgres refuses, or whose result cannot be read
├── DamagedRow                     what is stored cannot be what this program stored; the sample fails
├── BadProblem(problem_id)         it cannot be made into a prompt; the sample fails
├── JobError(job_id)
├── LeaseLost(worker_id)           this worker's lease lapsed: stop work, write nothing
├── EngineError(model)             permanent, as all below but those that say otherwise: the sample fails
│   ├── EngineUnavailable          transient: tried again after a delay
│   ├── EngineAway                 transient: the engine's server cannot be reached; the sample goes back uncounted
│   ├── EngineDied                 transient: the engine's process or loop is gone; the worker stops
│   ├── EngineRefused              the engine will never take this request
│   └── PromptTooLong              no room in the model's context
├── ServiceUnavailable             Postgres, Redis or another server cannot be reached
├── ProgramFailed(program)         a program that was started here ended; carries its exit code
└── GradingError                   a grader broke on an answer; the sample stays unscored
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class PipelineError(Exception):
    """Base of all errors raised on purpose; the command line prints its message and nothing else."""

    exit_code = 1


class ConfigurationError(PipelineError):
    """A setting or an option is wrong."""

    exit_code = 2


class MigrationRefused(PipelineError):
    """The database cannot be migrated now, because somebody works with it; nothing was changed."""


class ProblemSetError(PipelineError):
    """A problem file is refused; nothing of it was stored."""

    exit_code = 2

    def __init__(self, path: str, faults: list[str]) -> None:
        self.path = path
        self.faults = faults
        shown = "\n".join(f"  {fault}" for fault in faults)
        super().__init__(f"{path} was refused, nothing was stored:\n{shown}")


class ArchiveError(PipelineError):
    """An archive of a job cannot be written, is damaged, or cannot be restored into this database."""

    exit_code = 2

    def __init__(self, path: Path | str, why: str) -> None:
        self.path = path
        self.why = why
        super().__init__(f"{path}: {why}")


class NotFound(PipelineError):
    """A job, sample or problem set that does not exist."""

    exit_code = 3

    @classmethod
    def job(cls, job_id: int) -> NotFound:
        return cls(f"there is no job {job_id}; specthink status lists them")


class NotComparable(PipelineError):
    """Jobs that were not asked the same or not graded alike: a difference would say nothing about their policies."""

    exit_code = 2


class QueryRefused(PipelineError):
    """A query that Postgres refuses, that does more than read, or whose result cannot be read."""

    exit_code = 2


class DamagedRow(PipelineError):
    """A stored value that this program cannot have written: it is refused, never replaced by a default."""


class BadProblem(PipelineError):
    """A problem that cannot be made into a prompt."""

    exit_code = 2

    def __init__(self, problem_id: str, reason: BaseException | str) -> None:
        self.problem_id = problem_id
        why = reason if isinstance(reason, str) else f"{type(reason).__name__}: {reason}"
        super().__init__(f"problem {problem_id!r} cannot be made into a prompt: {why}")


class JobError(PipelineError):
    """Something about one job."""

    def __init__(self, job_id: int, message: str) -> None:
        self.job_id = job_id
        super().__init__(f"job {job_id}: {message}")


class LeaseLost(PipelineError):
    """This worker's lease lapsed; what it holds belongs to others now."""

    def __init__(self, worker_id: int) -> None:
        self.worker_id = worker_id
        super().__init__(f"worker {worker_id} lost its lease; it must register again before it works on")


class EngineError(PipelineError):
    """Something about the engine of one model."""

    def __init__(self, model: str, message: str) -> None:
        self.model = model
        super().__init__(f"{model}: {message}")


class EngineUnavailable(EngineError):
    """The engine refused for now; the sample is tried again."""


class EngineAway(EngineError):
    """The engine is a server, and it cannot be reached or takes nothing. The sample goes back; no try is counted.

    token_ids: what it had written of the request, with what an earlier request wrote for it.
    """

    def __init__(self, model: str, message: str, token_ids: Sequence[int] = ()) -> None:
        self.token_ids = token_ids
        super().__init__(model, message)


class EngineDied(EngineError):
    """The engine is gone; the worker must end and be started again."""


class EngineRefused(EngineError):
    """The engine will never take this request; the sample is recorded as failed."""


class PromptTooLong(EngineError):
    """The text so far leaves no room in the model's context."""

    def __init__(self, model: str, num_tokens: int, max_tokens: int) -> None:
        self.num_tokens = num_tokens
        self.max_tokens = max_tokens
        super().__init__(
            model,
            f"{num_tokens} prompt tokens leave no room in a context of {max_tokens}",
        )


class ServiceUnavailable(PipelineError):
    """A server that the pipeline needs cannot be reached."""

    exit_code = 4


class ProgramFailed(PipelineError):
    """A program ended instead of doing its work. Its exit code is this error's, where it is one of the pipeline's."""

    def __init__(self, program: str, exit_code: int | None, log: str) -> None:
        self.program = program
        self.exit_code = exit_code if exit_code in (2, 3, 4) else 1
        code = f" (exit code {exit_code})" if exit_code is not None else ""
        super().__init__(f"{program} did not start{code}; {log}")


class GradingError(PipelineError):
    """A grader broke on an answer."""
