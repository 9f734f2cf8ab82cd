"""Every command on a terminal, over rows full of characters that a terminal obeys: it is told nothing by them."""

from __future__ import annotations

import io
import json
import re
import sys
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import pytest
from sqlalchemy import Engine, make_url, text

from pipeline.cli.app import app
from pipeline.command_line import run_command
from pipeline.db.session import transaction
from pipeline.embedded import Connections
from tests.integration.rows import (
    add_engine,
    add_job,
    add_problem_set,
    add_samples,
    add_segment,
    add_step,
    add_worker,
)
from tests.unit.chat.test_model import write_model

pytestmark = pytest.mark.integration

BAD = "x\x1b]0;t\x07\x1b[2J\x1b[31;5;99mr\x9b5n\x84\x08\x7f\u202eg\u2066\u200f\u2028\u2029z"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff]")
OWN = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[[0-9]*[AKG]|\r")
"""What the command itself tells the terminal: colours, and where the live display is drawn again."""


class Screen(io.StringIO):
    """A terminal that keeps what it is told."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    @property
    def buffer(self) -> io.BytesIO:
        raise AssertionError("bytes went to the terminal as they are")

    def obeyed(self) -> str:
        """The first thing that data told it, '' for none."""
        assert "\x1b[31;5;99m" not in self.getvalue()
        found = OBEYED.search(OWN.sub("", self.getvalue()))
        return "" if found is None else repr(self.getvalue()[max(0, found.start() - 40) : found.end() + 40])


@pytest.fixture
def hostile(db_engine: Engine) -> tuple[int, int, int]:
    """Two jobs on one set and a sample, with such characters in whatever text can hold them."""
    with transaction(db_engine) as connection:
        set_id = add_problem_set(connection, name=BAD)
        connection.execute(
            text("""
                UPDATE problems SET external_id = external_id || :bad, prompt = :bad, subject = :bad, level = :bad,
                    shown = jsonb_build_object(CAST(:bad AS text), CAST(:bad AS text))
            """),
            {"bad": BAD},
        )
        connection.execute(
            text("UPDATE hidden_columns SET columns = jsonb_build_object(CAST(:b AS text), 1)"), {"b": BAD}
        )
        connection.execute(
            text("UPDATE reference_answers SET answer = :bad, also_accepted = ARRAY[CAST(:bad AS varchar)]"),
            {"bad": BAD},
        )
        engine_id = add_engine(connection, BAD)
        worker_id = add_worker(connection, "small", model=BAD, engine_id=engine_id)
        connection.execute(text("UPDATE workers SET host = :bad, queue = :bad"), {"bad": BAD})
        jobs = [add_job(connection, set_id, state="completed_with_errors", seconds=9, name=BAD) for _ in range(2)]
        connection.execute(
            text("UPDATE jobs SET small_model = :bad, large_model = :bad, policy = :bad, think_end = :bad"),
            {"bad": BAD},
        )
        connection.execute(
            text("UPDATE jobs SET config = jsonb_set(config, '{small,name}', to_jsonb(CAST(:bad AS text)))"),
            {"bad": BAD},
        )
        for job in jobs:
            samples = add_samples(
                connection,
                job,
                [
                    {"problem": 0, "score": 1.0, "predicted_answer": BAD, "tokens_small": len(BAD), "num_segments": 1},
                    {"problem": 1, "state": "failed", "error": BAD},
                ],
            )
            add_segment(
                connection, samples[0], 0, "small", BAD, worker_id=worker_id, engine_id=engine_id, trigger=BAD, cue=BAD,
                takes_over=True,
            )  # fmt: skip
            add_step(connection, samples[0], 0, "small", BAD, trigger=BAD, sentence_class=BAD)
            connection.execute(
                text("""
                    INSERT INTO grades (sample_id, grader, grader_version, status, score, graded_at, detail)
                    VALUES (:sample, :bad, 'v', 'done', 1, now(), :bad)
                """),
                {"sample": samples[0], "bad": BAD},
            )
    return jobs[0], jobs[1], samples[0]


@pytest.fixture
def terminal(connections: Connections, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Screen, Screen]:
    """What standard output and standard error show."""
    monkeypatch.setenv("SPECTHINK_DATABASE_URL", connections.database_url.get_secret_value())
    monkeypatch.setenv("SPECTHINK_REDIS_URL", connections.redis_url.get_secret_value())
    monkeypatch.setenv("SPECTHINK_STATE_DIR", str(tmp_path / "state"))
    assert connections.reader_url is not None
    reader = make_url(connections.reader_url.get_secret_value())
    monkeypatch.setenv("SPECTHINK_LOGINS__READER", f"{reader.username}:{reader.password}")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    return Screen(), Screen()


def show(terminal: tuple[Screen, Screen], *arguments: object) -> str:
    """What a command shows; nothing in it commands the terminal."""
    for screen in terminal:
        screen.seek(0)
        screen.truncate()
    out, err = terminal
    with redirect_stdout(out), redirect_stderr(err), suppress(SystemExit):
        run_command(lambda: app([str(argument) for argument in arguments], prog_name="specthink"))
    shown = "".join(screen.getvalue() for screen in terminal)
    for screen in terminal:
        assert screen.obeyed() == "", arguments
    return shown


def test_no_command_that_reads_lets_data_command_the_terminal(
    hostile: tuple[int, int, int], terminal: tuple[Screen, Screen], tmp_path: Path
) -> None:
    job, other, sample = hostile
    for command in (
        ["status"], ["status", "--json"], ["status", job], ["stats", job], ["stats", job, "--json"], ["errors", job],
        ["errors", job, "--json"], ["results", job], ["results", job, "--format", "csv"],
        ["compare", job, other, "--anyway"], ["compare", job, other, "--anyway", "--json"],
        ["sample", sample], ["sample", sample, "--json"], ["replay", sample], ["replay", "--job", job],
        ["replay", "--job", job, "--json"], ["doctor", "--job", job], ["doctor", "--job", job, "--json"],
        ["watch", job], ["report", job, other, "--html", tmp_path / "report.html"], ["rm", other, "--yes"],
    ):  # fmt: skip
        shown = show(terminal, *command)
        assert command[0] in ("report", "doctor", "replay") or re.search(r"␛|\\u001b", shown), command
    page = (tmp_path / "report.html").read_text()
    assert OBEYED.search(page) is None


def test_no_query_lets_data_command_the_terminal(
    hostile: tuple[int, int, int], terminal: tuple[Screen, Screen]
) -> None:
    names = 'SELECT name AS "a\x1b[2J\u202eb", config AS "c\x9bd", name, policy FROM jobs'
    for query in (names, "SELECT * FROM results", "SELECT * FROM errors", "SELECT 'a\x1b[2J' FROM nowhere\u202e"):
        show(terminal, "sql", query)
        show(terminal, "sql", "--json", query)


def test_json_says_the_very_same(hostile: tuple[int, int, int], terminal: tuple[Screen, Screen]) -> None:
    shown = json.loads(show(terminal, "status", "--json"))
    assert {job["name"] for job in shown["jobs"]} == {BAD}


def test_names_of_files_and_options_command_no_terminal(terminal: tuple[Screen, Screen], tmp_path: Path) -> None:
    odd = tmp_path / f"{BAD.replace('/', '')}\udc9b.jsonl"
    missing = tmp_path / f"missing{BAD}.jsonl"
    odd.write_text(json.dumps({"problem": BAD, "answer": BAD, BAD: BAD, "id": BAD}) + "\n")
    broken = tmp_path / f"broken{BAD}.csv"
    broken.write_text(f"problem,{BAD}\n1\n{BAD},{BAD},{BAD}\n")
    models = ["--small", f"S{BAD}", "--large", f"L{BAD}", "--name", BAD]
    for file in (odd, missing, broken):
        show(terminal, "submit", file, *models)
        show(terminal, "submit", file, *models, "--dry-run", "--grader", "exact")
        show(terminal, "submit", file, *models, "--dry-run", "--grader", "exact", "--json")
    for options in (
        ["--policy", BAD], ["--grader", BAD], ["--recipe", BAD], ["--prompt", BAD], ["--set", BAD], ["--column", BAD],
        ["--answer-as", BAD], ["--system", f"@{BAD}"], ["--template-var", BAD], ["--few-shot", BAD],
        ["--set", f'policy.n1=["{BAD}'], ["--stop", f'"{BAD}'], [f"--{BAD}", "1"], ["--seed", BAD],
        ["--cut-samples", BAD], ["--prompt-template", tmp_path / BAD], ["--think-tags", BAD],
    ):  # fmt: skip
        show(terminal, "submit", odd, *models, *options)
    for command in (["status", BAD], [BAD], ["report", 1, "--html", tmp_path / BAD / BAD], ["model", f"./{BAD}"]):
        show(terminal, *command)
    show(terminal, "--state-dir", tmp_path / BAD, "down")


def test_a_model_folder_commands_no_terminal(terminal: tuple[Screen, Screen], tmp_path: Path) -> None:
    shown = write_model(tmp_path / f"m{BAD}", template="{{ messages[0].content }}" + BAD + "<think>")
    raising = write_model(
        tmp_path / f"r{BAD}", template="{{ messages[0].content }}{{ raise_exception('" + BAD + "') }}"
    )
    broken = write_model(tmp_path / f"b{BAD}", template="{{ messages[0].content }}{% if " + BAD)
    assert "What is 1 + 2?" in show(terminal, "model", shown)
    assert "What is 1 + 2?" in show(terminal, "model", shown, "--json")
    assert "refuses a user message" in show(terminal, "model", raising)
    assert "chat template is broken" in show(terminal, "model", broken)
    file = tmp_path / "one.jsonl"
    file.write_text('{"problem": "1?", "answer": "1"}\n')
    assert "first prompt" in show(terminal, "submit", file, "--policy", "small-only", "--small", shown, "--dry-run")


def test_a_fault_of_the_program_commands_no_terminal(terminal: tuple[Screen, Screen]) -> None:
    def fail() -> None:
        raise RuntimeError(BAD)

    with pytest.raises(RuntimeError) as raised:
        run_command(fail)
    with redirect_stderr(terminal[1]):
        sys.excepthook(raised.type, raised.value, raised.tb)
    assert "RuntimeError: x␛]0;t␇" in terminal[1].getvalue()
    assert terminal[1].obeyed() == ""
