"""Policies: who writes what. ``parse_policy`` gives a spec by name; a spec holds every number and builds its policy.

To write one: derive a spec from ``PolicySpec`` and a policy from ``Policy`` (``pipeline.policies.protocol``), which
answers events with ``Transition`` (``pipeline.policies.requests`` has what may be asked); for a pair of models that
write in turns, ``pipeline.policies.turns`` has the mechanics. A package brings its specs by entry points in the group
"specthink.policies"; ``--policy FILE.py:CLASS`` tries one from a file.
"""

from __future__ import annotations

from pipeline.policies.protocol import Policy
from pipeline.policies.registry import AnyPolicySpec, PluginSpec, label, parse_policy, policy_names, settable_fields
from pipeline.policies.specs import PolicySpec

__all__ = [
    "AnyPolicySpec",
    "PluginSpec",
    "Policy",
    "PolicySpec",
    "label",
    "parse_policy",
    "policy_names",
    "settable_fields",
]
