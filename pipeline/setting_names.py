"""Environment variables that look like a setting and are none: nobody would read them, and nobody would say so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches

_ALIKE = 0.85
"""Likeness from which a name is taken for a mistyped one, by difflib's ratio."""


def misnamed_variables(environment: Mapping[str, str], known: Sequence[str]) -> list[str]:
    """A line for each variable of the environment that was meant for a setting, with the name it should have.

    known: the settings' variables, PREFIX_NAME or PREFIX_PART__NAME; what begins with one of their first parts is read
    by the settings themselves. Others' variables with the same prefix pass, such as those that Kubernetes makes of a
    service's name.
    """
    prefix = known[0].partition("_")[0] + "_"
    read = {_first(name) for name in known}
    return [
        line
        for name, value in environment.items()
        if name.upper().startswith(prefix) and _first(name.upper()) not in read
        for line in _complaint(name, value, known)
    ]


def _first(name: str) -> str:
    return name.partition("__")[0]


def _complaint(name: str, value: str, known: Sequence[str]) -> Iterator[str]:
    meant = _meant(name.upper(), value, known)
    if meant is not None:
        yield f"{name}: no such setting; write {meant}"
    elif "__" in name:
        yield f"{name}: no such setting; unset it (all settings: docs/reference/settings.md)"


def _meant(name: str, value: str, known: Sequence[str]) -> str | None:
    one_line = {each.replace("__", "_"): each for each in known}
    if name in one_line:
        return None if value.startswith("tcp://") else one_line[name]  # a service's address, from Kubernetes
    _, _, written = name.partition("_")
    inner = [each for each in known if "__" in written and each.endswith(f"__{written}")]
    if len(inner) == 1:
        return inner[0]
    candidates = {each.partition("_")[2]: each for each in known if "__" in name or "__" not in each}
    alike = get_close_matches(written, candidates, n=1, cutoff=_ALIKE)
    return candidates[alike[0]] if alike else None
