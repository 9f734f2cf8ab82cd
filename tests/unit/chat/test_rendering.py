"""Chat templates that nobody has read: each fault in one is one line, and none takes more than it may."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.chat import rendering
from pipeline.chat.model import ChatModel
from pipeline.chat.rendering import ChatTemplate
from pipeline.errors import ConfigurationError, EngineUnavailable
from tests.unit.chat.test_model import write_model

SHOWN = "{{ messages[0].content }}"
ASKED = [{"role": "user", "content": "1 + 2?"}]


def template(source: str) -> ChatTemplate:
    return ChatTemplate(name="folder/m", source=source)


def children() -> list[psutil.Process]:
    """The rendering processes of this one."""
    found = []
    for child in psutil.Process().children():
        with_script = [part for part in child.cmdline() if part.endswith("render_templates.py")]
        found += [child] * bool(with_script)
    return found


@pytest.fixture
def little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "CPU_S", 0.3)


@pytest.mark.usefixtures("little_time")
@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("\n{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "processor time.*line 2"),
        ("{{ 10 ** (10 ** 9) }}", "processor time"),
        ("{% macro m() %}\n{{ m() }}{% endmacro %}{{ m() }}", r"fails on a user message: RecursionError: .*line 2"),
        ("{{" + "(" * 99999 + "1" + ")" * 99999 + "}}", "is broken: RecursionError"),
        ("{% for i in [1] %}" * 60 + "{% endfor %}" * 60, "is broken: SyntaxError: too many"),
        ("\n\n{{ 1 + 'a' }}", r"fails on a user message: TypeError: .*\(line 3 of the template\); mend the template"),
        ("{{ [1] * 10 ** 10 }}", r"more memory than a template may have for a user message \(line 1 "),
        ("{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "writes more than 1,048,576 characters"),
        ("{{ '\\ud800' }}", r"half of a character for a user message: U\+D800"),
        ("{{ raise_exception('a\nb\x1b[2J') }}", r"refuses a user message: a\\nb\\x1b\[2J \(line 1 of the template\)"),
        ("{{ cycler.__init__.__globals__ }}", "refuses a user message: access to attribute '__init__'"),
        ("{% include '/etc/passwd' %}", "fails on a user message: TypeError: no loader"),
        ("\n{% if %}", r"is broken: Expected an expression.*\(line 2 of the template\); mend the template"),
    ],
)  # fmt: skip
def test_every_fault_of_a_template_is_one_line_that_names_the_model(source: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as refused:
        template(SHOWN + source).render(ASKED, {})
    message = str(refused.value)
    assert message.startswith("folder/m: its chat template ")
    assert message.isprintable()
    assert len(message) < 700


def test_doubling_meets_the_limit_of_memory_and_the_next_template_a_new_process() -> None:
    doubling = "{% set ns = namespace(s='x') %}{% for i in range(60) %}\n{% set ns.s = ns.s + ns.s %}{% endfor %}"
    assert template(SHOWN).render(ASKED, {}) == "1 + 2?"
    (before,) = children()
    with pytest.raises(ConfigurationError, match="more memory than a template may have"):
        template(doubling).render(ASKED, {})
    assert not before.is_running()
    assert template(SHOWN).render(ASKED, {}) == "1 + 2?"


def test_ten_thousand_prompts_are_rendered_by_one_process() -> None:
    conversations = [[{"role": "user", "content": str(index)}] for index in range(10_000)]
    assert list(template(f"<{SHOWN}>").render_all(conversations, {})) == [f"<{index}>" for index in range(10_000)]
    assert len(children()) == 1


def test_long_texts_come_in_several_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "MAX_ANSWER_CHARS", 100)
    conversations = [[{"role": "user", "content": f"{index:060}é"}] for index in range(7)]
    assert list(template(SHOWN).render_all(conversations, {})) == [each[0]["content"] for each in conversations]


@pytest.mark.usefixtures("little_time")
def test_time_is_counted_over_all_prompts_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "MAX_CALLS", 1)
    monkeypatch.setattr(rendering, "CPU_PER_PROMPT_S", 0.0)
    slow = template(SHOWN + "{% for i in range(99999) %}{{ '' }}{% endfor %}")
    assert slow.render(ASKED, {}) == "1 + 2?"
    with pytest.raises(ConfigurationError, match="takes more than 5 s of processor time for a user message"):
        list(slow.render_all([ASKED] * 200, {}))


def test_a_process_that_ends_by_itself_is_started_again() -> None:
    assert template(SHOWN).render(ASKED, {}) == "1 + 2?"
    (child,) = children()
    child.kill()
    child.wait()
    assert template(SHOWN).render(ASKED, {}) == "1 + 2?"
    assert len(children()) == 1


def test_a_process_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    assert template(SHOWN).render(ASKED, {}) == "1 + 2?"
    (child,) = children()
    monkeypatch.setattr(rendering, "WALL_S", 0.2)
    monkeypatch.setattr(rendering, "CPU_S", 0.02)
    monkeypatch.setattr(rendering, "TRIES", 1)
    os.kill(child.pid, signal.SIGSTOP)
    with pytest.raises(ConfigurationError, match="did not answer within 0 s over a user message; mend the template"):
        template(SHOWN).render(ASKED, {})
    assert not child.is_running()


def test_a_machine_that_starts_no_process_is_no_fault_of_the_template(
    monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(EngineUnavailable, match="folder/m: no process can be started"):
        template(SHOWN).render(ASKED, {})


@pytest.fixture
def fresh() -> Iterator[None]:
    """No process is there before and after."""
    rendering._renderer.close()
    yield
    rendering._renderer.close()


def test_threads_share_the_process() -> None:
    said: list[str] = []
    threads = [
        threading.Thread(target=lambda: said.extend(template(SHOWN).render_all([ASKED] * 50, {}))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == ["1 + 2?"] * 400
    assert len(children()) == 1


def test_a_forked_process_has_its_own() -> None:
    assert template(SHOWN).render(ASKED, {}) == "1 + 2?"
    (ours,) = children()
    pool = multiprocessing.get_context("fork").Pool(1)
    with pool:
        assert pool.apply(_render_and_count) == ("1 + 2?", 1)
    assert template(SHOWN).render(ASKED, {}) == "1 + 2?"
    assert children() == [ours]


def _render_and_count() -> tuple[str, int]:
    return template(SHOWN).render(ASKED, {}), len(children())


def test_it_knows_no_secret_no_open_file_and_ends_with_its_parent(tmp_path: Path) -> None:
    script = (
        "import os, psutil\n"
        "from pipeline.chat.rendering import ChatTemplate\n"
        f"ChatTemplate(name='m', source='x').render({ASKED!r}, {{}})\n"
        "(child,) = psutil.Process().children()\n"
        "print(child.pid, 'SPECTHINK_DATABASE_URL' in child.environ(), child.num_fds(), child.cwd())\n"
    )
    environment = {**os.environ, "SPECTHINK_DATABASE_URL": "postgresql://u:secret@h/d"}
    with (tmp_path / "open").open("w") as held:
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            pass_fds=[held.fileno()],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
    pid, has_url, num_files, folder = done.stdout.split()
    assert (has_url, num_files, folder) == ("False", "3", "/")
    assert not psutil.pid_exists(int(pid))


def test_the_date_is_the_jobs_where_it_has_one() -> None:
    dated = ChatTemplate(name="m", source="{{ strftime_now('%d %b') }}", today=dt.date(2026, 2, 3))
    assert dated.render(ASKED, {}) == "03 Feb"


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("chat_template.jinja", b"x" * (4 * 2**20 + 1), "has more than 4,194,304 bytes"),
        ("chat_template.jinja", b"\xff\xfe", "cannot be read: 'utf-8' codec"),
        ("tokenizer_config.json", b"[" * 200_000, "cannot be read: maximum recursion depth"),
        ("tokenizer_config.json", b'{"chat_template": [1, {"name": "default"}]}', "it has no chat template"),
        ("generation_config.json", b"\xff", "cannot be read"),
    ],
)
def test_damaged_files_of_a_model_are_one_line(tmp_path: Path, file: str, content: bytes, told: str) -> None:
    folder = write_model(tmp_path / "m")
    (folder / file).write_bytes(content)
    with pytest.raises(ConfigurationError, match=told) as refused:
        ChatModel.load(folder)
    assert str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)
