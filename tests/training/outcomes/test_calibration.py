"""Scale and bias of end logits, fitted to what happened."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.fakes import tiny_world
from training.data.latents import LatentVideo
from training.outcomes.calibration import fit_end_calibration, predict_outcomes
from worldsim.evaluation.quality.outcome import calibration_error
from worldsim.outcome import OutcomeConfig
from worldsim.world import World


def test_calibration_recovers_scale_and_bias() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(-3, 2, 200_000)
    ends = rng.random(len(logits)) < 1 / (1 + np.exp(-(0.7 * logits - 1.5)))
    scale, bias = fit_end_calibration(logits, ends)
    assert scale == pytest.approx(0.7, abs=0.03)
    assert bias == pytest.approx(-1.5, abs=0.1)
    before, after = (1 / (1 + np.exp(-z)) for z in (logits, scale * logits + bias))
    assert calibration_error(after, ends) < 0.003
    assert calibration_error(before, ends) > 10 * calibration_error(after, ends)


def test_calibration_of_ends_told_apart_without_a_mistake_is_finite() -> None:
    logits, ends = np.append(np.full(500, -5.0), [8.0, 9.0]), np.append(np.zeros(500), [1, 1]).astype(bool)
    scale, bias = fit_end_calibration(logits, ends)
    probability = 1 / (1 + np.exp(-(scale * logits + bias)))
    assert 0 < scale < 10
    assert probability[:500].max() < 0.01
    assert probability[500:].min() > 0.5


def test_logits_that_say_the_opposite_are_not_believed() -> None:
    logits, ends = np.array([3.0, 3, 3, 3, -3]), np.array([False, False, False, False, True])
    scale, bias = fit_end_calibration(logits, ends)
    assert scale == 0
    assert bias < 0


@pytest.mark.usefixtures("one_thread")
def test_a_world_of_poses_is_told_the_recorded_ones_until_it_follows_them_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    whole = tiny_world(outcome=OutcomeConfig(), has_odometry=True)
    bare = World(whole.config, whole.denoiser, whole.codec)
    video = LatentVideo(
        torch.randn(6, 4, 4, 6, generator=generator).half(),
        torch.randint(3, (6, 3), generator=generator),
        [4, 2],
        rewards=torch.zeros(6),
        ends=torch.arange(6) == 5,
        poses=torch.randn(6, 3, generator=generator) * 100,
    )
    still = replace(video, poses=torch.zeros(6, 3))
    for world, are_told in ((bare, True), (whole, False)):
        (found, _), (other, _) = (predict_outcomes(world, each) for each in (video, still))
        assert torch.equal(found.logits, other.logits) != are_told
