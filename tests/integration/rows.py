"""Jobs in any state, put into the database by hand: what reading is tested on."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, text

from pipeline.db import totals
from pipeline.jobs.config import JobConfig, ModelSpec
from pipeline.policies import parse_policy


def add_problem_set(connection: Connection, num_problems: int = 4, *, name: str = "sums") -> int:
    """A set of its own; its problems are p0, p1, …, the answer of p3 is 3."""
    set_id = connection.execute(
        text(
            "INSERT INTO problem_sets (name, content_sha256, num_problems, num_references, has_choices) "
            "VALUES (:name, md5(random()::text), :n, :n, false) RETURNING id"
        ),
        {"name": name, "n": num_problems},
    ).scalar_one()
    connection.execute(
        text(
            "WITH new AS (INSERT INTO problems (problem_set_id, position, external_id, prompt, shown) "
            "SELECT :set, i, 'p' || i, 'What is ' || i || '?', '{}' FROM generate_series(0, :n - 1) AS i "
            "ORDER BY i RETURNING id, position), "
            'hidden AS (INSERT INTO hidden_columns (problem_id, columns) SELECT id, \'{"source": "sums"}\' FROM new) '
            "INSERT INTO reference_answers (problem_id, answer) SELECT id, position::text FROM new"
        ),
        {"set": set_id, "n": num_problems},
    )
    return int(set_id)


def add_job(
    connection: Connection, problem_set_id: int, *, policy: str = "speculative-thinking:improved", num_samples: int = 1,
    state: str = "running", seconds: float | None = None, name: str = "a job",
) -> int:  # fmt: skip
    """A job without samples. seconds: from its first claim to its end (or until now); None: nothing claimed yet."""
    config = JobConfig(
        small=ModelSpec(name="S"), large=ModelSpec(name="L"), policy=parse_policy(policy), num_samples=num_samples
    )
    return int(
        connection.execute(
            text("""
                INSERT INTO jobs (name, problem_set_id, state, config, versions, policy, small_model, large_model,
                                  first_role, num_problems, num_samples, first_claimed_at, finished_at)
                SELECT :name, p.id, CAST(:state AS varchar), CAST(:config AS jsonb), '{}', :policy, 'S', 'L',
                       :first_role, p.num_problems, :num_samples,
                       now() - make_interval(secs => CAST(:seconds AS float8)),
                       CASE WHEN CAST(:state AS varchar) NOT IN ('running', 'paused') THEN now() END
                FROM problem_sets p WHERE p.id = :set RETURNING id
            """),
            {
                "name": name, "set": problem_set_id, "state": state, "config": config.model_dump_json(),
                "policy": policy, "first_role": "large" if policy == "large-only" else "small",
                "num_samples": num_samples, "seconds": seconds,
            },
        ).scalar_one()
    )  # fmt: skip


def add_samples(connection: Connection, job_id: int, samples: Sequence[dict[str, Any]]) -> list[int]:
    """One per dict: problem (its position), and any column; what the state needs is filled in."""
    return [_add_sample(connection, job_id, {"problem": 0, **sample}) for sample in samples]


def _add_sample(connection: Connection, job_id: int, sample: dict[str, Any]) -> int:
    position = sample.pop("problem")
    state = sample.setdefault("state", "graded")
    if state in ("finished", "graded"):
        sample.setdefault("finish_reason", "eos")
    if state == "failed":
        sample.setdefault("error", "it broke")
        sample.setdefault("error_class", "engine_refused")
    ended = "now()" if state in ("graded", "failed", "cancelled") else "NULL"
    names = ", ".join(sample)
    values = ", ".join(f":{name}" for name in sample)
    return int(
        connection.execute(
            text(f"""
                INSERT INTO samples (job_id, problem_id, sample_index, ended_at, {names})
                SELECT j.id, p.id,
                       (SELECT count(*) FROM samples s WHERE s.job_id = j.id AND s.problem_id = p.id),
                       {ended}, {values}
                FROM jobs j JOIN problems p ON p.problem_set_id = j.problem_set_id AND p.position = :position
                WHERE j.id = :job RETURNING id
            """),
            {"job": job_id, "position": position, **sample},
        ).scalar_one()
    )


def add_worker(
    connection: Connection, kind: str, *, model: str | None = None, alive: bool = True, **columns: Any
) -> int:
    """A worker whose lease is valid, or has just run out."""
    names = "".join(f", {name}" for name in columns)
    values = "".join(f", :{name}" for name in columns)
    return int(
        connection.execute(
            text(f"""
                INSERT INTO workers (kind, model, host, pid, queue, max_in_flight, expires_at{names})
                VALUES (:kind, :model, 'here', 1, 'q', 8, now() + make_interval(secs => :left){values}) RETURNING id
            """),
            {"kind": kind, "model": model, "left": 3600 if alive else -1, **columns},
        ).scalar_one()
    )


def refuse_rows(connection: Connection, rows: str, *, when: str, condition: str, message: str) -> None:
    """Let Postgres raise a condition of its own for rows: "INSERT ON segments", where ``when`` holds of the new one.
    ``DROP FUNCTION refuse_rows CASCADE`` ends it."""
    connection.execute(
        text(
            "CREATE FUNCTION refuse_rows() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{message}' USING ERRCODE = '{condition}'; END $$"
        )
    )
    connection.execute(
        text(f"CREATE TRIGGER refused BEFORE {rows} FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION refuse_rows()")
    )


def add_engine(connection: Connection, model: str) -> int:
    return int(
        connection.execute(
            text("""
                INSERT INTO engines (sha256, kind, version, model, model_fingerprint, vocabulary_sha256, settings)
                VALUES (md5(random()::text), 'scripted', '1', :model, 'f', 'v', '{}') RETURNING id
            """),
            {"model": model},
        ).scalar_one()
    )


def add_segment(
    connection: Connection, sample_id: int, index: int, author: str, written: str, *, trigger: str = "start",
    discarded: str = "", worker_id: int, engine_id: int, **columns: Any,
) -> None:  # fmt: skip
    """A segment with one token per character; takes_over: whether it is a takeover."""
    values = {
        "sample_id": sample_id, "segment_index": index, "author": author, "trigger": trigger, "cue": "",
        "token_ids": [ord(letter) for letter in written], "text": written,
        "discarded_ids": [ord(letter) for letter in discarded], "discarded_text": discarded,
        "token_lengths": [1] * len(written + discarded), "tokens_generated": len(written + discarded),
        "prompt_tokens": 10, "cached_tokens": 0, "epoch": 1, "worker_id": worker_id, "engine_id": engine_id, **columns,
    }  # fmt: skip
    statement = f"INSERT INTO segments ({', '.join(values)}) VALUES ({', '.join(f':{name}' for name in values)})"
    connection.execute(text(statement), values)


def add_aside(
    connection: Connection, sample_id: int, index: int, author: str, written: str, *, after_segment: int,
    worker_id: int, engine_id: int, **columns: Any,
) -> None:  # fmt: skip
    """An aside with one token per character."""
    values = {
        "sample_id": sample_id, "aside_index": index, "after_segment": after_segment, "author": author,
        "purpose": "rate", "question": "", "turn": False, "opening": "", "after_asides": "[]",
        "token_ids": [ord(letter) for letter in written], "text": written, "token_lengths": [1] * len(written),
        "finish": "length", "top": [-0.1, -2.5], "labels": '{"yes": -0.1, "no": null}',
        "tokens_generated": len(written), "prompt_tokens": 10, "cached_tokens": 0, "epoch": 1,
        "worker_id": worker_id, "engine_id": engine_id, "content_sha256": "…", **columns,
    }  # fmt: skip
    statement = f"INSERT INTO asides ({', '.join(values)}) VALUES ({', '.join(f':{name}' for name in values)})"
    connection.execute(text(statement), values)


def add_signal(
    connection: Connection, sample_id: int, kind: str, index: int, name: str, values: Sequence[float | None],
    *, places: Sequence[int] | None = None,
) -> None:  # fmt: skip
    """What was read of the tokens of a segment or an aside. places: of a sparse signal."""
    connection.execute(
        text("""
            INSERT INTO signals (sample_id, kind, index, name, places, values)
            VALUES (:sample, :kind, :index, :name, :places, :values)
        """),
        {
            "sample": sample_id, "kind": kind, "index": index, "name": name, "values": list(values),
            "places": None if places is None else list(places),
        },
    )  # fmt: skip


def add_step(connection: Connection, sample_id: int, index: int, author: str, written: str, **columns: Any) -> None:
    tokens = {f"tokens_{who}": len(written) if who == author else 0 for who in ("small", "large", "inserted")}
    values = {
        "sample_id": sample_id, "step_index": index, "text": written, "author": author, **tokens, "start_token": 0,
        "sentence_class": "statement", "trigger": None, **columns,
    }  # fmt: skip
    statement = f"INSERT INTO steps ({', '.join(values)}) VALUES ({', '.join(f':{name}' for name in values)})"
    connection.execute(text(statement), values)


def one(connection: Connection, query: str, **params: Any) -> dict[str, Any]:
    """The single row of a query."""
    return dict(connection.execute(text(query), params).mappings().one())


def every(connection: Connection, query: str, **params: Any) -> list[dict[str, Any]]:
    return [dict(row) for row in connection.execute(text(query), params).mappings()]


def count_ended(connection: Connection, *, quiet: dt.timedelta = dt.timedelta(0)) -> list[int]:
    """The ended jobs whose totals are counted and kept now, as upkeep does it."""
    jobs = totals.uncounted_jobs(connection, quiet=quiet, limit=10)
    return [job for job in jobs if totals.count_job(connection, job, quiet=quiet)]
