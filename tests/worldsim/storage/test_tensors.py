"""Weights are written whole or not at all, and what is damaged is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.fakes import tiny_codec_config
from worldsim.codec import CODEC_CONFIG_FILE, FrameCodec, load_codec, save_codec
from worldsim.errors import WorldError
from worldsim.storage.tensors import swap_folder, write_tensors

LARGE = {"a": torch.zeros(100_000)}


def save_tiny_codec(folder: Path) -> Path:
    save_codec(FrameCodec(tiny_codec_config()), folder)
    return folder


def test_tensors_are_read_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors({"a": torch.arange(6).view(2, 3).T}, path, {"note": "b"})
    assert torch.equal(load_file(path)["a"], torch.arange(6).view(2, 3).T)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.usefixtures("largest_file_50_kb")
def test_full_disk_names_the_file_and_keeps_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text("old")
    with pytest.raises(OSError, match=r"File too large.*a\.safetensors"):
        write_tensors(LARGE, path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    assert path.read_text() == "old"


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere/a\.safetensors"):
        write_tensors(LARGE, tmp_path / "nowhere" / "a.safetensors")


def test_codec_is_read_back_as_written(tmp_path: Path) -> None:
    assert load_codec(save_tiny_codec(tmp_path / "codec")).config == tiny_codec_config()


def _changed(change: dict[str, Any]) -> Any:
    return lambda data: json.dumps(data | change)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: json.dumps(data)[:40],
        lambda _: "[]",
        lambda data: json.dumps({"files": data["files"]}),
        _changed({"codec": {"heads": 1}}),
        _changed({"codec": []}),
        _changed({"codec": {"widths": [4]}}),
        _changed({"files": ["a"]}),
        lambda data: json.dumps(data | {"codec": data["codec"] | {"latent_channels": 4.5}}),
    ],
    ids=["truncated", "list", "no codec", "field", "codec list", "widths", "files", "fraction"],
)
def test_damaged_codec_description_is_named(tmp_path: Path, damage: Any) -> None:
    path = save_tiny_codec(tmp_path / "codec") / CODEC_CONFIG_FILE
    path.write_text(damage(json.loads(path.read_text())))
    with pytest.raises(WorldError, match=r"codec\.json"):
        load_codec(path.parent)


def make_folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "file").write_text(text)
    return path


def test_swap_that_fails_puts_the_old_folder_back(tmp_path: Path) -> None:
    target = make_folder(tmp_path / "world", "old")
    with pytest.raises(FileNotFoundError):
        swap_folder(tmp_path / "missing", target)
    assert (target / "file").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["world"]


def test_only_copy_left_by_a_killed_swap_outlives_a_failing_one(tmp_path: Path) -> None:
    make_folder(tmp_path / "world.old", "old")
    with pytest.raises(FileNotFoundError):
        swap_folder(tmp_path / "missing", tmp_path / "world")
    assert (tmp_path / "world" / "file").read_text() == "old"


def test_swap_replaces_and_clears_what_an_earlier_one_left(tmp_path: Path) -> None:
    target = make_folder(tmp_path / "world", "old")
    make_folder(tmp_path / "world.old", "older")
    swap_folder(make_folder(tmp_path / "new", "new"), target)
    assert (target / "file").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["world"]
