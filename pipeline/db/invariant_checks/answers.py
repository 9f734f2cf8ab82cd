"""Statements on reference answers and hidden columns: they are in no other place than their own tables."""

from __future__ import annotations

# One equal value is chance (a column of options holds the right one in some rows); a column that gives the answer,
# alone or boxed at the end of a worked solution, for most of the problems that have it is the answers again.
_ANSWERS_IN_OTHER_COLUMNS = r"""
    SELECT 0 AS position, format('problems.shown, column %s', c.name) AS place,
           format('gives the reference answer of %s problems out of %s that have it', c.given, c.n) AS what
    FROM (
        SELECT x.name, count(*) AS n, count(*) FILTER (WHERE x.is_given) AS given,
               count(DISTINCT x.answer) FILTER (WHERE x.is_given) AS answers, max(length(x.answer)) AS longest
        FROM (
            SELECT e.key AS name, r.answer,
                   lower(btrim(e.value)) = lower(btrim(r.answer))
                   OR strpos(e.value, format('\boxed{%s}', r.answer)) > 0 AS is_given
            FROM jobs j JOIN problems p ON p.problem_set_id = j.problem_set_id AND p.position < j.num_problems
            JOIN reference_answers r ON r.problem_id = p.id
            CROSS JOIN LATERAL jsonb_each_text(CASE jsonb_typeof(p.shown) WHEN 'object' THEN p.shown END)
                AS e(key, value)
            WHERE j.id = :job AND e.value <> ''
        ) x GROUP BY x.name
    ) c
    WHERE c.given > 0 AND (
        (2 * c.given > c.n AND (c.answers > 1 OR (c.n = 1 AND c.longest >= 4)))
        OR (lower(c.name) = ANY(:answer_columns) AND c.given = c.n)
    )
"""
_HIDDEN_AND_SHOWN = """
    SELECT p.position, 'problem ' || p.external_id AS place, format('shows its hidden column %s', c.name) AS what
    FROM jobs j JOIN problems p ON p.problem_set_id = j.problem_set_id AND p.position < j.num_problems
    JOIN hidden_columns h ON h.problem_id = p.id
    CROSS JOIN LATERAL jsonb_object_keys(CASE jsonb_typeof(h.columns) WHEN 'object' THEN h.columns END) AS c(name)
    WHERE j.id = :job AND p.shown ? c.name
"""
# A context or a second wording may be part of a prompt; a worked solution, a rationale or a test may not.
_HIDDEN_TEXT_IN_PROMPTS = """
    SELECT p.position, 'problem ' || p.external_id AS place,
           format('has the text of its hidden column %s where generating workers read', c.key) AS what
    FROM jobs j JOIN problems p ON p.problem_set_id = j.problem_set_id AND p.position < j.num_problems
    JOIN hidden_columns h ON h.problem_id = p.id
    CROSS JOIN LATERAL jsonb_each_text(CASE jsonb_typeof(h.columns) WHEN 'object' THEN h.columns END) AS c(key, value)
    WHERE j.id = :job AND length(c.value) >= :min_hidden_chars AND lower(c.key) ~ :telling_columns
      AND (strpos(p.prompt, c.value) > 0 OR EXISTS (
          SELECT FROM jsonb_path_query(p.shown, 'strict $.**') AS v(value)
          WHERE jsonb_typeof(v.value) = 'string' AND strpos(v.value #>> '{}', c.value) > 0))
"""
# Only answers that nobody writes by chance: long enough, and with a digit or a sign ("reflection" is a trigger's name).
# States in the event log are not searched: those that are no state are illegal moves.
_ANSWERS_IN_OTHER_TABLES = r"""
    WITH hands AS MATERIALIZED (
        SELECT DISTINCT e.worker_id AS id FROM events e WHERE e.job_id = :job AND e.worker_id IS NOT NULL
        UNION SELECT g.worker_id FROM segments g JOIN samples s ON s.id = g.sample_id WHERE s.job_id = :job
    ), hay AS MATERIALIZED (
        SELECT format('job %s', j.id) AS place, concat_ws(
                   E'\n', CASE jsonb_typeof(j.config) WHEN 'object' THEN j.config - 'few_shot' ELSE j.config END,
                   j.versions, j.name, j.policy, j.think_end) AS written
        FROM jobs j WHERE j.id = :job
        UNION ALL
        SELECT format('worker %s', w.id), concat_ws(E'\n', w.model, w.host, w.queue)
        FROM hands JOIN workers w ON w.id = hands.id
        UNION ALL
        SELECT format('engine %s', n.id), concat_ws(E'\n', n.kind, n.version, n.model, n.settings)
        FROM engines n WHERE n.id IN (SELECT w.engine_id FROM hands JOIN workers w ON w.id = hands.id)
    ), needles AS MATERIALIZED (
        SELECT DISTINCT r.answer, trim('"' FROM to_json(r.answer)::text) AS as_json
        FROM jobs j JOIN problems p ON p.problem_set_id = j.problem_set_id AND p.position < j.num_problems
        JOIN reference_answers r ON r.problem_id = p.id
        WHERE j.id = :job AND length(r.answer) >= :min_answer_chars AND r.answer ~ '[0-9\\{}^_=/+]'
    )
    SELECT 0 AS position, h.place, 'has the reference answer of a problem in it' AS what
    FROM hay h WHERE EXISTS (
        SELECT FROM needles n WHERE strpos(h.written, n.answer) > 0 OR strpos(h.written, n.as_json) > 0
    )
"""
# The one exception, which must be known by its set: doctor and the notes of a submission go by that.
_UNTOLD_ANSWERS_OF_JUDGES = r"""
    SELECT 0 AS position, format('job %s', j.id) AS place,
           'is a judge whose prompts show reference answers, and its problem set does not say of which set' AS what
    FROM jobs j JOIN problem_sets p ON p.id = j.problem_set_id
    WHERE j.id = :job AND j.config#>>'{judging,template_text}' ~ '\{\{\s*reference\s*\}\}'
      AND p.tells_answers_of IS NULL
"""

STATEMENTS = (
    _ANSWERS_IN_OTHER_COLUMNS,
    _HIDDEN_AND_SHOWN,
    _HIDDEN_TEXT_IN_PROMPTS,
    _ANSWERS_IN_OTHER_TABLES,
    _UNTOLD_ANSWERS_OF_JUDGES,
)
