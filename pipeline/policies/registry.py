"""The policies there are: this program's own, those of installed packages, and one from a file for a try."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, ConfigDict, Field, SerializeAsAny, ValidationError

from pipeline.errors import ConfigurationError
from pipeline.plugins import (
    Origin,
    Plugin,
    PluginGroup,
    bare_file_hint,
    find_origin,
    find_plugin,
    is_file,
    load_again,
    load_file,
    plugin_names,
    refuse_two,
)
from pipeline.policies.baselines import LargeOnlySpec, SmallOnlySpec
from pipeline.policies.first_steps import FirstStepsSpec
from pipeline.policies.glimpse import GlimpseSpec
from pipeline.policies.mentor import MentorSpec
from pipeline.policies.protocol import Policy
from pipeline.policies.random_delegation import RandomDelegationSpec
from pipeline.policies.redo import RedoSpec, TrigSpec
from pipeline.policies.relay import RelaySpec
from pipeline.policies.reward import RsdSpec, SpecSearchSpec
from pipeline.policies.specreason import DoubtedSpec, RatedSpec
from pipeline.policies.specs import PolicySpec, ThresholdRule
from pipeline.policies.speculative_thinking.improved import ImprovedInstructSpec, SpeculativeThinkingSpec
from pipeline.policies.speculative_thinking.paper import PaperInstructSpec, PaperSpec
from pipeline.policies.speculative_thinking.released_code import CodeInstructSpec, CodeSpec

_OWN: tuple[type[PolicySpec], ...] = (
    SpeculativeThinkingSpec,
    PaperSpec,
    CodeSpec,
    ImprovedInstructSpec,
    PaperInstructSpec,
    CodeInstructSpec,
    SmallOnlySpec,
    LargeOnlySpec,
    RandomDelegationSpec,
    GlimpseSpec,
    FirstStepsSpec,
    RedoSpec,
    TrigSpec,
    RelaySpec,
    RatedSpec,
    DoubtedSpec,
    MentorSpec,
    RsdSpec,
    SpecSearchSpec,
)
"""The first preset of a name is its default."""


def label(spec: PolicySpec | type[PolicySpec]) -> str:
    """NAME[:PRESET], by which a spec is called."""
    fields = (spec if isinstance(spec, type) else type(spec)).model_fields
    return ":".join(str(fields[name].default) for name in ("name", "preset") if name in fields)


_OWN_BY_LABEL = {label(spec): spec for spec in _OWN}


class PluginSpec(PolicySpec):
    """A policy of another package or of a file, as a job stores it: the values of its spec, and where that came from.

    It is read without its package, so that every job can be listed everywhere; the package is needed to build it.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    plugin: Origin

    @property
    def is_loaded(self) -> bool:
        return self._key in _LOADED

    def load(self) -> PolicySpec:
        """The package's own spec. Raises ConfigurationError where the package is not here, or in another version."""
        if not self.is_loaded:
            spec_type = _spec_type(load_again(PluginGroup.POLICIES, self.plugin))
            _LOADED[self._key] = _with_values(self.plugin.name, spec_type, self.model_extra or {}, name=self.name)
        return _LOADED[self._key]

    def build(self) -> Policy:
        policy = self.load().build()
        lacking = [member for member in _MEMBERS if not hasattr(policy, member)]
        if lacking:
            raise ConfigurationError(
                f"{self.plugin.name!r} of {self.plugin} builds no policy yet: {type(policy).__name__} has no "
                f"{', '.join(lacking)} (pipeline.policies.protocol.Policy says what each is; asks = () asks nothing)"
            )
        return policy

    @property
    def threshold_rule(self) -> ThresholdRule | None:
        return self.load().threshold_rule

    @property
    def _key(self) -> str:
        return self.model_dump_json()


_MEMBERS = ("roles", "asks", "start", "watcher", "advance")
"""What a policy has: the members of ``Policy``."""

_LOADED: dict[str, PolicySpec] = {}
"""Specs of other packages that were loaded, by what a job stores of them."""


def policy_names() -> tuple[str, ...]:
    """Every NAME[:PRESET] there is."""
    return (*_OWN_BY_LABEL, *plugin_names(PluginGroup.POLICIES))


def parse_policy(text: str, values: Mapping[str, Any] | None = None) -> PolicySpec:
    """The spec of ``NAME[:PRESET]``, or of ``FILE.py:CLASS``, with some of its fields set; a value may be text.

    Raises ConfigurationError that lists the choices, or says what is wrong with which value.
    """
    if is_file(text):
        return _plugin_spec(load_file(text), values or {})
    own = next((spec for known, spec in _OWN_BY_LABEL.items() if text in (known, known.partition(":")[0])), None)
    if own is not None:
        other = find_origin(PluginGroup.POLICIES, text)
        if other is not None:
            refuse_two(PluginGroup.POLICIES, text, ["specthink itself", str(other)])
        return _with_values(label(own), own, values or {})
    plugin = find_plugin(PluginGroup.POLICIES, text)
    if plugin is None:
        raise ConfigurationError(
            f"there is no policy {text!r}; choose one of: {', '.join(policy_names())}{bare_file_hint(text)}"
        )
    return _plugin_spec(plugin, values or {})


def read_spec(value: Any) -> Any:
    """A stored spec, or one that is a spec already; a ValueError, as pydantic wants it, for what is none."""
    if not isinstance(value, Mapping):
        return value
    if "plugin" in value:
        return PluginSpec.model_validate(value)
    known = ":".join(str(value[name]) for name in ("name", "preset") if name in value)
    if known not in _OWN_BY_LABEL:
        raise ValueError(f"there is no policy {known!r}; choose one of: {', '.join(_OWN_BY_LABEL)}")
    return _OWN_BY_LABEL[known].model_validate(value)


AnyPolicySpec: TypeAlias = Annotated[
    SerializeAsAny[PolicySpec], BeforeValidator(read_spec), Field(description="a policy's name with its values")
]
"""A policy as a job stores it."""


def _plugin_spec(plugin: Plugin, values: Mapping[str, Any]) -> PluginSpec:
    spec_type = _spec_type(plugin)
    loaded = _with_values(plugin.origin.name, spec_type, values)
    spec = PluginSpec(**loaded.model_dump(mode="json"), plugin=plugin.origin)
    _LOADED[spec._key] = loaded
    return spec


def _spec_type(plugin: Plugin) -> type[PolicySpec]:
    """The class that a plug-in is. Raises ConfigurationError that says what it lacks."""
    found, place = plugin.value, f"{plugin.origin.name!r} of {plugin.origin}"
    if not isinstance(found, type) or not issubclass(found, PolicySpec):
        raise ConfigurationError(
            f"{place} is no policy: it must be a class derived from pipeline.PolicySpec, with a default for every "
            "field and a method build(self) that returns the policy"
        )
    lacking = [name for name, field in found.model_fields.items() if field.is_required()]
    if lacking:
        raise ConfigurationError(f"{place} is no policy yet: give {', '.join(lacking)} a default")
    if found.build is PolicySpec.build or inspect.isabstract(found):
        raise ConfigurationError(f"{place} is no policy yet: it needs a method build(self) that returns the policy")
    if "plugin" in found.model_fields:
        raise ConfigurationError(f"{place} has a field 'plugin', where a job keeps what it comes from; rename it")
    if plugin.origin.file is None and plugin.origin.name not in (label(found), label(found).partition(":")[0]):
        raise ConfigurationError(f"{place} calls itself {label(found)!r}; its entry point must have that name")
    return found


def settable_fields(spec_type: type[PolicySpec]) -> list[str]:
    """The names of a policy's numbers."""
    return [name for name in spec_type.model_fields if name not in ("name", "preset")]


def _with_values(known: str, spec_type: type[PolicySpec], values: Mapping[str, Any], **fixed: Any) -> PolicySpec:
    """A spec with some of its values set; fixed: those that nobody chooses."""
    fields = settable_fields(spec_type)
    unknown = ", ".join(sorted(set(values).difference(fields, ("preset",) if fixed else ())))
    if unknown:
        raise ConfigurationError(f"policy {known} has no {unknown}; it has: {', '.join(fields) or 'nothing to set'}")
    try:
        return spec_type.model_validate(dict(values) | fixed)
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, fault['loc'])) or 'its values'}: {fault['msg']}" for fault in error.errors())
        raise ConfigurationError(f"policy {known} cannot be set so: {'; '.join(faults)}") from error
