"""Teaching of sight: near and far walls that fly by, and frames that are learned from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.fakes import save_tiny_world
from training.odometry.footage import steps_to_learn
from training.odometry.sight import TaughtFrames, fit_brightness, teach_sight
from worldsim.codec import load_codec
from worldsim.model.memory.sight import POINTS, Flow, Sight, unpack_told

pytestmark = pytest.mark.usefixtures("one_thread")
NUM_FRAMES = 240


def walls_that_fly_by(seed: int) -> tuple[Tensor, Tensor]:
    """Return latents `[T, 16, 4, 12]`, one a point of a cell, and steps `[T, 3]` to the left and back.

    Halves of the video are of a wall that flies by 4 points a unit, and by 8, which is darker.
    """
    generator = torch.Generator().manual_seed(seed)
    steps = torch.zeros(NUM_FRAMES, 3)
    steps[1:, 1] = 2 * torch.rand(NUM_FRAMES - 1, generator=generator) - 1
    steps[NUM_FRAMES // 2, 1] = 0
    nearness = torch.where(torch.arange(NUM_FRAMES) < NUM_FRAMES // 2, 4.0, 8.0)
    place = (nearness * steps[:, 1]).cumsum(0)[:, None, None]
    y, x = torch.meshgrid(torch.arange(4.0 * POINTS), torch.arange(12.0 * POINTS), indexing="ij")
    bright = 0.2 * ((0.5 * (x - place)).sin() + (0.23 * (x - place)).cos() + (0.6 * y).sin())
    bright = bright + torch.where(nearness == 4.0, 0.7, 0.3)[:, None, None]
    return functional.pixel_unshuffle(bright[:, None], POINTS), steps


def test_how_near_a_wall_is_is_told_from_what_it_looks_like() -> None:
    torch.manual_seed(0)
    latents, steps = walls_that_fly_by(0)
    sight = Sight((POINTS**2, 4, 12))
    sight.flow.weight[:, :, 1, 1] = torch.eye(POINTS**2)
    frames = torch.tensor([each for each in range(1, NUM_FRAMES) if each != NUM_FRAMES // 2])
    teach_sight(sight, TaughtFrames(latents, frames, steps[frames]), 60, 0)
    latents, steps = walls_that_fly_by(1)
    with torch.no_grad():
        moved, known = unpack_told(sight(latents[:-1], latents[1:]))
    off = (moved[:, 1] - steps[1:, 1]).abs()
    far, near = off[: NUM_FRAMES // 2 - 1], off[NUM_FRAMES // 2 :]
    assert far.median() < 0.05 and near.median() < 0.05
    assert known[:, 1, 1].median() > 30 * known[:, 0, 0].median()  # nobody walked ahead


def test_a_player_who_never_moves_teaches_that_nothing_flies() -> None:
    torch.manual_seed(0)
    latents, steps = walls_that_fly_by(0)
    sight = Sight((POINTS**2, 4, 12))
    sight.flow.weight[:, :, 1, 1] = torch.eye(POINTS**2)
    frames = torch.arange(1, NUM_FRAMES)
    teach_sight(sight, TaughtFrames(latents, frames, 0 * steps[frames]), 2, 0)
    assert sight.answers.abs().max() < 0.02 and sight(latents[:9], latents[1:10]).isfinite().all()


def test_brightness_is_read_as_a_codec_draws_it(tmp_path: Path) -> None:
    codec = load_codec(save_tiny_world(tmp_path / "world"))
    channels, height, width = codec.latent_shape
    latents = torch.randn(64, channels, height, width, generator=torch.Generator().manual_seed(0))
    flow = Flow(channels)
    fit_brightness(flow, codec, latents)
    found = flow.brightness(latents)
    images = codec.decode_images(latents).detach().clamp(0, 1)
    drawn = torch.einsum("nchw,c->nhw", images, torch.tensor([0.299, 0.587, 0.114]))
    wanted = functional.avg_pool2d(drawn.unsqueeze(1), 8 // POINTS).squeeze(1)
    found = found[:, : wanted.shape[1], : wanted.shape[2]]
    assert (found - wanted).square().mean() < 0.7 * (wanted - wanted.mean(0)).square().mean()


def test_firsts_of_episodes_and_leaps_are_not_learned_from() -> None:
    walk = torch.zeros(5, 3, dtype=torch.float64)
    walk[1:, 0] = torch.tensor([16.0, 8.0, 900.0, 4.0])
    frames, steps = steps_to_learn([walk, walk[:3]], 100)
    assert frames.tolist() == [1, 2, 4, 6, 7]
    assert steps[:, 0].tolist() == [1.0, 0.5, 0.25, 1.0, 0.5] and not steps[:, 1:].any()
    assert steps_to_learn([walk, walk[:3]], 2)[0].tolist() == [1, 7]
