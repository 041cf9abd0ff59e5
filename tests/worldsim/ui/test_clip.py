"""Clips: the last seconds with the keys that were held, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.fakes import TINY_ACTIONS
from tests.window import open_viewer, press, release, tap
from worldsim.data.video import describe_video, read_video
from worldsim.ui.clip import HELD_COLOUR, MAX_RAW_BYTES, SECONDS, ClipBuffer, held_buttons

GREEN = np.broadcast_to(np.uint8([0, 90, 0]), (32, 48, 3))


def yellow_pixels(frames: np.ndarray) -> np.ndarray:
    """Return how many pixels of each frame have the colour of a key that is held."""
    far = np.abs(frames.astype(int) - np.array(HELD_COLOUR[:3])).max(axis=-1)
    return (far < 60).sum(axis=(1, 2))


def test_it_holds_the_last_seconds_and_shows_which_keys_were_held(tmp_path: Path) -> None:
    clip = ClipBuffer(TINY_ACTIONS, 1.0)
    noop = TINY_ACTIONS.noop()
    held = noop.copy()
    held[0] = 1
    for number in range(40):
        clip.add(GREEN, held if number >= 35 else noop)
    assert len(clip) == clip.write(tmp_path / "clip.mp4") == SECONDS
    told = describe_video(tmp_path / "clip.mp4")
    assert (told.num_frames, told.height % 32, told.width % 48) == (15, 0, 0)
    pixels = yellow_pixels(read_video(tmp_path / "clip.mp4"))
    assert (pixels[:-5] == 0).all()
    assert (pixels[-5:] > 100).all()


def test_large_frames_take_little_memory_and_look_the_same(tmp_path: Path) -> None:
    clip, noop = ClipBuffer(TINY_ACTIONS, 30.0), TINY_ACTIONS.noop()
    rows, columns = np.mgrid[:480, :832]
    large = np.stack([rows % 256, columns % 256, (rows + columns) % 256], axis=-1).astype(np.uint8)
    for _ in range(3):
        clip.add(large, noop)
    assert clip.num_bytes / len(clip) < MAX_RAW_BYTES / (30 * SECONDS)
    clip.write(tmp_path / "clip.mp4")
    shown = read_video(tmp_path / "clip.mp4", size=large.shape[:2])[1, 100:]  # below the keys
    assert np.abs(shown.astype(int) - large[100:]).mean() < 4
    clip = ClipBuffer(TINY_ACTIONS, 30.0)
    clip.add(GREEN, noop)
    assert clip.num_bytes == GREEN.size, "small ones are kept as they are"


def test_buttons_are_counted_over_all_axes() -> None:
    last = np.array([len(axis.buttons) for axis in TINY_ACTIONS.axes])
    names = [list(TINY_ACTIONS.buttons)[number] for number in sorted(held_buttons(TINY_ACTIONS, last))]
    assert names == [f"{axis.name}/{axis.buttons[-1]}" for axis in TINY_ACTIONS.axes]
    assert held_buttons(TINY_ACTIONS, TINY_ACTIONS.noop()) == frozenset()


def test_a_clip_that_cannot_be_finished_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = ClipBuffer(TINY_ACTIONS, 4.0)
    clip.add(GREEN, TINY_ACTIONS.noop())

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("worldsim.ui.clip.VideoWriter.close", fail)
    with pytest.raises(OSError, match="No space left"):
        clip.write(tmp_path / "clip.mp4")
    assert not list(tmp_path.iterdir())


def test_a_key_writes_a_clip(tmp_path: Path) -> None:
    viewer = open_viewer(tmp_path)
    tap(",")
    viewer.advance()
    assert viewer.game.status.message == "nothing was played yet"
    press(TINY_ACTIONS.axes[0].keys[0][0])
    for _ in range(3):
        viewer.advance()
    release(TINY_ACTIONS.axes[0].keys[0][0])
    tap(",")
    viewer.advance()
    path = tmp_path / "clips" / "clip-0001.mp4"
    assert viewer.game.status.message == f"wrote {path}, 4 frames"
    assert yellow_pixels(read_video(path))[1:].min() > 100
    viewer.window.close()
