"""Problem sets of a hub, or of a folder in its layout: ``hf:OWNER/SET[:CONFIG][@REVISION][#SPLIT]``.

The library ``datasets`` reads them, in a process of its own (``pipeline.problems.fetch_from_hub``), and leaves the rows
as Parquet; from there on they are read as any other file, with the same limits and checks.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from pipeline.errors import ProblemSetError
from pipeline.problems import fetch_from_hub
from pipeline.texts import printable

PREFIX = "hf:"
ALL = "all"
"""As a configuration: every one of a set that has none of this name, with a column ``config`` that says which."""
_NAME = re.compile(r"(?P<repo>[^:@#]+)(:(?P<config>[^@#]+))?(@(?P<revision>[^#]+))?(#(?P<split>.+))?", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSet:
    """repo: OWNER/SET, or a folder (its name begins with . or /). None: the only one there is; of splits test, else
    validation; of revisions the newest."""

    repo: str
    config: str | None = None
    revision: str | None = None
    split: str | None = None

    @property
    def is_folder(self) -> bool:
        return self.repo.startswith((".", "/"))

    def __str__(self) -> str:
        parts = ((":", self.config), ("@", self.revision), ("#", self.split))
        return PREFIX + self.repo + "".join(mark + part for mark, part in parts if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """The rows of a set as files, and what it turned out to be. origin: what is stored with the problem set."""

    path: Path
    found: HubSet
    origin: dict[str, str]


def is_hub_set(path: str | PathLike[str]) -> bool:
    return str(path).startswith(PREFIX)


def parse_hub_set(text: str) -> HubSet:
    """Raises ProblemSetError."""
    match = _NAME.fullmatch(text.removeprefix(PREFIX))
    found = HubSet(**match.groupdict()) if match else None
    if found is None or not (found.is_folder or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", found.repo)):
        raise ProblemSetError(printable(text), ["write hf:OWNER/SET[:CONFIG][@REVISION][#SPLIT], or hf:./FOLDER"])
    return found


@contextmanager
def fetched(wanted: HubSet) -> Iterator[Fetched]:
    """Have the rows fetched, or read from the cache. Raises ProblemSetError with one line that says what is missing."""
    with tempfile.TemporaryDirectory(prefix="specthink-hub-") as folder:
        answer = _run(wanted, Path(folder))
        if fault := answer.get("fault"):
            raise ProblemSetError(printable(str(wanted)), [printable(fault)])
        found = replace(wanted, **answer["found"])
        key = "folder" if wanted.is_folder else "hub"
        parts = {"config": found.config, "revision": found.revision, "split": found.split}
        origin = {key: found.repo, **{name: part for name, part in parts.items() if part}}
        yield Fetched(path=Path(folder) / "rows", found=found, origin=origin)


def _run(wanted: HubSet, folder: Path) -> dict[str, Any]:
    request = json.dumps(
        {"repo": wanted.repo, "config": wanted.config, "revision": wanted.revision, "split": wanted.split}
    )
    environment = {**os.environ, **fetch_from_hub.ENVIRONMENT}
    done = subprocess.run(
        [sys.executable, "-P", fetch_from_hub.__file__, request, str(folder)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, check=False,
    )  # fmt: skip
    answer = folder / "answer.json"
    if answer.is_file():
        return dict(json.loads(answer.read_bytes()))
    said = done.stderr.decode(errors="replace").strip().splitlines()
    why = said[-1] if said else "it may take more memory than it is let have"
    return {"fault": f"its reader ended with status {done.returncode}: {why}"}
