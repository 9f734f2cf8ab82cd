"""The statements of a match: what a job's models wrote, and the job that shows how long it thinks without its exit."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, text

from pipeline.db.report_queries import get_job
from pipeline.errors import ConfigurationError, JobError
from pipeline.jobs.exit_matching import CONTROLS, matched_exit
from pipeline.jobs.matching import DelegatedWriting, matched_values
from pipeline.jobs.submission import Submission
from pipeline.results.jobs import Job

RANDOM = "random"

# Takeovers, tokens and breaks are all of the complete samples: steps are known of those alone.
# Large that writes on after a takeover belongs to it, until small writes.
_SUM_LARGE = text("""
    SELECT count(*) FILTER (WHERE p.takes_over) AS num_takeovers,
           coalesce(sum(p.tokens) FILTER (WHERE p.num_before > 0 AND p.trigger <> 'answer'), 0) AS takeover_tokens,
           coalesce(sum(p.tokens) FILTER (WHERE p.num_before = 0 AND p.trigger <> 'answer'), 0) AS opening_tokens,
           count(DISTINCT p.sample_id) FILTER (WHERE p.num_before = 0 AND p.trigger <> 'answer') AS num_openings,
           coalesce(sum(p.tokens) FILTER (WHERE p.trigger = 'answer'), 0) AS answer_tokens
    FROM (
        SELECT g.sample_id, g.author, g.takes_over, g.trigger, cardinality(g.token_ids) AS tokens,
               count(*) FILTER (WHERE g.takes_over) OVER (PARTITION BY g.sample_id ORDER BY g.segment_index)
               AS num_before
        FROM samples s JOIN segments g ON g.sample_id = s.id
        WHERE s.job_id = :job AND s.state IN ('finished', 'graded')
    ) p
    WHERE p.author = 'large'
""")
# A break ends a step that another follows; the author of the step's last token wrote it. The think phase ends with the
# step before the one that holds the closing tag.
_SUM_SMALL = text("""
    WITH written AS (
        SELECT g.sample_id, g.author, sum(cardinality(g.token_ids)) OVER w AS end_token,
               sum(cardinality(g.token_ids)) OVER w - cardinality(g.token_ids) AS start_token
        FROM samples s JOIN segments g ON g.sample_id = s.id
        WHERE s.job_id = :job AND s.state IN ('finished', 'graded')
        WINDOW w AS (PARTITION BY g.sample_id ORDER BY g.segment_index)
    ),
    ends AS (
        SELECT t.sample_id, t.tokens_small, lead(t.start_token) OVER w - 1 AS last_token,
               coalesce(bool_or(j.think_end <> '' AND strpos(t.text, j.think_end) > 0) OVER w, false) AS is_closed
        FROM jobs j JOIN samples s ON s.job_id = j.id JOIN steps t ON t.sample_id = s.id
        WHERE j.id = :job AND s.state IN ('finished', 'graded')
        WINDOW w AS (PARTITION BY t.sample_id ORDER BY t.step_index)
    )
    SELECT (SELECT count(*) FROM ends e JOIN written g ON g.sample_id = e.sample_id
            WHERE NOT e.is_closed AND g.author = 'small' AND e.last_token >= g.start_token
              AND e.last_token < g.end_token) AS num_breaks,
           (SELECT coalesce(sum(e.tokens_small), 0) FROM ends e WHERE NOT e.is_closed) AS small_tokens
""")


# A word as pipeline.policies.reading.words has it; one at which large took over stands in large's text.
_COUNT_WORDS = text("""
    WITH written AS (
        SELECT g.sample_id, g.author, substr(g.text, (t.ends - t.length + 1)::integer, t.length) AS token,
               row_number() OVER (PARTITION BY g.sample_id ORDER BY g.segment_index, t.place) AS place
        FROM samples s JOIN segments g ON g.sample_id = s.id
        CROSS JOIN LATERAL (
            SELECT u.place, u.length, sum(u.length) OVER (ORDER BY u.place) AS ends
            FROM unnest(g.token_lengths) WITH ORDINALITY u (length, place)
        ) t
        WHERE s.job_id = :job AND s.state IN ('finished', 'graded') AND t.place <= cardinality(g.token_ids)
    ),
    closed AS (
        SELECT t.sample_id, min(t.start_token) AS start_token
        FROM jobs j JOIN samples s ON s.job_id = j.id JOIN steps t ON t.sample_id = s.id
        WHERE j.id = :job AND j.think_end <> '' AND strpos(t.text, j.think_end) > 0
        GROUP BY t.sample_id
    ),
    placed AS (
        SELECT w.*, lag(w.token) OVER (PARTITION BY w.sample_id ORDER BY w.place) AS before
        FROM written w WHERE w.token <> ''
    )
    SELECT count(*) + (SELECT count(*) FROM samples s JOIN segments g ON g.sample_id = s.id
                       WHERE s.job_id = :job AND s.state IN ('finished', 'graded') AND g.takes_over) AS num_words
    FROM placed p LEFT JOIN closed c ON c.sample_id = p.sample_id
    WHERE p.author = 'small' AND p.place <= coalesce(c.start_token, p.place) AND p.token ~ '\\S'
      AND (p.token ~ '^\\s' OR p.before IS NULL OR p.before ~ '\\s$')
""")


def measure_delegation(connection: Connection, job_id: int, *, words: bool = False) -> DelegatedWriting:
    """What the large model wrote in a job's complete samples, and at how many places of the small one it could have.

    words: whether words are counted, too.
    """
    queries = (_SUM_LARGE, _SUM_SMALL, *([_COUNT_WORDS] if words else []))
    sums = [connection.execute(query, {"job": job_id}).mappings().one() for query in queries]
    return DelegatedWriting(**{name: int(count) for found in sums for name, count in found.items()})


# The think phase ends where the step begins that holds the closing tag; one that was cut in it ends with the text.
_THOUGHTS = text("""
    SELECT array_agg(e.num_tokens ORDER BY e.step_index) FILTER (WHERE NOT e.is_closed) AS steps
    FROM (
        SELECT t.sample_id, t.step_index, t.tokens_small + t.tokens_large + t.tokens_inserted AS num_tokens,
               coalesce(bool_or(j.think_end <> '' AND strpos(t.text, j.think_end) > 0) OVER w, false) AS is_closed
        FROM jobs j JOIN samples s ON s.job_id = j.id JOIN steps t ON t.sample_id = s.id
        WHERE j.id = :job AND s.state IN ('finished', 'graded')
        WINDOW w AS (PARTITION BY t.sample_id ORDER BY t.step_index)
    ) e
    GROUP BY e.sample_id ORDER BY e.sample_id
""")
# What tells how thresholds were chosen shapes no text.
_UNEXITED = text("""
    SELECT other.id FROM jobs j JOIN jobs other
        ON other.problem_set_id = j.problem_set_id AND other.num_problems = j.num_problems
        AND other.config - '{exit,calibrated_from}'::text[] = j.config - '{exit,calibrated_from}'::text[]
    WHERE j.id = :job AND other.state IN ('completed', 'completed_with_errors')
      AND coalesce(other.config->'exit', 'null') = 'null'
    ORDER BY other.id DESC LIMIT 1
""")


def measure_thoughts(connection: Connection, job_id: int) -> list[list[int]]:
    """Of each complete sample the steps of its think phase, in output tokens of all authors."""
    return [list(steps or ()) for steps in connection.execute(_THOUGHTS, {"job": job_id}).scalars()]


def find_unexited(connection: Connection, job_id: int) -> int | None:
    """The newest ended job that asked the same in the same way, and had no exit."""
    found = connection.execute(_UNEXITED, {"job": job_id}).scalar()
    return None if found is None else int(found)


def match(connection: Connection, submission: Submission) -> tuple[Submission, dict[str, Any]]:
    """A submission that is matched to a job, with its exit's number, and the numbers of its policy.

    Raises NotFound, ConfigurationError for what is no control, and JobError for a job that still runs: its texts are
    not all there yet.
    """
    is_random = submission.policy == RANDOM
    if not is_random and (submission.exit is None or submission.exit.name not in CONTROLS):
        raise ConfigurationError(
            f"only the policy {RANDOM!r}, or one of the exits {' and '.join(CONTROLS)}, can be matched to a job, not "
            f"{submission.policy!r}"
        )
    found = get_job(connection, submission.matched_to or 0)
    if not found.is_final:
        raise JobError(found.id, "it still runs; a job can be matched once it has ended")
    if is_random:
        return submission, _matched_delegation(connection, submission, found)
    return _with_matched_exit(connection, submission, found), {}


def _matched_delegation(connection: Connection, submission: Submission, found: Job) -> dict[str, Any]:
    words = found.config.policy.control_at == "word"
    written = measure_delegation(connection, found.id, words=words)
    same_exit = submission.exit is not None and submission.exit == found.config.exit
    return matched_values(written, same_exit=same_exit)


def _with_matched_exit(connection: Connection, submission: Submission, found: Job) -> Submission:
    if found.config.exit is None:
        raise ConfigurationError(
            f"job {found.id} has no exit whose length {submission.exit and submission.exit.name!r} could match"
        )
    unexited = find_unexited(connection, found.id)
    if unexited is None:
        raise ConfigurationError(
            f"no ended job asks what job {found.id} asks without its exit, and only such a job tells how long texts "
            f"would be: specthink clone {found.id} --set exit=none"
        )
    assert submission.exit is not None
    exited, whole = (measure_thoughts(connection, job) for job in (found.id, unexited))
    return submission.model_copy(update={"exit": matched_exit(submission.exit, exited, whole)})
