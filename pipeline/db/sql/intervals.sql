-- 95 % intervals.
-- Read by: the views job_summary, job_comparison and subject_scores.

CREATE FUNCTION student_t(degrees bigint) RETURNS float8 LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT CASE WHEN degrees <= 30 THEN (ARRAY[
        12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139,
        2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922, 2.093024, 2.085963,
        2.079614, 2.073873, 2.068658, 2.063899, 2.059539, 2.055529, 2.051831, 2.048407, 2.045230, 2.042272
    ])[degrees]
    -- Cornish and Fisher's expansion: right to five digits from here on.
    ELSE 1.959964 + 2.372271 / degrees + 2.822510 / degrees ^ 2 + 2.5558 / degrees ^ 3 END::float8
$$;

COMMENT ON FUNCTION student_t IS
    'the value that Student''s t of so many degrees of freedom exceeds on either side in 5 % of draws';

CREATE FUNCTION wilson_interval(share float8, samples float8, z float8, OUT low float8, OUT high float8)
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    -- Where all are wrong or right, rounding alone would put a square below 0, or an end below 0 or above 1.
    SELECT greatest(0, w.centre - w.half), least(1, w.centre + w.half)
    FROM (
        SELECT (share + z ^ 2 / (2 * samples)) / (1 + z ^ 2 / samples) AS centre,
               z * sqrt(greatest(0, share * (1 - share)) / samples + z ^ 2 / (4 * samples ^ 2))
               / (1 + z ^ 2 / samples) AS half
    ) w
$$;

COMMENT ON FUNCTION wilson_interval IS
    'Wilson''s interval of a share among so many samples, z standard deviations to either side';
