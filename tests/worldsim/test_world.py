"""A world folder is complete, unaltered and free of pickles, or it is refused in one sentence."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from tests.fakes import save_tiny_world, tiny_world
from worldsim.errors import WorldError
from worldsim.simulator import Simulator
from worldsim.weights import CODEC_FILE, CONFIG_FILE
from worldsim.world import MODEL_FILE, World


def test_a_saved_world_dreams_the_same(tmp_path: Path) -> None:
    original = tiny_world()
    loaded = World.from_pretrained(save_tiny_world(tmp_path / "world"))
    assert loaded.config == original.config
    assert loaded.identity == original.identity
    frames = []
    for world in (original, loaded):
        simulator = Simulator(world)
        state = simulator.start(original.starts[:1], [1])
        frames.append(simulator.predict(state, torch.tensor([[1, 0, 2]])).frames)
    assert torch.equal(frames[0], frames[1])


def test_starts_come_back_from_video(tmp_path: Path) -> None:
    loaded = World.from_pretrained(save_tiny_world(tmp_path / "world"))
    original = tiny_world()
    assert [start.name for start in loaded.starts] == [start.name for start in original.starts]
    assert loaded.starts[0].frames.shape == original.starts[0].frames.shape
    assert torch.equal(loaded.starts[0].actions[:-1], original.starts[0].actions[:-1])


def test_unknown_world_names_those_that_ship() -> None:
    with pytest.raises(WorldError, match="no world 'nowhere'"):
        World.from_pretrained("nowhere")


@pytest.mark.parametrize("name", [MODEL_FILE, CODEC_FILE])
@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_damaged_file_is_named(tmp_path: Path, name: str, damage: str) -> None:
    folder = save_tiny_world(tmp_path / "world")
    data = bytearray((folder / name).read_bytes())
    if damage == "missing":
        (folder / name).unlink()
    elif damage == "truncated":
        (folder / name).write_bytes(data[: len(data) // 2])
    else:
        data[-1] ^= 1
        (folder / name).write_bytes(data)
    with pytest.raises(WorldError, match=name):
        World.from_pretrained(folder)


def test_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "world.pt"
    path.write_bytes(pickle.dumps({"weights": 1}))
    with pytest.raises(WorldError, match=r"world\.pt is a pickle"):
        World.from_pretrained(path)


def test_pickle_in_a_world_folder_is_never_loaded(tmp_path: Path) -> None:
    folder = save_tiny_world(tmp_path / "world")
    (folder / MODEL_FILE).unlink()
    (folder / "model.pt").write_bytes(pickle.dumps({"weights": 1}))
    with pytest.raises(WorldError, match=r"model\.pt, a pickle"):
        World.from_pretrained(folder)


def test_weights_that_do_not_fit_the_description_are_refused(tmp_path: Path) -> None:
    folder = save_tiny_world(tmp_path / "world")
    data = json.loads((folder / CONFIG_FILE).read_text())
    data["denoiser"]["num_layers"] = 2
    (folder / CONFIG_FILE).write_text(json.dumps(data))
    with pytest.raises(WorldError, match="does not fit"):
        World.from_pretrained(folder)


def test_saving_over_a_world_that_fails_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny_world(tmp_path / "world")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("worldsim.world.save_weights", full_disk)
    with pytest.raises(OSError, match="No space"):
        tiny_world().save_pretrained(folder)
    World.from_pretrained(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["world"]
