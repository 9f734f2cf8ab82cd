"""What a job is checked for before it is stored, so that a bad one is refused whole and says why."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from pipeline.chat.translation import ThinkPhase, settle_think_phase
from pipeline.errors import ConfigurationError
from pipeline.jobs.config import JobConfig, ModelSpec
from pipeline.jobs.recipes import Recipe
from pipeline.policies.protocol import SampleContext
from pipeline.policies.requests import Finish
from pipeline.problems import ColumnNames, ProblemSet, check_prompt_lengths, check_storable, load_problem_set
from pipeline.problems.files import check_text
from pipeline.samples import ModelRole

if TYPE_CHECKING:
    from pipeline.chat.model import ChatModel

_PACKAGES = ("specthink", "celery", "sqlalchemy", "psycopg", "pydantic", "tokenizers", "math-verify")


def check_sendable(what: str, text: str | PathLike[str] | None) -> None:
    """Raises ConfigurationError for a text with characters that Postgres cannot take."""
    try:
        check_text(str(text or ""))
    except ValueError as error:
        raise ConfigurationError(f"{what} has {error}, which cannot be stored") from error


@contextlib.contextmanager
def options_checked() -> Iterator[None]:
    """Turns pydantic's errors into one line that names the options."""
    try:
        yield
    except ValidationError as error:
        faults = (
            ": ".join(filter(None, [" ".join(str(part) for part in fault["loc"]), _plain_message(fault["msg"])]))
            for fault in error.errors()
        )
        raise ConfigurationError("; ".join(faults)) from error


def _plain_message(message: str) -> str:
    return message.removeprefix("Value error, ")


def load_chat_model(model: str | PathLike[str]) -> ChatModel | None:
    """The tokenizer and chat template of a local folder; None for a name, which only workers need to know.

    Raises ConfigurationError for a path that is no folder.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        from pipeline.chat.model import ChatModel

        return ChatModel.load(path)
    looks_like_path = isinstance(model, PathLike) or model.startswith(("/", ".", "~")) or model.count("/") > 1
    if looks_like_path:
        raise ConfigurationError(f"model {str(model)!r}: there is no such folder; give a model's folder or hub id")
    return None


def read_problems(
    problems: str | PathLike[str] | ProblemSet, columns: ColumnNames | None, recipe: Recipe | None
) -> ProblemSet:
    if recipe is None:
        if not isinstance(problems, ProblemSet):
            return load_problem_set(problems, columns=columns)
        check_storable(problems)
        return problems
    if columns is not None and columns != ColumnNames():
        raise ConfigurationError(f"the recipe {recipe.name!r} knows its columns ({recipe.published}); name none")
    if isinstance(problems, ProblemSet):
        raise ConfigurationError(f"the recipe {recipe.name!r} reads a file; a problem set is past it")
    return recipe.load(problems)


def model_spec(model: str | PathLike[str], chat: ChatModel | None) -> ModelSpec:
    if chat is None:
        return ModelSpec(name=str(model))
    from pipeline.chat.model import served_name

    return ModelSpec(name=served_name(model), fingerprint=chat.fingerprint)


def find_think_phase(
    opener: ModelRole, models: Mapping[ModelRole, str | PathLike[str]], chats: Mapping[ModelRole, ChatModel | None]
) -> ThinkPhase | None:
    """How the job's texts mark the think phase; None where only workers can tell.

    Raises ConfigurationError for a pair that cannot write one text.
    """
    from pipeline.chat.model import ChatModel

    known = {role: chats.get(role) or ChatModel.find_cached(str(model)) for role, model in models.items()}
    first, *others = (known[role] for role in sorted(known, key=lambda role: role is not opener))
    if first is None or None in others:
        return None
    return settle_think_phase(first, *others)


def check_names(config: JobConfig) -> None:
    """Raises ConfigurationError for a prompt template or grader that does not exist."""
    from pipeline.chat.prompts import prompt_template
    from pipeline.grading import make_grader

    prompt_template(config.prompt_template)
    make_grader(config.grader)


def check_prompts(problem_set: ProblemSet, config: JobConfig, chats: Sequence[ChatModel]) -> None:
    """Render every prompt that will be used, and measure it with each model whose tokenizer is at hand."""
    from pipeline.chat.prompts import render_user_message

    used = replace(problem_set, problems=problem_set.problems[: config.limit])
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
