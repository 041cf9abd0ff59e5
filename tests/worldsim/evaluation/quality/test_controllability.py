from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.fakes import TINY_ACTIONS
from worldsim.actions import ActionAxis, ActionLayout
from worldsim.data.dataset_info import DatasetInfo
from worldsim.data.episodes import EpisodeTable, EpisodeWriter
from worldsim.evaluation.inputs.clips import Recordings
from worldsim.evaluation.quality.controllability import (
    MOVE,
    TURN,
    choose_starts,
    held_pieces,
    mean_motion,
    opposite_action_test,
    summarize_motions,
    way_ahead,
)

HEIGHT, WIDTH = 60, 80
STEP = 3  # pixels that the picture moves in a frame of turning


def panorama() -> np.ndarray:
    """Return a wide picture with detail of every size, `[60, 2000, 3]` uint8."""
    rng = np.random.default_rng(0)
    picture = np.zeros((HEIGHT, 2000))
    for size in (4, 10, 20):
        coarse = rng.random((HEIGHT // size, 2000 // size))
        picture += np.kron(coarse, np.ones((size, size))) * 80
    return np.repeat(picture[..., None], 3, axis=2).astype(np.uint8)


PANORAMA = panorama()


def view(place: int) -> np.ndarray:
    return PANORAMA[:, 1000 + place : 1000 + place + WIDTH]


class PanoramaSimulator:
    """Turns in a picture instead of dreaming; `sign` says how well it obeys."""

    def __init__(self, sign: int) -> None:
        self.sign = sign
        config = SimpleNamespace(actions=TINY_ACTIONS)
        self.world: Any = SimpleNamespace(config=config, device=torch.device("cpu"), on_level_map=False)

    def start(self, starts: list[Any], seeds: list[int]) -> Any:
        frames = torch.from_numpy(np.stack([view(0)] * len(starts)))
        return SimpleNamespace(frames=frames, places=torch.zeros(len(starts), dtype=torch.int64))

    def step(self, state: Any, actions: Tensor, poses: Tensor | None = None) -> tuple[Tensor, Any]:
        direction = torch.tensor([0, -1, 1])[actions[:, 2]]  # turning left shows what lies to the left
        places = state.places + self.sign * STEP * direction
        frames = torch.from_numpy(np.stack([view(int(place)) for place in places]))
        return frames, SimpleNamespace(frames=frames, places=places)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Recordings:
    """A player that turns left for 20 frames, then right for 20, and so on; it stands still otherwise."""
    folder = tmp_path_factory.mktemp("turning")
    info = DatasetInfo(name="turning", width=WIDTH, height=HEIGHT, frame_rate=10.0, actions=TINY_ACTIONS)
    info.save(folder)
    for episode in range(2):
        place = 0
        with EpisodeWriter(folder, f"episode-{episode}", info) as writer:
            for index in range(80):
                turn = 1 if (index // 20) % 2 == 0 else 2
                writer.add(view(place), np.array([0, 0, turn]), pose=(0.0, 0.0, float(-place)))
                place += STEP if turn == 2 else -STEP
    return Recordings(Path(folder), TINY_ACTIONS, (HEIGHT, WIDTH))


def run(recordings: Recordings, sign: int) -> dict[str, Any]:
    simulator: Any = PanoramaSimulator(sign)
    return opposite_action_test(
        simulator, recordings, TURN, num_starts=6, context_frames=4, batch_size=4, seed=0
    )


def test_a_world_that_obeys_passes_and_its_motion_is_measured(recordings: Recordings) -> None:
    report = run(recordings, 1)
    assert report.both_right.mean == 1
    assert report.right == {"left": 1, "right": 1}
    assert report.median_motion["left"] == pytest.approx(STEP / WIDTH, rel=0.05)
    assert report.median_motion["right"] == pytest.approx(-STEP / WIDTH, rel=0.05)


def test_a_world_that_turns_the_wrong_way_fails(recordings: Recordings) -> None:
    assert run(recordings, -1).both_right.mean == 0


def test_a_world_that_stands_still_fails(recordings: Recordings) -> None:
    report = run(recordings, 0)
    assert report.both_right.mean == 0
    assert report.right == {"left": 0, "right": 0}


def test_calibration_on_the_recorded_game(recordings: Recordings) -> None:
    calibration = run(recordings, 0).calibration
    assert calibration.right == {"left": 1, "right": 1}
    assert calibration.both_right == 1
    assert min(calibration.pieces.values()) > 0


def test_both_of_a_pair_must_be_right() -> None:
    motions = {"left": np.array([2.0, 2.0, -2.0, 0.5]), "right": np.array([-2.0, 2.0, -2.0, -2.0])}
    report = summarize_motions(TURN, motions, list("aabb"))
    assert report.both_right.mean == 0.25
    assert report.right == {"left": 0.5, "right": 0.75}


def test_growing_pictures_are_forward_motion() -> None:
    picture = torch.from_numpy(PANORAMA[:, :WIDTH].copy())
    generator = torch.nn.functional.interpolate
    frames = [picture]
    for index in range(1, MOVE.hold_frames + 1):
        size = (HEIGHT + 4 * index, WIDTH + 4 * index * WIDTH // HEIGHT)
        large = generator(picture.movedim(-1, 0)[None].float(), size, mode="bilinear")[0].movedim(0, -1)
        top, left = (size[0] - HEIGHT) // 2, (size[1] - WIDTH) // 2
        frames.append(large[top : top + HEIGHT, left : left + WIDTH].to(torch.uint8))
    grown = torch.stack(frames)[None]
    assert mean_motion(MOVE, grown)[0] > 2
    assert mean_motion(MOVE, grown.flip(1))[0] < -2


def table(poses: list[tuple[float, float, float]], actions: np.ndarray | None = None) -> EpisodeTable:
    if actions is None:
        actions = np.zeros((len(poses), 3), dtype=np.int64)
    return EpisodeTable(actions=actions, poses=np.array(poses, dtype=np.float32) if poses else None)


def test_progress_is_measured_along_the_view() -> None:
    north = table([(0, 10.0 * i, 90) for i in range(20)])
    assert way_ahead(north, MOVE, TINY_ACTIONS, 12) == pytest.approx(np.full(8, 120))
    sideways = table([(10.0 * i, 0, 90) for i in range(20)])
    assert (way_ahead(sideways, MOVE, TINY_ACTIONS, 12) < 0).all()


def test_walks_start_where_there_is_room_ahead_and_behind(recordings: Recordings) -> None:
    """A straight walk of 40 frames with rest before and after it."""
    xs = np.concatenate([np.zeros(30), np.arange(40) * 10.0, np.full(30, 390.0)])
    walk = table([(float(x), 0.0, 0.0) for x in xs])

    class OneWalk:
        info = SimpleNamespace(actions=TINY_ACTIONS)

        def tables(self) -> list[EpisodeTable]:
            return [walk]

    fake: Any = OneWalk()
    clips = choose_starts(fake, MOVE, 4, 1000, seed=0)
    ends = [clip.begin + 3 for clip in clips]
    assert ends
    assert min(ends) >= 30
    assert max(ends) <= 70


def test_pieces_against_a_wall_do_not_count() -> None:
    forward = np.tile([1, 0, 0], (60, 1))
    blocked = np.minimum(np.arange(60) * 10.0, 300.0)
    pieces = held_pieces(
        [table([(float(x), 0.0, 0.0) for x in blocked], forward)], MOVE, TINY_ACTIONS, "forward", 1
    )
    assert pieces
    assert max(piece.begin for piece in pieces) < 30
    without_poses = held_pieces([table([], forward)], MOVE, TINY_ACTIONS, "forward", 1)
    assert len(without_poses) == 60 - MOVE.hold_frames


def test_a_world_without_the_buttons_has_no_such_test() -> None:
    jump = ActionLayout((ActionAxis(name="jump", buttons=("up",), keys=(("space",),)),))
    assert TURN.is_in(TINY_ACTIONS)
    assert not TURN.is_in(jump)
    assert not MOVE.is_in(jump)
