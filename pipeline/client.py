"""The pipeline from Python: submit a job, follow it, read what it gave.

    from pipeline import Client

    with Client.connect() as client:
        job = client.submit("problems.jsonl", small="org/small-1b", large="org/large-32b", num_samples=4)
        client.wait(job)
        print(client.stats(job).summary.accuracy)
        for result in client.results(job):
            print(result.problem, result.sample_index, result.score)

Submitting stores the job and its samples, and that is all: the upkeep worker finds them. So a client needs Postgres
only, and may end as soon as it has submitted. What only reads is in ``pipeline.reader``.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from pydantic import SecretStr
from sqlalchemy import Connection

from pipeline.db import job_control, judging, matching, pilots, report_queries, submissions, verdicts
from pipeline.errors import ConfigurationError, JobError
from pipeline.jobs.config import MAX_INTEGER, CalibratedFrom, JobState
from pipeline.jobs.pair import KnownPairs
from pipeline.jobs.prompt_lengths import PromptLengths
from pipeline.jobs.readiness import ReadyJob, make_ready
from pipeline.jobs.references import StoredSet
from pipeline.jobs.submission import ModelChoice, SourceJob, Submission
from pipeline.judging.problems import DEFAULT_ANSWER_CHARS
from pipeline.judging.prompts import DEFAULT_TEMPLATE, load_template
from pipeline.judging.reports import Verdicts
from pipeline.judging.submitting import (
    DEFAULT_MAX_TOKENS,
    DEFAULT_TEMPERATURE,
    ask_about,
    make_judge,
    refuse_open_jobs,
)
from pipeline.problems import Problem, ProblemSet
from pipeline.reader import JobRef, Reader, job_id_of
from pipeline.results.jobs import Job, JobChange
from pipeline.samples import ErrorClass
from pipeline.submit_options import SubmitOptions, shows_options

if TYPE_CHECKING:
    from pipeline.experiments.plan import PlannedRow
    from pipeline.experiments.results import ExperimentJob, ExperimentReport
    from pipeline.jobs.dry_run import DryRun
    from pipeline.settings import PriceSettings

log = logging.getLogger(__name__)

MAX_PRIORITY = 1000
FROZEN_AFTER_S = 10
"""A change of a job on which the client says nothing for so long is undone: upkeep waits for it, for 30 s at most."""
CANCEL_FOR_S = 1.0
"""For so long a cancel ends samples, some 20,000; upkeep goes on with the rest."""


class Client(Reader):
    """A Reader that also stores and changes jobs. Thread-safe; close it, or use it in a ``with``."""

    def __init__(
        self, database_url: SecretStr, reader_url: SecretStr | None = None, prices: PriceSettings | None = None
    ) -> None:
        super().__init__(database_url, reader_url, prices)
        self._on_note: Callable[[str], None] = log.info

    def on_note(self, tell: Callable[[str], None]) -> None:
        """Have what a submission found in its problem file told by ``tell`` instead of the log."""
        self._on_note = tell

    @contextlib.contextmanager
    def _change(self) -> Iterator[Connection]:
        """A transaction that holds rows which workers and upkeep need: a client that freezes in it is cut off."""
        with self._transaction() as connection:
            connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = '{FROZEN_AFTER_S}s'")
            yield connection

    @shows_options
    def submit(
        self, problems: Submission | ProblemSet | str | PathLike[str] | int, **options: Unpack[SubmitOptions]
    ) -> Job:
        """Store a job and all of its samples in one transaction.

        problems: a .jsonl, .csv or .parquet file, a set, or the number of a stored one. options: the fields of
        ``Submission`` by name, as in ``submit("problems.jsonl", small="org/small-1b", policy="small-only", seed=7)``.
        Or a Submission alone.

        Raises ProblemSetError for a bad file, BadProblem for a problem that the prompt template cannot show, NotFound
        for a stored set or job that does not exist, and ConfigurationError for a bad option; nothing is stored then.
        """
        return self._store(self._make_ready(_submission(problems, options)))[0]

    def submit_all(self, jobs: Iterable[Submission]) -> list[Job]:
        """Store several jobs in one transaction, all or none; checks what ``submit`` checks. In their order."""
        pairs, lengths = KnownPairs(), PromptLengths()
        ready = [self._make_ready(job, pairs=pairs, lengths=lengths) for job in jobs]
        lengths.finish()
        return self._store(*ready)

    @shows_options
    def dry_run(
        self, problems: Submission | ProblemSet | str | PathLike[str] | int, **options: Unpack[SubmitOptions]
    ) -> DryRun:
        """What ``submit`` would store and ask, and what speaks against it; nothing is stored.

        Takes what ``submit`` takes, checks what it checks, and raises as it does.
        """
        from pipeline.jobs.dry_run import dry_run

        return dry_run(self._make_ready(_submission(problems, options)), self.workers())

    def _make_ready(
        self,
        submission: Submission,
        source: SourceJob | None = None,
        pairs: KnownPairs | None = None,
        lengths: PromptLengths | None = None,
    ) -> ReadyJob:
        submission, found = self._with_findings(submission)
        ready = make_ready(
            submission,
            stored=self._stored_set(submission.problems) if isinstance(submission.problems, int) else None,
            source=source,
            matched=found,
            pairs=pairs,
            lengths=lengths,
        )
        if ready.config.calibrated_from is None:
            return ready
        with self._transaction() as connection:
            return pilots.with_pilot(connection, ready)

    def _with_findings(self, submission: Submission) -> tuple[Submission, dict[str, Any]]:
        """A submission with what was found of other jobs for its exit, and what for its policy's numbers."""
        if submission.matched_to is not None:
            with self._transaction() as connection:
                return matching.match(connection, submission)
        pilot = submission.calibrated_from
        has_share = pilot is not None and pilot.share is not None
        return submission, self._calibrated_values(submission, pilot) if pilot is not None and has_share else {}

    def _calibrated_values(self, submission: Submission, pilot: CalibratedFrom) -> dict[str, Any]:
        """The threshold for the wanted share. Raises ConfigurationError for a policy without a threshold."""
        from pipeline.calibration.request import chosen_threshold
        from pipeline.policies import parse_policy

        if parse_policy(submission.policy, submission.policy_values).threshold_rule is None:
            raise ConfigurationError(
                f"policy {submission.policy!r} has no threshold that can be computed of pilot {pilot.job}: leave the "
                "share out"
            )
        found = self.calibrate(
            pilot.job, policy=submission.policy, policy_values=submission.policy_values, shares=[pilot.share or 0]
        )
        return chosen_threshold(found)

    def _store(self, *jobs: ReadyJob) -> list[Job]:
        """Store jobs in one transaction, then tell what was found in them."""
        with self._transaction() as connection:
            ids = submissions.insert_ready(connection, jobs)
            configs = {job_id: ready.config for job_id, ready in zip(ids, jobs, strict=True)}
            found = report_queries.get_jobs(connection, ids, configs)
            told = _told_by_judges(connection, [job.problem_set_id for job in found])
        stored = [self._shown(job) for job in found]
        for note in (*(note for ready in jobs for note in ready.notes), *told):
            self._on_note(note)
        return stored

    def sweep(
        self,
        experiment: str,
        rows: Sequence[PlannedRow],
        problems: ProblemSet | str | PathLike[str] | int,
        **options: Unpack[SubmitOptions],
    ) -> list[Job]:
        """Store the rows of an experiment that it has not, all or none; returns their jobs, in order.

        rows: as ``pipeline.experiments.plan.plan_rows`` makes them. problems, options: what all of them share, as for
        ``submit``; without a seed all have the experiment's. Raises what ``submit`` raises, and ConfigurationError
        where the experiment was asked otherwise before.
        """
        from pipeline.db import experiments
        from pipeline.experiments.submitting import check_name, require_same_pilot, row_submission, with_seed

        check_name(experiment)
        with self._transaction() as connection:
            known = experiments.find_jobs(connection, experiment)
        for row in rows:
            if row.name in known:
                require_same_pilot(row, known[row.name])
        first = next(iter(known.values()), None)
        shared = _submission(problems, with_seed(options, first.config if first else None))
        todo = [row for row in rows if row.name not in known] or rows[:1]
        ready = {row.name: self._make_ready(row_submission(experiment, row, shared)) for row in todo}
        with self._transaction() as connection:
            job_ids = experiments.insert_rows(connection, experiment, ready)
        for note in dict.fromkeys(note for job in ready.values() for note in job.notes):
            self._on_note(note)
        return [self.job(job_id) for job_id in job_ids]

    def add_controls(self, experiment: str) -> list[Job]:
        """Store what is matched to each row of an experiment that has ended, and has it not.

        Random takeovers; and for an exit a cut, and an exit at random breaks, by which texts think as long.

        What cannot be matched is noted. Raises NotFound for an experiment that does not exist.
        """
        from pipeline.db import experiments
        from pipeline.experiments.controls import control_submission

        stored: list[int] = []
        for row in self._experiment_jobs(experiment):
            with self._transaction() as connection:
                source, lacking = experiments.find_uncontrolled(connection, experiment, row)
            for control in lacking:
                try:
                    ready = self._make_ready(control_submission(experiment, row, source, control), source)
                except ConfigurationError as error:
                    self._on_note(f"job {row.job_id} ({row.name}) gets no control {control.value!r}: {error}")
                    continue
                with self._transaction() as connection:
                    stored += experiments.insert_control(connection, experiment, row, control, ready)
        return [self.job(job_id) for job_id in stored]

    def _experiment_jobs(self, experiment: str) -> list[ExperimentJob]:
        from pipeline.db import experiments

        with self._transaction() as connection:
            return experiments.get_experiment_jobs(connection, experiment)

    def experiment_jobs(self, experiment: str) -> dict[int, str]:
        """The names of an experiment's rows by their jobs. Raises NotFound."""
        return {row.job_id: row.name for row in self._experiment_jobs(experiment)}

    def experiment(self, experiment: str) -> ExperimentReport:
        """The report of an experiment, on whatever is graded now. Raises NotFound."""
        from pipeline.db import experiments

        with self._transaction() as connection:
            return experiments.get_report(connection, experiment)

    def judge(
        self,
        job: JobRef,
        *,
        model: ModelChoice,
        template: str | PathLike[str] | None = None,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        temperature: float = DEFAULT_TEMPERATURE,
        seed: int | None = None,
        max_answer_chars: int = DEFAULT_ANSWER_CHARS,
        asking: Mapping[str, Any] | None = None,
        expose_references: bool = False,
        name: str | None = None,
    ) -> Job:
        """Store the judge of a job that has ended: a job in which a model, alone, says which answers are correct.

        model: as ``large`` of ``submit``. template: a file with {{question}}, {{answer}} or {{predicted_answer}}, and
        {{reference}}; None: the usual one. max_answer_chars: so much of an answer's end is shown. asking: system,
        template_variables and think_tags as for ``submit``. expose_references: also while other jobs ask the same
        problems, whose writers could read the reference answers in the judge's prompts. Once the judge has ended, its
        verdicts become the judged samples' grades (``apply_verdicts`` says how many of each kind).

        Raises JobError for a job that still runs, is a judge itself or has nothing to judge, and where other jobs ask
        the same problems; ConfigurationError where this client's logins may not read reference answers.
        """
        chosen = DEFAULT_TEMPLATE if template is None else load_template(Path(template))
        options = dict(asking or {}) | {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        with self._reading() as connection:
            judged = judging.get_judged_job(connection, job_id_of(job))
            if chosen.tells_reference:
                judging.require_answers_readable(connection)
            asked = ask_about(
                judged.id,
                judged.problem_set_id,
                judged.config,
                judging.stream_complete_samples(connection, judged.id, with_answers=chosen.tells_reference),
                template=chosen,
                answer_chars=max_answer_chars,
            )
        ready = make_judge(
            judged.id,
            asked,
            model=model,
            template=chosen,
            answer_chars=max_answer_chars,
            name=name,
            options=options,
        )
        with self._transaction() as connection:
            if chosen.tells_reference and not expose_references:
                refuse_open_jobs(judged.id, judging.open_jobs_on(connection, judged.problem_set_id))
            judge_id = judging.insert_judge(
                connection, ready, judged, asked.places, tells_answers=chosen.tells_reference
            )
        for note in ready.notes:
            self._on_note(note)
        return self.job(judge_id)

    def apply_verdicts(self, job: JobRef, judge: JobRef) -> Verdicts:
        """Make the verdicts of a job's judge, which has ended, the newest grades of the judged samples: all or none.

        Upkeep does so by itself once a judge has ended. Called again, it changes nothing, unless other grades came
        after the verdicts. Raises JobError for a job that is not that one's judge, still runs or was cancelled.
        """
        with self._transaction() as connection:
            verdicts.require_judged(connection, job_id_of(judge), job_id=job_id_of(job))
            return verdicts.carry_verdicts(connection, job_id_of(judge))

    def _stored_set(self, set_id: int) -> StoredSet:
        def read(limit: int) -> tuple[Problem, ...]:
            with self._transaction() as connection:
                return submissions.select_problems(connection, set_id, limit=limit)

        with self._transaction() as connection:
            found = submissions.get_problem_set(connection, set_id)
        return StoredSet(
            id=set_id,
            name=found.name,
            size=found.num_problems,
            num_references=found.num_references,
            has_choices=found.has_choices,
            read=read,
        )

    def cancel(self, job: JobRef) -> JobChange:
        """End a running or paused job: from its first moment on nobody claims or stores anything for it.

        What is finished stays. Its samples follow, those at work before it returns; of a job that has more than can be
        ended in a second, upkeep ends the rest. Raises JobError for a job that ended otherwise.
        """
        job_id = job_id_of(job)
        deadline = time.monotonic() + CANCEL_FOR_S
        with self._change() as connection:
            is_new = job_control.cancel_job(connection, job_id)
        with self._change() as connection:
            cancelled = job_control.count_cancelled(connection, job_id)
        is_left = True
        while is_left:
            with self._change() as connection:
                is_left = job_control.cancel_samples(connection, job_id) > 0
                if time.monotonic() > deadline and not job_control.is_at_work(connection, job_id):
                    break
        return JobChange(job_id=job_id, state=JobState.CANCELLED, is_new=is_new, num_samples=cancelled)

    def pause(self, job: JobRef) -> JobChange:
        """Let nothing of a running job be admitted or written until it is resumed; complete texts are still graded.

        What is being written goes back to its last stored segment. Raises JobError for a job that has ended.
        """
        job_id = job_id_of(job)
        with self._change() as connection:
            is_new = job_control.pause_job(connection, job_id)
        with self._change() as connection:
            released = job_control.release_job_samples(connection, job_id)
        return JobChange(job_id=job_id, state=JobState.PAUSED, is_new=is_new, num_samples=released)

    def resume(self, job: JobRef) -> JobChange:
        """Let a paused job go on where it was. Raises JobError for a job that has ended."""
        job_id = job_id_of(job)
        with self._change() as connection:
            waiting = job_control.resume_job(connection, job_id)
        return JobChange(job_id=job_id, state=JobState.RUNNING, is_new=waiting is not None, num_samples=waiting or 0)

    def retry(
        self, job: JobRef, *, classes: Sequence[ErrorClass | str] = (), cut: bool = False, max_tokens: int | None = None
    ) -> JobChange:
        """Let failed samples be tried again, from their last stored segments; a job that has ended runs again for them.

        classes: only those that failed so. cut, max_tokens: instead, the samples that a smaller budget has cut are
        drawn again from their beginning with this one; with the same seed they say the same and go on. Nothing to retry
        is no error: is_new is False then. Raises JobError for a cancelled job, ConfigurationError for options that do
        not go together.
        """
        wanted = _error_classes(classes)
        if cut != (max_tokens is not None) or (cut and wanted):
            raise ConfigurationError("a retry takes either error classes, or cut with max_tokens")
        job_id = job_id_of(job)
        with self._change() as connection:
            found = report_queries.get_job(connection, job_id)
            if max_tokens is None:
                ids = job_control.select_failed(connection, job_id, wanted)
            else:
                _check_budget(found, max_tokens)
                ids = job_control.select_cut(connection, job_id, max_tokens=max_tokens)
            job_control.require_retryable(connection, job_id)
        count, size = 0, job_control.BATCH if max_tokens is None else job_control.CUT_BATCH
        for start in range(0, len(ids), size):
            batch = ids[start : start + size]
            with self._change() as connection:
                if max_tokens is None:
                    count += job_control.retry_failed(connection, job_id, batch)
                else:
                    count += job_control.retry_cut(connection, job_id, batch, max_tokens=max_tokens)
        return JobChange(job_id=job_id, state=self.job(job_id).state, is_new=count > 0, num_samples=count)

    def set_priority(self, job: JobRef, priority: int) -> JobChange:
        """Have a job's samples admitted before those of jobs with a lower priority (0 at first, -1000 to 1000).

        What is admitted already keeps its place. Raises JobError for a job that has ended.
        """
        if abs(priority) > MAX_PRIORITY:
            raise ConfigurationError(f"priority {priority}: give a number from -{MAX_PRIORITY} to {MAX_PRIORITY}")
        job_id = job_id_of(job)
        with self._change() as connection:
            is_new = job_control.set_priority(connection, job_id, priority)
            state = report_queries.get_job(connection, job_id).state
        return JobChange(job_id=job_id, state=state, is_new=is_new)

    def clone(self, job: JobRef, changes: Mapping[str, Any] | None = None, *, name: str | None = None) -> Job:
        """Store a new job on the same problems, with the same configuration but for some values.

        changes: by dotted key, as in {"sampling.temperature": 0.9, "policy.n1": 30, "num_samples": 8}; ``policy`` is
        NAME[:PRESET] or another preset of the same name, ``small`` and ``large`` are models as for ``submit``. name:
        None derives it from the job's and the changes. Checks what ``submit`` checks, and prompts where what they are
        measured with changes. Raises ConfigurationError for a key that is not there, naming those that are, and for a
        value that is wrong.
        """
        with self._transaction() as connection:
            source = submissions.get_source_job(connection, job_id_of(job))
        if source.config.judging is not None:
            raise JobError(source.id, f"it is a judge; specthink judge {source.config.judging.job} makes another one")
        return self._store(self._make_ready(Submission.from_job(source, changes or {}, name=name), source))[0]


def _submission(problems: Submission | ProblemSet | str | PathLike[str] | int, options: SubmitOptions) -> Submission:
    if isinstance(problems, Submission):
        if options:
            raise ConfigurationError(f"a Submission has its options: set {', '.join(options)} in it")
        return problems
    source = problems if isinstance(problems, ProblemSet | int) else Path(problems)
    matched_to = options.get("matched_to")
    if isinstance(matched_to, Job):
        options["matched_to"] = matched_to.id
    return Submission.parse(problems=source, **options)


def _told_by_judges(connection: Connection, problem_set_ids: Sequence[int]) -> list[str]:
    """A note where the reference answers of new jobs can be read in the prompts of judges."""
    told = judging.told_answers(connection, problem_set_ids)
    judges = sorted(judge for answers in told for judge in answers.judges)
    if not judges:
        return []
    return [
        "the reference answers of these problems stand in the prompts of judges, where logins that write can "
        f"read them; specthink rm {' '.join(map(str, judges))} ends that"
    ]


def _error_classes(given: Sequence[ErrorClass | str]) -> list[ErrorClass]:
    """Raises ConfigurationError with the classes there are."""
    known = {error_class.value: error_class for error_class in ErrorClass}
    for name in given:
        if name not in known:
            raise ConfigurationError(f"there is no error class {name!r}; there are {', '.join(known)}")
    return [known[name] for name in given]


def _check_budget(job: Job, max_tokens: int) -> None:
    if max_tokens <= job.config.sampling.max_tokens:
        raise ConfigurationError(
            f"max_tokens {max_tokens}: job {job.id} has {job.config.sampling.max_tokens}; give a larger budget"
        )
    if max_tokens > MAX_INTEGER:
        raise ConfigurationError(f"max_tokens {max_tokens}: give at most {MAX_INTEGER}")
