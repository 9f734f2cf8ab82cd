"""The statements that make a judge's verdicts grades (``sql/judging.sql``): one transaction for all of a judge's."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

from pipeline.errors import JobError, NotFound
from pipeline.jobs.config import JobState
from pipeline.judging.reports import Verdicts

_UNCARRIED = text("""
    SELECT id FROM jobs
    WHERE judged_job_id IS NOT NULL AND state IN ('completed', 'completed_with_errors')
      AND (verdicts_at IS NULL OR verdicts_at < finished_at) AND id <> ALL(:but)
    ORDER BY id LIMIT :limit
""")
_SELECT_JUDGE = text("SELECT state, judged_job_id FROM jobs WHERE id = :job")
_CARRY = text("""
    SELECT num_correct, num_incorrect, num_unreadable, num_unanswered, num_redrawn, num_changed
    FROM carry_verdicts(:job)
""")


def uncarried_judges(connection: Connection, *, limit: int, but: Sequence[int] = ()) -> list[int]:
    """Judges that have ended, whose verdicts are no grades yet. but: jobs to pass over. Index: ix_jobs_judges."""
    return list(connection.execute(_UNCARRIED, {"limit": limit, "but": list(but)}).scalars())


def carry_verdicts(connection: Connection, judge_id: int) -> Verdicts:
    """Make the verdicts of a judge that has ended grades, all or none. Again, it changes nothing."""
    return Verdicts(judge_id=judge_id, **connection.execute(_CARRY, {"job": judge_id}).mappings().one())


def require_judged(connection: Connection, judge_id: int, *, job_id: int) -> None:
    """Raises NotFound, and JobError for a job that is not that one's judge or has not judged to its end."""
    row = connection.execute(_SELECT_JUDGE, {"job": judge_id}).first()
    if row is None:
        raise NotFound.job(judge_id)
    if row.judged_job_id != job_id:
        raise JobError(judge_id, f"it is no judge of job {job_id}")
    match JobState(row.state):
        case JobState.COMPLETED | JobState.COMPLETED_WITH_ERRORS:
            return
        case JobState.CANCELLED:
            raise JobError(judge_id, f"it was cancelled: its verdicts become no grades; specthink judge {job_id} anew")
        case state:
            raise JobError(judge_id, f"it is {state}; its verdicts become grades once it has ended")
