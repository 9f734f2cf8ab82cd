"""README.md and docs/ against the code: commands, options, settings, files, messages and states exist."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from docs.blocks import FENCE, ROOT, Block, blocks, page_names
from pipeline.cli.app import app
from pipeline.logins import DatabaseRole
from pipeline.policies import policy_names
from pipeline.samples import FINAL_STATES, TRANSITIONS, SampleState
from pipeline.settings import settings_variables
from tests.command_lines import parse

PAGES = {name: (ROOT / name).read_text() for name in [*page_names(), "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"]}
WRITTEN = {name: text for name, text in PAGES.items() if not name.startswith("docs/reference/")}
"""Those that people write; the others are generated."""
INLINE = sorted({code for text in WRITTEN.values() for code in re.findall(r"`([^`\n]+)`", FENCE.sub("", text))})
NOT_RUN = [block for block in blocks() if block.language == "sh"]
COOKBOOK = PAGES["docs/sql-cookbook.md"]


def test_readme_is_a_front_door() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 150


def test_every_block_is_run_or_says_why_not() -> None:
    for block in blocks():
        assert block.language in {"bash", "python", "sql", "sh", "text", "mermaid", "toml"}, block
        assert bool(block.not_run) or block.language != "sh", f"{block} is not run and gives no reason"


def lines(block: Block) -> Iterator[str]:
    """Its commands, without what is remarked behind them."""
    for line in block.text.splitlines():
        if command := line.split(" #")[0].strip():
            yield command


SHOWN = [(f"{block}: {line}", line) for block in NOT_RUN for line in lines(block)]


@pytest.mark.parametrize("line", [line for _, line in SHOWN], ids=[name for name, _ in SHOWN])
def test_command_that_is_not_run_is_one_that_could_be(line: str) -> None:
    program, _, rest = line.partition(" ")
    match program:
        case "specthink":
            parse(line)
        case "make":
            assert_target(rest.split()[0])
        case "export":
            for variable in re.findall(r"(\w+)=", rest):
                assert_setting(variable)
        case "source" | "docker" | "duckdb" | "sbatch" | "systemctl" | "kubectl":
            pass
        case _:
            pytest.fail(f"no test knows {program}")


def assert_target(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"make {target}: {done.stderr}"


def assert_setting(variable: str) -> None:
    assert variable in settings_variables(), variable


def test_make_targets_exist() -> None:
    targets = {target for code in INLINE for target in re.findall(r"^make ([a-z-]+)", code)}
    assert "bench-hops" in targets
    for target in sorted(targets):
        assert_target(target)


DEPLOYED = {"SPECTHINK_ENV_FILE"}
"""Read by the scripts of deploy/ themselves."""


def test_settings_exist() -> None:
    variables = {variable for code in INLINE for variable in re.findall(r"\bSPECTHINK_[A-Z_]+\b", code)}
    assert len(variables) > 10
    for variable in sorted(variables - DEPLOYED):
        assert_setting(variable)


COMMANDS = [code for code in INLINE if re.match(r"specthink [a-z]", code)]


@pytest.mark.parametrize("code", COMMANDS)
def test_commands_in_the_text_have_the_options_that_they_name(code: str) -> None:
    command: Any = typer.main.get_command(app)
    words = code.split()[1:]
    while hasattr(command, "commands") and words and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    assert hasattr(command, "callback"), code
    assert command.name in code.split(), code
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= known, code


def test_files_that_are_named_exist() -> None:
    folders = "pipeline|workers|migrations|tests|bench|examples|docs|requirements|deploy"
    named = {code for code in INLINE if re.fullmatch(rf"(?:{folders})/[\w./-]*", code)}
    assert len(named) > 40
    missing = sorted(path for path in named if not (ROOT / path).exists())
    assert not missing


def test_tests_that_stand_for_a_block_exist() -> None:
    named = {path for block in blocks() for path in re.findall(r"tests/[\w/]+\.py", block.not_run)}
    assert len(named) > 3
    assert not [path for path in named if not (ROOT / path).exists()]


def test_links_of_pages_outside_the_site_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"):
        for link in re.findall(r"\]\((?!http)([^)]+)\)", PAGES[name]):
            path, _, anchor = link.partition("#")
            assert (ROOT / path).exists(), f"{name}: {link}"
            assert not anchor or anchor in anchors(ROOT / path), f"{name}: {link}"


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_pictures_are_small() -> None:
    for picture in (ROOT / "docs" / "assets").iterdir():
        assert picture.stat().st_size < 200_000, picture


# Messages


@cache
def said() -> str:
    """Every text of the code with … for what is put in, and the texts of the SQL, one a line."""
    found = []
    for package in ("pipeline", "workers"):
        for file in (ROOT / package).rglob("*.py"):
            nodes = list(ast.walk(ast.parse(file.read_text())))
            docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
            found += [template(node) for node in nodes if id(node) not in docstrings]
        for file in (ROOT / package).rglob("*.sql"):
            found.append(re.sub(r"%(\d\$)?s", "…", file.read_text()))
    found.append((ROOT / "requirements" / "install").read_text())
    return "\n".join(text for text in found if text)


def template(node: ast.AST) -> str:
    match node:
        case ast.JoinedStr(values=values):
            return "".join(value.value if isinstance(value, ast.Constant) else "…" for value in values)  # type: ignore[misc]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return template(left) + (template(right) or "…")
        case ast.Constant(value=str(text)):
            return text
        case _:
            return ""


MESSAGES = [
    message
    for heading, rows in re.findall(r"^## (.+?)$(.*?)(?=^## |\Z)", PAGES["docs/troubleshooting.md"], re.M | re.S)
    if heading != "Failed samples"
    for message in re.findall(r"^\| `([^`]+)` \|", rows, re.M)
]


@pytest.mark.parametrize("message", MESSAGES)
def test_message_is_one_that_the_code_says(message: str) -> None:
    assert message.removesuffix("...").strip() in said()


# The cookbook


def test_cookbook_has_thirty_one_questions_each_with_a_query_and_its_answer() -> None:
    questions = re.split(r"^### ", COOKBOOK, flags=re.MULTILINE)[1:]
    assert [int(question.split(".")[0]) for question in questions] == list(range(1, 32))
    assert len([block for block in blocks() if block.page == "docs/sql-cookbook.md" and block.answer]) == 31


def test_cookbook_asks_every_view() -> None:
    views = re.findall(r"^## (\w+)$", PAGES["docs/reference/views.md"], flags=re.MULTILINE)
    queries = " ".join(block.text for block in blocks() if block.language == "sql")
    assert len(views) >= 17
    assert not [view for view in views if not re.search(rf"\b{view}\b", queries)]


# The drawings


def test_drawn_states_are_those_of_the_code() -> None:
    drawn = set(re.findall(r"(\w+) -> (\w+)", (ROOT / "docs" / "assets" / "states.dot").read_text()))
    ends = {(state, end) for state in SampleState for end in (SampleState.FAILED, SampleState.CANCELLED)}
    said_beside_it = {(start.value, end.value) for start, end in TRANSITIONS & ends if start not in FINAL_STATES}
    assert drawn == {(start.value, end.value) for start, end in TRANSITIONS} - said_beside_it


@pytest.mark.parametrize("name", ["states", "flow"])
def test_drawing_is_of_its_source(name: str) -> None:
    """Every label of the source is in the picture, and no other."""
    folder = ROOT / "docs" / "assets"
    source = re.sub(r"//.*", "", (folder / f"{name}.dot").read_text())
    labels = {part for label in re.findall(r'label="([^"]*)"', source) for part in label.split(r"\n")}
    texts = set(re.findall(r"<text [^>]*>([^<]*)</text>", (folder / f"{name}.svg").read_text()))
    nodes = {node for edge in re.findall(r"(\w+) -> (\w+)", source) for node in edge}
    assert labels <= texts
    assert texts <= labels | nodes


def test_every_login_has_its_row() -> None:
    logins = set(re.findall(r"^\| `specthink_(\w+)` \|", PAGES["docs/running.md"], flags=re.MULTILINE))
    assert logins == {role.value for role in DatabaseRole}


def test_every_policy_has_its_row() -> None:
    rows = re.findall(r"^\| (`.+?`) \|", PAGES["docs/policies/index.md"].partition("\n\n## ")[0], flags=re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([\w:-]+)`", row)}
    assert named == set(policy_names())
