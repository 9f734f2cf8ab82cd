"""A job as it is asked for: what it takes, what it refuses and how, and how a stored job becomes one again."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline import ColumnNames, Problem, ProblemSet
from pipeline.chat.asking import Asking
from pipeline.chat.model import ChatModel
from pipeline.errors import BadProblem, ConfigurationError
from pipeline.jobs.config import DrawingSpec, JobConfig, ModelSpec, RoleDrawingSpec
from pipeline.jobs.pair import load_chat_model
from pipeline.jobs.readiness import ReadyJob, make_ready
from pipeline.jobs.references import StoredSet
from pipeline.jobs.submission import SourceJob, Submission, part_values
from pipeline.policies import parse_policy
from pipeline.policies.exits import AgreementExit, CutExit, DeerExit, ThinkBrakeExit
from pipeline.policies.guards import LoopGuard
from pipeline.problems import content_sha256
from pipeline.samples import ModelRole

MODELS = {"small": "S", "large": "L"}
DEMO_MODELS = Path(__file__).parents[3] / "examples" / "models"


def few(*prompts: str, **metadata: Any) -> ProblemSet:
    problems = tuple(
        Problem(external_id=str(index), prompt=prompt, answer="1", metadata=metadata)
        for index, prompt in enumerate(prompts)
    )
    return ProblemSet(name="few", content_sha256=content_sha256(problems), problems=problems)


def ready(**values: Any) -> ReadyJob:
    return make_ready(Submission.parse(**({"problems": few("1?", "2?"), **MODELS} | values)))


def stored(config: JobConfig, *, policy: str = "speculative-thinking:improved") -> SourceJob:
    return SourceJob(id=7, name="mine", policy=policy, problem_set_id=3, config=config, think=None)


def stored_job(**values: Any) -> SourceJob:
    return stored(ready(**values).config)


# What it takes


def test_what_can_be_said_of_drawing_can_be_said_of_a_job_and_of_a_role() -> None:
    fields = set(DrawingSpec.model_fields)
    assert set(RoleDrawingSpec.model_fields) == fields
    assert fields < set(Submission.model_fields)


def test_a_role_has_stop_strings_of_its_own() -> None:
    config = ready(stop=("Q:",), small_sampling={"stop": ()}).config
    assert (config.drawing(ModelRole.SMALL).stop, config.drawing(ModelRole.LARGE).stop) == ((), ("Q:",))
    with pytest.raises(ConfigurationError, match="stop"):
        ready(stop=("",))
    with pytest.raises(ConfigurationError, match="stop"):
        ready(stop=("Q",) * 17)


def test_submission_from_json_is_the_one_made_in_python() -> None:
    made = Submission(problems=Path("a.jsonl"), small="org/s", columns=ColumnNames(problem="q"), policy="small-only")
    told = '{"problems": "a.jsonl", "small": "org/s", "columns": {"problem": "q"}, "policy": "small-only"}'
    assert Submission.model_validate_json(told) == made


def test_schema_describes_every_field_and_holds_no_object_of_this_process() -> None:
    schema = Submission.model_json_schema()
    assert set(schema["properties"]) == set(Submission.model_fields)
    assert [name for name, field in schema["properties"].items() if not field.get("description")] == []
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["problems"]
    assert {form.get("type") for form in schema["properties"]["problems"]["anyOf"]} == {"integer", "string"}
    assert "ProblemSet" not in json.dumps(schema)
    assert schema["properties"]["temperature"]["anyOf"][0] == {"maximum": 2.0, "minimum": 0.0, "type": "number"}


def test_problem_set_cannot_be_given_with_a_hash_of_ones_own() -> None:
    forged = {"problems": {"name": "x", "content_sha256": "0" * 64, "problems": []}}
    with pytest.raises(ValueError, match=r"give a \.jsonl, \.csv or \.parquet file"):
        Submission.model_validate_json(json.dumps(forged))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"temprature": 1}, r"no option temprature; it has: problems, .*temperature"),
        ({"temperature": 3.0}, "^temperature: .* less than or equal to 2$"),
        ({"num_samples": 0}, "^num_samples: "),
        ({"limit": 0, "seed": -1}, "^seed: .*; limit: "),
        ({"problems": 0}, "^problems: give a .*file, or the number of a stored problem set$"),
        ({"problems": 1.5}, "^problems: give a .*file, or the number of a stored problem set$"),
        ({"small": 5}, "^small: give a model's folder, or the name that workers serve it under$"),
        ({"large": "L\0"}, "^large: the large model has .*which cannot be stored$"),
        ({"name": "\ud800"}, "^name: the name has .*which cannot be stored$"),
        ({"columns": 5}, "^columns: "),
        ({"small": ""}, "^small: it is empty: give a model's folder"),
        ({"recipe": ""}, "^recipe: it is empty: leave it out"),
        ({"small_revision": " "}, "^small_revision: it is empty"),
        ({"matched_to": 1, "exit": {"name": "cut", "thinking_tokens": 9}}, "has its thinking_tokens from the job"),
        ({"matched_to": 1, "exit": {"name": "random", "rate": 0.2}}, "has its rate from the job"),
    ],
)
def test_wrong_value_is_refused_by_the_name_of_its_field(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        Submission.parse(**({"problems": few("1?")} | values))


# What it becomes


def test_what_is_said_to_both_models_is_said_to_each() -> None:
    made = ready(
        system="Be brief.",
        template_variables={"effort": "high", "thinking": True},
        small_asking=Asking(template_variables={"thinking": False}),
        large_asking=Asking(system="Be right.", think_tags=("<t>", "</t>")),
    ).config
    assert (made.small_asking.system, made.large_asking.system) == ("Be brief.", "Be right.")
    assert made.small_asking.template_variables == {"effort": "high", "thinking": False}
    assert made.large_asking.template_variables == {"effort": "high", "thinking": True}
    assert (made.small_asking.think_tags, made.large_asking.think_tags) == (None, ("<t>", "</t>"))
    assert made.small_asking.sha256 != made.large_asking.sha256


def test_defaults_are_those_of_a_job() -> None:
    made = ready()
    policy = parse_policy("speculative-thinking:improved")
    today = Asking(today=dt.date.today())
    usual = JobConfig(small=ModelSpec(name="S"), large=ModelSpec(name="L"), policy=policy)
    assert made.config == usual.model_copy(
        update={"seed": made.config.seed, "small_asking": today, "large_asking": today, "judge_asking": today}
    )
    assert (made.name, made.num_problems, made.first_role) == (
        "few · speculative-thinking:improved", 2, ModelRole.SMALL,
    )  # fmt: skip
    assert made.think is None  # only workers know models by these names
    assert made.versions["prompt template"] == "math/2"


def test_small_model_that_does_not_reason_gets_its_preset_where_no_policy_is_named() -> None:
    pair = {"small": DEMO_MODELS / "demo-small", "large": DEMO_MODELS / "demo-large"}
    unthinking = pair | {"small_asking": Asking(think_tags=())}
    chosen = ready(**unthinking, policy_values={"n1": 30})
    assert chosen.policy == "speculative-thinking:improved-instruct"
    assert chosen.config.policy == parse_policy(chosen.policy, {"n1": 30})
    assert chosen.first_role is ModelRole.LARGE
    assert chosen.notes[0].startswith("the small model has no think phase in this job: the policy is 'speculative-thin")
    asked = ready(**unthinking, policy="speculative-thinking:improved")
    assert asked.policy == "speculative-thinking:improved"
    assert "the preset for such a model is 'speculative-thinking:improved-instruct'" in asked.notes[0]
    for usual in (ready(**pair), ready(**unthinking, policy="small-only")):
        assert usual.policy in ("speculative-thinking:improved", "small-only")
        assert not any("think phase" in note for note in usual.notes)


def test_seed_is_drawn_where_none_is_given_and_a_clone_keeps_it() -> None:
    seeds = {ready().config.seed for _ in range(4)}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert ready(seed=0).config.seed == 0
    source = stored_job(policy="speculative-thinking:improved")
    assert Submission.from_job(source, {"num_samples": 2}).seed == source.config.seed


def test_given_values_win_over_the_recipe_and_that_over_the_usual(tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl"
    row = {"problem": "1+1?", "answer": "2", "unique_id": "a", "subject": "sums", "level": "1"}
    file.write_text(json.dumps(row) + "\n")
    made = ready(problems=file, recipe="math500", temperature=0, max_tokens=99).config
    assert (made.sampling.temperature, made.sampling.max_tokens, made.sampling.top_p) == (0.0, 99, 0.95)
    assert (made.prompt_template, made.grader) == ("paper-math", "math")
    assert ready(problems=file, recipe="math500", prompt_template="free").config.prompt_template == "free"


def test_numbers_of_the_policy_can_be_set() -> None:
    made = ready(policy="speculative-thinking:code", policy_values={"n1": 30})
    assert made.config.policy == parse_policy("speculative-thinking:code", {"n1": 30})
    assert made.policy == "speculative-thinking:code"
    with pytest.raises(ConfigurationError, match="has no n9; it has: "):
        ready(policy_values={"n9": 1})


def test_parts_are_set_by_dotted_key_and_may_be_text() -> None:
    given = {
        "policy.n1": "30", "policy.cues.verify": ["let me see"], "exit.thinking_tokens": "40", "guard.repeats": "3",
    }  # fmt: skip
    asked = Submission.parse(problems=1, small="S", large="L", **part_values(given))
    spec = parse_policy(asked.policy, asked.policy_values).model_dump()
    assert (spec["n1"], spec["n2"], spec["cues"]["verify"]) == (30, 125, ("let me see",))
    assert spec["cues"]["negative"] == parse_policy("speculative-thinking").model_dump()["cues"]["negative"]
    assert (asked.exit, asked.guard) == (CutExit(thinking_tokens=40), LoopGuard(repeats=3))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"n1": 30}, "there is no 'n1' to set; write policy.NAME, exit.NAME or guard.NAME"),
        ({"policy": "code"}, "there is no 'policy' to set"),
        ({"exit.tokens": 30}, "exit has no tokens; it has: name, thinking_tokens, answer_role"),
        ({"exit.threshold": 1}, "exit has no threshold; .*; it is of the exit think_brake: set exit.name, too"),
        ({"guard.times": 3}, "guard has no times; it has: name, role, repeats"),
        ({"policy.n1": 3, "policy.n1.x": 1}, "'policy.n1.x' and what it lies in, .* are both set"),
        ({"policy.cues.verify": ["x"], "policy.cues": {}}, "'policy.cues' .* what lies in it, are both set"),
    ],
)
def test_key_of_a_part_that_there_is_not_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        part_values(given)


def test_an_exit_is_named_once() -> None:
    with pytest.raises(ConfigurationError, match=r"exit 'deer' and exit\.name=cut are both set"):
        part_values({"exit.name": "cut"}, exit="deer")
    assert part_values({"exit.name": "deer"}, exit="deer") == {"exit": {"name": "deer"}}


def test_exit_and_guard_are_part_of_the_job_and_of_its_clone() -> None:
    exit, guard = {"name": "cut", "thinking_tokens": 100}, {"name": "loops", "repeats": 5}
    made = ready(policy="small-only", exit=exit, guard=guard).config
    assert made.exit == CutExit(thinking_tokens=100)
    assert made.guard == LoopGuard(repeats=5)
    clone = Submission.from_job(stored(made, policy="small-only"), {"exit.thinking_tokens": "50"})
    assert (clone.exit, clone.guard, clone.large) == (CutExit(thinking_tokens=50), made.guard, None)


def test_exit_whose_answer_another_model_writes_needs_that_model() -> None:
    exit = {"name": "cut", "thinking_tokens": 100, "answer_role": "large"}
    assert ready(policy="small-only", exit=exit).config.large == ModelSpec(name="L")
    with pytest.raises(ConfigurationError, match="needs a large model; give --large MODEL"):
        ready(policy="small-only", exit=exit, large=None)


def test_model_that_the_policy_does_not_call_for_is_left_out() -> None:
    made = ready(policy="large-only").config
    assert (made.small, made.large) == (None, ModelSpec(name="L"))
    with pytest.raises(ConfigurationError, match="needs a large model; give --large MODEL"):
        ready(large=None)


def test_what_is_said_of_a_model_that_the_policy_does_not_call_for_is_told() -> None:
    beside = {"judge": "J", "large_sampling": {"temperature": 0.2}, "large_revision": "main"}
    notes = ready(policy="small-only", **beside).notes
    assert "the policy 'small-only' calls for no judge model: judge is ignored" in notes
    assert "the policy 'small-only' calls for no large model: large_revision and large_sampling are ignored" in notes
    usual = ready(policy="small-only", large_sampling={"temperature": None}, judge_asking={})
    assert not [note for note in usual.notes if "ignored" in note]


def test_limit_beyond_the_set_uses_all_of_it() -> None:
    assert (ready(limit=1).num_problems, ready(limit=1000).num_problems) == (1, 2)


def test_problem_that_the_template_cannot_show_is_refused() -> None:
    with pytest.raises(BadProblem, match="problem '0' cannot be made into a prompt: 'choices' must be a list"):
        ready(problems=few("Which?", choices="none"), prompt_template="choice")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"policy": "magic"}, "there is no policy 'magic'"),
        ({"grader": "guess"}, "no grader 'guess'"),
        ({"prompt_template": "poem"}, "no prompt template 'poem'"),
        ({"recipe": "mine"}, "there is no recipe 'mine'"),
        ({"large": "./nowhere"}, "there is no such folder"),
        ({"large": Path("nowhere")}, "there is no such folder"),
        ({"recipe": "aime"}, "reads a file; a problem set is past it"),
        ({"columns": ColumnNames(answer="x")}, "columns are of a file"),
        ({"problems": 3}, "problem set 3 is stored in the database"),
    ],
)
def test_submission_that_makes_no_job_says_why(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        ready(**values)


# From a stored set, and from a stored job


def stored_set(reads: list[int], *prompts: str) -> StoredSet:
    def read(limit: int) -> tuple[Problem, ...]:
        reads.append(limit)
        return few(*prompts).problems[:limit]

    return StoredSet(id=3, name="few", size=len(prompts), num_references=len(prompts), has_choices=False, read=read)


def test_stored_set_is_asked_without_reading_more_than_is_used() -> None:
    reads: list[int] = []
    problems = stored_set(reads, "1?", "2?", "3?")
    made = make_ready(Submission.parse(problems=3, limit=2, **MODELS), stored=problems)
    assert (made.problems, made.num_problems, reads) == (problems, 2, [2])


def test_stored_job_without_changes_is_the_same_job_and_its_prompts_are_not_read_again() -> None:
    source = stored_job(seed=7, temperature=0.2, policy="speculative-thinking:improved", policy_values={"n1": 31})
    reads: list[int] = []
    problems = stored_set(reads, "1?", "2?")
    made = make_ready(Submission.from_job(source, {}), stored=problems, source=source)
    assert (made.config, made.policy, made.cloned_from) == (source.config, source.policy, 7)
    assert made.name == "mine · clone of job 7"
    assert reads == []
    again = make_ready(Submission.from_job(source, {"limit": "1"}), stored=problems, source=source)
    assert (again.config.limit, again.name, reads) == (1, "mine · limit=1", [1])


def test_changes_of_a_stored_job_are_by_dotted_key_and_may_be_text() -> None:
    changes = {"sampling.temperature": "0.9", "policy": "code", "policy.n1": "30", "small": "T", "seed": 5}
    submission = Submission.from_job(stored_job(), changes)
    assert (submission.temperature, submission.policy, submission.policy_values["n1"]) == (
        0.9, "speculative-thinking:code", "30",
    )  # fmt: skip
    assert (submission.small, submission.large) == ("T", ModelSpec(name="L"))
    assert (submission.seed, submission.problems) == (5, 3)


RULES = """
from typing import Literal

from pipeline.policies import Policy, PolicySpec
from pipeline.policies.baselines import SmallOnlySpec


class Mine(PolicySpec):
    name: Literal["mine"] = "mine"
    depth: int = 3

    def build(self) -> Policy:
        return SmallOnlySpec().build()
"""


def test_job_with_a_policy_of_a_file_is_cloned_with_its_numbers(tmp_path: Path) -> None:
    file = tmp_path / "rules.py"
    file.write_text(RULES)
    made = ready(policy=f"{file}:Mine", policy_values={"depth": 5})
    source = stored(JobConfig.model_validate_json(made.config.model_dump_json()), policy=made.policy)
    clone = Submission.from_job(source, {"seed": 1})
    assert (clone.policy, clone.policy_values) == (f"{file}:Mine", {"depth": 5})
    again = make_ready(clone, stored=stored_set([], "1?"), source=source)
    assert (again.config.policy, again.config.seed) == (made.config.policy, 1)
    with pytest.raises(ConfigurationError, match=r"no 'policy\.plugin' to set; it has: .*policy\.depth"):
        Submission.from_job(source, {"policy.plugin": None})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"temperature": 1}, r"no 'temperature' to set; it has: small, large, judge, policy, .*, sampling.temperature"),
        ({"version": 2}, "no 'version' to set"),
        ({"policy.name": "random"}, "no 'policy.name' to set"),
        ({"small.fingerprint": "x"}, "no 'small.fingerprint' to set"),
        ({"sampling.temperature": "hot"}, "^temperature: "),
        ({"small_asking": None, "small_asking.system": "x"}, r"'small_asking\.system' and what it lies in are both"),
        ({"small": None}, "needs a small model, and the job has none; give --set small=MODEL"),
    ],
)
def test_wrong_change_of_a_stored_job_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        Submission.from_job(stored_job(), changes)


def test_model_folder_is_read_once_for_many_jobs_until_it_changes(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(DEMO_MODELS / "demo-small", folder)
    first = load_chat_model(folder)
    assert first is not None
    assert load_chat_model(str(folder)) is first
    template = folder / "chat_template.jinja"
    template.write_text(f"{template.read_text()}{{# another one #}}")
    again = load_chat_model(folder)
    assert again is not None
    assert again.fingerprint != first.fingerprint
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConfigurationError, match=r"tokenizer\.json"):
        load_chat_model(folder)


def test_an_exit_is_named_and_set_like_a_policy() -> None:
    asked = Submission.parse(problems=1, **part_values({"exit.confidence": "0.97"}, exit="deer"))
    assert asked.exit == DeerExit(confidence=0.97)
    assert Submission.parse(problems=1, exit="agreement").exit == AgreementExit()
    with pytest.raises(ConfigurationError, match="there is no exit 'dear'; choose one of: cut, random, deer"):
        part_values({}, exit="dear")
    with pytest.raises(ConfigurationError, match="there is no exit 'dear'; choose one of: cut, random, deer"):
        Submission.parse(problems=1, exit="dear")
    with pytest.raises(ConfigurationError, match="exit has no thinking_tokens; it has: name, at, every_steps"):
        part_values({"exit.thinking_tokens": "3"}, exit="deer")


def test_a_clone_may_have_another_exit() -> None:
    made = ready(policy="small-only", exit="deer")
    assert made.policy == "small-only + deer"
    job = SourceJob(id=3, name="n", policy=made.policy, problem_set_id=1, config=made.config, think=None)
    assert Submission.from_job(job, {}).exit == DeerExit()
    assert Submission.from_job(job, {}).policy == "small-only"
    assert Submission.from_job(job, {"exit.agree": "2"}).exit == DeerExit(agree=2)
    braked = Submission.from_job(job, {"exit": "think_brake", "exit.threshold": "1"})
    assert braked.exit == ThinkBrakeExit(threshold=1.0)


def test_an_exit_needs_a_small_model_that_writes() -> None:
    with pytest.raises(ConfigurationError, match="exit 'deer' acts while the small model writes, which 'large-only'"):
        ready(policy="large-only", exit="deer")


@pytest.mark.parametrize("policy", ["specreason", "specreason:doubt", "mentor", "rsd", "specsearch"])
def test_an_exit_needs_thoughts_that_are_written_into_the_text(policy: str) -> None:
    with pytest.raises(ConfigurationError, match=r"exit 'deer' reads what .* all of its thoughts are asides"):
        ready(policy=policy, exit="deer", judge="j")


def test_a_job_without_an_exit_is_stored_as_ever() -> None:
    made = ready(policy="small-only")
    assert made.policy == "small-only"
    assert made.config.model_dump(mode="json")["exit"] is None
    assert made.config.build_policy().roles == {ModelRole.SMALL}
    cut = ready(policy="small-only", exit={"thinking_tokens": 5}).config.model_dump(mode="json")["exit"]
    assert cut == {"name": "cut", "thinking_tokens": 5, "answer_role": "small"}


def test_a_model_of_the_hubs_cache_is_read_once_for_many_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--org--small" / "snapshots" / ("a" * 40)
    shutil.copytree(DEMO_MODELS / "demo-small", snapshot)
    (tmp_path / "models--org--small" / "refs").mkdir()
    (tmp_path / "models--org--small" / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    read: list[str] = []
    load = ChatModel.load

    def counted(folder: Path, **options: Any) -> ChatModel:
        read.append(folder.name)
        return load(folder, **options)

    monkeypatch.setattr(ChatModel, "load", counted)
    jobs = [ready(small="org/small", large=None, policy="small-only") for _ in range(3)]
    assert [(job.think is not None and job.think.end, job.config.small.name) for job in jobs if job.config.small] == [
        ("</think>", "org/small")
    ] * 3
    assert read == ["a" * 40]
    (snapshot / "config.json").write_text("{}")
    ready(small="org/small", large=None, policy="small-only")
    assert len(read) == 2
