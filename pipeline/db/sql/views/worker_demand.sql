-- Read by: autoscalers (deploy/kubernetes), the metrics (pipeline.db.metrics), people.

CREATE VIEW worker_demand AS
SELECT d.role, d.model, d.waiting, d.writing, l.live_workers, l.slots,
       CASE WHEN d.open = 0 THEN 0 ELSE greatest(1, ceil((d.waiting + d.writing)::numeric / l.slots)) END::bigint AS wanted
FROM (
    SELECT r.role, r.model, sum(r.waiting)::bigint AS waiting, sum(r.writing)::bigint AS writing,
           sum(r.open)::bigint AS open
    FROM (
        SELECT v.role, v.model, v.waiting, v.writing,
               c.pending + c.ready + c.drafting + c.awaiting_large + c.assisting AS open
        FROM jobs j
        CROSS JOIN LATERAL count_states(j.id) c
        CROSS JOIN LATERAL (
            VALUES ('small', j.small_model, c.ready + CASE j.first_role WHEN 'small' THEN c.pending ELSE 0 END,
                    c.drafting),
                   ('large', j.large_model, c.awaiting_large + CASE j.first_role WHEN 'large' THEN c.pending ELSE 0 END,
                    c.assisting)
        ) AS v (role, model, waiting, writing)
        WHERE j.state = 'running' AND v.model IS NOT NULL
        UNION ALL
        SELECT w.kind, w.model, 0, 0, 0 FROM workers w  -- nobody asks for its model: zero are wanted
        WHERE w.kind IN ('small', 'large') AND w.model IS NOT NULL AND w.ended_at IS NULL
          AND w.expires_at > clock_timestamp()
    ) r
    GROUP BY r.role, r.model
) d
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE w.is_live) AS live_workers,
           greatest(1, coalesce(floor(avg(w.slots) FILTER (WHERE w.is_live)),
                                (array_agg(w.slots ORDER BY w.id DESC))[1], 128))::bigint AS slots
    FROM (
        SELECT k.id, coalesce(k.num_slots, k.max_in_flight) AS slots,
               k.ended_at IS NULL AND k.expires_at > clock_timestamp() AS is_live
        FROM workers k WHERE k.kind = d.role AND k.model = d.model
    ) w
) l;

COMMENT ON VIEW worker_demand IS
    'How many workers of each model running jobs could use now: what an autoscaler reads. A paused job asks for none.';
COMMENT ON COLUMN worker_demand.role IS 'small or large';
COMMENT ON COLUMN worker_demand.model IS 'the name that jobs use';
COMMENT ON COLUMN worker_demand.waiting IS
    'samples that wait for this model: to be taken up, or to be admitted where it opens them';
COMMENT ON COLUMN worker_demand.writing IS 'samples that a worker of it writes';
COMMENT ON COLUMN worker_demand.live_workers IS 'workers with a valid lease that serve it';
COMMENT ON COLUMN worker_demand.slots IS
    'samples that one worker has room for: mean of the live ones, else of the last that there was, else 128';
COMMENT ON COLUMN worker_demand.wanted IS
    'waiting and writing samples over slots, rounded up; at least 1 while a running job with open samples names the '
    'model, since a worker takes minutes to start; 0 where none does';
