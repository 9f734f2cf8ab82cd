"""What is installed and what is shipped: the wheel, the lock, the cost of importing, the names of the settings."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from pipeline.db.schema_objects import sql_files
from pipeline.settings import settings_variables

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements"

NEVER_IMPORTED = ("celery", "vllm", "torch", "workers", "transformers", "pyarrow", "math_verify", "numpy", "matplotlib")
"""The first four by contract; the others cost seconds, so the functions that need them import them."""


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names of the files in a wheel built from this checkout, without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    build = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=ROOT, check=True, capture_output=True, timeout=60)
    (wheel,) = folder.glob("specthink-*.whl")
    return zipfile.ZipFile(wheel).namelist()


def python_files(folder: str, *, placed: str) -> set[str]:
    return {f"{placed}/{path.relative_to(ROOT / folder)}" for path in (ROOT / folder).rglob("*.py")}


def test_wheel_holds_both_packages_and_the_migrations(wheel_names: list[str]) -> None:
    expected = (
        python_files("pipeline", placed="pipeline")
        | python_files("workers", placed="workers")
        | python_files("migrations", placed="pipeline/_migrations")
        | {"pipeline/py.typed", "workers/py.typed", "pipeline/_migrations/script.py.mako"}
        | {"pipeline/results/page/page.html.jinja"}
        | {str(path.relative_to(ROOT)) for path in sql_files()}
    )
    assert expected - set(wheel_names) == set()


def test_wheel_holds_nothing_else(wheel_names: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel_names}
    assert {re.sub(r"specthink-.*\.dist-info", "dist-info", top) for top in tops} == {
        "pipeline",
        "workers",
        "dist-info",
    }
    assert [name for name in wheel_names if "test" in Path(name).name or "__pycache__" in name] == []


def run_python(code: str) -> list[str]:
    """The words that a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout.split()


def test_import_of_pipeline_is_quick() -> None:
    # Processor time, since a busy machine stretches the wall clock.
    code = "import time; before = time.process_time(); import pipeline; print(time.process_time() - before)"
    assert float(run_python(code)[0]) < 0.5


def test_all_names_of_pipeline_together_pull_in_nothing_heavy() -> None:
    code = f"import sys; from pipeline import *; print(*[name for name in {NEVER_IMPORTED} if name in sys.modules])"
    assert run_python(code) == []


def locked(file: Path) -> Iterator[Requirement]:
    """The requirements that a lock names for this Python and machine."""
    for line in file.read_text().splitlines():
        if re.match(r"[A-Za-z]", line):
            requirement = Requirement(line.removesuffix("\\").strip())
            if requirement.marker is None or requirement.marker.evaluate():
                yield requirement


def test_installed_versions_are_those_of_the_lock() -> None:
    wanted = {
        pin.name: str(pin.specifier).removeprefix("==")
        for name in ("cpu", "torch")
        for pin in locked(REQUIREMENTS / f"{name}.txt")
    }
    assert {name: version(name) for name in wanted} == wanted, "run `make install`"


@pytest.mark.parametrize(("lock", "extras"), [("cpu", ("cpu", "dev")), ("gpu", ("gpu",))])
def test_locks_satisfy_pyproject(lock: str, extras: tuple[str, ...]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    pins = {pin.name: str(pin.specifier).removeprefix("==") for pin in locked(REQUIREMENTS / f"{lock}.txt")}
    missed = [line for line in asked if not (want := Requirement(line)).specifier.contains(pins.get(want.name, "0"))]
    assert missed == [], "run `make lock`"


def test_every_locked_package_but_torch_has_hashes() -> None:
    for file in (REQUIREMENTS / f"{lock}.txt" for lock in ("cpu", "gpu", "audit", "docs")):
        lines = file.read_text().splitlines()
        bare = [
            line
            for line, following in zip(lines, [*lines[1:], ""], strict=True)
            if re.match(r"[A-Za-z]", line) and "--hash=" not in following
        ]
        assert bare == []


COMPOSE_ONLY = {f"SPECTHINK_{role}_{what}" for role in ("SMALL", "LARGE") for what in ("MODEL", "GPU", "GPU_SHARE")}
COMPOSE_ONLY |= {"SPECTHINK_POSTGRES_HOST", "SPECTHINK_POSTGRES_SSLMODE", "SPECTHINK_PROMETHEUS_URL"}
COMPOSE_ONLY |= {"SPECTHINK_READER_PASSWORD"}
"""Read by compose.yaml itself, to choose a model and a GPU per service, and by the provisioning of Grafana."""


@pytest.mark.parametrize("file", ["README.md", "compose.yaml"])
def test_settings_named_in_files_exist(file: str) -> None:
    named = set(re.findall(r"\bSPECTHINK_[A-Z][A-Z_]*[A-Z]\b", (ROOT / file).read_text()))
    assert named != set()
    assert named - set(settings_variables()) - COMPOSE_ONLY == set()
