"""Recordings of play: whole episodes, or nothing."""

from __future__ import annotations

import errno
import os
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.fakes import HEIGHT, WIDTH, tiny_world, write_tiny_dataset
from worldsim.actions import ActionAxis, ActionLayout
from worldsim.data.episodes import list_episodes, read_episode, verify
from worldsim.data.video import VideoWriter
from worldsim.errors import WorldError
from worldsim.play.recording import Recording, free_recording

WORLD = tiny_world().config
FRAMES = np.random.default_rng(0).integers(256, size=(4, HEIGHT, WIDTH, 3), dtype=np.uint8)
ACTIONS = np.array([[1, 0, 0], [0, 2, 0], [0, 0, 1]])


def record(recording: Recording, num_frames: int) -> None:
    for frame, action in zip(FRAMES[:num_frames], ACTIONS, strict=False):
        recording.add(frame, action)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_recording_is_a_valid_dataset(tmp_path: Path) -> None:
    with Recording(tmp_path / "walk.mp4", WORLD) as recording:
        record(recording, 3)
        recording.end_episode(FRAMES[3])
    assert names(tmp_path) == ["dataset.json", "walk.jsonl", "walk.mp4"]
    assert verify(tmp_path) == 4
    assert np.array_equal(read_episode(tmp_path, "walk").actions, [*ACTIONS, [0, 0, 0]])
    assert recording.paths == [tmp_path / "walk.mp4"]


def test_reset_begins_another_episode(tmp_path: Path) -> None:
    with Recording(tmp_path / "walk.mp4", WORLD) as recording:
        recording.end_episode(FRAMES[0])  # nothing was played yet
        record(recording, 3)
        recording.end_episode(FRAMES[3])
        recording.end_episode(FRAMES[0])  # nothing again
        record(recording, 2)
    assert list_episodes(tmp_path) == ["walk", "walk-2"]
    assert verify(tmp_path) == 4 + 2
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_recording_made_so_far_is_kept(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), Recording(tmp_path / "walk.mp4", WORLD) as recording:
        record(recording, 2)
        raise error
    assert verify(tmp_path) == 2


def test_without_frames_nothing_is_left(tmp_path: Path) -> None:
    with Recording(tmp_path / "walk.mp4", WORLD):
        assert "walk.jsonl.part" in names(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["walk.avi", "walk", "walk.jsonl"])
def test_other_kinds_of_files_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(WorldError, match=r"ends in \.mp4"):
        Recording(tmp_path / name, WORLD)


def test_place_that_cannot_be_written_to_is_found_before_play(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.mp4").mkdir()
    for path in (tmp_path / "file" / "walk.mp4", tmp_path / "folder.mp4"):
        with pytest.raises(WorldError, match=f"cannot record to {path}"):
            Recording(path, WORLD)


def test_full_disk_is_found_before_play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 100, 0))
    with pytest.raises(WorldError, match="the disk is full"):
        Recording(tmp_path / "walk.mp4", WORLD)
    assert names(tmp_path) == []


def test_a_folder_that_vanishes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as an error of the system: play goes on after a recording that cannot."""
    monkeypatch.setattr("worldsim.play.recording.FRAMES_BETWEEN_CHECKS", 2)
    path = tmp_path / "gone" / "walk.mp4"
    recording = Recording(path, WORLD)
    recording.add(FRAMES[0], ACTIONS[0])
    shutil.rmtree(path.parent)
    with pytest.raises(WorldError, match=f"cannot record to {path}: No such file"):
        recording.add(FRAMES[1], ACTIONS[1])
    with pytest.raises(WorldError, match=f"cannot record to {path}: No such file"):
        recording.close()


def test_disk_that_fills_up_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (
        pytest.raises(WorldError, match="No space left"),
        Recording(tmp_path / "walk.mp4", WORLD) as recording,
    ):
        record(recording, 2)
        monkeypatch.setattr(VideoWriter, "write", fail)
        monkeypatch.setattr(VideoWriter, "close", fail)
        record(recording, 1)
    assert names(tmp_path) == []


def test_folder_of_other_gameplay_is_refused(tmp_path: Path) -> None:
    layout = ActionLayout((ActionAxis(name="jump", buttons=("jump",), keys=(("space",),)),))
    folder = write_tiny_dataset(tmp_path / "data", actions=layout, episodes=1, frames=2)
    before = names(folder)
    with pytest.raises(WorldError, match="sizes or buttons differ"):
        Recording(folder / "walk.mp4", WORLD)
    assert names(folder) == before


def test_folder_of_the_same_gameplay_gets_one_more_episode(tmp_path: Path) -> None:
    folder = write_tiny_dataset(tmp_path / "data", episodes=1, frames=3)
    info = (folder / "dataset.json").read_bytes()
    with Recording(folder / "walk.mp4", WORLD) as recording:
        record(recording, 2)
    assert list_episodes(folder) == ["episode-000", "walk"]
    assert (folder / "dataset.json").read_bytes() == info


def test_a_later_part_goes_beside_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "walk-2.mp4").write_text("mine")
    with Recording(tmp_path / "walk.mp4", WORLD) as recording:
        for _ in range(2):
            record(recording, 1)
            recording.end_episode(None)
    assert [path.name for path in recording.paths] == ["walk.mp4", "walk-3.mp4"]
    assert (tmp_path / "walk-2.mp4").read_text() == "mine"
    with pytest.raises(WorldError, match="walk.mp4 is there already, and no recording is written over"):
        Recording(tmp_path / "walk.mp4", WORLD)


def test_recordings_are_numbered_and_another_worlds_are_apart(tmp_path: Path) -> None:
    other = replace(WORLD, name="../other")
    assert free_recording(tmp_path, WORLD) == tmp_path / "play-0001.mp4"
    with Recording(free_recording(tmp_path, WORLD), WORLD) as recording:
        record(recording, 1)
    assert free_recording(tmp_path, WORLD) == tmp_path / "play-0002.mp4"
    assert free_recording(tmp_path, other) == tmp_path / "---other" / "play-0001.mp4"


def test_a_name_of_another_alphabet_is_a_folder_that_file_systems_take(tmp_path: Path) -> None:
    with Recording(free_recording(tmp_path, WORLD), WORLD) as recording:
        record(recording, 1)
    other = replace(WORLD, name="\u4e16" * 100)
    folder = free_recording(tmp_path, other).parent
    folder.mkdir()
    assert folder.name == "\u4e16" * 66
