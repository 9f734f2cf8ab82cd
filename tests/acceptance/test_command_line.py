"""The command line from outside, on real servers, workers and models."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from pyarrow import parquet

from tests.acceptance.gateway import DEMO_PAIR, run_gateway, run_inspect, run_lm_eval
from tests.acceptance.outside import (
    CHECKOUT,
    MODELS,
    START_TIMEOUT_S,
    CommandLine,
    plain_environment,
    processes_of,
    wait_until,
)

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]

PROBLEMS = str(CHECKOUT / "examples" / "problems.jsonl")
SMALL, LARGE = ("--small", str(MODELS / "demo-small")), ("--large", str(MODELS / "demo-large"))


@pytest.fixture(scope="module")
def finished_job(specthink: CommandLine) -> int:
    """Six problems, two samples each, solved with Speculative Thinking."""
    options = ["--samples", "2", "--limit", "6", "--seed", "3", "--max-tokens", "300", "--name", "six", "--wait"]
    done = specthink.run("submit", PROBLEMS, *SMALL, *LARGE, *options, timeout_s=200)
    assert done.returncode == 0, done.stderr
    assert "12/12 samples" in done.stderr
    assert done.stdout.strip().isdigit()
    return int(done.stdout)


@pytest.fixture(scope="module")
def small_job(specthink: CommandLine) -> int:
    """The same problems with the small model alone."""
    options = ["--policy", "small-only", "--samples", "2", "--limit", "6", "--max-tokens", "300", "--wait"]
    return int(specthink.ok("submit", PROBLEMS, *SMALL, *options, timeout_s=200))


def test_up_again_finds_everything_running(specthink: CommandLine) -> None:
    def pids() -> dict[str, int]:
        return {worker["kind"]: worker["pid"] for worker in specthink.json("status")["workers"]}

    before = pids()
    assert sorted(before) == ["grade", "large", "small", "upkeep"]
    specthink.ok("up", *SMALL, *LARGE, timeout_s=START_TIMEOUT_S)
    assert pids() == before


def test_doctor_finds_nothing_wrong(specthink: CommandLine) -> None:
    findings = specthink.json("doctor", timeout_s=240)  # it imports vLLM
    assert [finding for finding in findings if finding["verdict"] != "ok"] == []
    assert {"redis appendonly", "schema", "large workers"} <= {finding["check"] for finding in findings}


def test_job_ends_with_every_sample_graded_once(specthink: CommandLine, finished_job: int) -> None:
    rows = specthink.json(
        "sql",
        "SELECT count(*) AS samples, count(DISTINCT (problem_id, sample_index)) AS distinct_samples, "
        f"count(score) AS scored FROM samples WHERE job_id = {finished_job} AND state = 'graded'",
    )
    assert rows == [{"samples": 12, "distinct_samples": 12, "scored": 12}]
    (job,) = specthink.json("status", str(finished_job))["jobs"]
    assert (job["name"], job["state"], job["samples_done"], job["waiting_for"]) == ("six", "completed", 12, None)


def test_token_books_balance(specthink: CommandLine, finished_job: int) -> None:
    by_segment = specthink.json(
        "sql",
        "SELECT author, sum(cardinality(token_ids)) AS tokens FROM segments g JOIN samples s ON s.id = g.sample_id "
        f"WHERE s.job_id = {finished_job} GROUP BY author ORDER BY author",
    )
    summary = specthink.json("stats", str(finished_job))["summary"]
    assert {row["author"]: row["tokens"] for row in by_segment} == {
        "small": summary["tokens_small"],
        "large": summary["tokens_large"],
    }
    assert summary["takeovers"] > 0


def test_stats_and_sql_agree(specthink: CommandLine, finished_job: int) -> None:
    stats = specthink.json("stats", str(finished_job))
    (row,) = specthink.json("sql", f"SELECT * FROM job_summary WHERE job_id = {finished_job}")
    for column in ("accuracy", "accuracy_low", "accuracy_high", "mean_output_tokens", "share_large", "seconds"):
        assert stats["summary"][column] == row[column]
    printed = specthink.ok("stats", str(finished_job))
    for title in ("output tokens", "delegation", "pass@k", "reflection"):
        assert title in printed


def test_results_in_three_formats_hold_the_same(specthink: CommandLine, finished_job: int, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in specthink.ok("results", str(finished_job)).splitlines()]
    assert len(lines) == 12
    assert all(line["output"] and line["state"] == "graded" for line in lines)
    table = list(csv.DictReader(io.StringIO(specthink.ok("results", str(finished_job), "--format", "csv"))))
    specthink.ok("results", str(finished_job), "--format", "parquet", "--output", str(tmp_path / "r.parquet"))
    columns = parquet.read_table(tmp_path / "r.parquet").to_pylist()
    ids = [line["sample_id"] for line in lines]
    assert [int(row["sample_id"]) for row in table] == ids == [row["sample_id"] for row in columns]
    assert [row["output"] for row in columns] == [line["output"] for line in lines]


def test_unknown_job_leaves_no_file_behind(specthink: CommandLine, tmp_path: Path) -> None:
    done = specthink.run("results", "4711", "--output", str(tmp_path / "none.jsonl"))
    assert (done.returncode, list(tmp_path.iterdir())) == (3, [])
    assert "there is no job 4711" in done.stderr


def test_sample_is_shown_step_by_step_with_its_authors(specthink: CommandLine, finished_job: int) -> None:
    query = f"SELECT id FROM samples WHERE job_id = {finished_job} AND num_takeovers > 0 LIMIT 1"
    sample_id = str(specthink.json("sql", query)[0]["id"])
    printed = specthink.ok("sample", sample_id)
    assert " L " in printed
    assert "[reflection]" in printed
    report = specthink.json("sample", sample_id)
    assert "".join(step["text"] for step in report["steps"]) == report["result"]["output"]


def test_jobs_are_compared_by_problem(specthink: CommandLine, finished_job: int, small_job: int) -> None:
    compared = specthink.json("compare", str(small_job), str(finished_job))["comparisons"]
    assert [(row["job_a"], row["job_b"], row["num_problems"]) for row in compared] == [(small_job, finished_job, 6)]
    assert f"{small_job} → {finished_job}" in specthink.ok("compare", str(small_job), str(finished_job))


def test_report_is_one_page_with_the_samples_text(
    specthink: CommandLine, finished_job: int, small_job: int, tmp_path: Path
) -> None:
    specthink.ok("report", str(small_job), str(finished_job), "--html", str(tmp_path / "r.html"), "--samples", "2")
    page = (tmp_path / "r.html").read_text()
    assert page.count("<summary>problem ") == 2 + 4  # two problems side by side; two samples of each job
    assert page.count("<details") == 2 + 4 + 2  # these, and each job's settings
    assert 'class="by by-large"' in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert specthink.run("report", "4711", "--html", str(tmp_path / "none.html")).returncode == 3
    assert not (tmp_path / "none.html").exists()


def test_random_control_is_matched_to_a_job_and_counts_for_itself(specthink: CommandLine, finished_job: int) -> None:
    options = ["--policy", "random", "--matched-to", str(finished_job), "--samples", "2", "--limit", "6"]
    job = specthink.ok("submit", PROBLEMS, *SMALL, *LARGE, *options, "--max-tokens", "300", "--wait", timeout_s=200)
    (stored,) = specthink.json("sql", f"SELECT config->'policy' AS policy FROM jobs WHERE id = {job.strip()}")
    assert stored["policy"]["name"] == "random"
    assert 0 < stored["policy"]["rate"] <= 1
    triggers = specthink.json("sql", f"SELECT DISTINCT trigger FROM takeovers WHERE job_id = {job.strip()}")
    assert triggers == [{"trigger": "random"}]


def test_ended_jobs_are_counted_once(specthink: CommandLine, finished_job: int) -> None:
    query = f"SELECT count(*) AS n FROM job_totals WHERE job_id = {finished_job} AND stale_at IS NULL"
    wait_until(lambda: specthink.json("sql", query) == [{"n": 1}])


def test_watch_ends_with_the_job(specthink: CommandLine, finished_job: int, small_job: int) -> None:
    done = specthink.run("watch", str(finished_job), str(small_job))
    assert done.returncode == 0
    assert "24/24 samples" in done.stderr


def test_grade_again_leaves_present_grades_alone(specthink: CommandLine, finished_job: int) -> None:
    assert "0 samples sent to the graders, 12 have a grade by math" in specthink.ok("grade", str(finished_job))
    assert specthink.run("grade", "999999").returncode == 3


def test_cancelled_job_ends_and_says_so(specthink: CommandLine) -> None:
    job = specthink.ok("submit", PROBLEMS, "--small", "nobody-serves-this", "--policy", "small-only", "--limit", "2")
    (waiting,) = specthink.json("status", job.strip())["jobs"]
    assert waiting["waiting_for"].startswith("no live small worker serves nobody-serves-this: specthink worker small")
    assert "2 samples were still open" in specthink.ok("cancel", job.strip())
    assert "is cancelled already" in specthink.ok("cancel", job.strip())
    paused = specthink.run("pause", job.strip())
    assert paused.returncode == 1
    assert "it is cancelled" in paused.stderr
    assert specthink.run("watch", job.strip()).returncode == 1


def test_interrupted_watch_leaves_the_job_running(specthink: CommandLine) -> None:
    job = specthink.ok("submit", PROBLEMS, "--small", "nobody", "--policy", "small-only", "--limit", "1").strip()
    watching = subprocess.Popen(
        specthink.argv("watch", job), cwd=specthink.cwd, env=plain_environment(), stderr=subprocess.PIPE, text=True
    )
    assert watching.stderr is not None
    assert "0/1 samples" in watching.stderr.readline()
    watching.send_signal(signal.SIGINT)
    _, rest = watching.communicate(timeout=30)
    assert watching.returncode == 130
    assert "Traceback" not in rest
    assert specthink.json("status", job)["jobs"][0]["state"] == "running"
    specthink.ok("cancel", job)


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["stats", "4711"], 3),
        (["sample", "4711"], 3),
        (["sql", "DELETE FROM jobs"], 2),
        (["sql", "SELECT nonsense"], 2),
        (["submit", "missing.jsonl", "--small", "S", "--policy", "small-only"], 2),
        (["submit", PROBLEMS, "--small", "S"], 2),
        (["worker", "small", "--model", "/no/such/model"], 2),
    ],
)
def test_errors_are_short_and_have_their_exit_codes(
    specthink: CommandLine, arguments: list[str], exit_code: int
) -> None:
    done = specthink.run(*arguments)
    assert done.returncode == exit_code, done.stderr
    assert done.stderr.strip()
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_query_is_read_from_standard_input(specthink: CommandLine) -> None:
    done = subprocess.run(
        specthink.argv("sql", "-", "--json"), input="SELECT current_user AS who", cwd=specthink.cwd,
        env=plain_environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == [{"who": "specthink_reader"}]


def test_flower_shows_the_jobs_tasks_without_text(specthink: CommandLine, finished_job: int) -> None:
    url = f"http://127.0.0.1:{(specthink.state_dir / 'flower.port').read_text()}"
    with urllib.request.urlopen(f"{url}/api/tasks?limit=1000", timeout=30) as answer:
        tasks = json.load(answer).values()
    names = {task["name"] for task in tasks if task["state"] == "SUCCESS"}
    assert {"draft", "assist", "grade"} <= names
    assert "boxed" not in json.dumps(list(tasks))


@pytest.fixture(scope="module")
def gateway(specthink: CommandLine) -> Iterator[str]:
    with run_gateway(specthink) as url:
        yield url


@pytest.fixture
def few_problems(tmp_path: Path) -> Path:
    path = tmp_path / "few.jsonl"
    path.write_text("".join(Path(PROBLEMS).read_text().splitlines(keepends=True)[:3]))
    return path


def test_official_client_gets_a_batch_and_a_stream(gateway: str, few_problems: Path) -> None:
    lines = [json.loads(line) for line in few_problems.read_text().splitlines()]
    asked = [
        {
            "custom_id": line["id"], "method": "POST", "url": "/v1/chat/completions",
            "body": {
                "model": DEMO_PAIR, "max_tokens": 300, "seed": 3, "n": 2,
                "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": line["problem"]}],
            },
        }
        for line in lines
    ]  # fmt: skip
    content = "".join(json.dumps(line) + "\n" for line in asked).encode()
    with openai.OpenAI(base_url=gateway, api_key="any", _strict_response_validation=True) as client:
        file = client.files.create(file=("few.jsonl", content), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        wait_until(lambda: client.batches.retrieve(batch.id).status == "completed", timeout_s=200)
        batch = client.batches.retrieve(batch.id)
        assert batch.output_file_id is not None
        answers = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
        assert [answer["custom_id"] for answer in answers] == [line["id"] for line in lines]
        choices = [choice for answer in answers for choice in answer["response"]["body"]["choices"]]
        assert len(choices) == 6
        assert {segment["author"] for choice in choices for segment in choice["specthink"]["segments"]} >= {"small"}
        stream = client.chat.completions.create(
            model=DEMO_PAIR, messages=[{"role": "user", "content": lines[0]["problem"]}], max_tokens=300, stream=True
        )
        pieces = [chunk.choices[0] for chunk in stream if chunk.choices]
    assert pieces[-1].finish_reason in ("stop", "length")
    assert any(getattr(piece.delta, "reasoning", None) for piece in pieces)


def test_lm_eval_asks_the_gateway(gateway: str, few_problems: Path, tmp_path: Path) -> None:
    assert "exact_match" in run_lm_eval(tmp_path, gateway, few_problems)
    (written,) = tmp_path.glob("out/**/samples_sums_*.jsonl")
    assert len(written.read_text().splitlines()) == 3


def test_inspect_asks_the_gateway_and_gets_thoughts_apart(gateway: str, few_problems: Path, tmp_path: Path) -> None:
    told = json.loads(run_inspect(tmp_path, gateway, few_problems).splitlines()[-1])
    assert len(told) == 3
    assert all(sample["thoughts"] for sample in told)
    assert all(0 < sample["reasoning_tokens"] <= sample["tokens"] for sample in told)


def test_up_with_another_model_changes_nothing_and_one_program_is_stopped_and_started(specthink: CommandLine) -> None:
    written = specthink.state_dir / "programs" / "large.json"
    before = written.read_bytes()
    refused = specthink.run("up", "--large", str(MODELS / "demo-small"))
    assert refused.returncode == 2
    assert "specthink down large" in refused.stderr
    assert written.read_bytes() == before
    assert "stopped: large" in specthink.ok("down", "large")
    assert sorted(worker["kind"] for worker in specthink.json("status")["workers"]) == ["grade", "small", "upkeep"]
    specthink.ok("up", "large", timeout_s=START_TIMEOUT_S)
    specthink.ok("up", *SMALL, *LARGE, "--large", str(MODELS / "demo-small"), timeout_s=START_TIMEOUT_S)
    workers = [(worker["kind"], worker["model"]) for worker in specthink.json("status")["workers"] if worker["model"]]
    assert sorted(workers) == [("large", "demo-large"), ("large", "demo-small"), ("small", "demo-small")]
    assert "stopped: large-2" in specthink.ok("down", "large-2")


def test_failing_worker_makes_up_fail_with_its_log(tmp_path: Path) -> None:
    command = CommandLine(tmp_path / "state", tmp_path)
    try:
        done = command.run("up", "--no-flower", "--small", str(CHECKOUT / "tests"), timeout_s=START_TIMEOUT_S)
        assert done.returncode == 2
        assert "small did not start (exit code 2)" in done.stderr
        assert "tokenizer.json is missing" in done.stderr
    finally:
        stopped = command.ok("down")
    assert "postgres" in stopped
    wait_until(lambda: not processes_of(tmp_path / "state"))
