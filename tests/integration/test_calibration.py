"""Calibration on a real Postgres: pilots that scripted workers wrote, and what the command prints of them."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine

from pipeline import Client
from pipeline.calibration.thresholds import Side
from pipeline.cli import main
from pipeline.embedded import Connections
from pipeline.errors import ConfigurationError, JobError, NotFound
from pipeline.experiments.plan import PlannedRow
from pipeline.jobs.config import CalibratedFrom, RoleDrawingSpec
from pipeline.results.jobs import Job
from pipeline.samples import ModelRole
from tests.integration.scripted_pair import Pair, problem_set, scripted_pair

pytestmark = pytest.mark.integration

PILOT, SCORED = problem_set(100), problem_set(0)
MIXED = replace(SCORED, problems=(*SCORED.problems[:3], *PILOT.problems[:2]), content_sha256="mixed")


@pytest.fixture
def client(connections: Connections) -> Iterator[Client]:
    with Client(connections.submitter_url, connections.reader_url) as client:
        yield client


@pytest.fixture
def pair(db_engine: Engine) -> Iterator[Pair]:
    with scripted_pair(db_engine, PILOT, SCORED) as pair:
        yield pair


@pytest.fixture
def pilot(client: Client, pair: Pair) -> Job:
    job = client.submit(
        PILOT, small="small", policy="small-only", policy_values={"signals": "all"}, num_samples=2, seed=7
    )
    pair.work()
    return job


def test_signals_of_a_pilot_change_no_text(client: Client, pair: Pair, pilot: Job) -> None:
    plain = client.submit(PILOT, small="small", policy="small-only", num_samples=2, seed=7)
    pair.work()
    texts = [{(r.problem, r.sample_index): r.output for r in client.results(job)} for job in (pilot, plain)]
    assert texts[0] == texts[1]
    stored = client.sql(
        "SELECT s.job_id, n.name, count(*) FROM signals n JOIN samples s ON s.id = n.sample_id GROUP BY 1, 2 ORDER BY 2"
    )
    names = ["first_entropy", "first_margin", "logprob", "margin"]
    assert stored.rows == [(pilot.id, name, 24) for name in names]


def test_threshold_of_a_pilot_calls_large_where_small_is_wrong(client: Client, pair: Pair, pilot: Job) -> None:
    found = client.calibrate(pilot, policy="glimpse", shares=[0.05])
    (report,) = found.statistics
    # 12 problems of 7 places (six steps and the closing tag), 4 of them with one uncertain token among five alike
    assert (found.num_problems, found.num_samples) == (12, 24)
    assert found.accuracy == pytest.approx(8 / 12)
    assert (report.num_places, report.places_per_sample) == (168, 7.0)
    assert report.greatest == pytest.approx(math.log(5), abs=1e-5)
    (row,) = report.thresholds
    assert [row.share, row.takeovers] == pytest.approx([8 / 168, 8 / 24])
    assert report.separation is not None
    assert (report.separation.auc, report.separation.bad_side) == (1.0, Side.ABOVE)
    job = client.submit(SCORED, small="small", large="large", policy="glimpse", seed=7, max_tokens=300,
                        policy_values={"threshold": row.threshold})  # fmt: skip
    pair.work()
    (summary,) = client.summary(job)
    assert (summary.accuracy, summary.takeovers) == (1.0, 4)


def test_all_statistics_are_there_without_a_policy(client: Client, pilot: Job) -> None:
    found = client.calibrate(pilot)
    assert [report.name for report in found.statistics] == [
        "confident_share", "first_entropy", "first_margin", "mean_logprob", "mean_margin", "min_logprob",
    ]  # fmt: skip
    low = next(report for report in found.statistics if report.name == "min_logprob")
    assert low.least == pytest.approx(math.log(0.2), abs=1e-5)
    assert low.side is Side.BELOW
    assert low.separation is not None
    assert low.separation.bad_side is Side.BELOW


def test_problems_that_will_be_scored_are_refused_unless_told(client: Client, pilot: Job, tmp_path: Path) -> None:
    mixed = client.submit(MIXED, small="small", policy="small-only", grader="none")
    others = client.submit(SCORED, small="small", policy="small-only")
    file = tmp_path / "mixed.jsonl"
    file.write_text("".join(f'{{"problem": "  {p.prompt}", "answer": "1"}}\n' for p in MIXED.problems))
    for target, told in ((mixed.id, f"job {mixed.id}"), (f"set:{mixed.problem_set_id}", "set:"), (str(file), "mixed")):
        with pytest.raises(ConfigurationError, match=rf"2 of the 5 problems of .*{told}.* are in the pilot"):
            client.calibrate(pilot, target=target)
        found = client.calibrate(pilot, policy="glimpse", target=target, anyway=True)
        assert found.caveats[0].startswith("calibrated on its own problems: 2 of the 5")
    found = client.calibrate(pilot, policy="glimpse", target=others)
    assert found.caveats == ("the pilot has 12 problems; 50 or more give narrower intervals",)
    with pytest.raises(NotFound):
        client.calibrate(pilot, target=4711)
    with pytest.raises(NotFound):
        client.calibrate(pilot, target="set:4711")


def test_a_job_can_take_its_threshold_from_a_pilot_and_remembers_it(client: Client, pair: Pair, pilot: Job) -> None:
    both: dict[str, Any] = {"small": "small", "large": "large", "policy": "glimpse", "seed": 7, "max_tokens": 300}
    job = client.submit(SCORED, calibrated_from=CalibratedFrom(job=pilot.id, share=0.05), **both)
    assert job.config.policy.threshold == 1.0  # type: ignore[attr-defined]
    remembered = CalibratedFrom(job=pilot.id, share=0.05, num_problems=12, num_shared=0)
    assert job.config.calibrated_from == remembered
    clone = client.clone(job, {"seed": 8})
    assert clone.config.calibrated_from == remembered.model_copy(update={"share": None})
    assert client.clone(job, {"policy.threshold": 2}).config.calibrated_from is None


def test_a_threshold_of_its_own_problems_is_refused_or_noted(client: Client, pair: Pair, pilot: Job) -> None:
    both: dict[str, Any] = {"small": "small", "large": "large", "seed": 7}
    source: dict[str, Any] = {"calibrated_from": CalibratedFrom(job=pilot.id, share=0.05)}
    with pytest.raises(ConfigurationError, match="12 of the 12 problems of this job are in the pilot") as told:
        client.submit(PILOT, policy="glimpse", **source, **both)
    assert f"or set the threshold that specthink calibrate {pilot.id} --anyway prints" in str(told.value)
    with pytest.raises(ConfigurationError, match=r"policy 'random' has no threshold .*: leave the share out"):
        client.submit(SCORED, policy="random", **source, **both)
    notes: list[str] = []
    client.on_note(notes.append)
    given = CalibratedFrom(job=pilot.id)
    job = client.submit(PILOT, policy="glimpse", calibrated_from=given, **both)
    assert job.config.calibrated_from == CalibratedFrom(job=pilot.id, num_problems=12, num_shared=12)
    assert f"12 of the 12 problems are in the pilot, job {pilot.id}, that calibrated it" in notes
    assert len(client.jobs()) == 2


def test_a_threshold_of_another_model_is_refused_or_noted(client: Client, pair: Pair, pilot: Job) -> None:
    other: dict[str, Any] = {"small": "other", "large": "large", "policy": "glimpse", "seed": 7}
    source = CalibratedFrom(job=pilot.id, share=0.05)
    with pytest.raises(ConfigurationError, match=r"of another model, .*: this job has small other instead of small;"):
        client.submit(SCORED, calibrated_from=source, **other)
    row = PlannedRow(name="g", policy="glimpse", options={"calibrated_from": {"job": pilot.id, "share": 0.05}})
    with pytest.raises(ConfigurationError, match="small other instead of small"):
        client.sweep("triggers", [row], SCORED, small="other", large="large")
    assert len(client.jobs()) == 1
    notes: list[str] = []
    client.on_note(notes.append)
    given = CalibratedFrom(job=pilot.id)
    client.submit(SCORED, calibrated_from=given, policy_values={"threshold": 1.2}, **other)
    assert f"otherwise than the pilot, job {pilot.id}, that calibrated it, it has small other instead of small" in notes


def test_a_pilot_that_was_asked_otherwise_is_noted(client: Client, pair: Pair, pilot: Job) -> None:
    notes: list[str] = []
    client.on_note(notes.append)
    both: dict[str, Any] = {"small": "small", "large": "large", "policy": "glimpse", "seed": 7}
    source: dict[str, Any] = {"calibrated_from": CalibratedFrom(job=pilot.id, share=0.05)}
    client.submit(
        SCORED,
        prompt_template="free",
        temperature=1.0,
        large_sampling=RoleDrawingSpec(temperature=0.2),
        **source,
        **both,
    )
    told = [note for note in notes if note.startswith("otherwise than the pilot")]
    assert told == [
        f"otherwise than the pilot, job {pilot.id}, that calibrated it, it has prompt_template free instead of math, "
        "small temperature 1.0 instead of 0.6"
    ]
    client.submit(SCORED, max_tokens=300, num_samples=3, large_sampling=RoleDrawingSpec(top_k=7), **source, **both)
    assert len([note for note in notes if note.startswith("otherwise than the pilot")]) == 1


def test_a_threshold_of_the_large_models_steps_is_refused(client: Client, pair: Pair) -> None:
    pilot = client.submit(PILOT, large="large", policy="large-only", policy_values={"signals": "all"}, seed=7)
    pair.work()
    assert {report.role for report in client.calibrate(pilot).statistics} == {ModelRole.LARGE}
    with pytest.raises(JobError, match="first_entropy is of the large model, and glimpse reads the small one's"):
        client.calibrate(pilot, policy="glimpse")
    with pytest.raises(JobError, match="min_logprob is of the large model"):
        client.submit(
            SCORED, small="small", large="large", policy="redo",
            calibrated_from=CalibratedFrom(job=pilot.id, share=0.05),
        )  # fmt: skip


def test_words_for_relay_come_from_a_pilot_of_large_alone(client: Client, pair: Pair, pilot: Job) -> None:
    """The steps begin with "Step" and, in every third problem, with "Surely"."""
    with pytest.raises(JobError, match="no margins are stored of what large thought"):
        client.switch_cues(pilot)
    large = client.submit(PILOT, large="large", policy="large-only", policy_values={"signals": "margin"}, seed=7)
    pair.work()
    found = client.switch_cues(large, target=client.submit(SCORED, small="small", policy="small-only").id)
    assert (found.num_problems, found.num_samples, found.chosen) == (12, 12, ())
    assert [caveat.partition(":")[0] for caveat in found.caveats] == ["behind no word large is surer than elsewhere"]
    (step,) = found.cues
    assert (step.cue, step.uses, step.num_problems) == ("step", 12 * 6 - 4, 12)
    with pytest.raises(ConfigurationError, match=rf"12 of the 12 problems of job {large.id} are in the pilot"):
        client.switch_cues(large, target=large)
    assert client.switch_cues(large, target=large.id, anyway=True).caveats[0].startswith("calibrated on its own")


def test_what_is_no_pilot_is_refused(client: Client, pair: Pair) -> None:
    job = client.submit(PILOT, small="small", policy="small-only")
    with pytest.raises(JobError, match="it still runs; a pilot can be calibrated once it has ended"):
        client.calibrate(job)
    pair.work()
    with pytest.raises(JobError, match="stored no signal"):
        client.calibrate(job)
    with pytest.raises(NotFound):
        client.calibrate(4711)


def test_command_prints_what_to_set(
    connections: Connections, pilot: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["specthink", "calibrate", str(pilot.id), *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    url: SecretStr = connections.database_url
    monkeypatch.setenv("SPECTHINK_DATABASE_URL", url.get_secret_value())
    monkeypatch.setenv("SPECTHINK_REDIS_URL", connections.redis_url.get_secret_value())
    assert run("--policy", "glimpse", "--share", "0.05") == 0
    printed = capsys.readouterr().out
    assert "--set policy.threshold=1\n" in printed.replace(" \n", "\n")
    assert "high" in printed
    assert "beware: nobody said what will be scored" in printed
    assert run("--statistic", "first_margin", "--field", "exit.threshold", "--side", "below", "--json") == 0
    assert '"field": "exit.threshold"' in capsys.readouterr().out
    for arguments, code, told in (
        (["--share", "a"], 2, "write numbers as in 0.1,0.2,0.3"),
        (["--share", "2"], 2, "share 2.0: give numbers between 0 and 1"),
        (["--set", "policy.step_tokens=9"], 2, "give --policy, too"),
        (["--policy", "glimpse", "--set", "exit.thinking_tokens=9"], 2, "policy.NAME"),
        (["--for", "nowhere.jsonl"], 2, "nowhere.jsonl"),
    ):
        assert run(*arguments) == code, arguments
        complaint = capsys.readouterr().err
        assert told in " ".join(complaint.replace("│", " ").split())
        assert "Traceback" not in complaint
