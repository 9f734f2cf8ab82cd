"""The built wheel in an environment of its own, far from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A new environment's folder of programs: the wheel is installed in it, its dependencies are this environment's."""
    build = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=CHECKOUT, check=True, timeout=60)
    [wheel] = tmp_path.glob("specthink-*.whl")
    environment = tmp_path / "environment"
    venv.create(environment)
    python = environment / "bin" / "python"
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    subprocess.run(install, check=True, timeout=120)
    site = next((environment / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin"


@pytest.mark.timeout(600)
def test_wheel_runs_the_demo_from_any_folder(installed: Path, tmp_path: Path) -> None:
    def specthink(*arguments: str) -> str:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SPECTHINK_", "PYTHON"))}
        done = subprocess.run(
            [str(installed / "specthink"), "--state-dir", str(tmp_path / "state"), *arguments],
            cwd="/",
            env=kept,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    found = subprocess.run(
        [str(installed / "python"), "-c", "import pipeline, workers; print(pipeline.__file__, workers.__file__)"],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert all(Path(file).is_relative_to(installed.parent) for file in found), found
    try:
        specthink("demo", "--limit", "2", "--samples", "1", "--keep")
        assert '"upkeep"' in specthink("sql", "--json", "SELECT kind FROM workers WHERE ended_at IS NULL")
    finally:
        assert "postgres" in specthink("down")
