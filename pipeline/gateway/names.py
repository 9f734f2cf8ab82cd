"""How a request names the pair that answers it: a saved name, or POLICY[:PRESET]/SMALL+LARGE spelled out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.gateway.errors import ApiError
from pipeline.jobs.config import ModelSpec
from pipeline.jobs.submission import DEFAULT_POLICY
from pipeline.policies import parse_policy, policy_names
from pipeline.policies.composition import compose
from pipeline.problems.values import check_text
from pipeline.samples import ModelRole

MAX_MODEL_CHARS = 500
ALIAS_OPTIONS = frozenset({
    "small", "large", "judge", "small_revision", "large_revision", "judge_revision", "judge_asking", "policy",
    "policy_values", "exit", "guard", "temperature", "top_p", "top_k", "min_p", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "stop", "max_tokens", "small_sampling", "large_sampling", "system",
    "template_variables", "think_tags", "small_asking", "large_asking",
})  # fmt: skip
"""Options of a submission that a saved name may have: those that say who answers and how, not what is asked."""


def pair_options(model: str, saved: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options of a submission for a model's name. saved: those of a saved name.

    A model is never taken for a folder of this machine: what comes in over HTTP opens no files. Raises ApiError for a
    name that means nothing.
    """
    options = dict(saved) if saved is not None else _spelled_out(model)
    for role in ("small", "large", "judge"):
        if isinstance(options.get(role), str):
            options[role] = ModelSpec(name=options[role], revision=options.pop(f"{role}_revision", None))
    return options


def _spelled_out(name: str) -> dict[str, Any]:
    if not name or len(name) > MAX_MODEL_CHARS:
        raise unknown_model(name)
    try:
        check_text(name)
    except ValueError as error:
        raise unknown_model(name) from error
    policy, models = split_policy(name)
    small, plus, large = models.partition("+")
    if not small or (plus and (not large or "+" in large)):
        raise unknown_model(name)
    roles = roles_of(policy or (DEFAULT_POLICY if plus else "small-only"))
    if plus:
        return {"policy": policy or DEFAULT_POLICY, "small": small, "large": large}
    if len(roles) > 1:
        raise unknown_model(name, f": the policy '{policy}' needs two, written SMALL+LARGE")
    return {"policy": policy or "small-only", next(iter(roles)).value: small}


def split_policy(name: str) -> tuple[str | None, str]:
    """The policy of a name, None where it begins with none, and the models behind it."""
    head, slash, rest = name.partition("/")
    return (head, rest) if slash and head in known_policies() else (None, name)


def known_policies() -> frozenset[str]:
    """Every NAME[:PRESET], and every NAME alone."""
    return frozenset(policy_names()) | {name.partition(":")[0] for name in policy_names()}


def roles_of(policy: str) -> frozenset[ModelRole]:
    return frozenset(compose(parse_policy(policy).build()).roles)


def unknown_model(name: str, why: str = "") -> ApiError:
    told = why or "; write a saved name, or POLICY/SMALL+LARGE as in speculative-thinking:improved/org/a-1b+org/b-32b"
    return ApiError(404, f"The model '{name}' does not exist here{told}.", code="model_not_found", param="model")


def served_names(small: Iterable[str], large: Iterable[str]) -> list[str]:
    """Names of what live workers serve: each pair with the usual policy, and each model alone."""
    small, large = sorted(set(small)), sorted(set(large))
    pairs = [f"{DEFAULT_POLICY}/{one}+{other}" for one in small for other in large]
    return [*pairs, *(f"small-only/{one}" for one in small), *(f"large-only/{one}" for one in large)]
