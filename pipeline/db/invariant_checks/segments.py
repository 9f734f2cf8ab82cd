"""Statements on segments, asides and steps: numbered 0 to n-1, ids and text agree."""

from __future__ import annotations

_SEGMENTS_OF_EACH_SAMPLE = """
    SELECT s.id AS position, format('sample %s', s.id) AS place, CASE
               WHEN (c.n, c.first, c.last) IS DISTINCT FROM (s.num_segments::bigint, 0, s.num_segments - 1)
               THEN format('counts %s segments and has %s, numbered %s to %s', s.num_segments, coalesce(c.n, 0),
                           coalesce(c.first::text, '-'), coalesce(c.last::text, '-'))
               ELSE format('counts %s tokens and has %s ids', s.tokens_small + s.tokens_large + s.tokens_inserted,
                           c.kept) END AS what
    FROM samples s LEFT JOIN (
        SELECT g.sample_id, count(*) AS n, min(g.segment_index) AS first, max(g.segment_index) AS last,
               sum(cardinality(g.token_ids)) AS kept
        FROM segments g JOIN samples s ON s.id = g.sample_id WHERE s.job_id = :job GROUP BY g.sample_id
    ) c ON c.sample_id = s.id
    WHERE s.job_id = :job AND CASE WHEN s.num_segments = 0 AND c.n IS NULL
        THEN s.tokens_small + s.tokens_large + s.tokens_inserted <> 0
        ELSE (c.n, c.first, c.last) IS DISTINCT FROM (s.num_segments::bigint, 0, s.num_segments - 1)
             OR c.kept <> s.tokens_small + s.tokens_large + s.tokens_inserted END
"""
_TEXT_OF_EACH_SEGMENT = """
    SELECT g.sample_id AS position, format('sample %s, segment %s', g.sample_id, g.segment_index) AS place,
           format('%s kept and %s discarded ids, %s lengths of %s and %s characters, texts of %s and %s',
                  cardinality(g.token_ids), cardinality(g.discarded_ids), cardinality(g.token_lengths),
                  n.kept, n.discarded, length(g.text), length(g.discarded_text)) AS what
    FROM segments g JOIN samples s ON s.id = g.sample_id
    CROSS JOIN LATERAL (
        SELECT coalesce((SELECT sum(l) FROM unnest(g.token_lengths[1 : cardinality(g.token_ids)]) AS u(l)), 0) AS kept,
               coalesce((SELECT sum(l) FROM unnest(g.token_lengths[cardinality(g.token_ids) + 1 :]) AS u(l)), 0)
               AS discarded
    ) n
    WHERE s.job_id = :job AND (
        cardinality(g.token_lengths) <> cardinality(g.token_ids) + cardinality(g.discarded_ids)
        OR n.kept <> length(g.text) OR n.discarded <> length(g.discarded_text)
    )
"""
_ASIDES_OF_EACH_SAMPLE = """
    SELECT s.id AS position, format('sample %s', s.id) AS place,
           format('counts %s asides and has %s, numbered %s to %s', s.num_asides, coalesce(c.n, 0),
                  coalesce(c.first::text, '-'), coalesce(c.last::text, '-')) AS what
    FROM samples s LEFT JOIN (
        SELECT a.sample_id, count(*) AS n, min(a.aside_index) AS first, max(a.aside_index) AS last
        FROM asides a JOIN samples s ON s.id = a.sample_id WHERE s.job_id = :job GROUP BY a.sample_id
    ) c ON c.sample_id = s.id
    WHERE s.job_id = :job AND CASE WHEN s.num_asides = 0 THEN c.n IS NOT NULL
        ELSE (c.n, c.first, c.last) IS DISTINCT FROM (s.num_asides::bigint, 0, s.num_asides - 1) END
"""
_PARTS_OF_EACH_SAMPLE = """
    SELECT s.id AS position, format('sample %s', s.id) AS place,
           format('counts %s tokens of segment %s in parts and has %s, %s', s.part_tokens, s.num_segments,
                  coalesce(c.tokens, 0), CASE WHEN c.joined THEN 'without a gap' ELSE 'with a gap' END) AS what
    FROM samples s LEFT JOIN LATERAL (
        SELECT sum(cardinality(p.token_ids)) AS tokens, bool_and(p.joined) AS joined
        FROM (
            SELECT p.start_token, p.token_ids, p.start_token = coalesce(
                       lag(p.start_token + cardinality(p.token_ids)) OVER (ORDER BY p.start_token), 0) AS joined
            FROM segment_parts p WHERE p.sample_id = s.id AND p.segment_index = s.num_segments
        ) p
    ) c ON true
    WHERE s.job_id = :job AND s.part_tokens > 0 AND (s.part_tokens, true) IS DISTINCT FROM (c.tokens, c.joined)
"""
_TEXT_OF_EACH_ASIDE = """
    SELECT a.sample_id AS position, format('sample %s, aside %s', a.sample_id, a.aside_index) AS place,
           format('%s ids, %s lengths of %s characters, a text of %s, after segment %s of %s',
                  cardinality(a.token_ids), cardinality(a.token_lengths), n.characters, length(a.text),
                  a.after_segment, s.num_segments) AS what
    FROM asides a JOIN samples s ON s.id = a.sample_id
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(l), 0) AS characters FROM unnest(a.token_lengths) AS u(l)
    ) n
    WHERE s.job_id = :job AND (
        cardinality(a.token_lengths) <> cardinality(a.token_ids) OR n.characters <> length(a.text)
        OR a.after_segment < 0 OR a.after_segment > s.num_segments
    )
"""
_HEADS_OF_ASIDES = """
    SELECT g.sample_id AS position, format('sample %s, segment %s', g.sample_id, g.segment_index) AS place,
           CASE WHEN a.sample_id IS NULL THEN format('is taken from aside %s, which there is not', g.taken_from)
                ELSE format('is not the head of aside %s, which %s wrote', g.taken_from, a.author) END AS what
    FROM segments g JOIN samples s ON s.id = g.sample_id
    LEFT JOIN asides a ON a.sample_id = g.sample_id AND a.aside_index = g.taken_from
    WHERE s.job_id = :job AND g.taken_from IS NOT NULL
      AND (a.author, a.engine_id, a.token_ids[1 : cardinality(g.token_ids)], 0)
          IS DISTINCT FROM (g.author, g.engine_id, g.token_ids, cardinality(g.discarded_ids))
"""
_SIGNALS_OF_EACH_PIECE = """
    SELECT r.sample_id AS position, format('sample %s, %s %s, signal %s', r.sample_id, r.kind, r.index, r.name)
           AS place, CASE WHEN p.n IS NULL THEN 'is of no such piece'
           ELSE format('%s values at %s places of a piece of %s tokens', cardinality(r.values),
                       coalesce(cardinality(r.places)::text, 'all'), p.n) END AS what
    FROM signals r JOIN samples s ON s.id = r.sample_id
    LEFT JOIN LATERAL (
        SELECT cardinality(g.token_ids) + cardinality(g.discarded_ids) AS n FROM segments g
        WHERE r.kind = 'segment' AND g.sample_id = r.sample_id AND g.segment_index = r.index
        UNION ALL
        SELECT cardinality(a.token_ids) FROM asides a
        WHERE r.kind = 'aside' AND a.sample_id = r.sample_id AND a.aside_index = r.index
    ) p ON true
    WHERE s.job_id = :job AND (
        p.n IS NULL OR cardinality(r.values) <> coalesce(cardinality(r.places), p.n)
        OR EXISTS (SELECT FROM unnest(r.places) AS u(place) WHERE u.place < 0 OR u.place >= p.n)
    )
"""
_STEPS_OF_EACH_SAMPLE = """
    WITH output AS (
        SELECT g.sample_id, string_agg(g.text, '' ORDER BY g.segment_index) AS text
        FROM segments g JOIN samples s ON s.id = g.sample_id
        WHERE s.job_id = :job AND s.state IN ('finished', 'graded') GROUP BY g.sample_id
    ), told AS (
        SELECT t.sample_id, string_agg(t.text, '' ORDER BY t.step_index) AS text, count(*) AS n,
               min(t.step_index) AS first, max(t.step_index) AS last, sum(t.tokens_small) AS tokens_small,
               sum(t.tokens_large) AS tokens_large, sum(t.tokens_inserted) AS tokens_inserted
        FROM steps t JOIN samples s ON s.id = t.sample_id WHERE s.job_id = :job GROUP BY t.sample_id
    )
    SELECT s.id AS position, format('sample %s', s.id) AS place, CASE
               WHEN s.state NOT IN ('finished', 'graded', 'cancelled', 'failed') THEN 'has steps before it is complete'
               WHEN (t.first, t.last) <> (0, t.n - 1)
               THEN format('has %s steps, numbered %s to %s', t.n, t.first, t.last)
               WHEN coalesce(t.text, '') <> coalesce(o.text, '') THEN 'its steps joined are not its segments joined'
               ELSE format('has %s, %s and %s tokens (small, large, inserted), its steps have %s, %s and %s',
                           s.tokens_small, s.tokens_large, s.tokens_inserted,
                           t.tokens_small, t.tokens_large, t.tokens_inserted) END AS what
    FROM samples s LEFT JOIN output o ON o.sample_id = s.id LEFT JOIN told t ON t.sample_id = s.id
    WHERE s.job_id = :job AND CASE
        WHEN s.state IN ('finished', 'graded')
        THEN coalesce(t.text, '') <> coalesce(o.text, '') OR (t.first, t.last) <> (0, t.n - 1)
             OR (t.tokens_small, t.tokens_large, t.tokens_inserted)
                <> (s.tokens_small, s.tokens_large, s.tokens_inserted)
        ELSE s.state NOT IN ('cancelled', 'failed') AND t.n > 0 END
"""

STATEMENTS = (
    _SEGMENTS_OF_EACH_SAMPLE,
    _TEXT_OF_EACH_SEGMENT,
    _PARTS_OF_EACH_SAMPLE,
    _ASIDES_OF_EACH_SAMPLE,
    _TEXT_OF_EACH_ASIDE,
    _HEADS_OF_ASIDES,
    _SIGNALS_OF_EACH_PIECE,
    _STEPS_OF_EACH_SAMPLE,
)
