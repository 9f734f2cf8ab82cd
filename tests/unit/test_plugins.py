"""What other packages and files bring: found, frozen with the job, compared where it is run, refused in one line."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.chat.prompts import prompt_template
from pipeline.errors import ConfigurationError
from pipeline.grading import grader_names, make_grader
from pipeline.jobs.config import JobConfig, ModelSpec
from pipeline.policies import PluginSpec, parse_policy, policy_names
from pipeline.policies.protocol import SampleContext
from pipeline.policies.reading.cues import CueLists
from pipeline.policies.requests import Generate
from pipeline.samples import ModelRole

RULES = """
from typing import Literal
from pipeline import Finish, FinishReason, Generate, ModelRole, PolicySpec, Transition, Trigger

class Often(PolicySpec):
    name: Literal["often"] = "often"
    tokens: int = 7
    words: tuple[str, ...] = ("so",)

    def build(self):
        return OftenPolicy(self)

class OftenPolicy:
    roles = frozenset({ModelRole.LARGE})
    asks = ()

    def __init__(self, spec):
        self.spec = spec

    def start(self, context):
        then = Generate(role=ModelRole.LARGE, max_tokens=self.spec.tokens, trigger=Trigger.START)
        return Transition(state={}, then=then)

    def watcher(self, context, state):
        return None

    def advance(self, context, state, event):
        return Transition(state={}, keep=0, then=Finish(reason=FinishReason.EOS))
"""
GRADER = """
from pipeline.chat.prompts import PromptTemplate
from pipeline.grading.exact import ExactGrader

class Strict(ExactGrader):
    pass

TEMPLATE = PromptTemplate(name="terse", version="terse/1", instruction="Be brief.")
"""
CONTEXT = SampleContext(
    job_seed=0, problem_id="p", sample_index=0, max_tokens=99, think_end="</think>", num_prompt_tokens=1
)


def install(folder: Path, package: str, version: str, points: str, **modules: str) -> Path:
    """A package as an installer leaves it: modules, and a dist-info folder with its entry points."""
    info = folder / f"{package}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(points)
    for name, source in modules.items():
        (folder / f"{name}.py").write_text(source)
    return folder


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that Python imports from; what was imported from it is forgotten after the test."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_package_brings_a_policy(site: Path) -> None:
    install(site, "often-policy", "1.2", "[specthink.policies]\noften = often_rules:Often\n", often_rules=RULES)
    assert "often" in policy_names()
    assert "often_rules" not in sys.modules  # a list of names imports nothing
    spec = parse_policy("often", {"tokens": "9"})
    then = spec.build().start(CONTEXT).then
    assert isinstance(then, Generate)
    assert then.max_tokens == 9


def test_a_job_keeps_every_field_of_a_packages_policy_and_where_it_came_from(site: Path) -> None:
    install(site, "often-policy", "1.2", "[specthink.policies]\noften = often_rules:Often\n", often_rules=RULES)
    config = JobConfig(policy=parse_policy("often", {"words": ["a", "b"]}), large=ModelSpec(name="m"))
    stored = json.loads(config.model_dump_json())
    assert stored["policy"] == {
        "name": "often",
        "tokens": 7,
        "words": ["a", "b"],
        "plugin": {"name": "often", "package": "often-policy", "version": "1.2", "file": None, "sha256": None},
    }
    read = JobConfig.model_validate(stored)
    assert json.loads(read.model_dump_json()) == stored
    assert read.build_policy().roles == {ModelRole.LARGE}


def test_a_policy_without_its_model_is_refused_when_a_job_is_made(site: Path) -> None:
    install(site, "often-policy", "1.3", "[specthink.policies]\noften = often_rules:Often\n", often_rules=RULES)
    with pytest.raises(ValueError, match="policy 'often' needs a large model"):
        JobConfig(policy=parse_policy("often"))


def stored_with(version: str) -> dict[str, object]:
    origin = {"name": "often", "package": "often-policy", "version": version}
    return {"policy": {"name": "often", "tokens": 8, "plugin": origin}, "large": {"name": "m"}}


def test_a_job_is_read_without_its_package_and_refused_only_where_it_is_run() -> None:
    config = JobConfig.model_validate(stored_with("0.9"))
    assert isinstance(config.policy, PluginSpec)
    assert config.policy.name == "often"
    with pytest.raises(ConfigurationError, match=r"needs 'often' of often-policy 0\.9, which is not here"):
        config.build_policy()


def test_another_version_is_refused_naming_both(site: Path) -> None:
    install(site, "often-policy", "2.0", "[specthink.policies]\noften = often_rules:Often\n", often_rules=RULES)
    with pytest.raises(ConfigurationError) as refused:
        JobConfig.model_validate(stored_with("1.4")).build_policy()
    assert "often-policy 1.4" in str(refused.value)
    assert "often-policy 2.0" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_name_that_two_packages_claim_is_refused_naming_both(site: Path) -> None:
    point = "[specthink.policies]\noften = often_rules:Often\n"
    install(site, "first", "1", point, often_rules=RULES)
    install(site, "second", "2", point)
    with pytest.raises(ConfigurationError, match=r"claimed by (first 1 and by second 2|second 2 and by first 1)"):
        parse_policy("often")


def test_a_package_cannot_take_a_name_of_this_program(site: Path) -> None:
    points = (
        "[specthink.policies]\nsmall-only = r:O\n[specthink.graders]\nexact = r:O\n[specthink.prompts]\nmath = r:O\n"
    )
    install(site, "bold", "1", points)
    for ask in (lambda: parse_policy("small-only"), lambda: make_grader("exact"), lambda: prompt_template("math")):
        with pytest.raises(ConfigurationError, match="claimed by specthink itself and by bold 1; uninstall one"):
            ask()


def test_a_package_brings_a_grader_and_a_prompt_template(site: Path) -> None:
    points = "[specthink.graders]\nstrict = mine:Strict\n[specthink.prompts]\nterse = mine:TEMPLATE\n"
    install(site, "mine", "3", points, mine=GRADER)
    assert "strict" in grader_names()
    assert make_grader("strict").grade("5", "5").score == make_grader("exact").grade("5", "5").score
    assert prompt_template("terse").version == "terse/1"
    config = JobConfig(
        policy=parse_policy("small-only"), small=ModelSpec(name="m"), grader="strict", prompt_template="terse"
    )
    assert {kind: str(origin) for kind, origin in config.plugins.items()} == {
        "grader": "mine 3",
        "prompt_template": "mine 3",
    }
    config.check_same_version("prompt_template")
    older = config.model_dump(mode="json")
    older["plugins"]["grader"]["version"] = "2"
    with pytest.raises(ConfigurationError, match="'strict' of mine 2, but here is mine 3"):
        JobConfig.model_validate(older).check_same_version("grader")


def test_this_programs_own_names_have_no_origin() -> None:
    assert JobConfig(policy=parse_policy("small-only"), small=ModelSpec(name="m")).plugins == {}


def test_a_value_of_the_wrong_kind_is_refused(site: Path) -> None:
    points = "[specthink.graders]\nbad = mine:bad\n[specthink.prompts]\nbad = mine:bad\n"
    install(site, "mine", "3", points, mine="def bad():\n    return 1\n")
    with pytest.raises(ConfigurationError, match="'bad' makes no grader"):
        make_grader("bad")
    with pytest.raises(ConfigurationError, match=r"'bad' must be a pipeline\.chat\.prompts\.PromptTemplate"):
        prompt_template("bad")


def test_a_package_that_cannot_be_imported_is_told_in_one_line(site: Path) -> None:
    install(site, "broken", "1", "[specthink.policies]\nbroken = broken_rules:X\n", broken_rules="\n1 / 0\n")
    with pytest.raises(
        ConfigurationError, match=r"'broken' of broken 1 .*broken_rules\.py:2: ZeroDivisionError"
    ) as told:
        parse_policy("broken")
    assert "\n" not in str(told.value)


# From a file


def write(folder: Path, source: str) -> str:
    path = folder / "rules.py"
    path.write_text(source)
    return f"{path}:Often"


def test_a_policy_from_a_file_is_tried_and_frozen_with_the_files_hash(tmp_path: Path) -> None:
    spec = parse_policy(write(tmp_path, RULES), {"tokens": 4})
    assert isinstance(spec, PluginSpec)
    assert spec.plugin.file == str(tmp_path / "rules.py")
    assert re.fullmatch(r"[0-9a-f]{64}", spec.plugin.sha256 or "")
    stored = JobConfig(policy=spec, large=ModelSpec(name="m")).model_dump_json()
    then = JobConfig.model_validate_json(stored).build_policy().start(CONTEXT).then
    assert isinstance(then, Generate)
    assert then.max_tokens == 4


def test_a_file_that_changed_since_is_refused(tmp_path: Path) -> None:
    spec = parse_policy(write(tmp_path, RULES), {"tokens": 3})
    other = spec.model_copy(update={"tokens": 5})  # as another process reads it, which has not loaded it yet
    write(tmp_path, RULES + "\n# changed\n")
    with pytest.raises(ConfigurationError, match=r"rules\.py with sha256 \w{12}, but here is .*rules\.py with sha256"):
        other.build()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import nothing_of_this_name\n", r"rules\.py:1: ModuleNotFoundError"),
        ("\n\nraise SystemExit(3)\n", r"rules\.py:3: SystemExit: 3"),
        ("x = 1\ndef f(:\n", r"rules\.py:2: SyntaxError"),
        ("import json\njson.loads('x')\n", r"rules\.py:2: JSONDecodeError"),
        ("Other = 1\n", r"rules\.py has no 'Often'"),
        ("Often = 1\n", r"is no policy: it must be a class derived from pipeline\.PolicySpec"),
        ("class Often: pass\n", r"is no policy: it must be a class derived from pipeline\.PolicySpec"),
        (
            "from pipeline import PolicySpec\nclass Often(PolicySpec):\n    name: str = 'often'\n    tokens: int\n"
            "    def build(self): ...\n",
            "give tokens a default",
        ),
        (
            "from pipeline import PolicySpec\nclass Often(PolicySpec):\n    name: str = 'often'\n",
            r"it needs a method build\(self\)",
        ),
    ],
)
def test_a_file_that_is_no_policy_is_refused_in_one_line(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as refused:
        parse_policy(write(tmp_path, source))
    assert "\n" not in str(refused.value)
    assert str(tmp_path) in str(refused.value)


def test_a_file_without_a_name_in_it_is_told_how_one_is_named() -> None:
    for text in ("rules.py", "rules.py:"):
        with pytest.raises(ConfigurationError, match=r"of a file say what is meant in it: rules\.py:NAME"):
            parse_policy(text)
        with pytest.raises(ConfigurationError, match=r"of a file say what is meant in it: rules\.py:NAME"):
            make_grader(text)


@pytest.mark.parametrize(("line", "member"), [("    asks = ()\n", "asks"), ("def watcher(", "watcher")])
def test_a_policy_that_lacks_a_member_is_refused_in_one_line(tmp_path: Path, line: str, member: str) -> None:
    assert line in RULES
    spec = parse_policy(write(tmp_path, RULES.replace(line, "" if line.startswith(" ") else "def _unread(")))
    with pytest.raises(ConfigurationError, match=rf"OftenPolicy has no {member} \(") as refused:
        spec.build()
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"absent\.py cannot be read: No such file"):
        parse_policy(f"{tmp_path / 'absent.py'}:Often")


def test_values_of_a_packages_policy_are_checked(tmp_path: Path) -> None:
    named = write(tmp_path, RULES)
    with pytest.raises(ConfigurationError, match="has no rate; it has: tokens, words"):
        parse_policy(named, {"rate": 1})
    with pytest.raises(ConfigurationError, match="tokens: Input should be a valid integer"):
        parse_policy(named, {"tokens": "many"})


@pytest.mark.parametrize("field", ["cues: float = 0.5", 'cues: tuple[str, ...] = ("so",)', "cues: None = None"])
def test_a_packages_policy_may_mean_something_else_by_cues(tmp_path: Path, field: str) -> None:
    spec = parse_policy(write(tmp_path, RULES.replace("tokens: int = 7", f"tokens: int = 7\n    {field}")))
    config = JobConfig(policy=spec, large=ModelSpec(name="m"))
    for read in (config, JobConfig.model_validate_json(config.model_dump_json())):
        assert read.cues == CueLists()


OWN_GRADER = """
from pipeline.grading import Grade

class Longest:
    name = "longest"
    version = "1"
    is_instant = True

    def grade(self, answer_text, reference):
        return Grade(score=float(len(answer_text) > len(reference or "")), predicted_answer=answer_text)

class Nameless:
    def grade(self, answer_text, reference):
        return None
"""


def test_a_grader_may_be_tried_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN_GRADER)
    monkeypatch.chdir(tmp_path)
    config = JobConfig(policy=parse_policy("small-only"), small=ModelSpec(name="m"), grader="mine.py:Longest")
    assert config.grader == f"{file}:Longest"  # whoever grades is in another folder
    assert make_grader(config.grader).grade("long", "so").score == 1.0
    stored = config.model_dump(mode="json")
    config.check_same_version("grader")
    file.write_text(OWN_GRADER + "\n# changed")
    with pytest.raises(ConfigurationError, match="sha256"):
        JobConfig.model_validate(stored).check_same_version("grader")
    file.unlink()
    assert JobConfig.model_validate(stored).grader == config.grader  # jobs are listed without it
    with pytest.raises(ConfigurationError, match="cannot be read"):
        JobConfig.model_validate(stored).check_same_version("grader")


def test_a_grader_of_a_file_must_say_its_name_and_version(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN_GRADER)
    with pytest.raises(ConfigurationError, match="has no name"):
        make_grader(f"{tmp_path}/mine.py:Nameless")
    with pytest.raises(ConfigurationError, match="has no 'Missing'"):
        make_grader(f"{tmp_path}/mine.py:Missing")
