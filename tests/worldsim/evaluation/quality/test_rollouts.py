from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.fakes import HEIGHT, TINY_ACTIONS, WIDTH, tiny_world, write_tiny_dataset, write_turning_dataset
from worldsim.actions import ActionAxis, ActionLayout
from worldsim.evaluation.inputs.clips import Clip, Recordings
from worldsim.evaluation.metrics import sequence_psnr
from worldsim.evaluation.quality.rollouts import (
    CODEC,
    COPY,
    DREAM,
    MEAN,
    REAL,
    TRUE_POSES,
    FrameScores,
    RolloutSettings,
    predict_next,
    predictions_of,
    roll_out,
    score,
    summarize_next,
    summarize_rollouts,
)
from worldsim.evaluation.quality.small_changes import energies
from worldsim.evaluation.report.text import format_horizons
from worldsim.evaluation.statistics import Estimate
from worldsim.simulator import Simulator

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = RolloutSettings(context_frames=4, horizon=8, batch_size=3, num_examples=2)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Recordings:
    folder = write_tiny_dataset(tmp_path_factory.mktemp("data"), episodes=3, frames=20)
    return Recordings(folder, TINY_ACTIONS, (HEIGHT, WIDTH))


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_copying_the_last_frame_of_a_still_video_is_perfect() -> None:
    world = tiny_world()
    frames = noise(1, HEIGHT, WIDTH, 3).expand(2, 10, HEIGHT, WIDTH, 3)
    predictions = predictions_of(world, frames, noise(2, 6, HEIGHT, WIDTH, 3, seed=2), frames[0, 0], 4)
    signal, similarity = score(predictions, frames[:, 4:], [1, 6, 100])
    assert np.unique(signal[COPY]).tolist() == [60.0]
    assert np.unique(signal[MEAN]).tolist() == [60.0]
    assert (signal[DREAM] < 15).all()
    assert similarity[COPY][:, [0, 5]].flatten().tolist() == pytest.approx([1] * 4)
    assert np.isnan(similarity[COPY][:, 1:5]).all()


def test_copied_frame_is_the_last_of_the_context() -> None:
    frames = noise(1, 8, HEIGHT, WIDTH, 3)
    predictions = predictions_of(tiny_world(), frames, frames[:, 4:], frames[0, 0], 4)
    assert torch.equal(predictions[COPY][0, 2], frames[0, 3])


def test_places_are_decided_by_the_seed_and_lie_inside_the_episodes(recordings: Recordings) -> None:
    clips = recordings.choose(12, 7, seed=5)
    assert clips == recordings.choose(12, 7, seed=5)
    assert clips != recordings.choose(12, 7, seed=6)
    assert len(set(clips)) == 7
    assert clips == sorted(clips, key=lambda clip: (clip.episode, clip.begin))
    assert all(0 <= clip.begin <= 8 for clip in clips)
    assert len(recordings.choose(12, 1000, seed=0)) == 3 * 9


def test_batches_hold_the_recorded_frames(recordings: Recordings) -> None:
    clips = [Clip(0, 3), Clip(2, 5), Clip(2, 8)]
    episode = recordings.episodes[2].read()
    batches = list(recordings.batches(clips, 12, batch_size=2))
    assert [len(batch.clips) for batch in batches] == [2, 1]
    assert [batch.first for batch in batches] == [0, 2]
    np.testing.assert_array_equal(batches[1].frames[0].numpy(), episode.frames[8:20])
    np.testing.assert_array_equal(batches[0].actions[1].numpy(), episode.actions[5:17])


def test_rollout_equals_stepping_by_hand_and_does_not_depend_on_the_batch(recordings: Recordings) -> None:
    simulator = Simulator(tiny_world())
    clips = recordings.choose(SETTINGS.length, 4, seed=0)
    scores = roll_out(simulator, recordings, clips, SETTINGS)
    batch = next(recordings.batches(clips, SETTINGS.length, 4))
    state = batch.begin_dreams(simulator, 4, seed=0)
    for index in range(3):
        frame, state = simulator.step(state, batch.actions[:, 3 + index])
    torch.testing.assert_close(scores.examples[0].dream[2], frame[0], atol=1, rtol=0)
    assert torch.equal(scores.examples[0].real, batch.frames[0, 4:])
    assert scores.psnr[DREAM].shape == (4, 8)
    assert len(scores.examples) == 2
    assert [example.name.split()[0] for example in scores.examples] == [
        scores.episodes[0],
        scores.episodes[2],
    ]


def test_a_world_that_follows_poses_dreams_once_more_and_is_told_them(tmp_path: Path) -> None:
    turning = write_turning_dataset(tmp_path)
    recordings = Recordings(turning, TINY_ACTIONS, (HEIGHT, WIDTH))
    simulator, clips = Simulator(tiny_world(has_odometry=True)), [Clip(0, 5), Clip(1, 20)]
    scores = roll_out(simulator, recordings, clips, SETTINGS)
    assert set(scores.psnr) == {DREAM, TRUE_POSES, COPY, MEAN, CODEC}
    batch = next(recordings.batches(clips, SETTINGS.length, 2))
    poses = batch.path(simulator.world)
    assert poses is not None and batch.poses is not None and not poses[:, 0].any()
    assert batch.poses[:, 0, 2].tolist() == [150.0, 240.0], "as recorded"
    assert poses[0, :3, 2].tolist() == pytest.approx([0, 30, 60], abs=1e-3)
    state, told = batch.begin_dreams(simulator, 4, seed=0, are_told=True), []
    for index in range(8):
        frame, state = simulator.step(state, batch.actions[:, 3 + index], poses[:, 4 + index])
        told.append(frame)
    expected = sequence_psnr(torch.stack(told, dim=1), batch.frames[:, 4:])
    np.testing.assert_allclose(scores.psnr[TRUE_POSES], expected.numpy(), atol=1e-3)
    assert not np.allclose(scores.psnr[TRUE_POSES], scores.psnr[DREAM], atol=1e-2)
    assert "true poses" in format_horizons(summarize_rollouts(scores))


def test_next_frames_are_predicted_from_real_ones(recordings: Recordings) -> None:
    """The first is what a roll-out begins with; the later ones are not what it goes on with."""
    simulator = Simulator(tiny_world())
    clips = recordings.choose(SETTINGS.length, 2, seed=0)
    ahead = predict_next(simulator, recordings, clips, SETTINGS)
    free = roll_out(simulator, recordings, clips, SETTINGS)
    np.testing.assert_allclose(ahead.psnr[DREAM][:, 0], free.psnr[DREAM][:, 0])
    assert not np.allclose(ahead.psnr[DREAM][:, 4:], free.psnr[DREAM][:, 4:])
    np.testing.assert_allclose(ahead.psnr[CODEC], free.psnr[CODEC])
    report = summarize_next(ahead)
    assert report.num_frames == 16
    expected = report.psnr_db[CODEC].mean - report.psnr_db[DREAM].mean
    assert report.under_codec_db.mean == pytest.approx(expected, abs=1e-4)


def test_summary_reads_the_frame_itself_and_the_mean_up_to_it() -> None:
    curve = np.tile(np.arange(1.0, 33.0), (3, 1))
    psnr = {DREAM: curve + 2, COPY: curve, MEAN: curve, CODEC: curve}
    report = summarize_rollouts(FrameScores(["a", "b", "c"], psnr, psnr, []))
    assert list(report.horizons) == [1, 8, 32]
    at_8 = report.horizons[8]
    assert at_8.psnr_db[DREAM].mean == 10
    assert at_8.psnr_mean_up_to_db[DREAM].mean == 6.5
    assert at_8.over_copy_db == Estimate(2.0, 2.0, 2.0, 3)
    assert at_8.over_copy_mean_up_to_db.mean == 2.0


def test_small_changes_are_shares_of_sums_around_the_frame() -> None:
    curve = np.ones((2, 32))
    changes = {REAL: curve.copy(), DREAM: 0.25 * curve, CODEC: 0.75 * curve}
    changes[REAL][1, 10], changes[DREAM][1, 10] = 15.0, 14.25  # frame 11, within three frames of frame 8
    scores = FrameScores(["a", "b"], {DREAM: curve, COPY: curve}, {}, [], changes)
    shares = {h: at.small_changes_share for h, at in summarize_rollouts(scores).horizons.items()}
    assert shares[1] == shares[32] == {DREAM: 0.25, CODEC: 0.75}
    assert shares[8][DREAM] == pytest.approx((13 * 0.25 + 14.25) / (13 + 15))


def test_without_small_changes_there_is_no_share() -> None:
    curve = np.ones((2, 8))
    still = {REAL: 0 * curve, DREAM: curve}
    scores = FrameScores(["a", "b"], {DREAM: curve, COPY: curve}, {}, [], still)
    assert summarize_rollouts(scores).horizons[8].small_changes_share == {DREAM: None}


def test_small_errors_are_measured_by_those_of_copying() -> None:
    curve = np.ones((2, 8))
    missed = {DREAM: 0.5 * curve, COPY: 2 * curve, CODEC: 0.1 * curve}
    psnr = dict.fromkeys(missed, curve)
    found = summarize_next(FrameScores(["a", "b"], psnr, {}, [], missed)).small_changes_error
    assert found == pytest.approx({DREAM: 0.25, CODEC: 0.05})


def test_changes_of_rollouts_are_measured_from_the_frame_before(recordings: Recordings) -> None:
    simulator = Simulator(tiny_world())
    clips = recordings.choose(SETTINGS.length, 2, seed=0)
    batch = next(recordings.batches(clips, SETTINGS.length, 2))
    scores = roll_out(simulator, recordings, clips, SETTINGS)
    expected = energies(batch.frames[:, 3:4], batch.frames[:, 4:])
    np.testing.assert_array_equal(scores.small_changes[REAL], expected.numpy())
    assert list(scores.small_changes) == [REAL, DREAM, CODEC]
    assert scores.small_changes[DREAM].shape == (2, 8)
    ahead = predict_next(simulator, recordings, clips, SETTINGS)
    np.testing.assert_array_equal(ahead.small_changes[COPY], expected.numpy())
    assert (ahead.small_changes[DREAM] >= 0).all()


def test_episodes_that_are_too_short_are_named_with_their_length(recordings: Recordings) -> None:
    with pytest.raises(ValueError, match="too short: 21 frames are needed, the longest has 20"):
        recordings.choose(21, 1, seed=0)


def test_other_buttons_are_refused(tmp_path: Path) -> None:
    other = ActionLayout((ActionAxis(name="jump", buttons=("up",), keys=(("space",),)),))
    folder = write_tiny_dataset(tmp_path, actions=other)
    with pytest.raises(ValueError, match="has the buttons jump/up, but move/forward"):
        Recordings(folder, TINY_ACTIONS, (HEIGHT, WIDTH))
