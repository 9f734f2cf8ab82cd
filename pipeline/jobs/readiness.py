"""Turns a submission into a job that is ready to be stored; checks everything first and refuses a bad one whole.

It reads files and the tokenizers of local models; what the database knows is handed in.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import secrets
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.chat.asking import Asking
from pipeline.chat.prompts import TextTemplate, make_text_template, prompt_template
from pipeline.chat.translation import ThinkPhase
from pipeline.errors import ConfigurationError
from pipeline.jobs.code_sets import as_worked
from pipeline.jobs.config import JobConfig, ModelSpec, SamplingSpec
from pipeline.jobs.few_shot import FewShot, FewShotFile, draw_examples
from pipeline.jobs.pair import KnownPairs, ModelPair
from pipeline.jobs.prompt_lengths import PromptLengths
from pipeline.jobs.recipes import Recipe
from pipeline.jobs.references import StoredSet, check_references, notes_on
from pipeline.jobs.sources import load_source, recipe_for
from pipeline.jobs.submission import INSTRUCT_POLICY, SourceJob, Submission, label_with_exit, options_checked
from pipeline.policies import PolicySpec, parse_policy
from pipeline.policies.asking import AskingPolicy
from pipeline.policies.protocol import SampleContext
from pipeline.policies.requests import Finish
from pipeline.policies.speculative_thinking.rules import Rules
from pipeline.problems import (
    ColumnNames,
    ProblemSet,
    check_storable,
    content_sha256,
    hide_columns,
)
from pipeline.problems.values import check_text
from pipeline.samples import WRITING_ROLES, ModelRole

if TYPE_CHECKING:
    from pipeline.chat.model import ChatModel

_DRAWN_SEEDS = 2**31
"""A drawn seed is below this: ten digits can be copied by hand."""
_PACKAGES = ("specthink", "celery", "sqlalchemy", "psycopg", "pydantic", "tokenizers", "math-verify")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyJob:
    """A job that passed every check, with all that is stored of it.

    policy: its NAME[:PRESET]. num_problems: of the set, the first so many are used. think: None leaves it to the first
    worker.
    """

    name: str
    policy: str
    problems: ProblemSet | StoredSet
    num_problems: int
    config: JobConfig
    first_role: ModelRole
    think: ThinkPhase | None
    versions: dict[str, str]
    cloned_from: int | None
    pair: ModelPair = field(compare=False, repr=False)
    """Its models as far as they are known here."""
    notes: tuple[str, ...] = ()
    """What a person should know of the problems."""


def make_ready(
    submission: Submission,
    *,
    stored: StoredSet | None = None,
    source: SourceJob | None = None,
    matched: Mapping[str, Any] | None = None,
    pairs: KnownPairs | None = None,
    lengths: PromptLengths | None = None,
) -> ReadyJob:
    """Resolve a submission and check it as a whole.

    stored: the set, where the submission names a stored one. source: the job that a clone is made from; what was found
    of it holds for whatever the clone does not change. matched: the policy's fields that match it to another job.
    pairs, lengths: of the submissions that are checked together with this one; whoever gives lengths finishes them.
    Raises ProblemSetError for a bad file, BadProblem for a problem that cannot be asked so, ConfigurationError for
    anything else that is wrong.
    """
    recipe = recipe_for(submission)
    submission = with_template(submission)
    problems = stored or read_problems(submission, recipe)
    submission, spec, pair, told = choose_policy(submission, matched or {}, pairs or KnownPairs())
    config = make_config(submission, spec, pair.specs, recipe, has_choices=problems.has_choices)
    check_names(config)
    config = with_examples(config, submission, recipe, problems)
    opener = first_role(config)
    size = problems.size if isinstance(problems, StoredSet) else len(problems.problems)
    num_problems = min(config.limit or size, size)
    if source is None or pair.is_new or opener is not first_role(source.config):
        think = pair.think_phase(opener)
    else:
        think = source.think
    check_exit(config, think)
    if source is None or pair.is_new or _asks_otherwise(config, source.config):
        check_prompts(used_problems(problems, num_problems), config, pair.known_chats(), lengths)
    if source is None or config.grader != source.config.grader:
        check_references(problems, num_problems, config.grader)
    label = label_with_exit(submission.policy, submission.exit)
    return ReadyJob(
        name=submission.name or _usual_name(problems, label, submission.matched_to),
        policy=label,
        problems=problems,
        num_problems=num_problems,
        config=config,
        first_role=opener,
        think=think,
        versions=versions_of(config),
        cloned_from=submission.cloned_from,
        pair=pair,
        notes=(*told, *_ignored(submission, pair), *_not_shown(config, problems), *notes_on(problems))
        if source is None
        else (),
    )


def choose_policy(
    submission: Submission, matched: Mapping[str, Any], pairs: KnownPairs
) -> tuple[Submission, PolicySpec, ModelPair, tuple[str, ...]]:
    """The policy that was asked for, or the one that suits the small model; with a note where it does not reason."""
    spec = parse_policy(submission.policy, {**matched, **submission.policy_values} or None)
    pair = pairs.find(submission, spec)
    waits_for_cues = isinstance(spec, Rules) and not (spec.opening_tokens or spec.every_break)
    if not waits_for_cues or pair.reasons(ModelRole.SMALL) is not False:
        return submission, spec, pair, ()
    if "policy" in submission.model_fields_set:
        note = (
            f"the small model has no think phase in this job, and may write no cue for {submission.policy!r}; "
            f"the preset for such a model is {INSTRUCT_POLICY!r}"
        )
        return submission, spec, pair, (note,)
    submission = submission.model_copy(update={"policy": INSTRUCT_POLICY})
    spec = parse_policy(submission.policy, submission.policy_values or None)
    note = (
        f"the small model has no think phase in this job: the policy is {INSTRUCT_POLICY!r}; --policy asks for another"
    )
    return submission, spec, pair, (note,)


def _ignored(submission: Submission, pair: ModelPair) -> Iterator[str]:
    """A note for each role that the policy does not call for, and that something is said of.

    A small or large model alone is no reason for one: both are usually given with every policy.
    """
    usual = Submission.model_fields
    for role in ModelRole:
        names = [f"{role}_revision", f"{role}_sampling", f"{role}_asking", *(["judge"] if role == "judge" else [])]
        said = [name for name in names if name in usual and getattr(submission, name) != usual[name].default]
        if said and role not in pair.models:
            told = f"{' and '.join(said)} {'are' if len(said) > 1 else 'is'} ignored"
            yield f"the policy {submission.policy!r} calls for no {role} model: {told}"


def _not_shown(config: JobConfig, problems: ProblemSet | StoredSet) -> Iterator[str]:
    template = config.template()
    if problems.has_choices and isinstance(template, TextTemplate) and not template.shows_choices:
        name = config.prompt_template.removeprefix(OWN)
        yield f"the prompt template {name} shows no {{{{choices}}}}, and the problems have some"


def check_exit(config: JobConfig, think: ThinkPhase | None) -> None:
    """Raises ConfigurationError for an exit that could end nothing. think: None where only workers can tell."""
    if config.exit is None:
        return
    if think is not None and not think.end:
        raise ConfigurationError(
            f"exit {config.exit.name!r} ends the think phase, and the models have none in this job; leave it out, or "
            "say by --think-tags how their texts mark it"
        )
    delegation = config.policy.build()
    if ModelRole.SMALL not in delegation.roles:
        raise ConfigurationError(
            f"exit {config.exit.name!r} acts while the small model writes, which {config.policy.name!r} never lets it; "
            "leave it out"
        )
    if isinstance(delegation, AskingPolicy):
        raise ConfigurationError(
            f"exit {config.exit.name!r} reads what the small model writes into the text, and with "
            f"{config.policy.name!r} all of its thoughts are asides; leave it out"
        )


def _asks_otherwise(config: JobConfig, source: JobConfig) -> bool:
    asked = ("prompt_template", "template_text", "few_shot", "limit")
    return any(getattr(config, name) != getattr(source, name) for name in asked)


def used_problems(problems: ProblemSet | StoredSet, num_problems: int) -> ProblemSet:
    """The first so many; those of a stored set without their reference answers."""
    if isinstance(problems, StoredSet):
        return ProblemSet(name=problems.name, content_sha256="", problems=problems.read(num_problems))
    return replace(problems, problems=problems.problems[:num_problems])


def _usual_name(problems: ProblemSet | StoredSet, label: str, matched_to: int | None) -> str:
    matched = "" if matched_to is None else f" matched to job {matched_to}"
    return f"{problems.name} · {label}{matched}"


def read_problems(submission: Submission, recipe: Recipe | None) -> ProblemSet:
    """The problems of a submission that names a file or has a set at hand."""
    keep = (*submission.keep, *_shown_by_template(submission, recipe))
    problems, columns = submission.problems, submission.columns or ColumnNames()
    if recipe is not None and columns != ColumnNames():
        raise ConfigurationError(f"the recipe {recipe.name!r} knows its columns ({recipe.published}); name none")
    if isinstance(problems, Path):
        return load_source(problems, recipe, columns=columns, keep=keep)
    if recipe is not None:
        raise ConfigurationError(f"the recipe {recipe.name!r} reads a file; a problem set is past it")
    if isinstance(problems, int):
        raise ConfigurationError(f"problem set {problems} is stored in the database; submit through a Client")
    if columns != ColumnNames():
        raise ConfigurationError("columns are of a file; a problem set has its problems already")
    check_storable(problems)
    return _hide_columns(problems, keep)


def _shown_by_template(submission: Submission, recipe: Recipe | None) -> tuple[str, ...]:
    if submission.template_text is not None and is_own(submission.prompt_template):
        return make_text_template(submission.prompt_template or "", submission.template_text).shows
    name = submission.prompt_template or (recipe.prompt_template if recipe else None)
    return prompt_template(name).shows if name else ()


def _hide_columns(problems: ProblemSet, keep: Collection[str]) -> ProblemSet:
    """A set made by hand shows no more than one that is read from a file."""
    hidden = tuple(hide_columns(problem, keep) for problem in problems.problems)
    if hidden == problems.problems:
        return problems
    return replace(problems, problems=hidden, content_sha256=content_sha256(hidden))


def make_config(
    submission: Submission,
    spec: PolicySpec,
    models: Mapping[ModelRole, ModelSpec],
    recipe: Recipe | None,
    *,
    has_choices: bool,
) -> JobConfig:
    """The job's configuration with every value: the submission's, else the recipe's, else the usual one.

    has_choices: whether the problems are a multiple choice, which is asked and graded as one.
    """
    usual = "choice" if has_choices else "math"
    given = set(SamplingSpec.model_fields)
    sampling = recipe.sampling if recipe else SamplingSpec()
    with options_checked():
        return JobConfig(
            small=models.get(ModelRole.SMALL),
            large=models.get(ModelRole.LARGE),
            judge=models.get(ModelRole.JUDGE),
            policy=spec,
            exit=submission.exit,
            guard=submission.guard,
            sampling=sampling.model_copy(update=submission.model_dump(include=given, exclude_none=True)),
            small_sampling=submission.small_sampling,
            large_sampling=submission.large_sampling,
            small_asking=_dated(submission.asking(ModelRole.SMALL)),
            large_asking=_dated(submission.asking(ModelRole.LARGE)),
            judge_asking=_dated(submission.asking(ModelRole.JUDGE)),
            num_samples=submission.num_samples,
            seed=secrets.randbelow(_DRAWN_SEEDS) if submission.seed is None else submission.seed,
            prompt_template=submission.prompt_template or (recipe.prompt_template if recipe else usual),
            grader=submission.grader or (recipe.grader if recipe else usual),
            cut_samples=submission.cut_samples,
            limit=submission.limit,
            template_text=submission.template_text if is_own(submission.prompt_template) else None,
            few_shot=submission.few_shot if isinstance(submission.few_shot, FewShot) else None,
            calibrated_from=submission.calibrated_from,
        )


def _dated(asking: Asking) -> Asking:
    """The same with the date that its template shall read: every worker renders it as it is rendered today."""
    return asking if asking.today else asking.model_copy(update={"today": dt.date.today()})


def check_names(config: JobConfig) -> None:
    """Raises ConfigurationError for a prompt template or grader that does not exist."""
    from pipeline.grading import make_grader

    config.template()
    make_grader(config.grader)


OWN = "file:"
"""What the name of a file's template begins with."""


def is_own(template_name: str | None) -> bool:
    return template_name is not None and template_name.startswith(OWN)


def with_template(submission: Submission) -> Submission:
    """The submission with the text of its prompt file. Raises ConfigurationError for one that cannot be read."""
    file = submission.prompt_file
    if file is None:
        return submission
    if submission.prompt_template is not None:
        raise ConfigurationError("give a prompt template by its name or as a file, not both")
    try:
        text = file.read_text(encoding="utf-8-sig")
        check_text(text)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"the prompt template {file} cannot be read: {error}") from error
    named = {"prompt_template": f"{OWN}{file.name}", "template_text": text.rstrip("\n"), "prompt_file": None}
    return submission.model_copy(update=named)


def with_examples(
    config: JobConfig, submission: Submission, recipe: Recipe | None, problems: ProblemSet | StoredSet
) -> JobConfig:
    """The configuration with examples drawn from the submission's file, where it has one."""
    wanted = submission.few_shot
    if not isinstance(wanted, FewShotFile):
        return config
    template = config.template()
    keep = (*submission.keep, *template.shows)
    source = load_source(wanted.file, recipe, columns=submission.columns or ColumnNames(), keep=keep)
    if config.grader == "code":
        source = replace(source, problems=tuple(map(as_worked, source.problems)))
    asked = problems.read(problems.size) if isinstance(problems, StoredSet) else problems.problems
    seed = config.seed if wanted.seed is None else wanted.seed
    examples = draw_examples(
        source, wanted.count, seed=seed, template=template, asked={problem.prompt for problem in asked}
    )
    return config.model_copy(update={"few_shot": examples})


def check_prompts(
    used: ProblemSet, config: JobConfig, chats: list[ChatModel], lengths: PromptLengths | None = None
) -> None:
    """Make the prompt of every problem, and measure it with each model whose tokenizer is at hand.

    lengths: where they are measured, later, with those of other jobs; None: they are measured here.
    """
    asked = [problem.as_shown() for problem in used.problems]
    for column in config.template().shows:
        if not any(column in problem.metadata for problem in asked):
            raise ConfigurationError(f"the prompt template shows {column!r}, which no problem has among what is shown")
    measured = lengths or PromptLengths()
    measured.add(used, config.prompts(asked), chats)
    if lengths is None:
        measured.finish()


def first_role(config: JobConfig) -> ModelRole:
    """Who opens a sample under this job's policy."""
    context = SampleContext(
        job_seed=config.seed,
        problem_id="",
        sample_index=0,
        max_tokens=config.sampling.max_tokens,
        think_end="",
        num_prompt_tokens=0,
    )
    first = config.build_policy().start(context).then
    if isinstance(first, Finish):
        raise ConfigurationError(f"policy {config.policy.name!r} ends a sample before anything is written")
    if first.role not in WRITING_ROLES:
        raise ConfigurationError(f"policy {config.policy.name!r} asks a {first.role} before anything is written")
    return first.role


def versions_of(config: JobConfig) -> dict[str, str]:
    """Versions of what shapes a job at submit: its prompt template, and packages; those not installed are left out."""
    versions = {"prompt template": config.template().version}
    return versions | _installed_versions()


@cache
def _installed_versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions
