"""Archived jobs on real databases: what comes back is what was there, in this database or another, or nothing does."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow
import pytest
from pyarrow import parquet
from sqlalchemy import Connection, Engine, text

from pipeline.archives.checking import check
from pipeline.archives.folder import unfinished_folder
from pipeline.archives.manifest import FILE_NAME
from pipeline.archives.restoring import restore_job
from pipeline.archives.tables import TABLES
from pipeline.archives.writing import archive_job, remove_archived
from pipeline.cli import main
from pipeline.db.invariants import check_job, snapshot, unchecked
from pipeline.db.removal import remove_events, remove_job
from pipeline.db.rollups import refresh_rollup, refreshable_rollups
from pipeline.db.session import open_database, transaction
from pipeline.embedded import Connections
from pipeline.errors import ArchiveError, ConfigurationError, JobError, NotFound
from pipeline.logins import DatabaseRole
from pipeline.results.promises import Invariant
from tests.conftest import TEMPLATE, copy_database, with_database
from tests.integration.rows import (
    add_aside,
    add_engine,
    add_job,
    add_problem_set,
    add_samples,
    add_segment,
    add_signal,
    add_step,
    add_worker,
    count_ended,
    every,
    one,
)
from tests.integration.test_invariants import fill, submit

pytestmark = pytest.mark.integration

SOURCE = "archive_source"


@dataclass(frozen=True)
class Source:
    """A database that real workers filled; tests use copies of it. jobs: by what happened to them."""

    connections: Connections
    jobs: dict[str, int]


@contextmanager
def copy_of(connections: Connections, template: str) -> Iterator[Engine]:
    name = f"test_{uuid.uuid4().hex[:12]}"
    owner = open_database(connections.database_url)
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        copy_database(connection, template, name)
    db_engine = open_database(with_database(connections.database_url, name))
    yield db_engine
    db_engine.dispose()
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    owner.dispose()


_ROWS = text("""
    INSERT INTO experiment_jobs (experiment, row_name, job_id, control_of) VALUES (:experiment, :row, :job, :of)
""")


@pytest.fixture(scope="module")
def source(servers: Connections) -> Iterator[Source]:
    owner = open_database(servers.database_url)
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        copy_database(connection, TEMPLATE, SOURCE)
    db_engine = open_database(with_database(servers.database_url, SOURCE))
    jobs = fill(db_engine)
    with transaction(db_engine) as connection:
        connection.execute(text("UPDATE jobs SET cloned_from = :done WHERE id = :cut"), jobs)
        connection.execute(text("UPDATE jobs SET cloned_from = :cut WHERE id = :redrawn"), jobs)
        connection.execute(text("INSERT INTO experiments (name) VALUES ('triggers'), ('cuts')"))
        connection.execute(_ROWS, [
            {"experiment": "triggers", "row": "glimpse", "job": jobs["done"], "of": None},
            {"experiment": "triggers", "row": "random for glimpse", "job": jobs["cut"], "of": jobs["done"]},
            {"experiment": "cuts", "row": "glimpse", "job": jobs["done"], "of": None},
        ])  # fmt: skip
        refresh_all(connection)
    db_engine.dispose()
    yield Source(servers, jobs)
    with owner.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"DROP DATABASE {SOURCE} WITH (FORCE)"))
    owner.dispose()


@pytest.fixture
def filled(source: Source) -> Iterator[Engine]:
    with copy_of(source.connections, SOURCE) as db_engine:
        yield db_engine


@pytest.fixture
def empty(servers: Connections) -> Iterator[Engine]:
    with copy_of(servers, TEMPLATE) as db_engine:
        yield db_engine


def refresh_all(connection: Connection) -> None:
    """What upkeep does by and by."""
    for rollup in refreshable_rollups(connection, quiet=dt.timedelta(0), limit=1000):
        refresh_rollup(connection, rollup)
    count_ended(connection)


OF_JOB = {
    "jobs": "t.id = :job",
    "samples": "t.job_id = :job",
    "events": "t.job_id = :job",
    "experiment_jobs": "t.job_id = :job",
    **dict.fromkeys(
        ("segments", "segment_parts", "asides", "signals", "steps", "grades"),
        "t.sample_id IN (SELECT id FROM samples WHERE job_id = :job)",
    ),
    **dict.fromkeys(("problem_sets", "problems", "reference_answers", "hidden_columns", "engines", "workers"), "true"),
}


def rows(db_engine: Engine, job: int) -> dict[str, list[str]]:
    """All rows of the archived tables, as Postgres writes them."""
    assert OF_JOB.keys() == {table.name for table in TABLES}
    with transaction(db_engine) as connection:
        return {
            name: sorted(
                connection.execute(text(f"SELECT t::text FROM {name} t WHERE {where}"), {"job": job}).scalars()
            )
            if ":job" in where
            else sorted(connection.execute(text(f"SELECT t::text FROM {name} t")).scalars())
            for name, where in OF_JOB.items()
        }


def shown(db_engine: Engine, job: int, *, without: tuple[str, ...] = ()) -> dict[str, list[Any]]:
    """What every view says of a job. without: columns whose values are ids of other rows."""
    with transaction(db_engine) as connection:
        views = connection.execute(
            text("""SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'job_id'
                    WHERE c.relkind = 'v' AND c.relnamespace = 'public'::regnamespace ORDER BY 1""")
        ).scalars()
        found: dict[str, list[Any]] = {}
        for view in list(views):
            listed = every(connection, f"SELECT * FROM {view} WHERE job_id = :job", job=job)
            kept = ({name: _rounded(value) for name, value in row.items() if name not in without} for row in listed)
            found[view] = sorted(map(repr, kept))
    return found


def _rounded(value: Any) -> Any:
    """Sums of floats differ in their last digits by the order of the rows."""
    return float(f"{value:.9g}") if isinstance(value, float) else value


def violations(db_engine: Engine, job: int) -> list[Any]:
    with snapshot(db_engine) as connection:
        return check_job(connection, job)


ENDED = ("done", "cut", "redrawn", "rescued", "cancelled")


@pytest.mark.parametrize("name", ENDED)
def test_job_comes_back_as_it_was(source: Source, filled: Engine, tmp_path: Path, name: str) -> None:
    job = source.jobs[name]
    before, seen = rows(filled, job), shown(filled, job)
    archive = archive_job(filled, job, tmp_path)
    assert rows(filled, job) == before, "archiving only reads"
    remove_archived(filled, archive)
    gone = rows(filled, job)
    assert not any(gone[table] for table in ("jobs", "samples", "segments", "steps", "events"))
    assert restore_job(filled, archive.folder) == archive.manifest
    assert rows(filled, job) == before
    assert shown(filled, job) == seen
    assert violations(filled, job) == []
    for other in source.jobs.values():
        assert violations(filled, other) == [], "the books of its workers hold for other jobs too"
    with transaction(filled) as connection:
        control = every(connection, "SELECT control_of AS job FROM experiment_jobs WHERE row_name LIKE 'random%'")
    assert control == [{"job": source.jobs["done"]}], "also where the job came back that it is matched to"
    with transaction(filled) as connection:
        refresh_all(connection)
    assert shown(filled, job) == seen


def test_all_jobs_move_to_another_database_whose_ids_are_taken(
    source: Source, filled: Engine, empty: Engine, tmp_path: Path
) -> None:
    taken = submit(empty)  # the same problem set under other ids, samples, rollups
    with transaction(empty) as connection:
        assert taken == 1
        remove_everything_of(connection, taken)
        connection.execute(text("SELECT setval('problem_sets_id_seq', 40), setval('problems_id_seq', 400)"))
    ids = ("sample_id", "problem_id", "worker_id", "id", "position", "overlapping_jobs")  # one of them moved alone
    for name in ENDED:
        job = source.jobs[name]
        seen = shown(filled, job, without=ids)
        restore_job(empty, archive_job(filled, job, tmp_path).folder)
        assert shown(empty, job, without=ids) == seen, name
        assert violations(empty, job) == [], name
    for name in ENDED:
        assert violations(empty, source.jobs[name]) == [], "with the others beside it"
    with transaction(empty) as connection:
        assert one(connection, "SELECT count(*) AS n FROM problem_sets")["n"] == 1
        assert one(connection, "SELECT cloned_from AS c FROM jobs WHERE id = :id", id=source.jobs["cut"]) == {
            "c": source.jobs["done"]
        }
        rows_there = every(connection, "SELECT experiment, job_id, control_of FROM experiment_jobs ORDER BY 1, 2")
        assert [tuple(row.values()) for row in rows_there] == [
            ("cuts", source.jobs["done"], None), ("triggers", source.jobs["done"], None),
            ("triggers", source.jobs["cut"], source.jobs["done"]),
        ]  # fmt: skip
        assert every(connection, "SELECT id FROM workers WHERE ended_at IS NULL OR settled_at IS NULL") == []
    assert submit(empty) > max(source.jobs[name] for name in ENDED), "its number is given to nobody else"


def remove_everything_of(connection: Connection, job: int) -> None:
    """The job goes; its problem set and the numbers that it used up stay."""
    connection.execute(
        text("UPDATE samples SET state = 'cancelled', ended_at = now() WHERE job_id = :job"), {"job": job}
    )
    connection.execute(text("UPDATE jobs SET state = 'cancelled', finished_at = now() WHERE id = :job"), {"job": job})
    remove_job(connection, job)


def test_job_without_its_events_is_whole_but_for_them_and_doctor_says_so(
    source: Source, filled: Engine, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    job = source.jobs["done"]
    seen = shown(filled, job)
    with transaction(filled) as connection:
        remove_events(connection, job)
    assert rows(filled, job)["events"] != []
    assert shown(filled, job) == seen
    assert violations(filled, job) == []
    archive = archive_job(filled, job, tmp_path)
    before = rows(filled, job)
    remove_archived(filled, archive)
    restore_job(filled, archive.folder)
    assert rows(filled, job) == before
    assert violations(filled, job) == []
    with filled.connect() as connection:
        assert unchecked(connection, job) == {Invariant.CLAIMS, Invariant.EVENTS}
        assert unchecked(connection, source.jobs["cut"]) == set()
    url = filled.url.set(drivername="postgresql").render_as_string(hide_password=False)
    monkeypatch.setenv("SPECTHINK_DATABASE_URL", url)
    monkeypatch.setenv("SPECTHINK_REDIS_URL", source.connections.redis_url.get_secret_value())
    monkeypatch.setattr(sys, "argv", ["specthink", "doctor", "--job", str(job)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("Not checked in full: the events of its samples were pruned.") == 2


# Values


WILD = '\t\n\r\\"\'\u202e\u0301\ufeff\ufffe\U0010ffff\\N{NULL,"a"}𝔘𝔫𝔦𝔠\x01\x1f\x7f\x85\u2028COPY t FROM STDIN;\n\\.\n'
JSON = (
    '{"1.0": 1.0, "1": 1, "1.50": 1.50, "big": 123456789012345678901234567890.12300, "tiny": 1e-40, "deep": '
    '[[[[null, true, {"": ""}]]]], "text": ' + json.dumps(WILD) + "}"
)


def add_wild_job(connection: Connection) -> int:
    """A job whose every column is as odd as Postgres lets it be."""
    noise = random.Random(7)
    huge = "".join(chr(noise.choice((*range(32, 0x2FF), *range(0x4E00, 0x5000), 0x1F600))) for _ in range(300_000))
    job = add_job(connection, add_problem_set(connection, name=WILD), state="completed", name=WILD)
    connection.execute(text("UPDATE jobs SET versions = CAST(:v AS jsonb)"), {"v": JSON})
    connection.execute(text("UPDATE reference_answers SET answer = :w, also_accepted = :more"),
                       {"w": WILD, "more": [WILD, "", "NULL", "a,b", '{"'] })  # fmt: skip
    connection.execute(text("UPDATE hidden_columns SET columns = CAST(:v AS jsonb)"), {"v": JSON})
    connection.execute(text("UPDATE problems SET prompt = prompt || :w, subject = '', shown = CAST(:v AS jsonb)"),
                       {"w": huge, "v": JSON})  # fmt: skip
    small, engine = add_worker(connection, "small", model=WILD), add_engine(connection, "S")
    kept, failed, cancelled = add_samples(
        connection, job,
        [
            {"policy_state": JSON, "score": float("nan"), "predicted_answer": WILD, "small_worker_id": small},
            {"problem": 1, "state": "failed", "published_at": "-infinity", "not_before": "infinity", "error": WILD},
            {"problem": 2, "state": "cancelled", "policy_state": "null", "runnable_at": "1969-12-31 23:59:59.9+00"},
        ],
    )  # fmt: skip
    del failed, cancelled
    add_segment(connection, kept, 0, "small", WILD, worker_id=small, engine_id=engine, value=-0.0, threshold=5e-324,
                write_seconds=float("inf"), seed=2**63 - 1, cue=WILD)  # fmt: skip
    add_segment(connection, kept, 1, "small", "", worker_id=small, engine_id=engine, wait_seconds=0.1 + 0.2)
    add_aside(connection, kept, 0, "small", huge, after_segment=1, worker_id=small, engine_id=engine,
              top=[float("-inf"), -1e-308], labels='{"": null, "yes": -1.0}')  # fmt: skip
    add_signal(connection, kept, "segment", 0, "logprob", [0.1, None, float("nan"), float("-inf")], places=[0, 1, 2, 3])
    add_step(connection, kept, 0, "small", huge)
    connection.execute(
        text("INSERT INTO grades (sample_id, grader, grader_version, status, score, detail, graded_at) "
             "VALUES (:id, 'exact', '1', 'done', 0.3333333333333333, :w, now())"), {"id": kept, "w": WILD},
    )  # fmt: skip
    return job


def test_odd_values_come_back_bit_by_bit(empty: Engine, tmp_path: Path) -> None:
    with transaction(empty) as connection:
        job = add_wild_job(connection)
    before = rows(empty, job)
    archive = archive_job(empty, job, tmp_path)
    remove_archived(empty, archive)
    with transaction(empty) as connection:
        connection.execute(text("DELETE FROM hidden_columns"))
        connection.execute(text("DELETE FROM reference_answers"))
        connection.execute(text("DELETE FROM problems"))
        connection.execute(text("DELETE FROM problem_sets"))
    restore_job(empty, archive.folder)
    after = rows(empty, job)
    assert {name: found for name, found in after.items() if name != "workers"} == {
        name: found for name, found in before.items() if name != "workers"
    }
    [sample] = [line for line in after["samples"] if "failed" in line]
    assert "-infinity" in sample


def test_every_batch_is_a_row_group_of_bounded_size(empty: Engine, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("pipeline.archives.batches.MAX_BYTES", 1000)
    monkeypatch.setattr("pipeline.archives.writing.SAMPLES_AT_A_TIME", 2)
    with transaction(empty) as connection:
        job = add_wild_job(connection)
    before = rows(empty, job)
    archive = archive_job(empty, job, tmp_path)
    assert parquet.ParquetFile(archive.folder / "problems.parquet").num_row_groups == 4
    remove_archived(empty, archive)
    restore_job(empty, archive.folder)
    assert rows(empty, job)["segments"] == before["segments"]


# What is on the disk


@pytest.fixture
def archived(source: Source, filled: Engine, tmp_path: Path) -> Path:
    """The folder of a job that is in the database no more."""
    archive = archive_job(filled, source.jobs["done"], tmp_path)
    remove_archived(filled, archive)
    return archive.folder


def test_only_its_owner_reads_what_tells_answers(archived: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o077 for path in archived.iterdir()}
    private = {name for name, mode in modes.items() if mode == 0}
    assert private == {"reference_answers.parquet", "hidden_columns.parquet", "grades.parquet"}
    assert set(modes) == {FILE_NAME, *(table.file_name for table in TABLES)}


def test_files_say_what_their_columns_mean(archived: Path) -> None:
    schema = parquet.read_schema(archived / "samples.parquet")
    assert schema.metadata[b"comment"].startswith(b"One solution drawn for one problem of one job.")
    assert schema.field("policy_state").metadata == {
        b"comment": b"of the policy, after the last segment or aside", b"postgres": b"JSONB",
    }  # fmt: skip


def test_archived_jobs_answer_questions_without_a_server(source: Source, filled: Engine, tmp_path: Path) -> None:
    for name in ("done", "cut"):
        archive_job(filled, source.jobs[name], tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "running.md").read_text()
    [query] = re.findall(r'^duckdb -c "(.+)"$', page, flags=re.MULTILINE)
    found = duckdb.execute(f"{query.replace('archive/', f'{tmp_path}/')} ORDER BY author").fetchall()
    with transaction(filled) as connection:
        statement = text("""
            SELECT author, count(*), sum(cardinality(token_ids)) FROM segments g JOIN samples s ON s.id = g.sample_id
            WHERE s.job_id = ANY(:jobs) GROUP BY author ORDER BY author
        """)
        jobs = [source.jobs[name] for name in ("done", "cut")]
        assert found == [tuple(row) for row in connection.execute(statement, {"jobs": jobs})]
        counted = connection.execute(
            text("SELECT submitted_at, config->>'seed' FROM jobs WHERE id = :job"), {"job": jobs[0]}
        )
        stored = duckdb.execute(f"SELECT submitted_at, config->>'seed' FROM '{tmp_path}/job-{jobs[0]}/jobs.parquet'")
        assert stored.fetchall() == [tuple(row) for row in counted]


def edit(folder: Path, **changes: Any) -> None:
    path = folder / FILE_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip(path: Path, at: int) -> None:
    written = bytearray(path.read_bytes())
    written[at] ^= 0x40
    path.write_bytes(written)


def rewrite(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Another table in a file, with a manifest that fits to it."""
    path = folder / f"{name}.parquet"
    parquet.write_table(change(parquet.read_table(path)), path)
    manifest = json.loads((folder / FILE_NAME).read_text())
    written = path.read_bytes()
    manifest["tables"][name] |= {"bytes": len(written), "sha256": hashlib.sha256(written).hexdigest()}
    edit(folder, **manifest)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a bit": (lambda folder: flip(folder / "segments.parquet", 200), r"segments\.parquet: it is damaged"),
    "the last byte": (lambda folder: flip(folder / "steps.parquet", -1), r"steps\.parquet: it is damaged"),
    "cut": (lambda folder: os.truncate(folder / "events.parquet", 100), r"events\.parquet: it is damaged: 100 bytes"),
    "empty": (lambda folder: os.truncate(folder / "grades.parquet", 0), r"grades\.parquet: it is damaged: 0 bytes"),
    "missing": (lambda folder: (folder / "samples.parquet").unlink(), r"samples\.parquet: cannot be read"),
    "no manifest": (lambda folder: (folder / FILE_NAME).unlink(), "has no manifest.json: it is no archive"),
    "half a manifest": (lambda folder: os.truncate(folder / FILE_NAME, 50), r"manifest\.json: Invalid JSON"),
    "newer format": (
        lambda folder: edit(folder, format=2, version="9.1", news=[]),
        "it has format 2, this version reads 1: specthink 9.1 wrote it",
    ),
    "unknown table": (
        lambda folder: edit(folder, tables={**json.loads((folder / FILE_NAME).read_text())["tables"],
                                            "../x": {"rows": 0, "bytes": 0, "sha256": "0" * 64}}),
        r"names a table \.\./x, which this version does not know",
    ),
    "unknown column": (
        lambda folder: rewrite(folder, "grades", lambda t: t.append_column("mood", t.column("detail"))),
        r"grades\.parquet: it has a column mood, which this version does not know",
    ),
    "missing column": (
        lambda folder: rewrite(folder, "grades", lambda t: t.drop_columns(["status"])),
        r"grades\.parquet: it lacks the column status",
    ),
    "fewer rows": (
        lambda folder: rewrite(folder, "grades", lambda t: t.slice(1)),
        r"grades\.parquet: it has \d+ rows, its manifest",
    ),
    "a job that runs": (
        lambda folder: rewrite(
            folder,
            "jobs",
            lambda table: table.set_column(table.schema.get_field_index("state"), "state", [["running"]]).set_column(
                table.schema.get_field_index("finished_at"), "finished_at",
                pyarrow.nulls(1, table.schema.field("finished_at").type),
            ),
        ),
        "it is running; only a job that has ended",
    ),
    "other job": (
        lambda folder: edit(folder, job={"id": 777, "submitted_at": 1}), r"jobs\.parquet: it is not of job 777",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_archive_is_refused_in_a_line_and_nothing_of_it_is_stored(
    source: Source, filled: Engine, archived: Path, damage: str
) -> None:
    do, message = DAMAGES[damage]
    do(archived)
    before = rows(filled, source.jobs["cut"])
    with pytest.raises(ArchiveError, match=message) as caught:
        restore_job(filled, archived)
    assert "\n" not in str(caught.value)
    assert str(archived) in str(caught.value)
    assert rows(filled, source.jobs["cut"]) == before
    with transaction(filled) as connection:
        assert (
            one(connection, "SELECT count(*) AS n FROM jobs WHERE id IN (777, :job)", job=source.jobs["done"])["n"] == 0
        )


def test_columns_that_came_later_are_empty(source: Source, filled: Engine, archived: Path) -> None:
    rewrite(archived, "samples", lambda table: table.drop_columns(["max_tokens"]))
    restore_job(filled, archived)
    assert violations(filled, source.jobs["done"]) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from pydantic import SecretStr
from pipeline.archives import writing
from pipeline.db.session import open_database
kept = writing._write_table
def write_table(folder, table, rows):
    if table.name == "events":
        os.kill(os.getpid(), signal.SIGKILL)
    return kept(folder, table, rows)
writing._write_table = write_table
writing.archive_job(open_database(SecretStr(sys.argv[1])), int(sys.argv[2]), Path(sys.argv[3]))
"""


def test_killed_writer_leaves_the_database_and_a_folder_that_is_no_archive(
    source: Source, filled: Engine, tmp_path: Path
) -> None:
    job = source.jobs["done"]
    before = rows(filled, job)
    url = filled.url.set(drivername="postgresql").render_as_string(hide_password=False)
    done = subprocess.run([sys.executable, "-c", KILLED, url, str(job), str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert rows(filled, job) == before
    [left] = tmp_path.iterdir()
    assert left.name == f"job-{job}.incomplete"
    with pytest.raises(ArchiveError, match=r"no archive of a job, or one whose writing was interrupted"):
        check(left)
    archive = archive_job(filled, job, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"job-{job}"]
    assert check(archive.folder) == archive.manifest


def test_two_writers_do_not_meet_and_nothing_is_overwritten(source: Source, filled: Engine, tmp_path: Path) -> None:
    job = source.jobs["done"]
    with unfinished_folder(tmp_path / f"job-{job}") as folder:
        (folder / "a").touch()
        with pytest.raises(ArchiveError, match="another process writes this archive"):
            archive_job(filled, job, tmp_path)
        assert (folder / "a").exists()
    with pytest.raises(ArchiveError, match="it is there already; archives are never overwritten"):
        archive_job(filled, job, tmp_path)


def test_full_disk_leaves_no_folder(source: Source, filled: Engine, tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.archives.writing.os.fsync", refuse)
    with pytest.raises(ArchiveError, match="cannot be written: No space left on device"):
        archive_job(filled, source.jobs["done"], tmp_path)
    assert list(tmp_path.iterdir()) == []


# Who, and when


def test_only_an_ended_job_that_is_as_archived_is_removed(source: Source, filled: Engine, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="it is running; only a job that has ended can be removed or archived"):
        archive_job(filled, source.jobs["waiting"], tmp_path)
    with pytest.raises(NotFound, match="there is no job 99"):
        archive_job(filled, 99, tmp_path)
    assert list(tmp_path.iterdir()) == []
    archive = archive_job(filled, source.jobs["done"], tmp_path)
    with transaction(filled) as connection:
        connection.execute(text("UPDATE grades SET detail = 'said later'"))
    with pytest.raises(JobError, match=r"it changed after .* was written; nothing was removed"):
        remove_archived(filled, archive)
    assert violations(filled, source.jobs["done"]) == []
    with transaction(filled) as connection:
        connection.execute(text("UPDATE problem_sets SET tells_answers_of = id"))
    with pytest.raises(JobError, match="it is a judge, and judges are not archived"):
        archive_job(filled, source.jobs["cut"], tmp_path)


def test_taken_number_is_refused(source: Source, filled: Engine, tmp_path: Path) -> None:
    archive = archive_job(filled, source.jobs["done"], tmp_path)
    with pytest.raises(ArchiveError, match=f"the database has a job {source.jobs['done']} already"):
        restore_job(filled, archive.folder)


def test_submitter_can_neither_archive_nor_restore(
    source: Source, filled: Engine, archived: Path, tmp_path: Path
) -> None:
    url = with_database(source.connections.role_urls[DatabaseRole.SUBMITTER], str(filled.url.database))
    submitter = open_database(url)
    with pytest.raises(ConfigurationError, match="permission denied"):
        archive_job(submitter, source.jobs["cut"], tmp_path)
    with pytest.raises(ConfigurationError, match="permission denied"):
        restore_job(submitter, archived)
    submitter.dispose()
    assert not (tmp_path / f"job-{source.jobs['cut']}").exists()


# The commands


def test_commands_archive_and_restore(
    source: Source, filled: Engine, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    url = filled.url.set(drivername="postgresql").render_as_string(hide_password=False)
    monkeypatch.setenv("SPECTHINK_DATABASE_URL", url)

    monkeypatch.setenv("SPECTHINK_REDIS_URL", source.connections.redis_url.get_secret_value())

    def run(*words: str, exit_code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["specthink", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert ended.value.code == exit_code, said.err
        return str(said.out + said.err)

    job, folder = source.jobs["done"], tmp_path / f"job-{source.jobs['done']}"
    assert "give --older-than" in run("archive", "--to", str(tmp_path), exit_code=2)
    said = run("archive", str(job), "--to", str(tmp_path), "--remove")
    assert f"job {job} archived in {folder}: 6 samples" in said
    assert f"job {job} removed from the database" in said
    assert f"{folder} is whole: 6 samples" in run("unarchive", str(folder), "--dry-run")
    assert f"job {job} restored from {folder}" in run("unarchive", str(folder))
    assert "already" in run("unarchive", str(folder), exit_code=2)
    with transaction(filled) as connection:
        connection.execute(
            text("UPDATE jobs SET finished_at = now() - interval '31 days' WHERE finished_at IS NOT NULL")
        )
    said = run("archive", "--older-than", "30d", "--to", str(tmp_path))
    assert f"job {job} is in {folder} already" in said
    assert {path.name for path in tmp_path.iterdir()} == {f"job-{source.jobs[name]}" for name in ENDED}
    assert "no manifest.json" in run("unarchive", str(tmp_path), exit_code=2)
