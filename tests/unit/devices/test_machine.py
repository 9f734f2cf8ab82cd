"""What nvidia-smi says, what a file says, and what CUDA_VISIBLE_DEVICES leaves."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from pipeline.devices import Machine, probe, read_machine
from pipeline.devices.machine import chosen_by_environment, parse_gpus
from pipeline.errors import ConfigurationError

SAID = """\
0, GPU-aaaa1111-0000, NVIDIA H100 80GB HBM3, 81559, 81008, Disabled
1, GPU-bbbb2222-0000, NVIDIA A100-SXM4-80GB, 81920, 40960, Enabled
2, GPU-cccc3333-0000, NVIDIA GeForce RTX 4090, 24564, 24100, [N/A]
"""


def write_program(folder: Path, text: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_gpus_are_read_with_memory_and_mode() -> None:
    gpus = parse_gpus(SAID)
    assert [gpu.index for gpu in gpus] == [0, 1, 2]
    assert [gpu.is_sliced for gpu in gpus] == [False, True, False]
    assert gpus[1].memory_gib == 80
    assert gpus[1].free_gib == 40
    assert gpus[2].name == "NVIDIA GeForce RTX 4090"


def test_gpu_that_tells_no_memory_is_left_out() -> None:
    assert parse_gpus("0, GPU-1, Orin, [N/A], [N/A], [N/A]\n") == ()


@pytest.mark.parametrize(
    ("allowed", "indices"), [("2,0", [2, 0]), ("GPU-bbbb", [1]), ("", []), ("1,-1,2", [1]), (" 0 , 2 ", [0, 2])]
)
def test_environment_chooses_gpus(allowed: str, indices: list[int]) -> None:
    assert [gpu.index for gpu in chosen_by_environment(parse_gpus(SAID), allowed)] == indices


@pytest.mark.parametrize("allowed", ["7", "MIG-1234", "GPU-"])
def test_environment_that_names_what_is_not_there_is_refused(allowed: str) -> None:
    with pytest.raises(ConfigurationError, match="CUDA_VISIBLE_DEVICES names"):
        chosen_by_environment(parse_gpus(SAID), allowed)


def test_probe_asks_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_program(tmp_path, f"cat <<'END'\n{SAID}END")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    found = probe()
    assert [gpu.index for gpu in found.gpus] == [2]
    assert found.cores >= 1
    assert found.memory_gib > 0


def test_driver_that_does_not_answer_means_no_gpus_and_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_program(tmp_path, "echo 'NVIDIA-SMI has failed'; exit 9")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = probe()
    assert found.gpus == ()
    assert "NVIDIA-SMI has failed" in found.notes[0]


def test_machine_of_a_file_may_count_its_gpus(tmp_path: Path) -> None:
    file = tmp_path / "machine.json"
    content = {
        "cores": 64,
        "memory_gib": 512,
        "gpus": [{"count": 2, "memory_gib": 24}, {"memory_gib": 80, "free_gib": 9}],
    }
    file.write_text(json.dumps(content))
    found = read_machine(file)
    assert [(gpu.index, gpu.memory_gib, gpu.free_gib) for gpu in found.gpus] == [(0, 24, 24), (1, 24, 24), (2, 80, 9)]
    assert Machine.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"memory_gib": 1}', "cores: Field required"),
        (
            '{"cores": 1, "memory_gib": 1, "gpus": [{"index": 0, "memory_gib": 1}, {"index": 0, "memory_gib": 1}]}',
            "same",
        ),
        ('{"cores": 1, "memory_gib": 1, "gpus": [{"memory": 1}]}', "gpus.0"),
        ("[", "machine.json"),
    ],
)
def test_machine_file_with_a_fault_is_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "machine.json"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=r"machine\.json") as raised:
        read_machine(file)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
