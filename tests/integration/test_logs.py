"""Jobs as logs of Inspect and of lm-eval, read back by these tools' own readers."""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas
import pytest
from inspect_ai.analysis import EventColumn, EventInfo, ModelEventColumns, SampleSummary, events_df, samples_df
from inspect_ai.log import list_eval_logs, read_eval_log, read_eval_log_sample
from sqlalchemy import Connection, Engine, text

from pipeline import Client
from pipeline.cli import main
from pipeline.db.session import transaction
from pipeline.embedded import Connections
from pipeline.errors import ConfigurationError, NotFound
from pipeline.results.reports import JobSummary
from tests.integration.rows import (
    add_aside,
    add_engine,
    add_job,
    add_problem_set,
    add_samples,
    add_segment,
    add_step,
    add_worker,
)

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def write_rich_sample(connection: Connection, sample: int, engines: dict[str, int], worker: int) -> None:
    """Every kind of piece: an aside, what was discarded, a takeover, an inserted sentence, the head of an aside."""

    def segment(index: int, author: str, written: str, **columns: Any) -> None:
        add_segment(
            connection, sample, index, author, written, worker_id=worker,
            engine_id=engines.get(author, engines["small"]), **columns,
        )  # fmt: skip

    segment(0, "small", "I add.", discarded=" Wait", cached_tokens=4, write_seconds=0.5, finish="watch", seed=11)
    add_aside(connection, sample, 0, "large", "sure", after_segment=1, worker_id=worker, engine_id=engines["large"])
    segment(1, "inserted", "\n\n", trigger="break", prompt_tokens=0, finish=None)
    segment(
        2, "large", "sure", trigger="reflection", takes_over=True, taken_from=0, tokens_generated=0, prompt_tokens=0
    )
    segment(3, "small", "</think>It is 1.", trigger="hand_back", finish="eos", value=0.5, threshold=0.7)
    for index, (author, written) in enumerate([("small", "I add.\n\n"), ("large", "sure"), ("small", "It is 1.")]):
        add_step(connection, sample, index, author, written)


@pytest.fixture
def client(connections: Connections) -> Iterator[Client]:
    with Client(connections.submitter_url, connections.reader_url) as client:
        yield client


@pytest.fixture
def job_id(db_engine: Engine) -> int:
    """Two samples of each of three problems: right, wrong, cut, unscored and failed ones; one id has a slash."""
    with transaction(db_engine) as connection:
        problem_set = add_problem_set(connection, 3, name="hard_sums/v2")
        connection.execute(text("UPDATE problems SET external_id = 'test/7.json' WHERE position = 1"))
        connection.execute(text("""UPDATE problems SET shown = '{"choices": ["zero", "one"]}' WHERE position = 0"""))
        job = add_job(connection, problem_set, num_samples=2, state="completed", seconds=9)
        connection.execute(
            text(
                "UPDATE jobs SET think_start = '<think>', think_end = '</think>', think_opened = true WHERE id = :job"
            ),
            {"job": job},
        )
        engines = {role: add_engine(connection, role[0].upper()) for role in ("small", "large")}
        worker = add_worker(connection, "small", model="S")
        rich = {
            "tokens_small": 22, "tokens_large": 4, "tokens_inserted": 2, "discarded_small": 5, "aside_large": 4,
            "taken_large": 4, "num_asides": 1, "num_segments": 4, "num_takeovers": 1, "predicted_answer": "1",
        }  # fmt: skip
        few = {"tokens_small": 2, "num_segments": 1}
        samples = add_samples(
            connection,
            job,
            [
                {"problem": 0, "score": 1.0, **rich},
                {"problem": 0, "score": 0.0, **few, "predicted_answer": "7"},
                {"problem": 1, "score": 1.0, **few, "finish_reason": "length"},
                {"problem": 1, **few},
                {"problem": 2, "score": 0.0, **few, "finish_reason": "repetition"},
                {"problem": 2, "state": "failed", "error_class": "engine_died", "error": "gone"},
            ],
        )
        write_rich_sample(connection, samples[0], engines, worker)
        for sample in samples[1:5]:
            add_segment(
                connection, sample, 0, "small", "ok", worker_id=worker, engine_id=engines["small"], write_seconds=0.25
            )
        connection.execute(text("UPDATE samples SET finished_at = now() WHERE state = 'graded'"))
        connection.execute(
            text("""
                INSERT INTO grades (sample_id, grader, grader_version, status, detail, graded_at)
                SELECT id, 'math', '1', 'done', 'it took too long', now() FROM samples
                WHERE state = 'graded' AND score IS NULL
            """)
        )
    return job


def summary_of(client: Client, job_id: int) -> JobSummary:
    [summary] = client.summary(job_id)
    return summary


@pytest.fixture(params=[".eval", ".json"])
def log(client: Client, job_id: int, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path, count = client.write_inspect_log(job_id, tmp_path / f"job{request.param}")
    assert count == 6
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    return path


def test_inspect_reads_the_log_as_its_own(log: Path, client: Client, job_id: int) -> None:
    header = read_eval_log(str(log), header_only=True)
    assert (header.status, header.samples) == ("success", None)
    assert (header.eval.task, header.eval.model, header.eval.solver) == (
        "hard_sums/v2", "specthink/S", "speculative-thinking:improved",
    )  # fmt: skip
    assert {role: config.model for role, config in (header.eval.model_roles or {}).items()} == {
        "small": "S", "large": "L",
    }  # fmt: skip
    assert header.eval.dataset.sample_ids == ["p0", "test/7.json", "p2"]
    read = read_eval_log(str(log))
    assert len(read.samples or []) == 6
    summary = summary_of(client, job_id)
    assert read.results is not None
    [score] = read.results.scores
    assert score.metrics["accuracy"].value == summary.accuracy == 0.5
    assert (score.scored_samples, score.unscored_samples, read.results.total_samples) == (4, 1, 6)
    assert [(row.sample_id, row.value) for row in (read.reductions or [])[0].samples] == [
        ("p0", 0.5), ("test/7.json", 1.0), ("p2", 0.0),
    ]  # fmt: skip
    used = {role: usage.output_tokens for role, usage in read.stats.role_usage.items()}
    assert used == {"small": summary.written_small, "large": summary.written_large}


def test_a_sample_has_thoughts_answer_choices_and_what_limited_it(log: Path) -> None:
    first = read_eval_log_sample(str(log), "p0", 1, resolve_attachments=True)
    reasoning, answer = first.messages[1].content
    assert (reasoning.reasoning, answer.text) == ("I add.\n\nsure", "It is 1.")
    assert (first.choices, first.target, first.output.stop_reason) == (["zero", "one"], "0", "stop")
    assert first.scores is not None
    assert (first.scores["math"].value, first.scores["math"].answer) == (1.0, "1")
    assert first.metadata["source"] == "sums"
    cut = read_eval_log_sample(str(log), "test/7.json", 1)
    assert (cut.limit and cut.limit.type, cut.output.stop_reason) == ("token", "max_tokens")
    unscored = read_eval_log_sample(str(log), "test/7.json", 2)
    assert unscored.scores is not None
    assert math.isnan(unscored.scores["math"].value)
    assert unscored.scores["math"].explanation == "it took too long"
    failed = read_eval_log_sample(str(log), "p2", 2)
    assert (failed.error and failed.error.message, failed.scores) == ("engine_died: gone", None)


def test_events_say_who_wrote_what_in_order(log: Path) -> None:
    sample = read_eval_log_sample(str(log), "p0", 1, resolve_attachments=True)
    told = [
        (event.event, getattr(event, "role", None) or getattr(event, "source", None) or getattr(event, "type", None))
        for event in sample.events
        if event.event != "span_end"
    ]
    assert told == [
        ("sample_init", None), ("span_begin", "solvers"), ("span_begin", "solver"),
        ("span_begin", "segment"), ("model", "small"), ("span_begin", "aside"), ("model", "large"),
        ("info", "policy"), ("span_begin", "segment"), ("model", "large"),
        ("span_begin", "segment"), ("model", "small"),
        ("info", "specthink.steps"), ("score", None),
    ]  # fmt: skip
    models: list[Any] = [event for event in sample.events if event.event == "model"]
    assert [event.output.completion for event in models] == ["I add.", "sure", "sure", "</think>It is 1."]
    assert "".join(event.output.completion for event in models[2:]) == "sure</think>It is 1."
    assert models[0].metadata["discarded_text"] == " Wait"
    assert models[0].metadata["seed"] == 11
    assert models[2].metadata["taken_from_aside"] is True
    assert (models[3].metadata["start_token"], models[3].metadata["value"]) == (12, 0.5)
    usage = models[0].output.usage
    assert (usage.input_tokens, usage.input_tokens_cache_read, usage.output_tokens) == (6, 4, 11)
    assert all(len(event.input) == 1 for event in models)
    spans = [event.id for event in sample.events if event.event == "span_begin"]
    assert sorted(spans) == sorted(event.id for event in sample.events if event.event == "span_end")
    uuids = [event.uuid for event in sample.events]
    assert len(set(uuids)) == len(uuids)


def test_data_frames_of_inspect_have_the_numbers_of_the_books(client: Client, job_id: int, tmp_path: Path) -> None:
    path, _ = client.write_inspect_log(job_id, tmp_path)
    assert re.fullmatch(r"2026-[\dT-]+\+00-00_hard-sums-v2_[0-9a-f]{22}\.eval", path.name)
    [listed] = list_eval_logs(str(tmp_path))
    assert (listed.task, len(listed.task_id)) == ("hard-sums-v2", 22)
    summary = summary_of(client, job_id)
    samples = samples_df(str(path), columns=SampleSummary)
    assert samples["score_math"].mean() == summary.accuracy
    assert len(samples) == summary.samples_total
    columns = [*EventInfo, *ModelEventColumns, EventColumn("tokens", path="output.usage.output_tokens")]
    events = events_df(str(path), columns=columns, filter=lambda event: event.event == "model")
    written = events.groupby("model_event_role")["tokens"].sum()
    assert (int(written["small"]), int(written["large"])) == (summary.written_small, summary.written_large)
    texts = events.loc[events["model_event_role"] == "large", "model_event_completion"]
    assert texts.tolist() == ["sure", "sure"]
    assert isinstance(events, pandas.DataFrame)


def test_the_same_job_gives_the_same_log(client: Client, job_id: int, tmp_path: Path) -> None:
    """So that a log that is written anew replaces the old one, also in another program's index."""
    first, _ = client.write_inspect_log(job_id, tmp_path / "a.json")
    again, _ = client.write_inspect_log(job_id, tmp_path / "b.json")
    assert first.read_bytes() == again.read_bytes()


def test_eval_log_is_packed_as_inspect_packs(client: Client, job_id: int, tmp_path: Path) -> None:
    path, _ = client.write_inspect_log(job_id, tmp_path / "a.eval")
    with zipfile.ZipFile(path) as packed:
        names = packed.namelist()
    assert {"header.json", "summaries.json", "reductions.json", "_journal/start.json"} <= set(names)
    assert "samples/test/7.json_epoch_2.json" in names


def test_what_cannot_be_written_is_one_line(client: Client, job_id: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"ends in \.eval or \.json; a folder"):
        client.write_inspect_log(job_id, tmp_path / "log.zip")
    with pytest.raises(ConfigurationError, match="cannot be written: No such file"):
        client.write_inspect_log(job_id, tmp_path / "none" / "a.eval")
    with pytest.raises(NotFound):
        client.write_inspect_log(job_id + 1, tmp_path / "a.eval")
    with pytest.raises(NotFound):
        client.write_lm_eval(job_id + 1, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_login_without_answers_writes_a_log_without_them(
    connections: Connections, job_id: int, tmp_path: Path
) -> None:
    with Client(connections.submitter_url) as client:
        path, _ = client.write_inspect_log(job_id, tmp_path / "a.json")
        folder, _ = client.write_lm_eval(job_id, tmp_path)
    read = read_eval_log(str(path))
    assert {str(sample.target) for sample in read.samples or []} == {""}
    assert "sums" not in path.read_text().replace("hard_sums", "")
    [samples] = folder.glob("samples_*.jsonl")
    assert {json.loads(line)["target"] for line in samples.read_text().splitlines()} == {""}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the installed lm-eval leaves of a task of two documents, each asked twice, of its dummy model."""
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker

    folder = tmp_path_factory.mktemp("lm_eval")
    (folder / "rows.jsonl").write_text('{"problem": "1+1?", "answer": "2"}\n{"problem": "2+2?", "answer": "4"}\n')
    task = {
        "task": "sums", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test", "output_type": "generate_until", "doc_to_text": "{{problem}}", "repeats": 2,
        "doc_to_target": "{{answer}}", "metric_list": [{"metric": "exact_match"}],
        "generation_kwargs": {"until": ["\n"]},
    }  # fmt: skip
    tracker = EvaluationTracker(output_path=str(folder / "out"))
    found: Any = simple_evaluate(model="dummy", tasks=[task], evaluation_tracker=tracker, log_samples=True)
    samples = found.pop("samples")
    tracker.save_results_aggregated(results=found, samples=samples)
    tracker.save_results_samples(task_name="sums", samples=samples["sums"])
    [place] = (folder / "out").iterdir()
    return place


def rows_of(folder: Path) -> list[dict[str, Any]]:
    [samples] = folder.glob("samples_*.jsonl")
    return [json.loads(line) for line in samples.read_text().splitlines()]


def results_of(folder: Path) -> dict[str, Any]:
    [results] = folder.glob("results_*.json")
    return dict(json.loads(results.read_text()))


def test_lm_eval_files_have_the_fields_of_the_installed_release(
    client: Client, job_id: int, tmp_path: Path, theirs: Path
) -> None:
    from lm_eval.utils import get_file_task_name, sanitize_model_name

    folder, count = client.write_lm_eval(job_id, tmp_path)
    assert (count, folder.name) == (6, sanitize_model_name("S+L"))
    ours = rows_of(folder)
    [their_row, *_] = rows_of(theirs)
    assert set(their_row) <= set(ours[0])
    for name in their_row.keys() - {"doc", "exact_match"}:
        assert type(ours[0][name]) is type(their_row[name]), name
    assert get_file_task_name(next(folder.glob("samples_*")).name) == "hard_sums_v2"
    results, their_results = results_of(folder), results_of(theirs)
    for name in ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "config", "task_hashes"):
        assert name in their_results
        assert name in results
    assert set(their_results["results"]["sums"]) - {"name"} <= set(results["results"]["hard_sums_v2"])


def test_lm_eval_files_hold_texts_and_scores(client: Client, job_id: int, tmp_path: Path) -> None:
    folder, _ = client.write_lm_eval(job_id, tmp_path)
    rows = rows_of(folder)
    assert [row["exact_match"] for row in rows] == [0.5, 1.0, 0.0]
    assert rows[0]["resps"] == [["I add.\n\nsure</think>It is 1.", "ok"]]
    assert rows[0]["filtered_resps"] == [["1", "7"]]
    assert (rows[1]["doc"]["id"], rows[1]["target"]) == ("test/7.json", "1")
    named = results_of(folder)["results"]["hard_sums_v2"]
    assert (named["exact_match,none"], named["sample_len"]) == (0.5, 3)
    assert named["exact_match_stderr,none"] == pytest.approx(0.5 / math.sqrt(3))


@pytest.mark.parametrize(("format", "place"), [("inspect", "log.eval"), ("lm-eval", "out")])
def test_the_command_writes_logs(
    connections: Connections, job_id: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, place: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("SPECTHINK_DATABASE_URL", connections.database_url.get_secret_value())
    monkeypatch.setenv("SPECTHINK_REDIS_URL", connections.redis_url.get_secret_value())
    command = ["specthink", "results", str(job_id), "--format", format]
    for arguments, code in ((["--output", str(tmp_path / place)], 0), ([], 2)):
        monkeypatch.setattr("sys.argv", [*command, *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert int(ended.value.code or 0) == code
    told = capsys.readouterr().err
    assert "6 samples in" in told
    assert "give --output" in told
    assert (tmp_path / place).exists()
