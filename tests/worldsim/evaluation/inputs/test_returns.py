"""Places that come back are found by poses alone, and only where they were out of view in between."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.fakes import TINY_ACTIONS, write_turning_dataset
from worldsim.errors import WorldError
from worldsim.evaluation.inputs.clips import Recordings
from worldsim.evaluation.inputs.returns import Return, ReturnSettings, choose_returns, clips_of, find_returns

CIRCLE = ReturnSettings(absence=5, context_frames=14, longest=4)
SIZE = (32, 48)


def turning(degrees_per_frame: float, num_frames: int) -> np.ndarray:
    """Return poses of a player who turns on the spot."""
    poses = np.zeros((num_frames, 3), np.float32)
    poses[:, 2] = np.arange(num_frames) * degrees_per_frame % 360
    return poses


def test_a_full_turn_brings_the_first_place_back() -> None:
    # Twelve frames to the turn; a place is in view two frames before the pose is back, and two after it left.
    first, second, *_ = find_returns(turning(30, 30), CIRCLE)
    assert first == Return(seen=0, left=2, enters=10, back=12)
    assert second == Return(seen=3, left=5, enters=13, back=15)


def test_headings_meet_at_the_full_circle() -> None:
    poses = turning(30, 13)
    poses[:, 2] = (poses[:, 2] + 358) % 360
    poses[12, 2] = 1  # of 358
    assert [place.back for place in find_returns(poses, CIRCLE)] == [12]


def test_what_stayed_in_view_does_not_come_back() -> None:
    poses = np.zeros((40, 3), np.float32)
    poses[:, 2] = 80 * np.sin(np.arange(40) / 3)
    assert not find_returns(poses[:, :] * [1, 1, 0.5], CIRCLE)
    poses[:, :2] = 10 * np.arange(40)[:, None]  # walks on without turning
    assert not find_returns(poses * [1, 1, 0], CIRCLE)


def test_the_same_heading_elsewhere_is_another_place() -> None:
    poses = turning(30, 13)
    poses[:, 0] = np.linspace(0, 40, 13)
    assert not find_returns(poses, CIRCLE)
    poses[:, 0] *= 0.5
    assert len(find_returns(poses, CIRCLE)) == 1


def test_a_short_absence_is_none() -> None:
    assert find_returns(turning(30, 13), ReturnSettings(absence=7))
    assert not find_returns(turning(30, 13), ReturnSettings(absence=8))


def test_clips_lie_inside_the_episode_and_hold_the_frame_that_was_seen() -> None:
    num_frames = 60
    clips = clips_of(3, num_frames, turning(30, num_frames), CIRCLE)
    assert clips
    for found in clips:
        assert found.clip.episode == 3
        assert found.clip.begin >= 0
        assert found.clip.begin + CIRCLE.context_frames + CIRCLE.longest <= num_frames
        assert found.place == Return(seen=4, left=6, enters=14, back=16)
    too_short = ReturnSettings(absence=5, context_frames=9, longest=4)
    assert not clips_of(3, num_frames, turning(30, num_frames), too_short)


def test_the_choice_is_the_seeds(tmp_path: Path) -> None:
    recordings = Recordings(write_turning_dataset(tmp_path), TINY_ACTIONS, SIZE)
    every, told = choose_returns(recordings, CIRCLE, 100, seed=0)
    assert told == f"{len(every)} places of 2 episodes of {tmp_path} come back"
    assert (
        choose_returns(recordings, CIRCLE, 5, seed=1)[0] != choose_returns(recordings, CIRCLE, 5, seed=2)[0]
    )
    few, _ = choose_returns(recordings, CIRCLE, 5, seed=1)
    assert [place in every for place in few] == [True] * 5


def test_video_without_poses_and_with_too_few_returns_is_named(tmp_path: Path) -> None:
    without = Recordings(write_turning_dataset(tmp_path / "a", has_poses=False), TINY_ACTIONS, SIZE)
    places, told = choose_returns(without, CIRCLE, 5, seed=0)
    assert (places, told) == (
        [],
        f"{tmp_path / 'a'} records no poses, so which places come back is not known",
    )
    short = Recordings(write_turning_dataset(tmp_path / "b", frames=24), TINY_ACTIONS, SIZE)
    places, told = choose_returns(short, CIRCLE, 5, seed=0)
    assert places == []
    assert told.endswith("come back: too few to measure, which takes 8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distance": 0.0}, "returning places: distance must be above 0 and finite, got 0.0"),
        ({"absence": 0}, "returning places: absence must be at least 1, got 0"),
        ({"absence": 128}, "128 frames, must be less than the 128 frames watched"),
        ({"angle_degrees": 90.0}, "90.0 degrees, must be less than the 90.0 degrees that are in view"),
    ],
    ids=["distance", "no_absence", "long_absence", "angle"],
)
def test_settings_under_which_nothing_comes_back_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(WorldError, match=message):
        ReturnSettings(**changes)  # pyright: ignore[reportArgumentType]
