"""Fetches a set of a hub, as a script in a process of its own: ``python fetch_from_hub.py REQUEST FOLDER``.

REQUEST is a JSON object with repo, config, revision and split. The rows are left as Parquet in FOLDER/rows, and what
was found in FOLDER/answer.json: ``{"found": {…}}`` or ``{"fault": reason}``. In a process of its own, because
``datasets`` takes seconds to import, keeps state, and decodes what nobody has read: here a limit on memory holds.
Nothing of a set is run: that library runs no scripts any more, and is not asked to.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from pipeline.limits import leave_no_core, limit_memory

ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OPENBLAS_NUM_THREADS": "1",  # else numpy reserves memory for each core
}
MAX_MEMORY = 8 * 2**30
"""Beyond what the libraries take; a set's cached files count, which are mapped and not read."""
MAX_BYTES = 3 * 2**30
"""Of the rows: what a problem file of the largest size may take."""
_SPLITS = ("test", "validation")
"""Taken where several are there and none was named, the first that is there."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_UNREACHED = ("ConnectError", "ConnectTimeout", "ReadTimeout", "LocalEntryNotFoundError")
"""Of the library's transport, which is not the same package in all of its releases."""
_CONFIGS = re.compile(r"(?:Available|[Aa]vailable configs(?: in the cache)?|in the cache): *(.+)")
"""How the library lists a set's configurations where one must be named, or there is none of that name."""


class Refused(Exception):
    """Its text is one line for a person."""


def main(request: dict[str, Any], folder: Path) -> None:
    try:
        answer: dict[str, Any] = {"found": _fetch(request, folder / "rows")}
    except Refused as error:
        answer = {"fault": str(error)}
    except Exception as error:  # whatever the library raises is told in one line
        answer = {"fault": _told(error, request)}
    (folder / "answer.json").write_text(json.dumps(answer))


def _fetch(request: dict[str, Any], rows: Path) -> dict[str, Any]:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise Refused(
            f"{error.name} is not installed: it comes with the extra 'hub', as in pip install 'specthink[hub]'"
        ) from error
    leave_no_core()
    limit_memory(MAX_MEMORY)
    rows.mkdir()
    configs = _configs(request)
    found: dict[str, Any] = {}
    for number, config in enumerate(configs):
        builder = datasets.load_dataset_builder(request["repo"], config, revision=request["revision"])
        revision = _commit(builder, request)
        builder.download_and_prepare()
        split = _chosen_split(list(builder.info.splits or ()), request["split"])
        table = builder.as_dataset(split=split)
        if table.data.nbytes > MAX_BYTES:
            raise Refused(f"its split {split} has more than {MAX_BYTES / 2**30:g} GiB")
        if len(configs) > 1 and "config" not in table.column_names:
            table = table.add_column("config", [config] * len(table))
        table.to_parquet(str(rows / f"part-{number:03}.parquet"))
        found = {"config": request["config"] or builder.config.name, "split": split, "revision": revision}
    return found


def _configs(request: dict[str, Any]) -> list[str | None]:
    """The one that is wanted, or all of them."""
    import datasets

    if request["config"] != "all":
        return [request["config"]]
    names = datasets.get_dataset_config_names(request["repo"], revision=request["revision"])
    return ["all"] if "all" in names else sorted(names)


def _commit(builder: Any, request: dict[str, Any]) -> str | None:
    """The commit that the rows are of; None for a folder. Raises Refused where it is not the one that is wanted."""
    from datasets.packaged_modules.cache.cache import Cache

    commit = str(builder.hash) if _COMMIT.fullmatch(str(builder.hash)) else None
    wanted = request["revision"]
    if wanted and isinstance(builder, Cache) and commit != wanted:
        raise Refused(
            f"the hub cannot be reached, and the cache has commit {commit or builder.hash}: that this is {wanted} is "
            "not known; name the commit, or load it where there is a network"
        )
    return commit


def _chosen_split(there: list[str], wanted: str | None) -> str:
    if wanted is not None:
        if wanted not in there:
            raise Refused(f"it has no split {wanted!r}; it has {', '.join(there)}")
        return wanted
    if len(there) == 1:
        return there[0]
    for split in _SPLITS:
        if split in there:
            return split
    raise Refused(f"it has the splits {', '.join(there)}; say which, as in #{there[0] if there else 'test'}")


def _told(error: BaseException, request: dict[str, Any]) -> str:
    """One line, with what to do where that is known."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    name = type(error).__name__
    if isinstance(error, MemoryError):
        return f"it takes more than {MAX_MEMORY / 2**30:g} GiB to read"
    if "scripts are no longer supported" in first:
        return "it is a script that makes its rows, and no script of a set is run; a set of files can be loaded"
    if "gated" in first:
        return f"{first} Accept its terms on its page, then set HF_TOKEN"
    if name == "DatasetNotFoundError" and "doesn't exist on the Hub" in first:
        return f"{first} A private one needs HF_TOKEN"
    available = _CONFIGS.search(str(error))
    if (
        isinstance(error, ConnectionError)
        or name in _UNREACHED
        or "is not cached" in first
        or (first.startswith("Couldn't find cache") and not available)
        or "offline" in first.lower()
    ):
        return (
            "the hub cannot be reached, and the cache has it not; load it once where there is a network, into the same "
            "HF_HOME"
        )
    if available:
        names = re.sub(r"[\[\]']", "", available[1]).lstrip(": ")
        asked = f"it has no configuration {request['config']!r}; it" if request["config"] else "it"
        return f"{asked} has the configurations {names}; say which, as in hf:{request['repo']}:NAME"
    return f"{name}: {first}"


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
