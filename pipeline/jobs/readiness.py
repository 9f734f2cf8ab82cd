"""Turns a submission into a job that is ready to be stored; checks everything first and refuses a bad one whole.

It reads files and the tokenizers of local models; what the database knows is handed in.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.chat.translation import ThinkPhase
from pipeline.errors import ConfigurationError
from pipeline.jobs.config import JobConfig, ModelSpec, SamplingSpec
from pipeline.jobs.pair import ModelPair
from pipeline.jobs.recipes import Recipe, find_recipe
from pipeline.jobs.submission import SourceJob, Submission, options_checked
from pipeline.policies import PolicySpec, parse_policy
from pipeline.policies.protocol import SampleContext
from pipeline.policies.requests import Finish
from pipeline.problems import (
    ColumnNames,
    Problem,
    ProblemSet,
    check_prompt_lengths,
    check_storable,
    load_problem_set,
)
from pipeline.samples import ModelRole

if TYPE_CHECKING:
    from pipeline.chat.model import ChatModel

_DRAWN_SEEDS = 2**31
"""A drawn seed is below this: ten digits can be copied by hand."""
_PACKAGES = ("specthink", "celery", "sqlalchemy", "psycopg", "pydantic", "tokenizers", "math-verify")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSet:
    """A problem set that the database has. read: gives its first problems, so many, without reference answers."""

    id: int
    name: str
    size: int
    read: Callable[[int], tuple[Problem, ...]]


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


def make_ready(
    submission: Submission,
    *,
    stored: StoredSet | None = None,
    source: SourceJob | None = None,
    matched: Mapping[str, Any] | None = None,
) -> ReadyJob:
    """Resolve a submission and check it as a whole.

    stored: the set, where the submission names a stored one. source: the job that a clone is made
    from; what was found of it holds for whatever the clone does not change. matched: the policy's fields that
    match it to another job. Raises ProblemSetError for a bad file, BadProblem for a problem that cannot be asked so,
    ConfigurationError for anything else that is wrong.
    """
    recipe = find_recipe(submission.recipe) if submission.recipe else None
    problems = stored or read_problems(submission, recipe)
    spec = parse_policy(submission.policy, {**(matched or {}), **submission.policy_values} or None)
    pair = ModelPair.of(submission, spec)
    config = make_config(submission, spec, pair.specs(), recipe)
    check_names(config)
    opener = first_role(config)
    size = problems.size if isinstance(problems, StoredSet) else len(problems.problems)
    num_problems = min(config.limit or size, size)
    if source is None or pair.is_new or opener is not first_role(source.config):
        think = pair.think_phase(opener)
    else:
        think = source.think
    if source is None or pair.is_new or _asks_otherwise(config, source.config):
        check_prompts(_used(problems, num_problems), config, pair.known_chats())
    return ReadyJob(
        name=submission.name or _usual_name(problems, submission),
        policy=submission.policy,
        problems=problems,
        num_problems=num_problems,
        config=config,
        first_role=opener,
        think=think,
        versions=versions_of(config),
        cloned_from=submission.cloned_from,
    )


def _asks_otherwise(config: JobConfig, source: JobConfig) -> bool:
    return config.prompt_template != source.prompt_template or config.limit != source.limit


def _used(problems: ProblemSet | StoredSet, num_problems: int) -> ProblemSet:
    if isinstance(problems, StoredSet):
        return ProblemSet(name=problems.name, content_sha256="", problems=problems.read(num_problems))
    return replace(problems, problems=problems.problems[:num_problems])


def _usual_name(problems: ProblemSet | StoredSet, submission: Submission) -> str:
    matched = "" if submission.matched_to is None else f" matched to job {submission.matched_to}"
    return f"{problems.name} · {submission.policy}{matched}"


def read_problems(submission: Submission, recipe: Recipe | None) -> ProblemSet:
    """The problems of a submission that names a file or has a set at hand."""
    problems, columns = submission.problems, submission.columns or ColumnNames()
    if recipe is not None and columns != ColumnNames():
        raise ConfigurationError(f"the recipe {recipe.name!r} knows its columns ({recipe.published}); name none")
    if isinstance(problems, Path):
        return recipe.load(problems) if recipe else load_problem_set(problems, columns=columns)
    if recipe is not None:
        raise ConfigurationError(f"the recipe {recipe.name!r} reads a file; a problem set is past it")
    if isinstance(problems, int):
        raise ConfigurationError(f"problem set {problems} is stored in the database; submit through a Client")
    if columns != ColumnNames():
        raise ConfigurationError("columns are of a file; a problem set has its problems already")
    check_storable(problems)
    return problems


def make_config(
    submission: Submission, spec: PolicySpec, models: Mapping[ModelRole, ModelSpec], recipe: Recipe | None
) -> JobConfig:
    """The job's configuration with every value: the submission's, else the recipe's, else the usual one."""
    given = {"temperature", "top_p", "top_k", "max_tokens"}
    sampling = recipe.sampling if recipe else SamplingSpec()
    with options_checked():
        return JobConfig(
            small=models.get(ModelRole.SMALL),
            large=models.get(ModelRole.LARGE),
            policy=spec,
            exit=submission.exit,
            guard=submission.guard,
            sampling=sampling.model_copy(update=submission.model_dump(include=given, exclude_none=True)),
            num_samples=submission.num_samples,
            seed=secrets.randbelow(_DRAWN_SEEDS) if submission.seed is None else submission.seed,
            prompt_template=submission.prompt_template or (recipe.prompt_template if recipe else "math"),
            grader=submission.grader or (recipe.grader if recipe else "math"),
            limit=submission.limit,
        )


def check_names(config: JobConfig) -> None:
    """Raises ConfigurationError for a prompt template or grader that does not exist."""
    from pipeline.chat.prompts import prompt_template
    from pipeline.grading import make_grader

    prompt_template(config.prompt_template)
    make_grader(config.grader)


def check_prompts(used: ProblemSet, config: JobConfig, chats: list[ChatModel]) -> None:
    """Render the prompt of every problem, and measure it with each model whose tokenizer is at hand."""
    from pipeline.chat.prompts import render_user_message

    messages = {problem.external_id: render_user_message(config.prompt_template, problem) for problem in used.problems}
    for chat in chats:
        if chat.max_model_len is None:
            continue
        check_prompt_lengths(
            used,
            lambda message, chat=chat: len(chat.prompt_ids(message)),  # type: ignore[misc]
            chat.max_model_len - 1,  # room for one token of output
            render=lambda problem: messages[problem.external_id],
        )


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
    return first.role


def versions_of(config: JobConfig) -> dict[str, str]:
    """Versions of what shapes a job at submit: its prompt template, and packages; those not installed are left out."""
    from pipeline.chat.prompts import prompt_template

    versions = {"prompt template": prompt_template(config.prompt_template).version}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions
