"""``python -m tests.servers``: try each kind of server that this machine has, and print what came of it as a table.

A kind either runs a short job through real workers, or is refused in one line. Exit code 1 where one does neither.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.servers.job import Failed
from tests.servers.kinds import KINDS, Kind
from tests.servers.programs import NotHere


def main() -> int:
    parser = argparse.ArgumentParser(prog="make test-servers", description=__doc__)
    parser.add_argument("--only", default="", help="regular expression on a kind's name")
    parser.add_argument("--list", action="store_true", help="show the kinds and end")
    parser.add_argument("--out", type=Path, default=Path("build/servers"), help="folder for what failed kinds leave")
    arguments = parser.parse_args()
    kinds = [kind for kind in KINDS if re.search(arguments.only, kind.name)]
    if arguments.list:
        print("\n".join(kind.name for kind in kinds))
        return 0
    failed = False
    print("| server | result |\n|---|---|", flush=True)
    for kind in kinds:
        result, is_good = _try(kind, arguments.out)
        failed |= not is_good
        print(f"| {kind.name} | {result} |", flush=True)
    return int(failed)


def _try(kind: Kind, out: Path) -> tuple[str, bool]:
    """What came of it, and whether that is as it must be."""
    folder = Path(tempfile.mkdtemp(prefix="specthink-servers-"))
    folder.chmod(0o755)  # servers run as another user than root
    began = time.monotonic()
    try:
        result, is_good = kind.run(folder), True
        result = f"{result} ({time.monotonic() - began:.0f} s)"
    except NotHere as missing:
        result, is_good = f"not tried: {missing}", True
    except (Failed, RuntimeError) as error:
        result, is_good = f"FAILED: {' '.join(str(error).split())}", False
    except Exception:
        result, is_good = f"FAILED: {' '.join(traceback.format_exc().split())[-800:]}", False
    if not is_good:
        _keep_logs(folder, out / re.sub(r"[^A-Za-z0-9]+", "-", kind.name).lower())
    shutil.rmtree(folder, ignore_errors=True)
    return result, is_good


def _keep_logs(folder: Path, kept: Path) -> None:
    kept.mkdir(parents=True, exist_ok=True)
    for log in folder.rglob("*.log"):
        shutil.copy(log, kept)


if __name__ == "__main__":
    sys.exit(main())
