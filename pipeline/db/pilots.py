"""The statements of a calibration: a pilot's samples with their signals, and which problems a job asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

from sqlalchemy import Connection, text

from pipeline.calibration.calibrating import Calibration, Pilot, read_pilot_sample
from pipeline.calibration.cues import CueCalibration, find_cues, read_cue_sample
from pipeline.calibration.overlap import Overlap, require_others
from pipeline.calibration.request import CalibrationRequest, make_calibration
from pipeline.calibration.steps import USUAL_RULE, StepRule
from pipeline.db.replays import stream_samples
from pipeline.db.report_queries import get_job
from pipeline.db.states import COMPLETE
from pipeline.db.submissions import get_problem_set
from pipeline.errors import ConfigurationError, JobError
from pipeline.jobs.config import JobConfig
from pipeline.jobs.likeness import (
    asking_differences,
    drawing_differences,
    field_differences,
    model_differences,
    policy_roles,
)
from pipeline.jobs.readiness import ReadyJob, used_problems
from pipeline.problems import load_problem_set
from pipeline.results.stored import StoredSample
from pipeline.samples import ModelRole

MAX_SAMPLES = 2000
"""Complete samples that are read of a pilot: a share of its steps is then known far better than 1 %."""
MAX_CUE_SAMPLES = 400
"""The same where cues are asked for: every word of these is kept in memory."""

# The hash draws the same ones every time.
_SELECT_SAMPLES = text(f"""
    SELECT c.id, c.score FROM (
        SELECT id, score FROM samples WHERE job_id = :job AND state IN {COMPLETE} ORDER BY hashint8(id) LIMIT :limit
    ) c ORDER BY c.id
""")
_SELECT_PROMPTS = text("""
    SELECT p.prompt FROM jobs j JOIN problems p ON p.problem_set_id = j.problem_set_id AND p.position < j.num_problems
    WHERE j.id = :job
""")
_SELECT_SET = text("SELECT prompt FROM problems WHERE problem_set_id = :problem_set")


def get_pilot(connection: Connection, job_id: int, rule: StepRule = USUAL_RULE) -> Pilot:
    """A pilot with the statistics of its steps. Raises NotFound, and JobError for a job that still runs: its long texts
    are missing."""
    samples = _pilot_samples(connection, job_id, limit=MAX_SAMPLES)
    return Pilot(job_id=job_id, samples=tuple(read_pilot_sample(sample, score, rule) for sample, score in samples))


def _pilot_samples(connection: Connection, job_id: int, *, limit: int) -> Iterator[tuple[StoredSample, float | None]]:
    """The samples that are read of a pilot, with their scores. Raises as ``get_pilot``."""
    if not get_job(connection, job_id).is_final:
        raise JobError(job_id, "it still runs; a pilot can be calibrated once it has ended")
    values = {"job": job_id, "limit": limit}
    scores = {row.id: row.score for row in connection.execute(_SELECT_SAMPLES, values)}
    for sample in stream_samples(connection, list(scores)):
        if isinstance(sample, StoredSample):
            yield sample, scores[sample.sample_id]


def prompts_of_job(connection: Connection, job_id: int) -> frozenset[str]:
    """What a job asks, as texts. Raises NotFound."""
    get_job(connection, job_id)
    return frozenset(map(plain, connection.execute(_SELECT_PROMPTS, {"job": job_id}).scalars()))


def prompts_of_set(connection: Connection, problem_set_id: int) -> frozenset[str]:
    """The questions of a stored set, as texts."""
    return frozenset(map(plain, connection.execute(_SELECT_SET, {"problem_set": problem_set_id}).scalars()))


def plain(prompt: str) -> str:
    """A question without what does not make it another one: its white space."""
    return " ".join(prompt.split())


# A calibration, and what a job remembers of one

_SET = "set:"
"""What a stored problem set is called by, before its number."""


def get_calibration(
    connection: Connection,
    job_id: int,
    request: CalibrationRequest,
    *,
    target: str | PathLike[str] | int | None,
    anyway: bool,
) -> Calibration:
    """What a pilot gives. target: what will be scored. Raises as ``Client.calibrate`` says."""
    overlap = _overlap(connection, job_id, target, anyway=anyway)
    return make_calibration(get_pilot(connection, job_id, request.rule), request, overlap)


def get_cue_calibration(
    connection: Connection, job_id: int, *, target: str | PathLike[str] | int | None, anyway: bool
) -> CueCalibration:
    """Which words a pilot gives as switch cues. target: what will be scored. Raises as ``Client.switch_cues`` says."""
    overlap = _overlap(connection, job_id, target, anyway=anyway)
    samples = _pilot_samples(connection, job_id, limit=MAX_CUE_SAMPLES)
    return find_cues(job_id, [read_cue_sample(sample) for sample, _ in samples], overlap)


def _overlap(
    connection: Connection, job_id: int, target: str | PathLike[str] | int | None, *, anyway: bool
) -> Overlap | None:
    """How much of what will be scored is in the pilot; None: nobody said what will be. Raises ConfigurationError where
    some is, unless told."""
    if target is None:
        return None
    asked = _prompts_of(connection, target)
    overlap = Overlap(len(asked & prompts_of_job(connection, job_id)), len(asked))
    if not anyway:
        require_others(overlap, f"job {target}" if isinstance(target, int) else str(target), otherwise="give --anyway")
    return overlap


def _prompts_of(connection: Connection, target: str | PathLike[str] | int) -> frozenset[str]:
    """The questions of a job, of "set:N" or of a file. Raises NotFound, and ProblemSetError for a bad file."""
    if isinstance(target, int):
        return prompts_of_job(connection, target)
    name = str(target)
    if name.startswith(_SET) and name.removeprefix(_SET).isdigit():
        set_id = int(name.removeprefix(_SET))
        get_problem_set(connection, set_id)
        return prompts_of_set(connection, set_id)
    return frozenset(plain(problem.prompt) for problem in load_problem_set(Path(name)).problems)


def with_pilot(connection: Connection, ready: ReadyJob) -> ReadyJob:
    """A job with what is known of the pilot that its threshold comes from; notes where both share problems, or where
    the pilot was asked otherwise.

    Raises ConfigurationError where its threshold was computed on its own problems or for another model, NotFound for
    no job.
    """
    given = ready.config.calibrated_from
    if given is None:
        return ready
    source = get_job(connection, given.job).config
    roles = sorted(policy_roles(source))
    models = list(model_differences(ready.config, source, roles))
    if models and given.share is not None:
        raise ConfigurationError(
            f"job {given.job} is a pilot of another model, and a threshold does not carry over: this job has "
            f"{', '.join(models)}; run a pilot with its models"
        )
    asked = {plain(problem.prompt) for problem in used_problems(ready.problems, ready.num_problems).problems}
    of_pilot = prompts_of_job(connection, given.job)
    overlap = Overlap(len(asked & of_pilot), len(asked))
    if given.share is not None:
        by_hand = f"set the threshold that specthink calibrate {given.job} --anyway prints"
        require_others(overlap, "this job", otherwise=by_hand)
    told = f"job {given.job}, that calibrated it"
    notes = [f"{overlap} problems are in the pilot, {told}"] if overlap.num_shared else []
    otherwise = [*models, *_asked_otherwise(ready.config, source, roles)]
    if otherwise:
        notes.append(f"otherwise than the pilot, {told}, it has {', '.join(otherwise)}")
    pilot = given.model_copy(update={"num_problems": len(of_pilot), "num_shared": overlap.num_shared})
    return replace(
        ready,
        config=ready.config.model_copy(update={"calibrated_from": pilot}),
        notes=(*ready.notes, *notes),
    )


def _asked_otherwise(config: JobConfig, pilot: JobConfig, roles: Sequence[ModelRole]) -> Iterator[str]:
    yield from field_differences(config, pilot, ("prompt_template", "template_text", "few_shot"))
    yield from asking_differences(config, pilot, roles)
    yield from drawing_differences(config, pilot, roles)
