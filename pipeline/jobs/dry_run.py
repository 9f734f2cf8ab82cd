"""What a submission would store and ask, for a person to look at before it is submitted. Nothing is stored.

It needs no server but where a stored set or job is named; who serves the models is told where the database is at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.jobs.config import JobConfig, ModelSpec
from pipeline.jobs.readiness import ReadyJob, used_problems
from pipeline.jobs.references import UNGRADED, StoredSet
from pipeline.problems import Problem
from pipeline.problems.columns import PARTS
from pipeline.samples import ModelRole
from pipeline.workforce import WorkerKind, WorkerReport

if TYPE_CHECKING:
    from pipeline.chat.model import ChatModel


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundProblems:
    """What was found in the problems.

    size: of the set; used: the first so many. columns: by part of a problem, None where the file has none for it;
    None for a set that was not read from a file. hidden: kept from those who generate. not_stored: columns of bytes.
    num_references: of those used, what the grader takes; of a stored set, of all of it.
    """

    name: str
    source: str | None
    content_sha256: str | None
    size: int
    used: int
    columns: dict[str, str | None] | None
    answer_as: str | None
    hidden: tuple[str, ...]
    not_stored: tuple[str, ...]
    num_references: int
    grader: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """A live worker that serves a model. max_model_len: most tokens of prompt and output; None: it does not say.

    refusal: why it would not write for this job; None where it would.
    """

    id: int
    host: str
    max_model_len: int | None
    refusal: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedModel:
    """One role's model and what it is asked first.

    prompt: the first problem's, as rendered; of a model whose files are not here the user's message alone. num_tokens:
    of it; context: most tokens of prompt and output by its config.json; None without those files. think_phase: how it
    marks its thoughts in this job. workers: None where no database could be asked. unended_turn: the token with which
    its template ends an answer, where its files say of none that it does.
    """

    role: ModelRole
    model: ModelSpec
    prompt: str
    num_tokens: int | None
    context: int | None
    think_phase: str
    sampling: dict[str, Any]
    workers: tuple[WorkerContext, ...] | None
    unended_turn: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What would be stored and asked. notes: what was found; warnings: what speaks against it; both in sentences."""

    name: str
    policy: str
    policy_values: dict[str, Any]
    problems: FoundProblems
    models: tuple[AskedModel, ...]
    num_samples: int
    samples_total: int
    max_tokens: int
    seed: int
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def dry_run(ready: ReadyJob, workers: Sequence[WorkerReport] | None) -> DryRun:
    """workers: those that are alive; None where no database can be reached."""
    config = ready.config
    models = tuple(_asked_models(ready, workers))
    problems = _found(ready)
    return DryRun(
        name=ready.name,
        policy=ready.policy,
        policy_values=_policy_values(config),
        problems=problems,
        models=models,
        num_samples=config.num_samples,
        samples_total=ready.num_problems * config.num_samples,
        max_tokens=config.sampling.max_tokens,
        seed=config.seed,
        notes=ready.notes,
        warnings=(*_unread(problems), *_unserved(models, config.sampling.max_tokens), *_unmanned(workers)),
    )


def _policy_values(config: JobConfig) -> dict[str, Any]:
    """All numbers of the policy, and of its exit and guard where it has them."""
    parts = {"policy": config.policy, "exit": config.exit, "guard": config.guard}
    return {name: part.model_dump(mode="json") for name, part in parts.items() if part is not None}


def _found(ready: ReadyJob) -> FoundProblems:
    problems, grader = ready.problems, ready.config.grader
    if isinstance(problems, StoredSet):
        return FoundProblems(
            name=problems.name, source=None, content_sha256=None, size=problems.size, used=ready.num_problems,
            columns=None, answer_as=None, hidden=(), not_stored=(), num_references=problems.num_references,
            grader=grader,
        )  # fmt: skip
    reading = problems.reading
    used = problems.problems[: ready.num_problems]
    return FoundProblems(
        name=problems.name,
        source=problems.source or None,
        content_sha256=problems.content_sha256,
        size=len(problems.problems),
        used=len(used),
        columns=None if reading is None else {part: getattr(reading, part) for part in PARTS},
        answer_as=reading.answer_as.value if reading and reading.answer_as else None,
        hidden=tuple(dict.fromkeys(name for problem in problems.problems for name in problem.hidden)),
        not_stored=() if reading is None else reading.binary,
        num_references=sum(problem.answer is not None for problem in used),
        grader=grader,
    )


def _asked_models(ready: ReadyJob, workers: Sequence[WorkerReport] | None) -> list[AskedModel]:
    (first,) = used_problems(ready.problems, 1).problems
    chats = ready.pair.found_chats
    models = {role: ready.config.model(role) for role in ModelRole if role in ready.config.build_policy().roles}
    return [
        _asked_model(role, model, chats.get(role), ready.config, first, workers)
        for role, model in models.items()
        if model is not None
    ]


def _asked_model(
    role: ModelRole,
    model: ModelSpec,
    chat: ChatModel | None,
    config: JobConfig,
    problem: Problem,
    workers: Sequence[WorkerReport] | None,
) -> AskedModel:
    from pipeline.chat.description import think_phase_of

    message, ids = _asked_first(role, chat, config, problem)
    return AskedModel(
        role=role,
        model=model,
        prompt=message if chat is None else chat.tokenizer.decode(ids, skip_special_tokens=False),
        num_tokens=len(ids) if chat else None,
        context=chat.max_model_len if chat else None,
        think_phase="known to workers" if chat is None else think_phase_of(chat),
        unended_turn=None if chat is None else chat.unended_turn,
        sampling=config.drawing(role).model_dump(mode="json"),
        workers=None if workers is None else tuple(_serving(role, model, workers)),
    )


_A_STEP = "(the small model's first step)"


def _asked_first(
    role: ModelRole, chat: ChatModel | None, config: JobConfig, problem: Problem
) -> tuple[str, Sequence[int]]:
    """The last message of the first prompt, and the whole prompt's ids where the model's files are here."""
    from pipeline.chat.frames import FramedModel, messages

    if role is not ModelRole.JUDGE:
        prompt = config.prompt(problem.as_shown())
        return prompt.message, () if chat is None else chat.prompt_ids(prompt.message, prompt.earlier)
    ask = next(ask for ask in config.build_policy().asks if ask.role is role)
    question = config.question(problem.as_shown())
    ids = () if chat is None else FramedModel(chat).token_ids(ask, question, [_A_STEP])
    return messages(ask, question, [_A_STEP])[0], ids


def _serving(role: ModelRole, model: ModelSpec, workers: Sequence[WorkerReport]) -> list[WorkerContext]:
    return [
        WorkerContext(
            id=worker.id,
            host=worker.host,
            max_model_len=worker.max_model_len,
            refusal=model.why_not(
                fingerprint=worker.model_fingerprint, weights=worker.weights_sha256, revision=worker.revision
            ),
        )
        for worker in workers
        if worker.kind == role.value and worker.model == model.name
    ]


def _unread(problems: FoundProblems) -> list[str]:
    lacking = problems.used - problems.num_references
    if problems.grader == UNGRADED or lacking <= 0:
        return []
    return [f"{lacking:,} of {problems.used:,} problems have no reference answer: their samples stay unscored"]


def _unserved(models: Sequence[AskedModel], max_tokens: int) -> list[str]:
    return [
        warning
        for asked in models
        for warning in (*_unserved_model(asked), *_too_short(asked, max_tokens), *_unended(asked))
    ]


def _unended(asked: AskedModel) -> list[str]:
    if asked.unended_turn is None:
        return []
    return [
        f"{asked.model.name} ends an answer with {asked.unended_turn}, and its files do not say that this ends a turn: "
        "it may write on; add it to eos_token_id in its generation_config.json"
    ]


def _unserved_model(asked: AskedModel) -> list[str]:
    if asked.workers is None:
        return []
    refusals = [f"worker {worker.id} on {worker.host}: {worker.refusal}" for worker in asked.workers if worker.refusal]
    if len(refusals) < len(asked.workers):
        return refusals
    name = asked.model.name
    start = f"specthink worker {asked.role} --model {name} starts one"
    return [*refusals, f"no live {asked.role} worker serves {name}: {start}"]


def _too_short(asked: AskedModel, max_tokens: int) -> list[str]:
    """Contexts that end a sample before its budget does: of those who serve the model, else its own."""
    contexts = {f"worker {worker.id} on {worker.host}": worker.max_model_len for worker in asked.workers or ()}
    prompt = asked.num_tokens or 0
    return [
        f"{who} takes {context:,} tokens of prompt and output: room for {max(0, context - prompt):,} of "
        f"--max-tokens {max_tokens:,}"
        for who, context in (contexts or {asked.model.name: asked.context}).items()
        if context is not None and context < prompt + max_tokens
    ]


_OTHERS = {WorkerKind.GRADE: "grades", WorkerKind.UPKEEP: "admits samples"}


def _unmanned(workers: Sequence[WorkerReport] | None) -> list[str]:
    if workers is None:
        return ["no database was reached: who serves the models is not known"]
    alive = {worker.kind for worker in workers}
    return [
        f"no live worker {does}: specthink worker {kind.value} starts one"
        for kind, does in _OTHERS.items()
        if kind.value not in alive
    ]
