"""The hash of a folder's weights: what it tells apart, what it does not, and what it says of damaged files."""

import json
import os
import shutil
from pathlib import Path

import pytest

from pipeline.chat import weights
from pipeline.chat.weights import weights_sha256
from pipeline.errors import ConfigurationError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def safetensors(tensors: dict[str, bytes], metadata: dict[str, str] | None = None) -> bytes:
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, data in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(tensors.values())


def model(folder: Path, tensors: dict[str, bytes], **more: dict[str, str]) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(safetensors(tensors, **more))
    return folder


BIG = bytes(200_000)


def test_two_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    one = model(tmp_path / "a" / "checkpoint-500", {"w": BIG, "b": b"123"})
    other = model(tmp_path / "b" / "checkpoint-500", {"w": BIG, "b": b"124"})
    assert weights_sha256(one) != weights_sha256(other)
    copy = shutil.copytree(one, tmp_path / "c")
    assert weights_sha256(copy) == weights_sha256(one), "wherever it lies"


@pytest.mark.parametrize("place", [0, 100_000, 199_999])
def test_a_change_at_a_sampled_place_is_seen(tmp_path: Path, place: int) -> None:
    changed = bytearray(BIG)
    changed[place] = 1
    assert weights_sha256(model(tmp_path / "a", {"w": BIG})) != weights_sha256(
        model(tmp_path / "b", {"w": bytes(changed)})
    )


def test_the_same_numbers_in_another_shape_are_another_model(tmp_path: Path) -> None:
    halves = {"v": BIG[:100_000], "w": BIG[100_000:]}
    assert weights_sha256(model(tmp_path / "a", {"w": BIG})) != weights_sha256(model(tmp_path / "b", halves))


def test_metadata_is_no_weight_but_size_counts(tmp_path: Path) -> None:
    plain = weights_sha256(model(tmp_path / "a", {"w": b"1"}, metadata={"format": "pt"}))
    assert plain == weights_sha256(model(tmp_path / "b", {"w": b"1"}, metadata={"format": "np"}))


def test_shards_count_by_name(tmp_path: Path) -> None:
    folder = model(tmp_path / "a", {"w": b"1"})
    first = weights_sha256(folder)
    (folder / "model-2.safetensors").write_bytes(safetensors({"v": b"2"}))
    assert weights_sha256(folder) != first


def test_a_folder_without_weights_has_no_hash(tmp_path: Path) -> None:
    (tmp_path / "training_args.bin").write_bytes(b"x")
    assert weights_sha256(tmp_path) is None


def test_other_formats_are_sampled(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(BIG)
    first = weights_sha256(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"1" + BIG[1:])
    os.utime(tmp_path / "pytorch_model.bin", ns=(1, 1))
    assert first not in (None, weights_sha256(tmp_path))


@pytest.mark.parametrize("cut", [0, 4, 40, -1])
def test_a_file_that_is_cut_off_is_refused_by_name(tmp_path: Path, cut: int) -> None:
    folder = model(tmp_path / "a", {"w": BIG})
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ConfigurationError, match=r"model\.safetensors: its weights cannot be read"):
        weights_sha256(folder)


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model(tmp_path / "a", {"w": BIG})
    first = weights_sha256(folder)
    monkeypatch.setattr(weights, "_file_sha256", lambda file: pytest.fail("it was read again"))
    assert weights_sha256(folder) == first
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (folder / "model.safetensors").write_bytes(safetensors({"w": b"1" + BIG[1:]}))
    assert weights_sha256(folder) != first


def test_a_damaged_cache_is_none(tmp_path: Path) -> None:
    folder = model(tmp_path / "a", {"w": BIG})
    first = weights_sha256(folder)
    (tmp_path / "cache" / "specthink" / "weights.json").write_text("{")
    assert weights_sha256(folder) == first
