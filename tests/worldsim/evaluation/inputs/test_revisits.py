"""Poses that are left and come back are found by poses alone, and told by how they were left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.fakes import TINY_ACTIONS, write_turning_dataset
from tests.grids import write_walks
from worldsim.errors import WorldError
from worldsim.evaluation.inputs.clips import Recordings
from worldsim.evaluation.inputs.revisits import (
    RUNGS,
    Revisit,
    RevisitSet,
    RevisitSettings,
    choose_others,
    find_revisits,
)

SIZE = (32, 48)
SETTINGS = RevisitSettings()
IN_TILES = RevisitSettings(distance=0, leave_distance=5, num_others=2)


def all_are_clear(frames: Tensor, seen: Tensor, others: Tensor) -> Tensor:
    return torch.ones(len(frames), dtype=torch.bool)


def turning(*headings: tuple[float, int], step: float = 5.0) -> np.ndarray:
    """Return poses of a player who turns by `step` degrees a frame to headings, and rests at each."""
    at, found = 0.0, [0.0]
    for heading, rest in headings:
        ways = np.arange(step, abs(heading - at) + 1e-6, step) * np.sign(heading - at)
        found += [*(at + ways), *[heading] * rest]
        at = heading
    return np.array([(0.0, 0.0, angle % 360) for angle in found], np.float32)


def straight(there: float, *, step: float = 10.0) -> np.ndarray:
    """Return poses of a player who walks so far to the east and back, looking north."""
    out = np.arange(0, there + 1e-6, step)
    return np.array([(x, 0.0, 90.0) for x in [*out, *out[-2::-1]]], np.float32)


def names(poses: np.ndarray, settings: RevisitSettings = SETTINGS) -> dict[str, list[tuple[int, int, int]]]:
    found = find_revisits(poses, settings)
    return {n: [(r.seen, r.turn, r.back) for r in revisits] for n, revisits in found.items() if revisits}


@pytest.mark.parametrize("way", [-1, 1])
def test_looking_away_and_back_is_told_by_the_angle(way: int) -> None:
    # 18 frames out, 3 more at rest, 18 back: the last frame at 90 degrees is the turn.
    assert names(turning((90 * way, 3), (0, 5))) == {"look-away-90": [(0, 21, 39)]}
    wider = names(turning((180 * way, 0), (0, 5)))
    assert wider["look-away-180"] == [(0, 36, 72)]
    ((seen, turn, back),) = wider["look-away-90"]
    assert seen > 10 and turn == 36 and back == 72 - seen, "a heading on the way"
    assert names(turning((40 * way, 0), (0, 5))) == {}, "the place did not go out of view"


def test_a_full_turn_is_none_of_them_and_is_also_dreamt_whole() -> None:
    found = names(turning((360, 5)))
    assert found == {"full-turn": [(0, 36, 72)], "full-turn-dreamt": [(0, 0, 72)]}
    assert names(turning((300, 5))) == {}


def test_walking_away_and_back_is_told_by_its_frames() -> None:
    assert names(straight(320)) == {"walk-away-30": [(0, 32, 63)]}, "within 16 units"
    assert names(straight(1200))["walk-away-100"] == [(0, 120, 239)]
    assert names(straight(200)) == {}, "it did not get as far as another place"
    assert (0, 250, 499) not in names(straight(2500))["walk-away-100"], "that is too long ago"


def test_a_pose_counts_once_in_a_rung_and_comes_back_as_near_as_asked() -> None:
    twice = np.concatenate([turning((180, 0), (0, 5)), turning((180, 0), (0, 5))])
    assert len(names(twice)["look-away-180"]) == 2
    off = turning((180, 0), (10, 5))
    found = names(off)["look-away-180"]
    assert len(found) == 1 and off[found[0][0], 2] >= 5, (
        "the heading from which it comes back within 4 degrees"
    )


def test_other_places_differ_from_the_one_that_was_seen_and_from_each_other() -> None:
    poses = np.concatenate([turning((350, 0)), turning((350, 0)) + np.float32([1000, 0, 0])])
    for seed in range(5):
        others = choose_others(poses, 0, SETTINGS, np.random.default_rng(seed))
        chosen = [0, *others]
        assert len(others) == 4
        for index, frame in enumerate(chosen):
            for other in chosen[:index]:
                turned = abs((poses[frame, 2] - poses[other, 2] + 180) % 360 - 180)
                assert turned >= 90 or abs(poses[frame, 0] - poses[other, 0]) == 1000
    assert len(choose_others(poses[:10], 0, SETTINGS, np.random.default_rng(0))) == 0


def test_batches_are_cut_from_the_context_to_where_the_pose_is_back(tmp_path: Path) -> None:
    folder = write_walks(tmp_path, [30, 45, 38])
    recordings = Recordings(folder, TINY_ACTIONS, SIZE)
    found = RevisitSet(recordings, IN_TILES, 0, 0, is_clear=all_are_clear)
    assert list(found.by_rung) == ["walk-away-30"]
    told = found.describe("walk-away-30")
    assert told["count"] == told["episodes"] == 3 and told["chance"] == 1 / 3
    assert told["frames"] == {"least": 30, "median": 38, "most": 45}
    (batch,) = found.batches("walk-away-30", 4)
    assert (batch.back - batch.turn).tolist() == [45, 38, 30], "the longest comes first"
    assert (np.diff(batch.turn) <= 0).all() and batch.clips.frames.shape[1] == batch.back.max() + 1
    for row, back in enumerate(batch.back):
        assert batch.names[row] == f"episode-{(1, 2, 0)[row]:03d}"
        assert torch.equal(batch.clips.frames[row, back], batch.seen[row]), "it looks as it did"
        assert (batch.clips.frames[row, back] == batch.clips.frames[row, -1]).all()
        assert not any(torch.equal(other, batch.seen[row]) for other in batch.others[row])
        assert len(batch.poses[row]) == back + 1


def test_what_the_features_cannot_tell_apart_is_left_out_and_counted(tmp_path: Path) -> None:
    recordings = Recordings(write_walks(tmp_path, [30, 31, 32, 33]), TINY_ACTIONS, SIZE)
    verdicts = iter([True, False, True, True] * len(RUNGS))

    def some_are_clear(frames: Tensor, seen: Tensor, others: Tensor) -> Tensor:
        assert torch.equal(frames, seen) and others.shape == (1, 2, *SIZE, 3)
        return torch.tensor([next(verdicts)])

    found = RevisitSet(recordings, IN_TILES, 2, 0, is_clear=some_are_clear)
    assert found.describe("walk-away-30")["count"] == 2 and found.describe("walk-away-30")["unclear"] == 1


@pytest.mark.parametrize(
    ("has_poses", "gap", "sentence"),
    [
        (False, 30, "records no poses, so what is seen again is not known"),
        (True, 12, "no pose of .* comes back as often as 2 times within 0 units and 4 degrees"),
    ],
)
def test_recordings_that_tell_nothing_are_refused(
    tmp_path: Path, has_poses: bool, gap: int, sentence: str
) -> None:
    recordings = Recordings(write_walks(tmp_path, [gap] * 3, has_poses=has_poses), TINY_ACTIONS, SIZE)
    with pytest.raises(WorldError, match=sentence):
        RevisitSet(recordings, IN_TILES, 0, 0, is_clear=all_are_clear)


def test_too_short_recordings_are_refused(tmp_path: Path) -> None:
    recordings = Recordings(write_turning_dataset(tmp_path, frames=5), TINY_ACTIONS, SIZE)
    with pytest.raises(WorldError, match="no pose of"):
        RevisitSet(recordings, SETTINGS, 0, 0, is_clear=all_are_clear)


def test_a_place_nearer_than_the_tolerance_is_none() -> None:
    with pytest.raises(WorldError, match=r"leave_distance must be above distance, 300, .* got 256"):
        RevisitSettings(distance=300)
    assert Revisit(0, 1, 2, 3).others == ()
