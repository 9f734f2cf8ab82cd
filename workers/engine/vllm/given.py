"""Reads the arguments of vLLM's own that a person gave, as vLLM's command line reads them: it knows their types."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, NoReturn

from pipeline.errors import ConfigurationError

_YES_NO = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def typed_arguments(given: Mapping[str, str]) -> dict[str, Any]:
    """The values of EngineArgs' fields. Imports vLLM.

    Raises ConfigurationError, before any model is loaded, for a name that EngineArgs does not have (with those that
    look like it) and for a value that vLLM refuses.
    """
    if not given:
        return {}
    import argparse
    import dataclasses

    from vllm.engine.arg_utils import EngineArgs

    class Parser(argparse.ArgumentParser):
        """vLLM's own parser reads configuration files and ends the process."""

        def error(self, message: str) -> NoReturn:
            raise ConfigurationError(f"engine argument refused by vLLM: {message}")

    fields = {field.name for field in dataclasses.fields(EngineArgs)}
    for name in given:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=3)
            hint = f"; near it: {', '.join(near)}" if near else ""
            raise ConfigurationError(f"engine argument {name} is no field of vLLM's EngineArgs{hint}")
    parser = EngineArgs.add_cli_args(Parser(add_help=False, allow_abbrev=False))
    actions = {action.dest: action for action in parser._actions}
    found = {}
    for name, value in given.items():
        if name not in actions:
            raise ConfigurationError(f"engine argument {name} cannot be given as text: vLLM's command line lacks it")
        found[name] = getattr(parser.parse_args(_words(actions[name], name, value)), name)
    return found


def _words(action: Any, name: str, value: str) -> list[str]:
    """One argument as the words of a command line; a switch as --name or --no-name."""
    import argparse

    option = f"--{name.replace('_', '-')}"
    if isinstance(action, argparse.BooleanOptionalAction):
        if value.lower() not in _YES_NO:
            raise ConfigurationError(f"engine argument {name} is true or false, not {value!r}")
        return [option if _YES_NO[value.lower()] else f"--no-{name.replace('_', '-')}"]
    if action.nargs in ("+", "*"):
        return [option, *value.split(",")]
    return [f"{option}={value}"]
