"""The command that trains and measures the depth estimator: what it writes, tells and refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from policies.scripted.depth import FARTHEST, NEAREST, NUM_STRIPS, WEIGHTS, DepthEstimator
from training.depth import main
from training.depth.footage import record
from training.depth.train import DepthConfig, longest_run, measure
from worldsim.data.video import VideoWriter
from worldsim.errors import WorldError
from worldsim.starts import read_starts
from worldsim.world.world import SHIPPED, STARTS_FOLDER

pytestmark = pytest.mark.usefixtures("one_thread")


def write_video(path: Path, frames: list[np.ndarray]) -> str:
    height, width = frames[0].shape[:2]
    with VideoWriter(path, height=height, width=width, frame_rate=10) as video:
        for frame in frames:
            video.write(frame)
    return str(path)


def test_a_game_is_learned_and_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("vizdoom")
    main.run(DepthConfig(out=str(tmp_path), games=["doom-rooms"], num_frames=40, heldout_frames=10, epochs=2))
    told = capsys.readouterr().out
    assert told.startswith(
        f"wrote {tmp_path / 'depth.safetensors'}\ndoom-rooms: depth is off by a factor of "
    )
    tensors, ours = load_file(tmp_path / "depth.safetensors"), load_file(WEIGHTS)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: tensor.shape for name, tensor in ours.items()
    }
    depths = DepthEstimator({name: tensor.astype(np.float32) for name, tensor in tensors.items()})(
        np.zeros((120, 160, 3), np.uint8)
    )
    assert depths.shape == (NUM_STRIPS,)
    assert (depths >= NEAREST - 0.1).all() and (depths <= FARTHEST + 0.1).all()


def test_videos_are_measured_by_what_ships(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = read_starts(SHIPPED / "doom-rooms" / STARTS_FOLDER)[0].frames[-1].numpy()
    wall = frame[40:55, 70:90].repeat(8, axis=0).repeat(8, axis=1)
    video = write_video(tmp_path / "a.mp4", [frame, wall, wall, frame])
    main.run(DepthConfig(games=[], videos=[video], out=str(tmp_path / "out")))
    assert capsys.readouterr().out == f"{video} faces a wall in 50% of 4 frames, 2 in a row\n"
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_measured_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    small = write_video(tmp_path / "small.mp4", [np.zeros((8, 8, 3), np.uint8)])
    with pytest.raises(WorldError, match="of 8 x 8: depth is told in frames of at least 20 x 15"):
        main.run(DepthConfig(videos=[small], out=str(tmp_path / "out")))
    with pytest.raises(FileNotFoundError, match="there is no video"):
        main.run(DepthConfig(videos=["gone.mp4"], out=str(tmp_path / "out")))
    with pytest.raises(WorldError, match="needs videos"):
        DepthConfig(games=[])
    with pytest.raises(WorldError, match="grid-recall tells no depth"):
        record(["doom-rooms", "grid-recall"], 10**9, 0)
    assert not (tmp_path / "out").exists()


def test_measures_of_frames_without_a_wall_are_words_too() -> None:
    frames = [np.zeros((120, 160, 3), np.uint8)] * 2

    def estimator(frame: np.ndarray) -> np.ndarray:
        return np.full(NUM_STRIPS, 300.0)

    told = measure(estimator, frames, np.full((2, NUM_STRIPS), 150.0))  # type: ignore[arg-type]
    assert "factor of 2.00" in told
    assert told.endswith("is told in 0 frames, and in 0.0% of 2 others")
    assert [longest_run(row) for row in ([], [True], [True, False, True, True])] == [0, 1, 2]
