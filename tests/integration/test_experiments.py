"""Sweeps on a real Postgres, written by a scripted pair: rows, controls, resuming, and the report."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import ProgrammingError

from pipeline import Client
from pipeline.cli import main
from pipeline.db.experiments import lock_experiment
from pipeline.db.grants import grant_roles
from pipeline.db.matching import measure_thoughts
from pipeline.db.removal import remove_job
from pipeline.db.session import open_database, transaction
from pipeline.embedded import EMBEDDED_LOGINS, Connections
from pipeline.errors import ConfigurationError, JobError, NotFound
from pipeline.experiments.plan import Axis, PlannedRow, Shares, plan_rows
from pipeline.experiments.results import ExperimentReport
from pipeline.jobs.exit_matching import mean_length
from pipeline.policies.exits import AgreementExit
from pipeline.results.jobs import Job
from tests.integration.scripted_pair import Pair, problem_set, scripted_pair
from tests.integration.waiting import await_blocked

pytestmark = pytest.mark.integration

PILOT, SCORED = problem_set(100), problem_set(0)
BOTH: dict[str, Any] = {"small": "small", "large": "large", "seed": 7, "max_tokens": 300, "num_samples": 2}
GRID = [Axis(key="policy.threshold", values=(0.2, 1.0))]


@pytest.fixture
def client(connections: Connections) -> Iterator[Client]:
    with Client(connections.submitter_url, connections.reader_url) as client:
        yield client


@pytest.fixture
def pair(db_engine: Engine) -> Iterator[Pair]:
    with scripted_pair(db_engine, PILOT, SCORED) as pair:
        yield pair


def rows() -> list[PlannedRow]:
    return plan_rows(["glimpse"], GRID, baselines=True)


def finished(client: Client, pair: Pair) -> ExperimentReport:
    client.sweep("triggers", rows(), SCORED, **BOTH)
    pair.work()
    client.add_controls("triggers")
    pair.work()
    return client.experiment("triggers")


def test_report_has_each_row_with_its_control_behind_it(client: Client, pair: Pair) -> None:
    report = finished(client, pair)
    assert [row.name for row in report.rows] == [
        "small-only", "large-only", "glimpse threshold=0.2", "random for glimpse threshold=0.2",
        "glimpse threshold=1", "random for glimpse threshold=1",
    ]  # fmt: skip
    small, large, often, _, seldom, control = report.rows
    assert small.accuracy is not None
    assert small.accuracy.mean == pytest.approx(8 / 12)
    assert [row.accuracy and row.accuracy.mean for row in (large, often, seldom)] == [1.0, 1.0, 1.0]
    assert (small.large_tokens and small.large_tokens.mean) == 0
    assert [row.against_small is None for row in (small, large, often)] == [True, False, False]
    assert [row.against_large is None for row in (small, large, often)] == [False, True, False]
    assert seldom.large_tokens is not None
    assert often.large_tokens is not None
    assert large.large_tokens is not None
    assert 0 < seldom.large_tokens.mean < often.large_tokens.mean < large.large_tokens.mean
    assert seldom.takeovers == pytest.approx(4 / 12)
    assert control.control_of == seldom.job_id
    assert seldom.against_small is not None
    assert seldom.against_small.mean == pytest.approx(4 / 12)
    assert [row.name for row in report.rows if row.on_front] == ["small-only", "glimpse threshold=1"]
    assert seldom.gain is not None
    assert control.gain is None
    assert (report.num_problems, report.num_samples, report.seed) == (12, 2, 7)


def test_a_row_that_is_not_whole_is_on_no_front(client: Client, pair: Pair, db_engine: Engine) -> None:
    seldom = finished(client, pair).rows[4]
    assert seldom.on_front
    for state, finished_at in (("running", "NULL"), ("cancelled", "clock_timestamp()")):
        with db_engine.begin() as connection:
            change = text(f"UPDATE jobs SET state = :state, finished_at = {finished_at} WHERE id = :job")
            connection.execute(change, {"state": state, "job": seldom.job_id})
        found = client.experiment("triggers").rows
        assert [row.name for row in found if row.on_front] == ["small-only", "glimpse threshold=0.2"], state


def test_numbers_of_the_report_are_those_of_the_samples(client: Client, pair: Pair) -> None:
    """Tokens by owner, large tokens computed and the gain, each counted from the tables by another way."""
    report = finished(client, pair)
    seldom = report.rows[4]
    assert seldom.owners is not None
    sums = client.sql(f"""
        SELECT g.author, sum(cardinality(g.token_ids)), sum(cardinality(g.discarded_ids)), count(DISTINCT g.sample_id)
        FROM segments g JOIN samples s ON s.id = g.sample_id WHERE s.job_id = {seldom.job_id} GROUP BY 1 ORDER BY 1
    """).rows
    (_, kept_large, discarded_large, _), (_, kept_small, discarded_small, num_samples) = sums
    assert (seldom.owners.kept_large, seldom.owners.kept_small) == (kept_large / 24, kept_small / num_samples)
    assert (seldom.owners.discarded_large, seldom.owners.discarded_small) == (
        discarded_large / 24,
        discarded_small / 24,
    )
    assert seldom.large_tokens is not None
    assert seldom.large_tokens.mean == pytest.approx((kept_large + discarded_large) / 24)
    assert seldom.gain is not None
    by_job = {
        row.job_id: {problem.problem: problem.score for problem in client.problem_scores(row.job_id)}
        for row in report.rows
    }
    tokens = {row.job_id: row.large_tokens.mean for row in report.rows if row.large_tokens is not None}
    wanted, (first, *second) = tokens[seldom.job_id], seldom.gain.jobs
    weight = (wanted - tokens[first]) / (tokens[second[0]] - tokens[first]) if second else 0.0
    line = {
        name: (1 - weight) * score + weight * by_job[(second or (first,))[0]][name]
        for name, score in by_job[first].items()
    }
    gains = [by_job[seldom.job_id][name] - line[name] for name in line]
    assert seldom.gain.difference.mean == pytest.approx(math.fsum(gains) / 12)


def test_a_sweep_that_is_run_again_submits_what_is_missing(client: Client, pair: Pair) -> None:
    first = client.sweep("triggers", rows()[:2], SCORED, **BOTH)
    assert [job.policy for job in first] == ["small-only", "large-only"]
    added = client.sweep("triggers", rows(), SCORED, **BOTH)
    assert [job.policy for job in added] == ["glimpse", "glimpse"]
    assert client.sweep("triggers", rows(), SCORED, **BOTH) == []
    assert client.add_controls("triggers") == []  # none has ended
    pair.work()
    controls = client.add_controls("triggers")
    assert [job.policy for job in controls] == ["random", "random"]
    assert {job.config.seed for job in controls} == {7}
    assert {job.problem_set_id for job in controls} == {first[0].problem_set_id}
    assert client.add_controls("triggers") == []
    assert len(client.jobs()) == 6


def test_without_a_seed_all_rows_have_the_experiments(client: Client) -> None:
    options = {name: value for name, value in BOTH.items() if name != "seed"}
    first = client.sweep("triggers", rows()[:3], SCORED, **options)
    (last,) = client.sweep("triggers", rows(), SCORED, **options)
    assert len({job.config.seed for job in (*first, last)}) == 1


@pytest.mark.parametrize(
    ("problems", "changed", "told"),
    [
        (PILOT, {}, "other problems"),
        (SCORED, {"limit": 3}, "other problems"),
        (SCORED, {"seed": 8}, "seed 8 instead of 7"),
        (SCORED, {"num_samples": 3}, "num_samples 3 instead of 2"),
        (SCORED, {"temperature": 0.1}, "another sampling"),
        (SCORED, {"small": "tiny"}, "small tiny instead of small"),
        (SCORED, {"grader": "exact"}, "grader exact instead of math"),
        (SCORED, {"system": "Be brief."}, "small asked otherwise"),
    ],
)
def test_rows_that_would_not_be_comparable_are_refused(
    client: Client, problems: Any, changed: dict[str, Any], told: str
) -> None:
    (job,) = client.sweep("triggers", rows()[:1], SCORED, **BOTH)
    for asked in (rows(), rows()[:1]):  # also where all rows are there
        with pytest.raises(ConfigurationError, match=rf"asked otherwise before \(job {job.id}\): .*{told}"):
            client.sweep("triggers", asked, problems, **{**BOTH, **changed})
    assert len(client.jobs()) == 1


def test_the_first_row_with_a_model_says_which_it_is(client: Client) -> None:
    small, large, glimpse, *_ = rows()
    (first,) = client.sweep("triggers", [small], SCORED, **BOTH)
    (second,) = client.sweep("triggers", [large], SCORED, **BOTH)
    told = rf"asked otherwise before \(job {second.id}\): large huge instead of large"
    with pytest.raises(ConfigurationError, match=told):
        client.sweep("triggers", [small, large, glimpse], SCORED, **{**BOTH, "large": "huge"})
    assert [job.id for job in client.jobs()] == [second.id, first.id]


def test_a_row_that_cannot_be_submitted_leaves_none(client: Client) -> None:
    with pytest.raises(ConfigurationError, match="needs a large model"):
        client.sweep("triggers", rows(), SCORED, small="small", seed=7)
    for name, told in ((" ", "has no name"), ("a\x00b", "the experiment's name has"), ("\udcff", "cannot be stored")):
        with pytest.raises(ConfigurationError, match=told):
            client.sweep(name, rows(), SCORED, **BOTH)
    assert client.jobs() == []
    with pytest.raises(NotFound, match="no experiment 'triggers'; there are: none yet"):
        client.experiment("triggers")
    with pytest.raises(NotFound):
        client.add_controls("triggers")


def test_an_exit_has_controls_that_think_as_long(client: Client, pair: Pair) -> None:
    exited = [Axis(key="policy.threshold", values=(1.0,)), Axis(key="exit.name", values=("agreement",))]
    planned = plan_rows(["glimpse"], [*exited, Axis(key="exit.agree", values=(2,))])
    client.sweep("exits", [*plan_rows(["glimpse"], exited[:1]), *planned], SCORED, **BOTH)
    pair.work()
    client.add_controls("exits")
    pair.work()
    assert client.add_controls("exits") == []
    report = client.experiment("exits")
    row = "glimpse threshold=1 exit.name=agreement exit.agree=2"
    assert [each.name for each in report.rows] == [
        "glimpse threshold=1", "random for glimpse threshold=1", row, f"random for {row}", f"cut for {row}",
        f"random exit for {row}",
    ]  # fmt: skip
    whole, _, exit_row, takeovers, cut, by_chance = report.rows
    assert [each.is_control for each in report.rows] == [False, True, False, True, True, True]
    assert whole.gain_over_cut is None
    assert exit_row.gain is not None
    assert exit_row.gain.jobs == (takeovers.job_id,)
    assert exit_row.gain_over_cut is not None
    assert exit_row.gain_over_cut.jobs == (cut.job_id,)
    with client._transaction() as connection:
        lengths = [mean_length(measure_thoughts(connection, each.job_id)) for each in (exit_row, cut, by_chance, whole)]
    step = lengths[3] / 6
    assert lengths[0] == pytest.approx(4 * step, rel=0.2)
    assert lengths[1] == pytest.approx(lengths[0], abs=2)
    assert lengths[2] == pytest.approx(lengths[0], abs=2 * step)


def test_an_exit_is_matched_to_a_job_that_shows_how_long_texts_are(client: Client, pair: Pair) -> None:
    exited = client.submit(SCORED, policy="small-only", exit=AgreementExit(agree=2), **BOTH)
    cut: dict[str, Any] = {"policy": "small-only", "exit": "cut", "matched_to": exited.id}
    with pytest.raises(JobError, match="still runs"):
        client.submit(SCORED, **cut, **BOTH)
    pair.work()
    with pytest.raises(ConfigurationError, match=f"specthink clone {exited.id} --set exit=none"):
        client.submit(SCORED, **cut, **BOTH)
    whole = client.clone(exited.id, {"exit": "none"})
    pair.work()
    found = client.submit(SCORED, **cut, **BOTH)
    assert found.config.exit is not None
    assert found.config.exit.name == "cut"
    assert found.name.endswith(f"matched to job {exited.id}")
    with pytest.raises(ConfigurationError, match=f"job {whole.id} has no exit"):
        client.submit(SCORED, **{**cut, "matched_to": whole.id}, **BOTH)
    with pytest.raises(ConfigurationError, match="one of the exits cut and random, can be matched"):
        client.submit(SCORED, **{**cut, "exit": "deer"}, **BOTH)


def test_what_cannot_be_matched_is_noted(client: Client, pair: Pair) -> None:
    notes: list[str] = []
    client.on_note(notes.append)
    never = plan_rows(["glimpse"], [Axis(key="policy.threshold", values=(9,))], baselines=True)
    client.sweep("quiet", never, SCORED, **BOTH)
    pair.work()
    assert client.add_controls("quiet") == []
    assert any("(glimpse threshold=9) gets no control 'random': 0 takeovers" in note for note in notes)
    assert any("no random control" in caveat for caveat in client.experiment("quiet").caveats)


def test_shares_come_from_a_pilot(client: Client, pair: Pair) -> None:
    pilot = client.submit(
        PILOT, small="small", policy="small-only", policy_values={"signals": "all"}, num_samples=2, seed=7
    )
    pair.work()
    planned = plan_rows(["glimpse"], shares=Shares(pilot=pilot.id, shares=(0.05, 0.5)))
    jobs = client.sweep("shares", planned, SCORED, **BOTH)
    assert [job.config.calibrated_from and job.config.calibrated_from.share for job in jobs] == [0.05, 0.5]
    low, high = (job.config.policy.threshold for job in jobs)  # type: ignore[attr-defined]
    assert low > high
    other = client.clone(pilot.id, {"seed": 8})
    pair.work()
    again = plan_rows(["glimpse"], shares=Shares(pilot=other.id, shares=(0.05, 0.2)))
    told = rf"share=0.05' \(job {jobs[0].id}\) has its threshold from the pilot {pilot.id}, not from {other.id}"
    with pytest.raises(ConfigurationError, match=told):
        client.sweep("shares", again, SCORED, **BOTH)
    assert len(client.experiment_jobs("shares")) == 2


def test_a_removed_job_leaves_the_experiment_and_is_submitted_again(
    client: Client, pair: Pair, db_engine: Engine
) -> None:
    report = finished(client, pair)
    gone = report.rows[4]
    with transaction(db_engine) as connection:
        remove_job(connection, gone.job_id)
        left = connection.execute(text("SELECT count(*), count(control_of) FROM experiment_jobs")).one()
    assert tuple(left) == (5, 1)
    orphan = f"job {report.rows[5].job_id} is a control of a job that was removed"
    assert orphan in client.experiment("triggers").caveats
    (again,) = client.sweep("triggers", rows(), SCORED, **BOTH)
    assert again.name == "triggers · glimpse threshold=1"


def test_reader_can_take_no_lock_that_keeps_others_from_adding_jobs(
    client: Client, connections: Connections, db_engine: Engine
) -> None:
    with transaction(db_engine) as connection:
        grant_roles(connection, EMBEDDED_LOGINS)
    client.sweep("triggers", rows()[:1], SCORED, **BOTH)
    assert connections.reader_url is not None
    with open_database(connections.reader_url).connect() as reader, reader.begin():
        reader.execute(text("SET TRANSACTION READ WRITE"))
        reader.execute(text("SELECT pg_advisory_xact_lock(hashtext('specthink experiment triggers'))"))
        reader.execute(text("LOCK TABLE experiments, experiment_jobs IN ACCESS SHARE MODE"))
        for statement in (
            "SELECT * FROM experiments FOR KEY SHARE",
            "LOCK TABLE experiments IN SHARE MODE",
            "INSERT INTO experiments (name) VALUES ('another')",
        ):
            with pytest.raises(ProgrammingError, match="permission denied"), reader.begin_nested():
                reader.execute(text(statement))
        with ThreadPoolExecutor(1) as pool:
            added = pool.submit(client.sweep, "triggers", rows()[:2], SCORED, **BOTH).result(60)
    assert [job.policy for job in added] == ["large-only"]


def test_of_sweeps_that_begin_an_experiment_at_once_one_says_what_is_asked(
    client: Client, connections: Connections, db_engine: Engine
) -> None:
    with ThreadPoolExecutor(2) as pool:
        with db_engine.connect() as blocker:
            lock_experiment(blocker, "triggers")
            sweeps = [
                pool.submit(client.sweep, "triggers", [row], problems, **BOTH)
                for row, problems in zip(rows(), (SCORED, PILOT), strict=False)
            ]
            await_blocked(db_engine, 2)
            blocker.rollback()
        refused = [sweep.exception(60) for sweep in sweeps]
    assert sum(error is None for error in refused) == len(client.jobs()) == 1
    assert any(isinstance(error, ConfigurationError) and "other problems" in str(error) for error in refused)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)


def test_command_submits_reports_and_goes_on(
    connections: Connections,
    pair: Pair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["specthink", "sweep", "<b>t</b>", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    monkeypatch.setenv("SPECTHINK_DATABASE_URL", connections.database_url.get_secret_value())
    monkeypatch.setenv("SPECTHINK_REDIS_URL", connections.redis_url.get_secret_value())
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps({"id": p.external_id, "problem": p.prompt, "answer": p.answer}) + "\n"
                            for p in SCORED.problems))  # fmt: skip
    pair_of = ("--small", "small", "--large", "large", "--seed", "7", "--max-tokens", "300")
    asked = (str(file), *pair_of, "--policies", "glimpse", "--grid", "glimpse.threshold=0.2,1.0", "--baselines")
    code, out, _ = run(*asked)
    assert code == 0
    assert [line.split(" ", 1)[1] for line in out.splitlines()] == [row.name for row in rows()]
    assert run(*asked, "--controls")[2].strip().endswith("run this again for their controls, or give --wait")
    pair.work()
    assert "random for glimpse threshold=0.2" in run("--controls")[2]
    pair.work()
    page = tmp_path / "page.html"
    code, out, _ = run("--html", str(page), "--format", "csv")
    found = list(csv.DictReader(io.StringIO(out)))
    assert [row["policy"] for row in found] == ["small-only", "large-only", "glimpse", "random", "glimpse", "random"]
    assert float(found[4]["accuracy"]) == 1.0
    assert float(found[4]["accuracy_low"]) < 1.0
    told = run()[1]
    assert "glimpse threshold=1 *" in told
    assert "Gain: accuracy less that of random takeovers at equal large tokens" in told
    assert run("--format", "latex")[1].count("\\\\") == 7
    assert run("--format", "markdown")[1].splitlines()[4].startswith("| glimpse threshold=0.2 |")
    assert json.loads(run("--format", "json")[1])["rows"][4]["gain"]["ratio"] == 1.0
    html = page.read_text()
    tags = Tags()
    tags.feed(html)
    assert "b" not in tags.names
    assert tags.names.count("img") == 4
    for wrong, what in (
        (("--format", "pdf"), "give one of table, markdown, latex, csv, json"),
        (("--policies", "glimpse"), "give the problems, too"),
        ((str(file), *pair_of, "--policies", "glimpse", "--shares", "0.1"), "go together"),
        ((str(file), *pair_of, "--policies", "glimpse", "--grid", "threshold"), "write KEY=V1,V2"),
        ((str(file), *pair_of, "--policies", "glimpse", "--grid", "policy.magic=1"), "has 'policy.magic'"),
        ((str(file), *pair_of), "no policies: name some"),
        ((str(file), *pair_of, "--policies", "redo", "--wait", "--html", str(tmp_path)), "it is a folder; name a file"),
        ((str(file), *pair_of, "--policies", "redo", "--wait", "--html", str(tmp_path / "no" / "x")), "No such file"),
    ):
        code, out, err = run(*wrong)
        assert (code, out) == (2, ""), wrong
        assert what in " ".join(err.replace("│", " ").split()), err
    assert "redo" not in run("--format", "csv")[1]


@pytest.mark.parametrize("times", [1, 2], ids=["alone", "after another who added them"])
def test_waiting_gives_the_controls_and_the_report_at_once(
    times: int,
    connections: Connections,
    pair: Pair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    add_controls = Client.add_controls

    def add_last(client: Client, experiment: str) -> list[Job]:
        return [add_controls(client, experiment) for _ in range(times)][-1]

    monkeypatch.setattr(Client, "add_controls", add_last)
    monkeypatch.setenv("SPECTHINK_DATABASE_URL", connections.database_url.get_secret_value())
    monkeypatch.setenv("SPECTHINK_REDIS_URL", connections.redis_url.get_secret_value())
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps({"problem": p.prompt, "answer": p.answer}) + "\n" for p in SCORED.problems))
    options = "--small small --large large --policies glimpse --baselines --controls --max-tokens 300 --format markdown"
    monkeypatch.setattr(sys, "argv", ["specthink", "sweep", "t", str(file), *options.split(), "--wait"])
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.05):
            pair.work()

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        with pytest.raises(SystemExit) as ended:
            main()
        over.set()
        working.result(timeout=60)
    assert ended.value.code in (0, None)
    told = capsys.readouterr().out
    assert "still running" not in told
    lines = told.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:6]] == [
        "small-only *", "large-only", "glimpse *", "random for glimpse",
    ]  # fmt: skip
