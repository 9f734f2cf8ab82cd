"""Jobs: a problem set, a pair of models, a policy; frozen when submitted."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.chat.asking import Asking
from pipeline.chat.prompts import (
    Prompt,
    PromptTemplate,
    make_prompt,
    make_text_template,
    prompt_template,
    render_question,
)
from pipeline.jobs.few_shot import FewShot
from pipeline.plugins import Origin, PluginGroup, check_same_version, origin_of
from pipeline.policies import AnyPolicySpec, PluginSpec, Policy
from pipeline.policies.composition import compose
from pipeline.policies.exits import AnyExitSpec
from pipeline.policies.guards import LoopGuard
from pipeline.policies.reading.cues import CueLists
from pipeline.policies.stops import Stopping
from pipeline.policies.thoughts import AsThought
from pipeline.problems import Problem
from pipeline.samples import WRITING_ROLES, CutSamples, ModelRole


class JobState(StrEnum):
    """Where a job is in its life."""

    RUNNING = "running"  # submitted; its samples are admitted as room allows
    PAUSED = "paused"  # nothing of it is admitted or written until it is resumed
    COMPLETED = "completed"  # final: every sample graded
    COMPLETED_WITH_ERRORS = "completed_with_errors"  # final: every sample final, some failed or none could be scored
    CANCELLED = "cancelled"  # final


FINAL_JOB_STATES = frozenset({JobState.COMPLETED, JobState.COMPLETED_WITH_ERRORS, JobState.CANCELLED})
JOB_TRANSITIONS: frozenset[tuple[JobState, JobState]] = frozenset(
    {(JobState.RUNNING, end) for end in JobState if end is not JobState.RUNNING}
    | {
        (JobState.PAUSED, JobState.RUNNING),
        (JobState.PAUSED, JobState.CANCELLED),
        (JobState.COMPLETED, JobState.RUNNING),
        (JobState.COMPLETED_WITH_ERRORS, JobState.RUNNING),
    }
)
"""What may follow what; the database refuses the rest."""


class ModelSpec(BaseModel):
    """A language model as a job names it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    """The name workers serve it under: a hub id, or the base name of a local folder."""
    revision: str | None = None
    """Hub revision; None: whatever the worker has."""
    fingerprint: str | None = None
    """sha256 of its tokenizer and chat template, where the client could read them; a worker whose model differs
    refuses the job's samples."""
    weights: str | None = None
    """sha256 of its weights (``pipeline.chat.weights``), where the client could read them; a worker with others refuses
    the job's samples."""

    def why_not(self, *, fingerprint: str | None, weights: str | None, revision: str | None) -> str | None:
        """Why a worker whose model is this one may not write for it; None where it may.

        What is not known counts as the same, but for a revision that is asked for.
        """
        if None not in (self.fingerprint, fingerprint) and self.fingerprint != fingerprint:
            return "this worker's model has another tokenizer or chat template than the job's"
        if None not in (self.weights, weights) and self.weights != weights:
            return "this worker's model has other weights than the job's"
        if self.revision not in (None, revision):
            return f"the job asks for revision {self.revision!r}, and this worker was started with {revision!r}"
        return None


MAX_INTEGER = 2**31 - 1
"""Of a column in the database, and of what engines take."""

Temperature = Annotated[float, Field(ge=0.0, le=2.0)]
TopP = Annotated[float, Field(gt=0.0, le=1.0)]
TopK = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
MinP = Annotated[float, Field(ge=0.0, le=1.0)]
Penalty = Annotated[float, Field(ge=-2.0, le=2.0)]
RepetitionPenalty = Annotated[float, Field(gt=0.0, le=10.0)]
StopStrings = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=200)], ...], Field(max_length=16)]
TokenBudget = Annotated[int, Field(ge=1, le=MAX_INTEGER)]
SampleCount = Annotated[int, Field(ge=1, le=10_000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
ProblemLimit = Annotated[int, Field(ge=1)]


class DrawingSpec(BaseModel):
    """How tokens are drawn. Defaults: the released code of arXiv 2504.12329."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: Temperature = 0.6
    top_p: TopP = 0.95
    top_k: TopK = 50
    """0: off."""
    min_p: MinP = 0.0
    """Least probability of a token, as a share of the most likely one's; 0: off."""
    presence_penalty: Penalty = 0.0
    """Taken from the logit of each token that is in the piece being written; 0: off."""
    frequency_penalty: Penalty = 0.0
    """The same for each time that it is there; 0: off."""
    repetition_penalty: RepetitionPenalty = 1.0
    """Divides the logits of the tokens in the prompt and the text so far; 1: off."""
    stop: StopStrings = ()
    """Texts that end a sample where they come outside its thoughts, and are no part of it."""


class RoleDrawingSpec(BaseModel):
    """How one role's tokens are drawn, where that differs from the other's. None: as the job's sampling says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    stop: StopStrings | None = None


class SamplingSpec(DrawingSpec):
    """How tokens are drawn for both roles, and how many."""

    max_tokens: TokenBudget = 32_768
    """Most output tokens per sample, all authors together."""


class JudgeSpec(BaseModel):
    """What makes a job the judge of another one's answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: int
    """The judged job, by its number when it was submitted."""
    template: str
    """The name of the text around question, answer and reference."""
    template_text: str
    """That text; each prompt is stored whole besides."""
    template_sha256: str
    """Its version."""
    answer_chars: int
    """Of an answer so many characters of its end are shown."""


class CalibratedFrom(BaseModel):
    """The pilot that a threshold comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: Annotated[int, Field(ge=1)]
    """The pilot, by its number when the job was submitted."""
    share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The wanted share of steps that the threshold was computed for at submit; None: the threshold was given."""
    num_problems: int | None = None
    """Of the pilot."""
    num_shared: int | None = None
    """Problems that are in the pilot and in the job: 0 is fair."""


class JobConfig(BaseModel):
    """Everything that decides a job's results; stored as it was submitted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    small: ModelSpec | None = None
    large: ModelSpec | None = None
    judge: ModelSpec | None = None
    """The model that says how good steps are; None: the policy asks none."""
    policy: AnyPolicySpec
    exit: AnyExitSpec | None = None
    """What ends the think phase early; None: nothing."""
    guard: LoopGuard | None = None
    """What ends a sample that goes wrong, besides what the policy itself has; None: nothing."""
    sampling: SamplingSpec = SamplingSpec()
    small_sampling: RoleDrawingSpec = RoleDrawingSpec()
    """Where the small model draws in another way."""
    large_sampling: RoleDrawingSpec = RoleDrawingSpec()
    """Where the large model draws in another way."""
    small_asking: Asking = Asking()
    """What is said to the small model beside the problem."""
    large_asking: Asking = Asking()
    """What is said to the large model beside the problem."""
    judge_asking: Asking = Asking()
    """What is said to the judge beside the problem and the steps."""
    num_samples: SampleCount = 1
    """Independent solutions per problem."""
    seed: Seed = 0
    prompt_template: str = "math"
    """A name in pipeline.chat.prompts; "file:NAME" for a file's."""
    template_text: str | None = None
    """The text of the file's template."""
    few_shot: FewShot | None = None
    """Worked examples before each problem; None: none."""
    grader: str = "math"
    """A name in pipeline.grading, or FILE.py:CLASS; "none" leaves samples unscored."""
    cut_samples: CutSamples = CutSamples.WRONG
    """What a sample counts as that was cut before it stated an answer."""
    plugins: dict[Literal["prompt_template", "grader"], Origin] = {}
    """Where a prompt template or grader of another package comes from; a policy says so itself."""
    limit: ProblemLimit | None = None
    """Use the first so many problems only."""
    calibrated_from: CalibratedFrom | None = None
    """Where the policy's threshold comes from; None: nobody said."""
    judging: JudgeSpec | None = None
    """Whose answers it judges, and how; None: it is no judge."""

    @model_validator(mode="before")
    @classmethod
    def _knows_its_plugins(cls, values: Any) -> Any:
        """A name whose origin is not stored is looked up among the packages that are here."""
        if not isinstance(values, dict):
            return values
        origins = {}
        for kind, group in _PLUGIN_GROUPS.items():
            origin = Origin.model_validate(values["plugins"][kind]) if kind in values.get("plugins", {}) else None
            name = values.get(kind)
            if name is not None and (origin is None or origin.asked_as != name):
                origin = origin_of(group, name)
            if name is not None and origin is not None:
                origins[kind] = origin
        return values | {kind: origin.asked_as for kind, origin in origins.items()} | {"plugins": origins}

    @model_validator(mode="after")
    def _has_a_model_for_each_role(self) -> JobConfig:
        if isinstance(self.policy, PluginSpec) and not self.policy.is_loaded:
            return self  # it was checked at submit; listing jobs needs no package
        for role in sorted(self.build_policy().roles):
            if self.model(role) is None:
                raise ValueError(f"policy {self.policy.name!r} needs a {role} model; give --{role} MODEL")
        return self

    def build_policy(self) -> Policy:
        """The job's policy, with its exit, guard and stop strings. Raises ConfigurationError where its package is not
        here."""
        guards = [] if self.guard is None else [self.guard]
        policy = AsThought(compose(self.policy.build(), exit=self.exit, guards=guards))
        own = {role: self._own_drawing(role).stop for role in WRITING_ROLES}
        stops = {role: self.sampling.stop if stop is None else stop for role, stop in own.items()}
        return Stopping(policy, stops) if any(stops.values()) else policy

    def template(self) -> PromptTemplate:
        """Raises ConfigurationError for a name that there is not here."""
        if self.template_text is not None:
            return make_text_template(self.prompt_template, self.template_text)
        return prompt_template(self.prompt_template)

    def prompt(self, problem: Problem) -> Prompt:
        """What is asked of a problem. Raises ConfigurationError, and BadProblem for choices that cannot be shown."""
        return self.prompts([problem])[0]

    def prompts(self, problems: Iterable[Problem]) -> list[Prompt]:
        """What is asked of each problem. Raises as ``prompt``."""
        template, examples = self.template(), self.few_shot.messages() if self.few_shot else ()
        return [make_prompt(template, problem, examples) for problem in problems]

    def question(self, problem: Problem) -> str:
        """What a judge reads of a problem. Raises as ``prompt``."""
        return render_question(self.template(), problem)

    def check_same_version(self, kind: Literal["prompt_template", "grader"]) -> None:
        """Raises ConfigurationError where the prompt template or grader here is not the one that was frozen."""
        if kind in self.plugins:
            check_same_version(self.plugins[kind], origin_of(_PLUGIN_GROUPS[kind], self.plugins[kind].asked_as))

    def model(self, role: ModelRole) -> ModelSpec | None:
        return {ModelRole.SMALL: self.small, ModelRole.LARGE: self.large, ModelRole.JUDGE: self.judge}[role]

    def asking(self, role: ModelRole) -> Asking:
        """How a role's model is asked."""
        asking = {
            ModelRole.SMALL: self.small_asking,
            ModelRole.LARGE: self.large_asking,
            ModelRole.JUDGE: self.judge_asking,
        }
        return asking[role]

    def drawing(self, role: ModelRole) -> DrawingSpec:
        """How a role's tokens are drawn: its own values, and the job's for the rest. A judge has none of its own."""
        shared = self.sampling.model_dump(exclude={"max_tokens"})
        return DrawingSpec(**shared | self._own_drawing(role).model_dump(exclude_none=True))

    def _own_drawing(self, role: ModelRole) -> RoleDrawingSpec:
        return {ModelRole.SMALL: self.small_sampling, ModelRole.LARGE: self.large_sampling}.get(role, RoleDrawingSpec())

    @property
    def cues(self) -> CueLists:
        """By which a step's sentence is classed: the policy's own, else the usual ones.

        A plug-in may mean something else by a field of that name; then it has no cue lists.
        """
        try:
            return CueLists.model_validate(getattr(self.policy, "cues", None))
        except ValidationError:
            return CueLists()


_PLUGIN_GROUPS: dict[Literal["prompt_template", "grader"], PluginGroup] = {
    "prompt_template": PluginGroup.PROMPTS,
    "grader": PluginGroup.GRADERS,
}
