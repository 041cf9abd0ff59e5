"""Slots stay in their folder, and one that cannot be loaded is a sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.fakes import tiny_world
from worldsim.errors import WorldError
from worldsim.play.slots import SlotFolder
from worldsim.simulator import Simulator
from worldsim.state import WorldState


@pytest.fixture(scope="module")
def state() -> WorldState:
    world = tiny_world()
    return Simulator(world).start(world.starts[:1], [1])


@pytest.mark.parametrize(
    "name", ["../../elsewhere", "/elsewhere", "..", ".", "", "a/../../b", "con", "x" * 100]
)
def test_slots_of_a_world_of_any_name_stay_in_the_folder_of_slots(
    tmp_path: Path, state: WorldState, name: str
) -> None:
    slots = SlotFolder(tmp_path / "slots", name, "world@1")
    slots.save("1", state, "start")
    assert slots.load("1") == (state, "start")
    assert [path.name for path in tmp_path.iterdir()] == ["slots"]
    (folder,) = (tmp_path / "slots").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["1.png", "1.safetensors"]


def test_a_slot_that_is_a_folder_or_damaged_is_refused_by_name(tmp_path: Path) -> None:
    slots = SlotFolder(tmp_path, "a", "world@1")
    (tmp_path / "a" / "1.safetensors").mkdir(parents=True)
    (tmp_path / "a" / "2.safetensors").write_bytes(b"half")
    for name in "12":
        with pytest.raises(WorldError, match=f"slot {name}: "):
            slots.load(name)
    assert [(slot.name, slot.note) for slot in slots.list()] == [("2", "damaged")]


def test_a_note_that_a_terminal_would_obey_makes_a_slot_damaged(tmp_path: Path, state: WorldState) -> None:
    slots = SlotFolder(tmp_path, "a", "world@1")
    slots.save("1", state)
    path = tmp_path / "a" / "1.safetensors"
    save_file(load_file(path), path, {"world": "world@1", "start": "\x1b[2J"})
    assert [slot.note for slot in slots.list()] == ["damaged"]
    with pytest.raises(WorldError, match=r"slot 1: .*start must be printable text.*got \\x1b\[2J"):
        slots.load("1")


def test_a_slot_of_numbers_of_other_kinds_is_refused(tmp_path: Path, state: WorldState) -> None:
    slots = SlotFolder(tmp_path, "a", "world@1")
    slots.save("1", state)
    path = tmp_path / "a" / "1.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"seed": tensors["seed"].to(torch.complex64)}, path, {"world": "world@1"})
    with pytest.raises(WorldError, match=r"slot 1: .*holds other tensors than a saved state.*complex64"):
        slots.load("1")


def test_a_slot_of_a_time_without_a_date_is_left_out_of_the_list(tmp_path: Path, state: WorldState) -> None:
    slots = SlotFolder(tmp_path, "a", "world@1")
    slots.save("1", state)
    slots.save("2", state)
    os.utime(tmp_path / "a" / "1.safetensors", (0, 400_000_000_000))
    assert "2" in [slot.name for slot in slots.list()]
