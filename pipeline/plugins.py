"""Plug-ins: policies, graders and prompt templates of other packages, found by entry point, or of a file for a try.

A package names what it brings in its pyproject.toml, e.g. ``[project.entry-points."specthink.policies"]``. A job
freezes where its plug-ins came from; whoever runs it later compares that with what is installed there. Nothing of a
plug-in is imported to read what is stored, only to run it.
"""

from __future__ import annotations

import hashlib
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from pydantic import BaseModel, ConfigDict

from pipeline.errors import ConfigurationError


class PluginGroup(StrEnum):
    """What a package may bring, by the name of its entry-point group."""

    POLICIES = "specthink.policies"
    GRADERS = "specthink.graders"
    PROMPTS = "specthink.prompts"


class Origin(BaseModel):
    """Where a plug-in comes from: a package with its version, or a file with its hash."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Of the entry point, or in the file."""
    package: str | None = None
    version: str | None = None
    file: str | None = None
    """Absolute path."""
    sha256: str | None = None
    """Of the file."""

    @property
    def asked_as(self) -> str:
        """The name by which a job asks for it."""
        return self.name if self.file is None else f"{self.file}:{self.name}"

    def __str__(self) -> str:
        if self.file is not None:
            return f"{self.file} with sha256 {(self.sha256 or '')[:12]}"
        return f"{self.package} {self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """What was found, and where."""

    value: Any
    origin: Origin


def plugin_names(group: PluginGroup) -> tuple[str, ...]:
    """The names that installed packages bring; nothing is imported."""
    return tuple(sorted({point.name for point in _entry_points(group)}))


def find_origin(group: PluginGroup, name: str) -> Origin | None:
    """The package that brings a name; None where none does; nothing is imported.

    Raises ConfigurationError where several packages do.
    """
    point = _find(group, name)
    return None if point is None else _origin(point)


def origin_of(group: PluginGroup, name: str) -> Origin | None:
    """Where what a name stands for comes from, a package or a file; None for this program's own.

    Raises ConfigurationError where several packages bring it, or its file cannot be read.
    """
    if not is_file(name):
        return find_origin(group, name)
    path, _, attribute = name.rpartition(":")
    here = _file_here(Origin(name=attribute, file=str(Path(path).resolve())))
    if here is None:
        raise ConfigurationError(f"{path} cannot be read; what a job takes from a file must be wherever it is used")
    return here


def find_plugin(group: PluginGroup, name: str) -> Plugin | None:
    """What a package brings under a name, imported. Raises ConfigurationError where that fails."""
    point = _find(group, name)
    if point is None:
        return None
    try:
        value = point.load()
    except (Exception, SystemExit) as error:  # a stranger's code: whatever it raises is told in one line
        raise ConfigurationError(f"{name!r} of {_origin(point)} cannot be imported: {_fault(error)}") from error
    return Plugin(value=value, origin=_origin(point))


def own_or_plugin(group: PluginGroup, name: str, own: Mapping[str, Any], *, what: str) -> Any:
    """What a name stands for: one of this program's own, or what a package brings.

    Raises ConfigurationError that lists the names there are, or where both claim one.
    """
    origin = find_origin(group, name)
    if name in own:
        if origin is not None:
            refuse_two(group, name, ["specthink itself", str(origin)])
        return own[name]
    plugin = find_plugin(group, name)
    if plugin is None:
        known = ", ".join((*own, *plugin_names(group)))
        raise ConfigurationError(f"there is no {what} {name!r}; there are {known}{bare_file_hint(name)}")
    return plugin.value


def is_file(text: str) -> bool:
    """Whether a name is that of something in a file, as in ``rules.py:MyPolicy``."""
    path, colon, name = text.rpartition(":")
    return bool(colon and name) and path.endswith(".py")


def bare_file_hint(text: str) -> str:
    """What to say of a file without a name in it, where a name was looked for; '' for what is no file's."""
    return f"; of a file say what is meant in it: {text.rstrip(':')}:NAME" if text.rstrip(":").endswith(".py") else ""


def load_file(text: str) -> Plugin:
    """What a file holds under a name, as in ``rules.py:MyPolicy``. Raises ConfigurationError where there is none."""
    path, _, name = text.rpartition(":")
    file = Path(path).resolve()
    try:
        source = file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from error
    sha256 = hashlib.sha256(source).hexdigest()
    module = _module(file, source, sha256)
    if not hasattr(module, name):
        raise ConfigurationError(f"{file} has no {name!r}")
    return Plugin(value=getattr(module, name), origin=Origin(name=name, file=str(file), sha256=sha256))


def load_again(group: PluginGroup, frozen: Origin) -> Plugin:
    """The plug-in that a job froze. Raises ConfigurationError where it is not here, or is another version."""
    if frozen.file is not None:
        check_same_version(frozen, _file_here(frozen))
        return load_file(f"{frozen.file}:{frozen.name}")
    check_same_version(frozen, find_origin(group, frozen.name))
    plugin = find_plugin(group, frozen.name)
    assert plugin is not None
    return plugin


def check_same_version(frozen: Origin, here: Origin | None) -> None:
    """Raises ConfigurationError, naming both versions, where what is here is not what a job froze."""
    if here is None:
        raise ConfigurationError(f"the job needs {frozen.name!r} of {frozen}, which is not here; install it here")
    if here != frozen:
        raise ConfigurationError(
            f"the job was submitted with {frozen.name!r} of {frozen}, but here is {here}; install that, or submit anew"
        )


def _file_here(frozen: Origin) -> Origin | None:
    try:
        source = Path(frozen.file or "").read_bytes()
    except OSError:
        return None
    return frozen.model_copy(update={"sha256": hashlib.sha256(source).hexdigest()})


def _find(group: PluginGroup, name: str) -> EntryPoint | None:
    found = [point for point in _entry_points(group) if point.name == name]
    if len(found) > 1:
        refuse_two(group, name, [str(_origin(point)) for point in found])
    return found[0] if found else None


def refuse_two(group: PluginGroup, name: str, claimants: Sequence[str]) -> NoReturn:
    """Raises ConfigurationError: a name means one thing."""
    raise ConfigurationError(f"{name!r} in {group} is claimed by {' and by '.join(claimants)}; uninstall one of them")


def _entry_points(group: PluginGroup) -> tuple[EntryPoint, ...]:
    return _entry_points_on(group, tuple(sys.path))


@cache
def _entry_points_on(group: PluginGroup, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=group.value))


def _origin(point: EntryPoint) -> Origin:
    assert point.dist is not None
    return Origin(name=point.name, package=point.dist.name, version=point.dist.version)


def _module(file: Path, source: bytes, sha256: str) -> ModuleType:
    """A file as a module, once for each content. pydantic finds a class's annotations by its module's name."""
    name = f"_specthink_file_{sha256[:16]}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(file)
    sys.modules[name] = module
    try:
        exec(compile(source, str(file), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:  # a stranger's code: whatever it raises is told in one line
        del sys.modules[name]
        raise ConfigurationError(f"{file} cannot be imported: {_fault(error, file)}") from error
    return module


def _fault(error: BaseException, file: Path | None = None) -> str:
    """Where and what, in one line: the last line of the file itself where it is known, else the deepest."""
    what = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if file is None or frame.filename == str(file)] or frames
    return f"{own[-1].filename}:{own[-1].lineno}: {what}" if own else what
