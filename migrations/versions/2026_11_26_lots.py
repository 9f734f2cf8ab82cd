"""Lots: what is counted of samples that rest is kept, so that a running job of a million samples is summed up at once.

The problems of a job are cut into lots of about a thousand samples. A sample rests while it is pending or in a final
state. Once all samples of a lot rest, upkeep counts the lot (``count_lot``), and the views add up the counts of counted
lots and look at the samples of the other ones. The trigger ``reopen_lots`` takes a lot out again in the transaction in
which a sample of it stops to rest, or changes while it rests. So the views are right at any moment, whether anything
is counted or not, and no row of a lot is touched while its samples are written.

What cannot be added up, percentiles, comes from ``length_counts``: how many samples have how many tokens. Its rows are
only added to: counting a lot adds its samples, taking it out adds them negatively, and upkeep folds what was added into
the base rows.

Lock taken: SHARE ROW EXCLUSIVE on samples, for the trigger; ACCESS EXCLUSIVE on the views that are made anew. Nothing
is counted here, but two small indexes are made: about a second per million samples.
Way back: drops all of it and restores the views and functions of revisions 0002, 0004 and 0006.
"""

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

LOT_SAMPLES = 1024
"""Samples per lot, about: counting one takes some ten milliseconds."""
LAST = 9223372036854775807

SUMS = {
    "pending": "by state",
    "graded": "by state",
    "failed": "by state",
    "cancelled": "by state",
    "num_length": "complete samples ended by the job's max_tokens",
    "num_context": "complete samples ended by the model's context",
    "num_repetition": "complete samples ended by the loop guard",
    "num_scored": "graded samples that have a score",
    "num_right": "of these, with a score of at least 0.5",
    "scored_truncated": "complete samples with a score that were ended by max_tokens or the context",
    "scored_eos": "complete samples with a score that the model ended itself",
    "takeovers": "times the large model was called in",
    "tokens_small": "kept, written by the small model",
    "tokens_large": "kept, written by the large model",
    "tokens_inserted": "kept, put in by the policy",
    "discarded_small": "written by the small model, not kept",
    "discarded_large": "written by the large model, not kept",
    "complete_tokens": "kept tokens of the complete samples",
    "complete_takeovers": "takeovers of the complete samples",
}
OPEN_STATES = ("ready", "drafting", "awaiting_large", "assisting", "finished")
"""Of samples that do not rest: none is in a counted lot."""
STATES = ("pending", *OPEN_STATES, "graded", "failed", "cancelled")
EXACT_SUMS = {
    "score_sum": "sum of the scores",
    "score_squares": "sum of their squares",
    "truncated_scores": "sum of the scores of scored_truncated",
    "eos_scores": "sum of the scores of scored_eos",
}
PROBLEM_SUMS = {
    "problems_scored": "problems with a scored sample",
    "problem_squares": "sum over them of the square of the problem's summed scores",
    "problem_products": "sum over them of the summed scores times the number of scored samples",
    "problem_numbers": "sum over them of the square of the number of scored samples",
}
COST_SUMS = {
    "prompt_tokens_small": "of the small model's prompts, computed: not found in the prefix cache",
    "prompt_tokens_large": "likewise, large",
    "num_queued": "samples with a request that was handed to an engine",
}
COST_MEASURES = {
    "request_seconds_small": "sum of the durations of the small model's requests",
    "request_seconds_large": "likewise, large",
    "queue_sum": "sum of the seconds inside the engines before the first work",
}
LISTS = {
    "walls": "seconds from admission to complete text, of each complete sample",
    "waits": "seconds from publishing to claim, of each sample that has any, all its segments together",
}
PARTS = {
    "busy": {"worker_id": "bigint", "author": "text", "times": "tstzmultirange"},
    "delegation": {
        "author": "text", "trigger": "text", "num_segments": "bigint", "num_samples": "bigint", "tokens": "bigint",
        "tokens_discarded": "bigint", "cached": "bigint", "prompts": "bigint", "waits": "bigint", "wait_sum": "float8",
        "queues": "bigint", "queue_sum": "float8", "writes": "bigint", "write_sum": "float8",
    },
    "flow": {
        "trigger": "text", "followed_by": "text", "num_takeovers": "bigint", "positions": "bigint",
        "position_sum": "float8", "tokens": "bigint", "tokens_between": "bigint", "scored": "bigint",
        "score_sum": "float8",
    },
    "tenths": {"tenth": "integer", "tokens_large": "float8", "num_takeovers": "bigint"},
    "passes": {"n": "bigint", "c": "bigint", "problems": "bigint"},
    "votes": {"k": "bigint", "num_problems": "bigint", "share_sum": "float8"},
    "step_counts": {
        "sentence_class": "text", "author": "text", "tokens": "integer", "num_steps": "bigint",
        "num_taken_over": "bigint", "scored": "bigint", "score_sum": "float8",
    },
}  # fmt: skip
"""Tables inside a lot's row: what has a key of its own. Each has a function tell_… that looks at the samples."""

PART_COMMENTS = {
    "busy": "when each worker had a request of the lot's samples",
    "delegation": "what the large model wrote and the policy put in, by trigger",
    "flow": "takeovers by trigger and by what followed",
    "tenths": "the large model's share by tenth of the complete samples",
    "passes": "problems by number of scored and of right samples",
    "votes": "shares of right majorities by number of votes",
    "step_counts": "steps by class, author and length",
}

RANGE = "job bigint, first_problem bigint, last_problem bigint"
IN_RANGE = "s.job_id = job AND s.problem_id BETWEEN first_problem AND last_problem"
# One sample after the other, by index (OFFSET): few samples are looked at, whatever the statistics make of the range.
WITH_SEGMENTS = "samples s CROSS JOIN LATERAL (SELECT * FROM segments WHERE sample_id = s.id OFFSET 0) g"
WITH_STEPS = "samples s CROSS JOIN LATERAL (SELECT * FROM steps WHERE sample_id = s.id OFFSET 0) t"
COMPLETE = "s.state IN ('finished', 'graded')"
SCORED = "s.state = 'graded' AND s.score IS NOT NULL"

MAKE_LOTS = f"""
CREATE FUNCTION make_lots(job bigint, size integer DEFAULT {LOT_SAMPLES}) RETURNS void LANGUAGE sql AS $$
    INSERT INTO lots (job_id, first_problem, last_problem)
    SELECT job, b.first, coalesce(lead(b.first) OVER (ORDER BY b.first) - 1, {LAST})
    FROM (
        SELECT 0 AS first
        UNION ALL
        SELECT p.id FROM jobs j JOIN problems p ON p.problem_set_id = j.problem_set_id
        WHERE j.id = job AND p.position BETWEEN 1 AND j.num_problems - 1
          AND p.position % greatest(1, size / j.num_samples) = 0
    ) b
$$
"""

# The whole job where it has no lots: whatever somebody stores by hand is seen.
OPEN_RANGES = f"""
CREATE FUNCTION open_ranges(job bigint) RETURNS TABLE (first_problem bigint, last_problem bigint)
LANGUAGE sql STABLE ROWS 5 AS $$
    SELECT l.first_problem, l.last_problem FROM lots l WHERE l.job_id = job AND l.counted_at IS NULL
    UNION ALL
    SELECT 0, {LAST} WHERE NOT EXISTS (SELECT FROM lots l WHERE l.job_id = job)
$$
"""

SAMPLE_SUMS = (
    "num_takeovers", "tokens_small", "tokens_large", "tokens_inserted", "discarded_small", "discarded_large"
)  # fmt: skip


def total(value: str, where: str = "true") -> str:
    return f"coalesce(sum({value}) FILTER (WHERE {where}), 0)::bigint"


def count(where: str) -> str:
    return total("s.num", where)


# Grouped first: few samples differ in all three, and exact sums of scores are dear.
TELL_SAMPLES = f"""
CREATE FUNCTION tell_samples({RANGE}) RETURNS TABLE (
    {", ".join(f"{name} bigint" for name in (*SUMS, *OPEN_STATES))},
    {", ".join(f"{name} numeric" for name in EXACT_SUMS)}, walls float8[]
) LANGUAGE sql STABLE ROWS 1 AS $$
    SELECT {count("s.state = 'pending'")}, {count("s.state = 'graded'")}, {count("s.state = 'failed'")},
           {count("s.state = 'cancelled'")},
           {count("s.is_complete AND s.finish_reason = 'length'")},
           {count("s.is_complete AND s.finish_reason = 'context'")},
           {count("s.is_complete AND s.finish_reason = 'repetition'")},
           {count("s.state = 'graded' AND s.score IS NOT NULL")},
           {count("s.state = 'graded' AND s.score >= 0.5")},
           {count("s.is_complete AND s.score IS NOT NULL AND s.finish_reason IN ('length', 'context')")},
           {count("s.is_complete AND s.score IS NOT NULL AND s.finish_reason = 'eos'")},
           {", ".join(total(f"s.{name}") for name in SAMPLE_SUMS)},
           {total("s.tokens_small + s.tokens_large + s.tokens_inserted", "s.is_complete")},
           {total("s.num_takeovers", "s.is_complete")},
           {", ".join(count(f"s.state = '{state}'") for state in OPEN_STATES)},
           coalesce(sum(s.num * s.score) FILTER (WHERE s.state = 'graded'), 0),
           coalesce(sum(s.num * s.score * s.score) FILTER (WHERE s.state = 'graded'), 0),
           coalesce(sum(s.num * s.score) FILTER (WHERE s.is_complete AND s.finish_reason IN ('length', 'context')), 0),
           coalesce(sum(s.num * s.score) FILTER (WHERE s.is_complete AND s.finish_reason = 'eos'), 0),
           (SELECT array_agg(extract(epoch FROM s.finished_at - s.admitted_at)::float8) FROM samples s
            WHERE {IN_RANGE} AND {COMPLETE} AND s.finished_at IS NOT NULL AND s.admitted_at IS NOT NULL)
    FROM (
        SELECT s.state, s.finish_reason, s.score::numeric AS score, {COMPLETE} AS is_complete, count(*) AS num,
               {", ".join(f"sum(s.{name}) AS {name}" for name in SAMPLE_SUMS)}
        FROM samples s WHERE {IN_RANGE} GROUP BY s.state, s.finish_reason, s.score
    ) s
$$
"""

TELL_PROBLEMS = f"""
CREATE FUNCTION tell_problems({RANGE}) RETURNS TABLE (
    problems_scored bigint, problem_squares numeric, problem_products numeric, problem_numbers numeric
) LANGUAGE sql STABLE ROWS 1 AS $$
    SELECT count(*), coalesce(sum(p.score * p.score), 0), coalesce(sum(p.score * p.n), 0), coalesce(sum(p.n * p.n), 0)
    FROM (
        SELECT sum(s.score::numeric) AS score, count(*) AS n FROM samples s
        WHERE {IN_RANGE} AND {SCORED} GROUP BY s.problem_id
    ) p
$$
"""

TELL_COST = f"""
CREATE FUNCTION tell_cost({RANGE}) RETURNS TABLE (
    {", ".join(f"{name} bigint" for name in COST_SUMS)},
    {", ".join(f"{name} float8" for name in COST_MEASURES)}, waits float8[]
) LANGUAGE sql STABLE ROWS 1 AS $$
    SELECT coalesce(sum(w.prompts_small), 0), coalesce(sum(w.prompts_large), 0), count(w.queue),
           coalesce(sum(w.seconds_small), 0), coalesce(sum(w.seconds_large), 0), coalesce(sum(w.queue), 0),
           array_agg(w.wait) FILTER (WHERE w.wait IS NOT NULL)
    FROM (
        SELECT sum(g.prompt_tokens - g.cached_tokens) FILTER (WHERE g.author = 'small') AS prompts_small,
               sum(g.prompt_tokens - g.cached_tokens) FILTER (WHERE g.author = 'large') AS prompts_large,
               sum(g.write_seconds) FILTER (WHERE g.author = 'small') AS seconds_small,
               sum(g.write_seconds) FILTER (WHERE g.author = 'large') AS seconds_large,
               sum(g.wait_seconds) AS wait, sum(g.queue_seconds) AS queue
        FROM {WITH_SEGMENTS}
        WHERE {IN_RANGE} AND g.author IN ('small', 'large') GROUP BY g.sample_id
    ) w
$$
"""


def tell(part: str, query: str) -> str:
    columns = ", ".join(f"{name} {kind}" for name, kind in PARTS[part].items())
    return f"CREATE FUNCTION tell_{part}({RANGE}) RETURNS TABLE ({columns}) LANGUAGE sql STABLE AS $$ {query} $$"


PLACED = f"""
    SELECT g.sample_id, g.segment_index, g.author, g.trigger, cardinality(g.token_ids) AS tokens,
           sum(cardinality(g.token_ids)) OVER (PARTITION BY g.sample_id ORDER BY g.segment_index)
           - cardinality(g.token_ids) AS start_token,
           s.tokens_small + s.tokens_large + s.tokens_inserted AS output_tokens, s.score, {COMPLETE} AS is_complete
    FROM {WITH_SEGMENTS} WHERE {IN_RANGE}
"""

TELL_PARTS = {
    "busy": f"""
        SELECT g.worker_id, g.author, range_agg(tstzrange(
                   g.committed_at - make_interval(secs => greatest(0, coalesce(g.write_seconds, 0))), g.committed_at))
        FROM {WITH_SEGMENTS}
        WHERE {IN_RANGE} AND g.author IN ('small', 'large') GROUP BY g.worker_id, g.author
    """,
    "delegation": f"""
        SELECT g.author, g.trigger, count(*), count(DISTINCT g.sample_id), sum(cardinality(g.token_ids)),
               sum(cardinality(g.discarded_ids)), sum(g.cached_tokens), sum(g.prompt_tokens),
               count(g.wait_seconds), coalesce(sum(g.wait_seconds), 0),
               count(g.queue_seconds), coalesce(sum(g.queue_seconds), 0),
               count(g.write_seconds), coalesce(sum(g.write_seconds), 0)
        FROM {WITH_SEGMENTS}
        WHERE {IN_RANGE} AND g.author IN ('large', 'inserted') GROUP BY g.author, g.trigger
    """,
    "flow": f"""
        SELECT t.trigger, t.followed_by, count(*), count(t.position), coalesce(sum(t.position), 0), sum(t.tokens),
               sum(t.tokens_between), count(t.score), coalesce(sum(t.score), 0)
        FROM (
            SELECT p.trigger, p.tokens, p.score, p.start_token / nullif(p.output_tokens, 0)::float8 AS position,
                   coalesce(lead(p.trigger) OVER w, CASE WHEN p.is_complete THEN 'end' END) AS followed_by,
                   coalesce(lead(p.start_token) OVER w, p.output_tokens) - p.start_token - p.tokens AS tokens_between
            FROM ({PLACED}) p WHERE p.author = 'large'
            WINDOW w AS (PARTITION BY p.sample_id ORDER BY p.segment_index)
        ) t
        WHERE t.followed_by IS NOT NULL GROUP BY t.trigger, t.followed_by
    """,
    "tenths": f"""
        SELECT t.tenth, sum(greatest(0, least(p.start_token + p.tokens, t.tenth * t.width)
                                        - greatest(p.start_token, (t.tenth - 1) * t.width)))::float8,
               count(*) FILTER (WHERE p.start_token >= (t.tenth - 1) * t.width
                                  AND (p.start_token < t.tenth * t.width OR t.tenth = 10))
        FROM ({PLACED}) p
        CROSS JOIN LATERAL (
            SELECT i AS tenth, p.output_tokens / 10.0::float8 AS width FROM generate_series(1, 10) AS i
        ) t
        WHERE p.author = 'large' AND p.is_complete GROUP BY t.tenth
    """,
    "passes": f"""
        SELECT p.n, p.c, count(*)
        FROM (
            SELECT count(*) AS n, count(*) FILTER (WHERE s.score >= 0.5) AS c FROM samples s
            WHERE {IN_RANGE} AND {SCORED} GROUP BY s.problem_id
        ) p
        GROUP BY p.n, p.c
    """,
    "votes": f"""
        WITH votes AS (
            SELECT s.problem_id, CASE WHEN s.score >= 0.5 THEN 'right' ELSE 'wrong ' || s.predicted_answer END AS vote,
                   row_number() OVER (PARTITION BY s.problem_id ORDER BY s.sample_index) - 1 AS place,
                   count(*) OVER (PARTITION BY s.problem_id) AS n
            FROM samples s WHERE {IN_RANGE} AND {SCORED}
        ),
        tallies AS (
            SELECT v.problem_id, i.k, v.place / i.k AS bundle, v.vote, count(v.vote) AS num
            FROM votes v CROSS JOIN LATERAL generate_series(1, v.n) AS i (k)
            WHERE v.place < v.n / i.k * i.k GROUP BY v.problem_id, i.k, v.place / i.k, v.vote
        ),
        winners AS (
            SELECT t.*, max(t.num) OVER (PARTITION BY t.problem_id, t.k, t.bundle) AS most FROM tallies t
        ),
        bundles AS (
            SELECT problem_id, k, bundle,
                   coalesce(count(*) FILTER (WHERE vote = 'right' AND num = most)
                            / nullif(count(*) FILTER (WHERE vote IS NOT NULL AND num = most), 0)::float8, 0) AS is_right
            FROM winners GROUP BY problem_id, k, bundle
        ),
        shares AS (SELECT problem_id, k, avg(is_right) AS share FROM bundles GROUP BY problem_id, k)
        SELECT k, count(*), sum(share) FROM shares GROUP BY k
    """,
    "step_counts": f"""
        SELECT t.sentence_class, t.author, n.tokens, count(*), count(t.trigger), count(s.score),
               coalesce(sum(s.score), 0)
        FROM {WITH_STEPS}
        CROSS JOIN LATERAL (SELECT t.tokens_small + t.tokens_large + t.tokens_inserted AS tokens) n
        WHERE {IN_RANGE} AND {COMPLETE} GROUP BY t.sentence_class, t.author, n.tokens
    """,
}


def lengths_of(samples: str, sign: str = "") -> str:
    """How long the complete ones of some samples s are. samples: a FROM clause with its conditions."""
    return f"""
        SELECT s.job_id, a.author, s.finish_reason,
               CASE WHEN s.score >= 0.5 THEN 'right' WHEN s.score < 0.5 THEN 'wrong' ELSE 'unscored' END AS verdict,
               a.tokens, {sign}1 AS n, {sign}coalesce(s.score::numeric, 0) AS score
        FROM {samples}
    """


AUTHORS = """
    CROSS JOIN LATERAL (
        VALUES ('all', s.tokens_small + s.tokens_large + s.tokens_inserted), ('small', s.tokens_small),
               ('large', s.tokens_large), ('inserted', s.tokens_inserted)
    ) a (author, tokens)
"""
LENGTHS = f"""
CREATE FUNCTION lengths(job bigint) RETURNS TABLE (
    author text, finish_reason text, verdict text, tokens integer, n bigint, score numeric
) LANGUAGE sql STABLE AS $$
    SELECT c.author, c.finish_reason, c.verdict, c.tokens, c.n, c.score FROM length_counts c WHERE c.job_id = job
    UNION ALL
    SELECT l.author, l.finish_reason, l.verdict, l.tokens, l.n, l.score
    FROM open_ranges(job) r CROSS JOIN LATERAL ({
    lengths_of(
        f"samples s {AUTHORS} WHERE s.job_id = job AND s.problem_id BETWEEN r.first_problem AND r.last_problem "
        f"AND {COMPLETE}"
    )
}) l
$$
"""
ADDED = """
    INSERT INTO length_counts (job_id, author, finish_reason, verdict, tokens, n, score)
    SELECT job_id, author, finish_reason, verdict, tokens, sum(n), sum(score) FROM ({rows}) c
    GROUP BY job_id, author, finish_reason, verdict, tokens
"""

KEPT = (*SUMS, *EXACT_SUMS, "walls", *PROBLEM_SUMS, *COST_SUMS, *COST_MEASURES, "waits")
COUNT_LOT = f"""
CREATE FUNCTION count_lot(job bigint, first bigint) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    last bigint;
BEGIN
    -- Whoever changes a sample that rests waits for this lock, or has it: what follows sees all that came before.
    SELECT last_problem INTO last FROM lots
    WHERE job_id = job AND first_problem = first AND counted_at IS NULL FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE lots l SET counted_at = clock_timestamp(), {", ".join(f"{name} = t.{name}" for name in KEPT)},
        {
    ", ".join(
        f"{part} = (SELECT coalesce(jsonb_agg(to_jsonb(p)), '[]') FROM tell_{part}(job, first, last) p)"
        for part in PARTS
    )
}
    FROM (
        SELECT s.*, p.*, c.*
        FROM tell_samples(job, first, last) s, tell_problems(job, first, last) p, tell_cost(job, first, last) c
    ) t
    WHERE l.job_id = job AND l.first_problem = first AND {" + ".join(f"t.{state}" for state in OPEN_STATES)} = 0;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    {
    ADDED.format(
        rows=lengths_of(
            f"samples s {AUTHORS} WHERE s.job_id = job AND s.problem_id BETWEEN first AND last AND {COMPLETE}"
        )
    )
};
    RETURN true;
END $$;
"""

# Nobody waits for a sample with a lot locked. The lock is taken before what was counted is read, in a statement of its
# own: what is read afterwards is what was there when the lot was counted, but for the rows changed just now. NOT IN is
# done by hashing, however few rows a plan was made for.
REOPEN_LOTS = f"""
CREATE FUNCTION reopen_lots() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    counted record;
BEGIN
    IF NOT EXISTS (SELECT FROM old_rows WHERE state NOT IN {OPEN_STATES}) THEN
        RETURN NULL;
    END IF;
    FOR counted IN
        WITH touched AS MATERIALIZED (
            SELECT DISTINCT l.job_id, l.first_problem
            FROM (SELECT DISTINCT job_id, problem_id FROM old_rows WHERE state NOT IN {OPEN_STATES}) o
            CROSS JOIN LATERAL (
                SELECT l.job_id, l.first_problem FROM lots l
                WHERE l.job_id = o.job_id AND l.first_problem <= o.problem_id ORDER BY l.first_problem DESC LIMIT 1
            ) l
        ),
        locked AS MATERIALIZED (
            SELECT l.job_id, l.first_problem, l.last_problem, l.counted_at, l.graded
            FROM lots l JOIN touched t ON t.job_id = l.job_id AND t.first_problem = l.first_problem
            ORDER BY l.job_id, l.first_problem FOR NO KEY UPDATE OF l
        ),
        changed AS (
            UPDATE lots l SET counted_at = NULL, changed_at = clock_timestamp() FROM locked k
            WHERE l.job_id = k.job_id AND l.first_problem = k.first_problem
        )
        SELECT * FROM locked WHERE counted_at IS NOT NULL AND graded > 0
    LOOP
        {
    ADDED.format(
        rows=lengths_of(
            f"(SELECT * FROM old_rows UNION ALL SELECT s.* FROM samples s WHERE s.job_id = counted.job_id "
            "AND s.problem_id BETWEEN counted.first_problem AND counted.last_problem "
            f"AND s.id NOT IN (SELECT id FROM new_rows)) s {AUTHORS} WHERE s.job_id = counted.job_id "
            f"AND s.problem_id BETWEEN counted.first_problem AND counted.last_problem AND {COMPLETE}",
            sign="-",
        )
    )
};
    END LOOP;
    RETURN NULL;
END $$;
"""
REOPEN_TRIGGER = """
CREATE TRIGGER reopen_lots AFTER UPDATE ON samples
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION reopen_lots()
"""


def added_up(function: str, names: Iterable[str], *, job: str = "job", open_states: bool = False) -> str:
    """Rows of some columns: one per counted lot of a job, and one per range of its others by a function tell_…"""
    kept = [f"l.{name}" for name in names] + [f"0 AS {name}" for name in OPEN_STATES if open_states]
    told = [f"t.{name}" for name in (*names, *(OPEN_STATES if open_states else ()))]
    return f"""
        SELECT {", ".join(kept)} FROM lots l WHERE l.job_id = {job} AND l.counted_at IS NOT NULL
        UNION ALL
        SELECT {", ".join(told)}
        FROM open_ranges({job}) r CROSS JOIN LATERAL {function}({job}, r.first_problem, r.last_problem) t
    """


def all_parts(part: str, job: str = "j.id") -> str:
    """The rows of a part, of counted lots and of the samples of the others; a key comes more than once."""
    names = ", ".join(f"t.{name}" for name in PARTS[part])
    columns = ", ".join(f"{name} {kind}" for name, kind in PARTS[part].items())
    return f"""(
        SELECT {names} FROM lots l CROSS JOIN LATERAL jsonb_to_recordset(l.{part}) AS t ({columns})
        WHERE l.job_id = {job} AND l.counted_at IS NOT NULL
        UNION ALL
        SELECT {names} FROM open_ranges({job}) r
        CROSS JOIN LATERAL tell_{part}({job}, r.first_problem, r.last_problem) t
    )"""


def percentile(share: float) -> str:
    """percentile_cont over rows of (tokens, upto: samples with so many or fewer, total: all samples)."""
    place = f"({share} * (max(total) - 1))"
    below, above = (
        f"min(tokens) FILTER (WHERE upto > {end}({share} * (total - 1)))::float8" for end in ("floor", "ceil")
    )
    return f"({below} + ({above} - {below}) * ({place} - floor({place})))"


SAMPLES_TOTAL = (
    f"coalesce(sum(pending + graded + failed + cancelled + {' + '.join(OPEN_STATES)}), 0)::bigint AS samples_total"
)
COUNT_STATES = f"""
CREATE FUNCTION count_states(job bigint) RETURNS TABLE (
    {", ".join(f"{name} bigint" for name in ("samples_total", *SUMS, *OPEN_STATES))}
) LANGUAGE sql STABLE ROWS 1 AS $$
    SELECT {SAMPLES_TOTAL}, {", ".join(f"coalesce(sum({name}), 0)::bigint" for name in (*SUMS, *OPEN_STATES))}
    FROM ({added_up("tell_samples", SUMS, open_states=True)}) a
$$
"""


def count_samples(numbers: Any) -> str:
    """The function of revision 0004, from the lots."""
    sources = {"problems_scored": "p.problems_scored"}
    counts = ", ".join(sources.get(name, f"c.{name}") for name in numbers.SAMPLE_COUNTS)
    return f"""
CREATE OR REPLACE FUNCTION count_samples(job bigint) RETURNS TABLE (
    {", ".join(f"{name} bigint" for name in numbers.SAMPLE_COUNTS)},
    {", ".join(f"{name} double precision" for name in numbers.SAMPLE_MEASURES)}
) LANGUAGE sql STABLE AS $$
    WITH told AS MATERIALIZED ({added_up("tell_samples", (*SUMS, *EXACT_SUMS, "walls"), open_states=True)})
    SELECT {counts},
           e.accuracy::float8,
           CASE WHEN c.num_scored > 1
                THEN (c.score_squares - c.score_sum * c.score_sum / c.num_scored) / (c.num_scored - 1) END::float8,
           (p.problem_squares - 2 * e.accuracy * p.problem_products
            + e.accuracy * e.accuracy * p.problem_numbers)::float8,
           (c.complete_tokens / e.complete::numeric)::float8, l.p50, l.p90,
           (c.complete_takeovers / e.complete::numeric)::float8, w.p50, w.p95
    FROM (
        SELECT {SAMPLES_TOTAL}, {", ".join(f"sum({name}) AS {name}" for name in EXACT_SUMS)},
               {", ".join(f"coalesce(sum({name}), 0)::bigint AS {name}" for name in (*SUMS, *OPEN_STATES))}
        FROM told
    ) c
    CROSS JOIN LATERAL (
        SELECT nullif(c.finished + c.graded, 0) AS complete, c.score_sum / nullif(c.num_scored, 0) AS accuracy
    ) e
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(a.problems_scored), 0)::bigint AS problems_scored,
               sum(a.problem_squares) AS problem_squares, sum(a.problem_products) AS problem_products,
               sum(a.problem_numbers) AS problem_numbers
        FROM ({added_up("tell_problems", PROBLEM_SUMS)}) a
    ) p
    CROSS JOIN LATERAL (
        SELECT {percentile(0.5)} AS p50, {percentile(0.9)} AS p90
        FROM (
            SELECT b.tokens, sum(b.n) OVER (ORDER BY b.tokens) AS upto, sum(b.n) OVER () AS total
            FROM (SELECT t.tokens, sum(t.n)::float8 AS n FROM lengths(job) t WHERE t.author = 'all' GROUP BY t.tokens) b
        ) q
    ) l
    CROSS JOIN LATERAL (
        SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY x.wall) AS p50,
               percentile_cont(0.95) WITHIN GROUP (ORDER BY x.wall) AS p95
        FROM told a CROSS JOIN LATERAL unnest(a.walls) AS x (wall)
    ) w
$$
"""


def count_cost(numbers: Any) -> str:
    """The function of revision 0004, from the lots."""
    return f"""
CREATE OR REPLACE FUNCTION count_cost(job bigint) RETURNS TABLE (
    {", ".join(f"{name} bigint" for name in numbers.COST_COUNTS)},
    {", ".join(f"{name} double precision" for name in numbers.COST_MEASURES)}
) LANGUAGE sql STABLE AS $$
    WITH told AS MATERIALIZED ({added_up("tell_cost", (*COST_SUMS, *COST_MEASURES, "waits"))})
    SELECT c.prompt_tokens_small, c.prompt_tokens_large, b.small, b.large, c.request_seconds_small,
           c.request_seconds_large, w.mean, w.p95, c.queue_sum / nullif(c.num_queued, 0)
    FROM (
        SELECT coalesce(sum(a.prompt_tokens_small), 0)::bigint AS prompt_tokens_small,
               coalesce(sum(a.prompt_tokens_large), 0)::bigint AS prompt_tokens_large,
               coalesce(sum(a.request_seconds_small), 0) AS request_seconds_small,
               coalesce(sum(a.request_seconds_large), 0) AS request_seconds_large,
               sum(a.queue_sum) AS queue_sum, sum(a.num_queued) AS num_queued
        FROM told a
    ) c
    CROSS JOIN (
        SELECT coalesce(sum(d.seconds) FILTER (WHERE d.author = 'small'), 0)::float8 AS small,
               coalesce(sum(d.seconds) FILTER (WHERE d.author = 'large'), 0)::float8 AS large
        FROM (
            SELECT u.author, extract(epoch FROM upper(x.time) - lower(x.time)) AS seconds
            FROM (
                SELECT t.author, range_agg(y.time) AS times
                FROM {all_parts("busy", "job")} t CROSS JOIN LATERAL unnest(t.times) AS y (time)
                GROUP BY t.worker_id, t.author
            ) u
            CROSS JOIN LATERAL unnest(u.times) AS x (time)
        ) d
    ) b
    CROSS JOIN (
        SELECT avg(x.wait) AS mean, percentile_cont(0.95) WITHIN GROUP (ORDER BY x.wait) AS p95
        FROM told a CROSS JOIN LATERAL unnest(a.waits) AS x (wait)
    ) w
$$
"""


def changed(query: str, *changes: tuple[str, str]) -> str:
    """A view's earlier query with some of its parts replaced; each is there once."""
    for before, after in changes:
        assert query.count(before) == 1, before
        query = query.replace(before, after)
    return query


def between(query: str, start: str, end: str) -> str:
    """The part of a query from one phrase to the end of another."""
    first = query.index(start)
    return query[first : query.index(end, first) + len(end)]


TOKEN_LENGTHS = f"""
    SELECT j.id AS job_id, l.*
    FROM jobs j
    CROSS JOIN LATERAL (
        WITH cells AS (
            SELECT t.author, coalesce(t.finish_reason, 'all') AS finish_reason, coalesce(t.verdict, 'all') AS verdict,
                   t.tokens, sum(t.n)::float8 AS n
            FROM lengths(j.id) t GROUP BY t.author, t.tokens, CUBE (t.finish_reason, t.verdict) HAVING sum(t.n) > 0
        ),
        placed AS (
            SELECT c.*, sum(c.n) OVER (PARTITION BY c.author, c.finish_reason, c.verdict ORDER BY c.tokens) AS upto,
                   sum(c.n) OVER (PARTITION BY c.author, c.finish_reason, c.verdict) AS total
            FROM cells c
        )
        SELECT author, finish_reason, verdict, sum(n)::bigint AS n, sum(n * tokens) / sum(n) AS mean,
               sqrt(greatest(0, sum(n * tokens * tokens) - sum(n * tokens) ^ 2 / sum(n)) / nullif(sum(n) - 1, 0)) AS sd,
               min(tokens) AS min, {percentile(0.5)} AS p50, {percentile(0.9)} AS p90, {percentile(0.95)} AS p95,
               {percentile(0.99)} AS p99, max(tokens) AS max, sum(n * tokens)::bigint AS total
        FROM placed GROUP BY author, finish_reason, verdict
    ) l
"""
DELEGATION = f"""
    SELECT j.id AS job_id, d.*
    FROM jobs j
    CROSS JOIN LATERAL (
        SELECT t.author, t.trigger, sum(t.num_segments)::bigint AS num_segments,
               sum(t.num_samples)::bigint AS num_samples, sum(t.tokens)::bigint AS tokens,
               (sum(t.tokens) / sum(t.num_segments))::float8 AS mean_tokens,
               sum(t.tokens_discarded)::bigint AS tokens_discarded,
               sum(t.cached)::bigint / nullif(sum(t.prompts), 0)::float8 AS share_cached,
               sum(t.wait_sum) / nullif(sum(t.waits), 0)::float8 AS mean_wait_seconds,
               sum(t.queue_sum) / nullif(sum(t.queues), 0)::float8 AS mean_queue_seconds,
               sum(t.write_sum) / nullif(sum(t.writes), 0)::float8 AS mean_write_seconds
        FROM {all_parts("delegation")} t GROUP BY t.author, t.trigger
    ) d
"""
TRUNCATION = f"""
    SELECT j.id AS job_id, c.finished + c.graded AS num_complete, c.num_length + c.num_context AS num_truncated,
           (c.num_length + c.num_context) / (c.finished + c.graded)::float8 AS share_truncated,
           c.num_length, c.num_context, c.num_repetition,
           (e.truncated_scores / nullif(c.scored_truncated, 0))::float8 AS accuracy_truncated,
           (e.eos_scores / nullif(c.scored_eos, 0))::float8 AS accuracy_eos
    FROM jobs j
    CROSS JOIN LATERAL count_states(j.id) c
    CROSS JOIN LATERAL (
        SELECT sum(a.truncated_scores) AS truncated_scores, sum(a.eos_scores) AS eos_scores
        FROM ({added_up("tell_samples", ["truncated_scores", "eos_scores"], job="j.id")}) a
    ) e
    WHERE c.finished + c.graded > 0
"""
MAJ_AT_K = f"""
    SELECT j.id AS job_id, t.k, sum(t.num_problems)::bigint AS num_problems,
           sum(t.share_sum) / sum(t.num_problems)::float8 AS maj_at_k
    FROM jobs j CROSS JOIN LATERAL {all_parts("votes")} t GROUP BY j.id, t.k
"""
TAKEOVER_FLOW = f"""
    SELECT j.id AS job_id, t.trigger, t.followed_by, sum(t.num_takeovers)::bigint AS num_takeovers,
           sum(t.position_sum) / nullif(sum(t.positions), 0)::float8 AS mean_position,
           (sum(t.tokens) / sum(t.num_takeovers))::float8 AS mean_tokens,
           (sum(t.tokens_between) / sum(t.num_takeovers))::float8 AS mean_tokens_between,
           sum(t.score_sum) / nullif(sum(t.scored), 0)::float8 AS accuracy
    FROM jobs j CROSS JOIN LATERAL {all_parts("flow")} t GROUP BY j.id, t.trigger, t.followed_by
"""
STEP_SUMMARY = f"""
    SELECT j.id AS job_id, g.sentence_class, g.author, g.num_steps,
           g.num_steps / (c.finished + c.graded)::float8 AS steps_per_sample,
           g.tokens, g.mean_tokens, g.p50_tokens, g.p90_tokens, g.num_taken_over, g.accuracy
    FROM jobs j
    CROSS JOIN LATERAL (
        WITH placed AS (
            SELECT b.*, sum(b.n) OVER (PARTITION BY b.sentence_class, b.author ORDER BY b.tokens) AS upto,
                   sum(b.n) OVER (PARTITION BY b.sentence_class, b.author) AS total
            FROM (
                SELECT t.sentence_class, t.author, t.tokens, sum(t.num_steps)::float8 AS n,
                       sum(t.num_taken_over) AS num_taken_over, sum(t.scored) AS scored, sum(t.score_sum) AS score_sum
                FROM {all_parts("step_counts")} t GROUP BY t.sentence_class, t.author, t.tokens
            ) b
        )
        SELECT sentence_class, author, sum(n)::bigint AS num_steps, sum(n * tokens)::bigint AS tokens,
               sum(n * tokens) / sum(n) AS mean_tokens, {percentile(0.5)} AS p50_tokens,
               {percentile(0.9)} AS p90_tokens, sum(num_taken_over)::bigint AS num_taken_over,
               sum(score_sum) / nullif(sum(scored), 0)::float8 AS accuracy
        FROM placed GROUP BY sentence_class, author
    ) g
    CROSS JOIN LATERAL count_states(j.id) c
"""
AHEAD = """
        SELECT coalesce(sum(n.pending), 0)::bigint AS samples_ahead
        FROM jobs o CROSS JOIN LATERAL (
            SELECT l.pending FROM lots l WHERE l.job_id = o.id AND l.counted_at IS NOT NULL
            UNION ALL
            SELECT t.pending FROM open_ranges(o.id) r
            CROSS JOIN LATERAL tell_samples(o.id, r.first_problem, r.last_problem) t
        ) n
        WHERE"""


def pass_at_k(first: Any) -> str:
    query: str = first.PASS_AT_K.query
    counted = between(query, "SELECT p.n, p.c, count(*) AS problems", "GROUP BY p.n, p.c")
    return changed(
        query,
        (counted, f"SELECT p.n, p.c, sum(p.problems) AS problems FROM {all_parts('passes')} p GROUP BY p.n, p.c"),
    )


def length_histogram(numbers: Any) -> str:
    query: str = numbers.LENGTH_HISTOGRAM.query
    complete = between(query, "SELECT s.tokens_small", "('finished', 'graded')")
    cells = """SELECT t.tokens, t.verdict, sum(t.n)::bigint AS n
            FROM lengths(j.id) t WHERE t.author = 'all' GROUP BY t.tokens, t.verdict HAVING sum(t.n) > 0"""
    return changed(
        query,
        (complete, cells),
        ("20) AS bucket, count(*) AS n,", "20) AS bucket, sum(c.n)::bigint AS n,"),
        ("count(*) FILTER (WHERE c.score >= 0.5)", "coalesce(sum(c.n) FILTER (WHERE c.verdict = 'right'), 0)::bigint"),
        ("count(*) FILTER (WHERE c.score < 0.5)", "coalesce(sum(c.n) FILTER (WHERE c.verdict = 'wrong'), 0)::bigint"),
        (
            "count(*) FILTER (WHERE c.score IS NULL)",
            "coalesce(sum(c.n) FILTER (WHERE c.verdict = 'unscored'), 0)::bigint",
        ),
    )


def budget_curve(numbers: Any) -> str:
    query: str = numbers.BUDGET_CURVE.query
    scored = between(query, "SELECT s.tokens_small", "s.score IS NOT NULL")
    cells = """SELECT t.tokens, sum(t.n)::bigint AS n, sum(t.score)::float8 AS score
            FROM lengths(j.id) t WHERE t.author = 'all' AND t.verdict <> 'unscored'
            GROUP BY t.tokens HAVING sum(t.n) > 0"""
    return changed(
        query,
        (scored, cells),
        ("count(*) AS n FROM scored", "coalesce(sum(n), 0)::bigint AS n FROM scored"),
        ("AS bucket, count(*) AS n, sum(c.score) AS score,", "AS bucket, sum(c.n) AS n, sum(c.score) AS score,"),
        ("sum(c.tokens) AS tokens", "sum(c.tokens * c.n) AS tokens"),
    )


def delegation_progress(numbers: Any) -> str:
    query: str = numbers.DELEGATION_PROGRESS.query
    all_tokens = between(query, "SELECT sum(s.tokens_small", "('finished', 'graded')")
    large = between(query, "SELECT t.tenth,\n", "GROUP BY t.tenth")
    return changed(
        query,
        (all_tokens, "SELECT nullif(t.complete_tokens, 0) AS tokens FROM count_states(j.id) t"),
        (
            large,
            f"""SELECT t.tenth, sum(t.tokens_large) AS tokens_large, sum(t.num_takeovers)::bigint AS num_takeovers
        FROM {all_parts("tenths")} t GROUP BY t.tenth""",
        ),
    )


def job_progress(progress: Any) -> str:
    query: str = progress.JOB_PROGRESS.query
    counted = between(query, "SELECT count(*) AS samples_total,", "HAVING ")
    states = ", ".join(f"t.{name}" for name in STATES)
    live = f"""SELECT t.samples_total, {states}, t.takeovers, t.tokens_small + t.discarded_small AS written_small,
               t.tokens_large + t.discarded_large AS written_large, e.delayed, e.next_try_at, e.suspects
        FROM count_states(j.id) t
        CROSS JOIN LATERAL (
            SELECT count(*) FILTER (WHERE s.not_before > clock_timestamp()) AS delayed,
                   min(s.not_before) FILTER (WHERE s.not_before > clock_timestamp()) AS next_try_at,
                   count(*) FILTER (WHERE s.num_rescues >= 2) AS suspects
            FROM samples s WHERE s.job_id = j.id AND s.state IN ('ready', 'awaiting_large')
              AND s.state IN ('ready', 'drafting', 'awaiting_large', 'assisting')
        ) e
        WHERE """
    return changed(
        query,
        (counted, live),
        (between(query, "SELECT count(*) AS samples_ahead", "WHERE"), AHEAD.strip()),
    )


FUNCTIONS = {
    "make_lots(bigint, integer)": MAKE_LOTS,
    "open_ranges(bigint)": OPEN_RANGES,
    "tell_samples(bigint, bigint, bigint)": TELL_SAMPLES,
    "tell_problems(bigint, bigint, bigint)": TELL_PROBLEMS,
    "tell_cost(bigint, bigint, bigint)": TELL_COST,
    **{f"tell_{part}(bigint, bigint, bigint)": tell(part, query) for part, query in TELL_PARTS.items()},
    "lengths(bigint)": LENGTHS,
    "count_states(bigint)": COUNT_STATES,
    "count_lot(bigint, bigint)": COUNT_LOT,
    "reopen_lots()": REOPEN_LOTS,
}


def revision_module(number: str) -> Any:
    """An earlier migration: what it made is made anew, now and on the way back."""
    scripts = op.get_context().script
    assert scripts is not None
    return scripts.get_revision(number).module


def bigint(name: str, comment: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), server_default="0", nullable=False, comment=comment)


def create_tables() -> None:
    op.create_table(
        "lots",
        sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("first_problem", sa.BigInteger(), autoincrement=False, nullable=False, comment="least problem id"),
        sa.Column("last_problem", sa.BigInteger(), nullable=False, comment="greatest problem id"),
        sa.Column(
            "counted_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="since when the counts hold; null: its samples are to be looked at",
        ),
        sa.Column(
            "changed_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when a sample of it last changed while it rested, or stopped to rest",
        ),
        *(bigint(name, comment) for name, comment in (SUMS | PROBLEM_SUMS | COST_SUMS).items() if is_bigint(name)),
        *(
            sa.Column(name, sa.Numeric(), server_default="0", nullable=False, comment=comment)
            for name, comment in (EXACT_SUMS | PROBLEM_SUMS).items()
            if not is_bigint(name)
        ),
        *(
            sa.Column(name, sa.Double(), server_default="0", nullable=False, comment=comment)
            for name, comment in COST_MEASURES.items()
        ),
        *(sa.Column(name, ARRAY(sa.Double()), nullable=True, comment=comment) for name, comment in LISTS.items()),
        *(
            sa.Column(part, JSONB(), server_default="[]", nullable=False, comment=comment)
            for part, comment in PART_COMMENTS.items()
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_lots_job_id_jobs"),
        sa.PrimaryKeyConstraint("job_id", "first_problem", name="pk_lots"),
    )
    op.create_index("ix_lots_open", "lots", ["job_id"], postgresql_where=sa.text("counted_at IS NULL"))
    op.create_table(
        "length_counts",
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("author", sa.String(), nullable=False, comment="whose tokens: all, small, large or inserted"),
        sa.Column("finish_reason", sa.String(), nullable=False),
        sa.Column("verdict", sa.String(), nullable=False, comment="right, wrong or unscored"),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False, comment="samples added, negative for samples taken out"),
        sa.Column("score", sa.Numeric(), nullable=False, comment="sum of their scores, likewise"),
        sa.Column(
            "is_base",
            sa.Boolean(),
            server_default="false",
            nullable=False,
            comment="the one row of its key that others are folded into",
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_length_counts_job_id_jobs"),
    )
    op.create_index(
        "ix_length_counts_base",
        "length_counts",
        ["job_id", "author", "finish_reason", "verdict", "tokens"],
        unique=True,
        postgresql_where=sa.text("is_base"),
    )
    op.create_index("ix_length_counts_job_id", "length_counts", ["job_id", "author"])
    op.create_index("ix_length_counts_added", "length_counts", ["job_id"], postgresql_where=sa.text("NOT is_base"))


def is_bigint(name: str) -> bool:
    return (name not in PROBLEM_SUMS and name not in EXACT_SUMS) or name == "problems_scored"


def upgrade() -> None:
    numbers = revision_module("0004")
    create_tables()
    op.create_index("ix_samples_failed", "samples", ["job_id"], postgresql_where=sa.text("state = 'failed'"))
    op.create_index(
        "ix_grades_failed", "grades", ["sample_id"], postgresql_where=sa.text("status IN ('timeout', 'error')")
    )
    for function in FUNCTIONS.values():
        op.execute(function)
    op.execute(REOPEN_TRIGGER)
    op.execute("SELECT make_lots(id) FROM jobs")
    op.execute(count_samples(numbers))
    op.execute(count_cost(numbers))
    for view, query in zip(remade_views(), queries(), strict=True):
        remake(view, query)


def downgrade() -> None:
    numbers = revision_module("0004")
    for view in remade_views():
        remake(view, view.query)
    for function in (numbers.COUNT_SAMPLES, numbers.COUNT_COST):
        op.execute(function.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"))
    op.execute("DROP TRIGGER reopen_lots ON samples")
    for function in reversed(FUNCTIONS):
        op.execute(f"DROP FUNCTION {function}")
    op.drop_index("ix_grades_failed", "grades")
    op.drop_index("ix_samples_failed", "samples")
    op.drop_table("length_counts")
    op.drop_table("lots")


def remade_views() -> tuple[Any, ...]:
    """The views that are made anew on the lots, as they were; their columns stay, with their comments."""
    first, numbers, progress = (revision_module(number) for number in ("0002", "0004", "0006"))
    return (
        progress.JOB_PROGRESS, first.TOKEN_LENGTHS, first.DELEGATION, first.TRUNCATION, first.PASS_AT_K,
        numbers.MAJ_AT_K, numbers.LENGTH_HISTOGRAM, numbers.BUDGET_CURVE, numbers.TAKEOVER_FLOW,
        numbers.DELEGATION_PROGRESS, numbers.STEP_SUMMARY,
    )  # fmt: skip


def queries() -> tuple[str, ...]:
    """Of the same views, on the lots."""
    first, numbers, progress = (revision_module(number) for number in ("0002", "0004", "0006"))
    return (
        job_progress(progress), TOKEN_LENGTHS, DELEGATION, TRUNCATION, pass_at_k(first), MAJ_AT_K,
        length_histogram(numbers), budget_curve(numbers), TAKEOVER_FLOW, delegation_progress(numbers), STEP_SUMMARY,
    )  # fmt: skip


def remake(view: Any, query: str) -> None:
    op.execute(f"DROP VIEW {view.name}")
    op.execute(f"CREATE VIEW {view.name} AS {query}")
    revision_module("0006").comment_on(view)
