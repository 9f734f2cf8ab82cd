"""Saved names of pairs, checked before they are saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import ConfigurationError
from pipeline.gateway.errors import ApiError
from pipeline.gateway.names import ALIAS_OPTIONS, MAX_MODEL_CHARS, split_policy
from pipeline.gateway.preparing import make_submission
from pipeline.gateway.requests import ChatRequest, read_request
from pipeline.jobs.readiness import make_ready


def check_alias(name: str, options: Mapping[str, Any]) -> None:
    """Raises ConfigurationError for a name or options that no request could use."""
    if not name or len(name) > MAX_MODEL_CHARS or not name.isprintable() or set(name) & set(" +,="):
        raise ConfigurationError(f"{name!r} is no name for a pair: it has a blank, a plus, a comma or the like in it")
    if split_policy(name)[0] is not None:
        raise ConfigurationError(f"{name!r} begins with a policy, and would hide what that means")
    wrong = ", ".join(sorted(set(options) - ALIAS_OPTIONS))
    if wrong:
        raise ConfigurationError(f"a saved name has no option {wrong}; it has: {', '.join(sorted(ALIAS_OPTIONS))}")
    request = ChatRequest.model_validate({"model": name, "messages": [{"role": "user", "content": "Hello"}]})
    try:
        make_ready(make_submission(read_request(request, external_id="0"), dict(options), {}, seed=0, name=name))
    except ApiError as error:
        raise ConfigurationError(error.message) from error
