from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.fakes import HEIGHT, TINY_ACTIONS, WIDTH, tiny_world, write_tiny_dataset
from worldsim.data.dataset_info import DatasetInfo
from worldsim.data.episodes import EpisodeWriter
from worldsim.evaluation.inputs.clips import Recordings
from worldsim.evaluation.quality.idle import STATISTICS, STILL_FRAMES, idle_hold, still_starts, summarize_idle
from worldsim.simulator import Simulator

EPISODES = ["a", "b"]


def curves(**changed: np.ndarray) -> dict[str, np.ndarray]:
    """Return the curves of two pictures that stay as they are, but for some."""
    steady = {name: np.full((2, 500), 0.2) for name in STATISTICS}
    steady |= {"psnr_db": np.full((2, 500), 40.0), "ssim": np.full((2, 500), 0.9)}
    steady |= {f"{where}_{name}": np.full(2, 0.2) for name in STATISTICS for where in ("start", "codec")}
    return steady | changed


def test_a_picture_that_stays_does_not_deviate() -> None:
    report = summarize_idle(curves(), EPISODES)
    assert report.segment_ends[-1] == 500
    assert all(getattr(report, name).max_deviation == pytest.approx(0) for name in STATISTICS)
    assert report.psnr_db_to_start == [40.0] * 10


def test_a_collapse_in_the_middle_counts_though_the_end_is_well() -> None:
    contrast = np.full((2, 500), 0.2)
    contrast[:, 200:250] = 0.05
    report = summarize_idle(curves(contrast=contrast), EPISODES)
    assert report.contrast.max_deviation == pytest.approx(0.75)
    assert report.contrast.last_deviation.mean == pytest.approx(0)


def test_opposite_deviations_of_two_starts_do_not_cancel() -> None:
    sharpness = np.stack([np.full(500, 0.1), np.full(500, 0.3)])
    report = summarize_idle(curves(sharpness=sharpness), EPISODES)
    assert report.sharpness.ratio == [1.0] * 10
    assert report.sharpness.max_deviation == pytest.approx(0.5)


def test_what_the_codec_alone_blurs_is_told_apart() -> None:
    blurred = {"sharpness": np.full((2, 500), 0.16), "codec_sharpness": np.full(2, 0.16)}
    report = summarize_idle(curves(**blurred), EPISODES)
    assert report.sharpness.max_deviation == pytest.approx(0.2)
    assert report.sharpness.of_codec.max_deviation == pytest.approx(0)


def test_starts_are_where_the_player_rests(tmp_path: Path) -> None:
    info = DatasetInfo(name="rest", width=WIDTH, height=HEIGHT, frame_rate=10.0, actions=TINY_ACTIONS)
    info.save(tmp_path)
    with EpisodeWriter(tmp_path, "episode", info) as writer:
        for index in range(60):
            pressed = 0 if 20 <= index < 40 else 1
            writer.add(np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8), np.array([pressed, 0, 0]))
    recordings = Recordings(tmp_path, TINY_ACTIONS, (HEIGHT, WIDTH))
    ends = [clip.begin + 3 for clip in still_starts(recordings, 4, 1000, seed=0)]
    assert ends == list(range(20 + STILL_FRAMES, 41))


def test_idle_hold_of_a_small_world(tmp_path: Path) -> None:
    recordings = Recordings(write_tiny_dataset(tmp_path), TINY_ACTIONS, (HEIGHT, WIDTH))
    report = idle_hold(
        Simulator(tiny_world()),
        recordings,
        num_starts=3,
        num_frames=5,
        context_frames=4,
        batch_size=2,
        seed=0,
    )
    assert report.num_starts == 3
    assert report.segment_ends == [1, 2, 3, 4, 5]
    assert all(np.isfinite(getattr(report, name).max_deviation) for name in STATISTICS)
