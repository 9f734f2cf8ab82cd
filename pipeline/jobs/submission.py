"""A job as it is asked for: one value that the command line, Python and any other front end share.

It says what is wanted and knows no database, tokenizer or model; ``pipeline.jobs.readiness`` makes a job of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Self, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetPydanticSchema,
    JsonValue,
    StrictInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import ErrorDetails, core_schema

from pipeline.chat.asking import Asking, ThinkTags
from pipeline.chat.translation import ThinkPhase
from pipeline.errors import ConfigurationError
from pipeline.jobs.config import (
    CalibratedFrom,
    JobConfig,
    MinP,
    ModelSpec,
    Penalty,
    ProblemLimit,
    RepetitionPenalty,
    RoleDrawingSpec,
    SampleCount,
    Seed,
    StopStrings,
    Temperature,
    TokenBudget,
    TopK,
    TopP,
)
from pipeline.jobs.few_shot import FewShot, FewShotFile
from pipeline.policies import parse_policy, policy_names
from pipeline.policies.composition import compose
from pipeline.policies.exits import AnyExitSpec, ExitSpec, exit_defaults, exit_names, exit_type
from pipeline.policies.guards import LoopGuard
from pipeline.problems import ColumnNames, ProblemSet
from pipeline.problems.values import check_text
from pipeline.samples import CutSamples, ModelRole

DEFAULT_POLICY = "speculative-thinking:improved"
INSTRUCT_POLICY = "speculative-thinking:improved-instruct"
"""What stands in its place where no policy was asked for and the small model does not reason."""

# An object of this process, never parsed: the code that parses a set also computes the hash that it is stored under.
_MadeSet = Annotated[
    ProblemSet, GetPydanticSchema(lambda source, handler: core_schema.is_instance_schema(ProblemSet)), SkipJsonSchema()
]
ProblemSource: TypeAlias = Annotated[StrictInt, Field(ge=1)] | Path | _MadeSet
"""The number of a stored problem set, a .jsonl, .csv or .parquet file, or (in Python) a set that is at hand."""

ModelChoice: TypeAlias = str | Path | ModelSpec
"""A local folder, the name that workers serve a model under, or a model as another job has it."""

_MATCHED_NUMBERS = {"cut": "thinking_tokens", "random": "rate"}
"""What a match sets of the exits that can be matched."""

_NAMES = {"name": "the name", "small": "the small model", "large": "the large model", "judge": "the judge"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceJob:
    """The stored job that a clone is made from.

    policy: its NAME[:PRESET], with its exit. think: how its texts mark the think phase; None while nobody has settled
    it.
    """

    id: int
    name: str
    policy: str
    problem_set_id: int
    config: JobConfig
    think: ThinkPhase | None


class Submission(BaseModel):
    """A job as it is asked for. What is None is taken from the recipe, else from the defaults of a job."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    problems: ProblemSource
    """What is asked: the path of a .jsonl, .csv or .parquet file, or the number of a stored problem set."""
    columns: ColumnNames | None = None
    """Names of the file's columns where the usual ones do not fit."""
    keep: tuple[str, ...] = ()
    """Columns that those who generate may read, besides the prompt and its choices; all others are hidden from them."""
    recipe: str | None = None
    """A name in pipeline.jobs.recipes; the file is then in the columns that this set was published in."""
    small: ModelChoice | None = None
    """The small model: the name workers serve it under, or a local folder. A folder's tokenizer and chat template are
    fingerprinted, and every prompt is measured against its context."""
    large: ModelChoice | None = None
    """The large model: the name workers serve it under, or a local folder."""
    judge: ModelChoice | None = None
    """The judge, for a policy that has one say how good steps are: the name workers serve it under, or a local
    folder."""
    small_revision: str | None = None
    """The hub revision that a worker must have been started with; None: any."""
    large_revision: str | None = None
    """The same for the large model."""
    judge_revision: str | None = None
    """The same for the judge."""
    policy: str = DEFAULT_POLICY
    """Who writes what: NAME or NAME:PRESET. A model that the policy does not call for is ignored. Not named: this one,
    or its sibling improved-instruct where the small model is known to have no think phase."""
    policy_values: dict[str, Any] = {}
    """Numbers of the policy that differ from its preset, by the names of its fields."""
    exit: AnyExitSpec | None = None
    """What ends the think phase early: an exit, its name alone, or its values; None: nothing."""
    guard: LoopGuard | None = None
    """What ends a sample that goes wrong, besides what the policy itself has; None: nothing."""
    matched_to: Annotated[int, Field(ge=1)] | None = None
    """An ended job whose takeovers the policy "random" matches in number and length. With another policy the exit is
    "cut" or "random", and matches the mean length of that job's thoughts."""
    calibrated_from: CalibratedFrom | None = None
    """The pilot that the policy's threshold comes from. With a share the threshold is computed from the pilot now, and
    refused where the pilot asks one of the job's problems."""
    num_samples: SampleCount = 1
    """Independent solutions per problem."""
    seed: Seed | None = None
    """Of all random draws. None draws one, which is stored in the job."""
    temperature: Temperature | None = None
    """How freely tokens are drawn; 0: always the most likely one."""
    top_p: TopP | None = None
    """Tokens are drawn from the most likely ones that have this probability together."""
    top_k: TopK | None = None
    """Tokens are drawn from so many of the most likely ones; 0: from all."""
    min_p: MinP | None = None
    """Least probability of a token, as a share of the most likely one's; 0: off."""
    presence_penalty: Penalty | None = None
    """Taken from the logit of each token that is in the piece being written; 0: off."""
    frequency_penalty: Penalty | None = None
    """The same for each time that it is there; 0: off."""
    repetition_penalty: RepetitionPenalty | None = None
    """Divides the logits of the tokens in the prompt and the text so far; 1: off."""
    stop: StopStrings | None = None
    """Texts that end a sample where they come outside its thoughts, and are no part of it."""
    max_tokens: TokenBudget | None = None
    """Most output tokens per sample, all authors together."""
    small_sampling: RoleDrawingSpec = RoleDrawingSpec()
    """Where the small model's tokens are drawn in another way."""
    large_sampling: RoleDrawingSpec = RoleDrawingSpec()
    """Where the large model's tokens are drawn in another way."""
    system: str | None = None
    """A system message for both models."""
    template_variables: dict[str, JsonValue] = {}
    """Variables of both chat templates, e.g. {"enable_thinking": true}."""
    think_tags: ThinkTags | tuple[()] | None = None
    """The opening and the closing think tag of both models; (): they do not think; None: as the pipeline finds them."""
    small_asking: Asking = Asking()
    """What is said to the small model beside the problem: system message, template variables, think tags."""
    large_asking: Asking = Asking()
    """What is said to the large model beside the problem."""
    judge_asking: Asking = Asking()
    """What is said to the judge beside the problem and the steps. What is said to both writers is not said to it."""
    prompt_template: str | None = None
    """A name in pipeline.chat.prompts."""
    prompt_file: Path | None = None
    """A template of your own: a text with {{problem}}, {{choices}} and {{COLUMN}} in it."""
    template_text: str | None = None
    """The text of such a file, as another job has it."""
    few_shot: FewShotFile | FewShot | None = None
    """Worked examples before each problem: a file with their number, or those of another job."""
    grader: str | None = None
    """A name in pipeline.grading, or FILE.py:CLASS for one of your own; "none" leaves samples unscored."""
    cut_samples: CutSamples = CutSamples.WRONG
    """What a sample counts as that was cut before it stated an answer."""
    limit: ProblemLimit | None = None
    """Use the first so many problems only."""
    name: str | None = None
    """Free text for people."""
    cloned_from: Annotated[int, Field(ge=1)] | None = None
    """The job that it was made from."""

    @model_validator(mode="before")
    @classmethod
    def _matched_cut_needs_no_length(cls, values: Any) -> Any:
        """Whatever stands in it until the other job has been looked at."""
        if not isinstance(values, Mapping) or values.get("matched_to") is None or values.get("policy") == "random":
            return values
        chosen = values.get("exit")
        name = chosen.get("name", "cut") if isinstance(chosen, Mapping) else chosen
        number = _MATCHED_NUMBERS.get(name) if isinstance(name, str) else None
        if isinstance(chosen, Mapping) and number in chosen:
            raise ValueError(f"exit {name!r} has its {number} from the job that it is matched to: leave it out")
        return {**values, "exit": {"name": "cut", "thinking_tokens": 1}} if name == "cut" else values

    @field_validator("problems", mode="before")
    @classmethod
    def _names_problems(cls, value: object) -> object:
        """Before the union is tried, whose errors name all of its members."""
        if isinstance(value, bool) or not isinstance(value, str | PathLike | ProblemSet | int) or value == 0:
            raise ValueError("give a .jsonl, .csv or .parquet file, or the number of a stored problem set")
        return value

    @field_validator("small", "large", "judge", mode="before")
    @classmethod
    def _names_a_model(cls, value: object) -> object:
        if value is not None and not isinstance(value, str | PathLike | ModelSpec | Mapping):
            raise ValueError("give a model's folder, or the name that workers serve it under")
        if isinstance(value, str) and not value.strip():
            raise ValueError("it is empty: give a model's folder, or the name that workers serve it under")
        return value

    @field_validator("recipe", "small_revision", "large_revision", "judge_revision", "grader", "prompt_template")
    @classmethod
    def _names_something(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("it is empty: leave it out, or say which")
        return value

    @field_validator("name", "small", "large", "judge", mode="before")
    @classmethod
    def _can_be_stored(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, str | PathLike):
            try:
                check_text(str(value))
            except ValueError as error:
                what = _NAMES[str(info.field_name)]
                raise ValueError(f"{what} has {error}, which cannot be stored") from error
        return value

    @classmethod
    def parse(cls, **values: Any) -> Self:
        """A submission from values by field name. Raises ConfigurationError that names the field and what it takes."""
        unknown = ", ".join(name for name in values if name not in cls.model_fields)
        if unknown:
            raise ConfigurationError(f"a job has no option {unknown}; it has: {', '.join(cls.model_fields)}")
        with options_checked():
            return cls(**values)

    @classmethod
    def from_job(cls, job: SourceJob, changes: Mapping[str, Any], *, name: str | None = None) -> Self:
        """The same problems, asked as in a stored job but for some values.

        changes: by dotted key, e.g. {"sampling.temperature": 0.9, "policy.n1": "30", "num_samples": 8}; a value may be
        text. ``policy`` is NAME[:PRESET] or another preset of the same name. name: None derives it from the job's.
        Raises ConfigurationError for a key that there is not, naming those there are, and for a wrong value.
        """
        given = dict(changes)
        label, spec = bare_label(job.policy, job.config.exit), job.config.policy
        if "policy" in given:
            label = _policy_name(job.config, str(given.pop("policy")))
            spec = parse_policy(label)
        values = job.config.model_dump(mode="json") | {"policy": spec.model_dump(mode="json")}
        if isinstance(given.get("exit"), str):
            name_of_exit = given.pop("exit")
            none = name_of_exit == NO_EXIT
            values["exit"] = None if none else exit_defaults(name_of_exit) | {"name": name_of_exit}
        known = list(_keys(values))
        for key, value in given.items():
            if key not in known:
                raise ConfigurationError(f"a job has no {key!r} to set; it has: {', '.join(known)}")
            _set(values, key.split("."), value)
        policy_values = {key: value for key, value in values.pop("policy").items() if key not in _FIXED}
        submission = cls.parse(
            problems=job.problem_set_id,
            policy=label,
            policy_values=policy_values,
            name=name or _clone_name(job, changes),
            cloned_from=job.id,
            calibrated_from=None if any(key.startswith("policy") for key in changes) else _given_from(job.config),
            **values.pop("sampling"),
            **{key: value for key, value in values.items() if key not in _FIXED},
        )
        submission._require_models()
        return submission

    def _require_models(self) -> None:
        """Raises ConfigurationError where a clone lacks a model that its policy calls for."""
        delegation = parse_policy(self.policy, self.policy_values).build()
        for role in sorted(compose(delegation, exit=self.exit).roles):
            if self.model(role) is None:
                raise ConfigurationError(
                    f"policy {self.policy!r} needs a {role} model, and the job has none; give --set {role}=MODEL"
                )

    def revision(self, role: ModelRole) -> str | None:
        revisions = {
            ModelRole.SMALL: self.small_revision,
            ModelRole.LARGE: self.large_revision,
            ModelRole.JUDGE: self.judge_revision,
        }
        return revisions[role]

    def asking(self, role: ModelRole) -> Asking:
        """How a role's model is asked: what is said for it alone, and what is said for both writers."""
        if role is ModelRole.JUDGE:
            return self.judge_asking
        own = self.small_asking if role is ModelRole.SMALL else self.large_asking
        said = {
            "system": self.system,
            "think_tags": self.think_tags,
            **own.model_dump(exclude_none=True),
            "template_variables": {**self.template_variables, **own.template_variables},
        }
        with options_checked():
            return Asking.model_validate(said)

    def model(self, role: ModelRole) -> ModelChoice | None:
        return {ModelRole.SMALL: self.small, ModelRole.LARGE: self.large, ModelRole.JUDGE: self.judge}[role]


_FIXED = ("version", "name", "preset", "fingerprint", "weights", "plugin", "plugins", "judging", "calibrated_from")
"""Keys of a stored configuration that follow from others."""


NO_EXIT = "none"
"""What a clone says that leaves out its source's exit."""


_PARTS = {"policy": "policy_values", "exit": "exit", "guard": "guard"}
"""What a submission may set by dotted key, and the option that holds it."""


def part_values(given: Mapping[str, Any], *, exit: str | None = None) -> dict[str, dict[str, Any]]:
    """Options of a submission from dotted keys, e.g. {"policy.n1": "30", "exit.thinking_tokens": 4000}.

    A key's first name is policy, exit or guard; a list of cues has one name more. Values may be text. exit: the name of
    the exit; None: what exit.name says, or ``cut`` where one of its numbers is set, else none. Raises
    ConfigurationError for a key that there is not; the names in a policy are checked with the policy.
    """
    if exit is not None and given.get("exit.name", exit) != exit:
        raise ConfigurationError(f"exit {exit!r} and exit.name={given['exit.name']} are both set; set one of them")
    chosen = exit_type(exit or str(given.get("exit.name", "cut")))
    names = {"exit": chosen.model_fields, "guard": LoopGuard.model_fields}
    options: dict[str, dict[str, Any]] = {} if exit is None else {"exit": {"name": exit}}
    for key, value in given.items():
        part, *path = key.split(".")
        if part not in _PARTS or not all(path) or not path:
            raise ConfigurationError(f"there is no {key!r} to set; write policy.NAME, exit.NAME or guard.NAME")
        settable = list(names.get(part, ()))
        if part in names and path[0] not in settable:
            others = [name for name in exit_names() if part == "exit" and path[0] in exit_type(name).model_fields]
            hint = f"; it is of the exit {' or '.join(others)}: set exit.name, too" if others else ""
            raise ConfigurationError(f"{part} has no {path[0]}; it has: {', '.join(settable)}{hint}")
        values = options.setdefault(_PARTS[part], {})
        for name in path[:-1]:
            values = values.setdefault(name, {})
            if not isinstance(values, dict):
                break
        if not isinstance(values, dict) or values.get(path[-1], value) != value:
            raise ConfigurationError(f"{key!r} and what it lies in, or what lies in it, are both set; set one of them")
        values[path[-1]] = value
    return options


def _given_from(config: JobConfig) -> CalibratedFrom | None:
    """The pilot of a job, whose clone is given the same threshold."""
    pilot = config.calibrated_from
    return None if pilot is None else CalibratedFrom(job=pilot.job)


def label_with_exit(label: str, exit: ExitSpec | None) -> str:
    """How a job's policy is called in every table and report: NAME[:PRESET], or NAME[:PRESET] + EXIT."""
    return label if exit is None else f"{label} + {exit.name}"


def bare_label(label: str, exit: ExitSpec | None) -> str:
    """NAME[:PRESET] of what ``label_with_exit`` made."""
    return label if exit is None else label.removesuffix(f" + {exit.name}")


def _policy_name(config: JobConfig, given: str) -> str:
    """NAME[:PRESET] of what is given: that, or another PRESET of the job's policy."""
    preset = f"{config.policy.name}:{given}"
    return preset if preset in policy_names() else given


def _keys(values: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """Every key that can be set, dotted; one whose value has keys of its own comes before them."""
    for name, value in values.items():
        key = before + name
        if name in _FIXED or key == "sampling":
            continue
        yield key
        if isinstance(value, Mapping) and name not in tuple(ModelRole):
            yield from _keys(value, f"{key}.")
    if not before:
        yield from _keys(values["sampling"], "sampling.")


def _set(values: dict[str, Any], path: list[str], value: Any) -> None:
    *parents, last = path
    for name in parents:
        values = values[name]
        if not isinstance(values, dict):
            raise ConfigurationError(f"{'.'.join(path)!r} and what it lies in are both set; set one of them")
    values[last] = value


def _clone_name(source: SourceJob, changes: Mapping[str, Any]) -> str:
    told = ", ".join(f"{key}={value}" for key, value in changes.items())
    return f"{source.name} · {told or f'clone of job {source.id}'}"


@contextlib.contextmanager
def options_checked() -> Iterator[None]:
    """Turns pydantic's errors into one line that names the options."""
    try:
        yield
    except ValidationError as error:
        raise ConfigurationError("; ".join(dict.fromkeys(map(_fault, error.errors())))) from error


def _fault(fault: ErrorDetails) -> str:
    place = " ".join(str(part) for part in fault["loc"])
    return ": ".join(filter(None, [place, fault["msg"].removeprefix("Value error, ")]))
