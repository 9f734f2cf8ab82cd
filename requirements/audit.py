#!/usr/bin/env python3
"""Ask a vulnerability service about every package of the locks; ``make audit``.

Exit code 1: a package has a known vulnerability that requirements/audit-ignored.txt does not name. 0 otherwise, with a
line that says what was asked: where no service can be reached, nothing is known, and that is what the line says.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ENVIRONMENT = HERE.parent / ".venv" / "audit"
LOCKS = ("cpu.txt", "gpu.txt")
SERVICES = ("osv", "pypi")
TIME_LIMIT_S = 75.0
"""For all of it: CI must not wait for a service that does not answer."""


@dataclass(frozen=True)
class Verdict:
    """What one answer says. faults: a line for each vulnerability."""

    num_asked: int
    num_skipped: int
    faults: tuple[str, ...]


def judge(report: dict[str, Any], ignored: Iterable[str]) -> Verdict:
    """Read pip-audit's JSON: packages that the service knows, those it does not, and what it knows against them."""
    known = [package for package in report["dependencies"] if "skip_reason" not in package]
    faults = tuple(
        f"{package['name']} {package['version']}: {fault['id']}, mended in {', '.join(fault['fix_versions']) or 'none'}"
        for package in known
        for fault in package["vulns"]
        if not {fault["id"], *fault.get("aliases", ())} & set(ignored)
    )
    return Verdict(len(known), len(report["dependencies"]) - len(known), faults)


def read_ignored(path: Path) -> set[str]:
    """The ids at the beginning of the lines; what follows is the reason."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {line.split()[0] for line in lines if line.strip() and not line.startswith("#")}


def install(deadline: float) -> str | None:
    """Put pip-audit where its lock says it belongs; why it cannot be done, if so."""
    stamp = ENVIRONMENT / "installed"
    wanted = (HERE / "audit.txt").read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return None
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True, capture_output=True)
        command = [ENVIRONMENT / "bin" / "python", "-m", "pip", "install", "--quiet", "--require-hashes", "-r"]
        left_s = deadline - time.monotonic()
        subprocess.run([*command, HERE / "audit.txt"], check=True, capture_output=True, text=True, timeout=left_s)
    except subprocess.TimeoutExpired:
        return "pip took too long"
    except subprocess.CalledProcessError as error:
        return str(error.stderr).strip().splitlines()[-1] if error.stderr else "pip failed"
    stamp.write_text(wanted)
    return None


def answers(service: str, left_s: float) -> str | None:
    """Why a service is not worth 200 questions, learned by one about a package that all know; None: it is."""
    lines = (HERE / LOCKS[0]).read_text().splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("celery=="))
    end = next(n for n in range(start + 1, len(lines)) if not lines[n].startswith(" "))
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as probe:
        probe.write("\n".join(lines[start:end]) + "\n")
        probe.flush()
        report = ask(Path(probe.name), service, left_s)
    if isinstance(report, str):
        return report
    return None if judge(report, ()).num_asked else "knows no package"


def ask(lock: Path, service: str, left_s: float) -> dict[str, Any] | str:
    """pip-audit's report on a lock, or why there is none."""
    options = ["--disable-pip", "--require-hashes", "--no-deps", "--progress-spinner", "off", "--timeout", "10"]
    command = [ENVIRONMENT / "bin" / "pip-audit", "-r", lock, *options, "-s", service, "-f", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(left_s, 1), check=False)
        return dict(json.loads(done.stdout))
    except subprocess.TimeoutExpired:
        return "no answer in time"
    except ValueError:
        return (done.stderr.strip().splitlines() or ["no report"])[-1].partition(":")[0]


def main() -> int:
    deadline = time.monotonic() + TIME_LIMIT_S
    trouble = install(deadline)
    if trouble:
        print(f"audit: NOT DONE, pip-audit cannot be installed here ({trouble})")
        return 0
    reasons = {service: answers(service, deadline - time.monotonic()) for service in SERVICES}
    service = next((service for service in SERVICES if reasons[service] is None), None)
    if service is None:
        told = "; ".join(f"{service}: {reason}" for service, reason in reasons.items())
        print(f"audit: NOT DONE, no vulnerability service answers here ({told})")
        return 0
    ignored, faults = read_ignored(HERE / "audit-ignored.txt"), set()
    for lock in LOCKS:
        report = ask(HERE / lock, service, deadline - time.monotonic())
        if isinstance(report, str):
            print(f"audit: {lock}: NOT DONE, {service}: {report}")
            continue
        verdict = judge(report, ignored)
        faults |= set(verdict.faults)
        asked = f"{verdict.num_asked} packages asked of {service}, {verdict.num_skipped} it does not know"
        print(f"audit: {lock}: {asked}, {len(verdict.faults)} known vulnerabilities")
    for fault in sorted(faults):
        print(f"audit: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
