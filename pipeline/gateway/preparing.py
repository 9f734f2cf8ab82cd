"""Makes jobs of a batch: its lines are read twice, once to know and check them all, once to store them as problems.

All of it is one transaction: a gateway that dies in the middle has stored nothing, and another one begins anew.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, Engine

from pipeline.batches import StoredBatch
from pipeline.db import job_control, submissions
from pipeline.db.gateway import batches, files, keys, lines_of_sets
from pipeline.db.session import connected, transaction
from pipeline.errors import PipelineError
from pipeline.gateway.answers_files import AnswersFile
from pipeline.gateway.errors import ApiError
from pipeline.gateway.lines import Faults, LineFault, read_requests
from pipeline.gateway.names import pair_options
from pipeline.gateway.requests import Asked
from pipeline.gateway.served import require_served
from pipeline.jobs.readiness import ReadyJob, make_ready
from pipeline.jobs.references import UNGRADED, StoredSet
from pipeline.jobs.submission import Submission
from pipeline.problems import Problem, ProblemSet
from pipeline.problems.sets import ContentHash

log = logging.getLogger(__name__)

MAX_JOBS = 32
"""Most jobs of a batch: lines with the same model and sampling are one."""
TEMPLATE = "free"
"""What is asked is the request's own text, with nothing around it."""
_SEEDS = 2**31


@dataclass(kw_only=True)
class Group:
    """Lines that become one job."""

    first: Asked
    digest: ContentHash = field(default_factory=ContentHash)
    count: int = 0
    num_references: int = 0
    ready: ReadyJob | None = None
    set_id: int = 0
    is_new: bool = False

    def add(self, problem: Problem) -> None:
        self.digest.add(problem)
        self.count += 1
        if problem.answer is not None:
            self.num_references += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a file may have."""

    max_lines: int
    max_line_bytes: int


class Preparer:
    """Reads batches that nobody has read yet."""

    def __init__(self, db_engine: Engine, limits: Limits) -> None:
        self._db_engine = db_engine
        self._limits = limits

    def prepare_one(self) -> str | None:
        """The id of a batch that was read now; None: there is none to read.

        A batch that breaks this is ended, so that those behind it are read.
        """
        batch = None
        try:
            with transaction(self._db_engine) as connection:
                batch = batches.take_unread(connection)
                if batch is not None:
                    self._prepare(connection, batch)
        except PipelineError:
            raise
        except Exception:
            if batch is None:
                raise
            log.exception("gateway: reading %s broke", batch.id)
            self._give_up(batch)
        return None if batch is None else batch.id

    def _give_up(self, batch: StoredBatch) -> None:
        fault = LineFault(code="internal_error", message="The gateway broke on this file; its log says why.")
        with transaction(self._db_engine) as connection:
            if batches.lock_batch(connection, batch.id).in_progress_at is None:
                batches.fail_batch(connection, batch.id, [fault.plain()], num_lines=0)

    def _prepare(self, connection: Connection, batch: StoredBatch) -> None:
        faults = Faults()
        answers = self._answers(batch, faults)
        groups, num_lines = self._survey(batch, answers, faults)
        if not faults.count:
            self._check_groups(connection, batch, groups, faults)
        if not faults.count and answers is not None:
            answers.check(str(batch.options["grader"]), faults)
        if faults.count:
            batches.fail_batch(connection, batch.id, faults.plain(), num_lines=num_lines)
            return
        self._store_problems(connection, batch, groups, answers)
        jobs = [(self._store_job(connection, batch, group), group.first.model) for group in groups.values()]
        batches.begin_batch(connection, batch.id, jobs, num_lines=num_lines)

    def _answers(self, batch: StoredBatch, faults: Faults) -> AnswersFile | None:
        if batch.answers_file_id is None:
            return None
        with self._reading(batch.answers_file_id) as file:
            return AnswersFile.read(file, faults, max_line_bytes=self._limits.max_line_bytes)

    def _survey(self, batch: StoredBatch, answers: AnswersFile | None, faults: Faults) -> tuple[dict[str, Group], int]:
        """The groups of a batch's lines, and how many lines there are."""
        groups: dict[str, Group] = {}
        num_lines = 0
        for entry in self._requests(batch):
            num_lines += 1
            if num_lines > self._limits.max_lines:
                told = f"The file has more than {self._limits.max_lines:,} requests."
                faults.add(LineFault(code="too_many_tasks", message=told))
                break
            if isinstance(entry, LineFault):
                faults.add(entry)
                continue
            if entry.settings not in groups and len(groups) == MAX_JOBS:
                told = f"The file asks in more than {MAX_JOBS} ways (model, sampling, n, seed); split it."
                faults.add(LineFault(code="too_many_settings", message=told))
                break
            group = groups.setdefault(entry.settings, Group(first=entry))
            group.add(with_answer(entry.problem, answers))
        if num_lines == 0:
            faults.add(LineFault(code="empty_file", message="The file holds no request."))
        return groups, num_lines

    def _requests(self, batch: StoredBatch) -> Iterator[Asked | LineFault]:
        with self._reading(batch.input_file_id) as file:
            yield from read_requests(file, endpoint=batch.endpoint, max_line_bytes=self._limits.max_line_bytes)

    @contextmanager
    def _reading(self, file_id: str) -> Iterator[Any]:
        """On a connection of its own, beside the one that stores."""
        with (
            connected(self._db_engine) as reading,
            reading.begin(),
            closing(files.stream_parts(reading, file_id)) as parts,  # before the rest: one may stop in the middle
        ):
            yield files.open_parts(parts)

    def _check_groups(
        self, connection: Connection, batch: StoredBatch, groups: dict[str, Group], faults: Faults
    ) -> None:
        """What ``specthink submit`` checks of a job, of each of them; the answers of all are read at once, later."""
        seed = secrets.randbelow(_SEEDS)
        for group in groups.values():
            try:
                saved = keys.find_alias(connection, group.first.model)
                submission = make_submission(group.first, saved, batch.options, seed=seed, name=_name(batch))
                group.ready = make_ready(submission, stored=_stored_set(batch, group))
                if batch.options.get("require_workers"):
                    require_served(connection, group.first.model, saved)
            except (ApiError, PipelineError) as error:
                code = error.code if isinstance(error, ApiError) else "invalid_value"
                param = error.param if isinstance(error, ApiError) else None
                faults.add(LineFault(code=code or "invalid_value", message=str(error), param=param))

    def _store_problems(
        self, connection: Connection, batch: StoredBatch, groups: dict[str, Group], answers: AnswersFile | None
    ) -> None:
        for group in groups.values():
            group.set_id, group.is_new = lines_of_sets.put_set(
                connection,
                name=f"requests of {batch.id}",
                content_sha256=group.digest.hexdigest(),
                num_problems=group.count,
                num_references=group.num_references,
            )
        if any(group.is_new for group in groups.values()):
            lines_of_sets.copy_problems(connection, self._new_problems(batch, groups))
        if answers is not None:
            fresh = [group.set_id for group in groups.values() if group.is_new]
            lines_of_sets.insert_answers(connection, fresh, answers.items())

    def _new_problems(self, batch: StoredBatch, groups: dict[str, Group]) -> Iterator[tuple[int, int, Problem]]:
        """Set, position and problem of each line whose set is new, in the order of the lines."""
        positions = dict.fromkeys(groups, 0)
        for entry in self._requests(batch):
            assert isinstance(entry, Asked), "a file does not change"
            group = groups[entry.settings]
            if group.is_new:
                yield group.set_id, positions[entry.settings], entry.problem
            positions[entry.settings] += 1

    def _store_job(self, connection: Connection, batch: StoredBatch, group: Group) -> int:
        assert group.ready is not None
        ready = replace(group.ready, problems=_stored_set(batch, group))
        (job_id,) = submissions.insert_ready(connection, [ready])
        priority = batch.options.get("priority")
        if priority:
            job_control.set_priority(connection, job_id, int(priority))
        return job_id


def _stored_set(batch: StoredBatch, group: Group) -> StoredSet:
    """The problems of a group as far as a submission asks for them. Of all prompts the first one stands for the rest:
    a request is checked against its model's context by the worker."""
    return StoredSet(
        id=group.set_id,
        name=_name(batch),
        size=group.count,
        num_references=group.num_references,
        has_choices=False,
        read=lambda limit: (group.first.problem,),
    )


def _name(batch: StoredBatch) -> str:
    given = (batch.metadata or {}).get("name")
    return f"{given} ({batch.id})" if given else batch.id


def with_answer(problem: Problem, answers: AnswersFile | None) -> Problem:
    answer = None if answers is None else answers.take(problem.external_id)
    return problem if answer is None else replace(problem, answer=answer)


def make_submission(
    asked: Asked, saved: dict[str, Any] | None, options: dict[str, Any], *, seed: int, name: str
) -> Submission:
    """The job that answers a request and all that are asked in the same way; it has that one problem.

    saved: of a saved name. options: of the batch. Raises ApiError and ConfigurationError.
    """
    pair = pair_options(asked.model, saved)
    given = (pair.pop("policy_values", {}), options.get("policy_options"), asked.options.get("policy_values"))
    values = {name: value for values in given for name, value in (values or {}).items()}
    return Submission.parse(
        **{
            "seed": seed, **pair, **asked.options, "policy_values": values, "prompt_template": TEMPLATE,
            "grader": options.get("grader") or UNGRADED, "name": name,
            "problems": ProblemSet(name=name, content_sha256="", problems=(asked.problem,)),
        }
    )  # fmt: skip
