"""The statements of a calibration: a pilot's samples with their signals, and which problems a job asks."""

from __future__ import annotations

from sqlalchemy import Connection, text

from pipeline.calibration.calibrating import Pilot, read_pilot_sample
from pipeline.calibration.steps import MIN_STEP_TOKENS
from pipeline.db.replays import stream_samples
from pipeline.db.report_queries import get_job
from pipeline.db.states import COMPLETE
from pipeline.errors import JobError
from pipeline.results.stored import StoredSample

MAX_SAMPLES = 2000
"""Complete samples that are read of a pilot: a share of its steps is then known far better than 1 %."""

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


def get_pilot(connection: Connection, job_id: int, *, min_tokens: int = MIN_STEP_TOKENS) -> Pilot:
    """A pilot with the statistics of its steps. Raises NotFound, and JobError for a job that still runs: its long texts
    are missing.

    min_tokens: a statistic over the tokens of a step is taken of steps that have as many.
    """
    job = get_job(connection, job_id)
    if not job.is_final:
        raise JobError(job_id, "it still runs; a pilot can be calibrated once it has ended")
    values = {"job": job_id, "limit": MAX_SAMPLES}
    scores = {row.id: row.score for row in connection.execute(_SELECT_SAMPLES, values)}
    samples = stream_samples(connection, list(scores))
    return Pilot(
        job_id=job_id,
        samples=tuple(
            read_pilot_sample(sample, scores[sample.sample_id], min_tokens=min_tokens)
            for sample in samples
            if isinstance(sample, StoredSample)
        ),
    )


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
