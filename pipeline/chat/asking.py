"""How a model is asked, beside its files: what a job may say about it, for each role, stored with the job."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

from pipeline.problems.values import check_text

ThinkTags: TypeAlias = tuple[Annotated[str, Field(min_length=1)], Annotated[str, Field(min_length=1)]]
"""The opening and the closing think tag."""

GIVEN_BY_PIPELINE = frozenset({"messages", "add_generation_prompt", "continue_final_message"})
"""Variables of a chat template that a job cannot set."""


class Asking(BaseModel):
    """What a job says about how one model is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    system: str | None = None
    """A system message before the user's; None: whatever the template puts there by itself."""
    template_variables: dict[str, JsonValue] = {}
    """Variables of the chat template, e.g. {"enable_thinking": true}."""
    think_tags: ThinkTags | tuple[()] | None = None
    """The opening and the closing think tag; (): the model does not think; None: as the pipeline finds them."""
    today: dt.date | None = None
    """The date that a template reads from the clock; None: the day on which it is rendered."""

    @field_validator("system")
    @classmethod
    def _can_be_stored(cls, text: str | None) -> str | None:
        if text is not None:
            check_text(text)
        return text

    @field_validator("template_variables")
    @classmethod
    def _are_the_jobs(cls, variables: dict[str, Any]) -> dict[str, Any]:
        for name, value in variables.items():
            if not name.isidentifier():
                raise ValueError(f"{name!r} is no name of a template variable")
            if name in GIVEN_BY_PIPELINE:
                raise ValueError(f"{name!r} is given by the pipeline itself")
            if isinstance(value, str) and value.strip().casefold() in ("true", "false"):
                raise ValueError(f"{name!r} is the text {value!r}, which a template takes for true; write it unquoted")
        return variables

    @field_validator("think_tags")
    @classmethod
    def _are_two(cls, tags: ThinkTags | tuple[()] | None) -> ThinkTags | tuple[()] | None:
        if tags and tags[0] == tags[1]:
            raise ValueError("the opening and the closing think tag must differ")
        return tags

    @property
    def sha256(self) -> str:
        """Of all that it says; equal for two that ask in the same way."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()
