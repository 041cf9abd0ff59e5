"""The estimators on textures that were moved by a known amount."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from worldsim.evaluation.inputs.motion import horizontal_shift, zoom

NUM_PICTURES = 8


@pytest.fixture(scope="module")
def rooms() -> Tensor:
    """Return pictures `[N, 120, 160]` with the spectrum of natural ones: mostly large shapes, and edges."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.zeros(NUM_PICTURES, 1, 120, 160)
    for octave in range(5):
        coarse = torch.rand(NUM_PICTURES, 1, 4 * 2**octave, 5 * 2**octave, generator=generator)
        scaled = functional.interpolate(coarse, (120, 160), mode="bilinear")
        pictures += (scaled > 0.6).float() * 0.3 / (octave + 1) + scaled * 0.5 / 2**octave
    return functional.avg_pool2d(functional.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)[:, 0] / 1.5


def moved(pictures: Tensor, *, log_scale: float = 0.0, shift: float = 0.0) -> Tensor:
    """Enlarge the content about the centre, then move it `shift` pixels to the right."""
    height, width = pictures.shape[1:]
    y = (torch.arange(height) + 0.5) * 2 / height - 1
    x = (torch.arange(width) + 0.5) * 2 / width - 1 - 2 * shift / width
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    grid = torch.stack([columns, rows], dim=-1) * math.exp(-log_scale)
    return functional.grid_sample(
        pictures[:, None],
        grid.expand(len(pictures), -1, -1, -1),
        mode="bicubic",
        padding_mode="reflection",
        align_corners=False,
    )[:, 0]


@pytest.mark.parametrize("shift", [-25.0, -10.0, -3.3, -1.0, -0.5, 0.5, 1.0, 2.4, 7.0, 18.0])
def test_shift_has_the_right_sign_and_size(rooms: Tensor, shift: float) -> None:
    estimate = horizontal_shift(rooms, moved(rooms, shift=shift))
    assert torch.equal(estimate.sign(), torch.full((NUM_PICTURES,), math.copysign(1, shift)))
    assert (estimate - shift).abs().max() < 0.6
    assert (estimate - shift).abs().median() < 0.15 + 0.01 * abs(shift)


@pytest.mark.parametrize("log_scale", [-0.15, -0.08, -0.03, -0.015, 0.015, 0.03, 0.08, 0.15])
@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_zoom_has_the_right_sign_and_size_also_while_turning(
    rooms: Tensor, log_scale: float, shift: float
) -> None:
    estimate = zoom(rooms, moved(rooms, log_scale=log_scale, shift=shift))
    assert torch.equal(estimate.sign(), torch.full((NUM_PICTURES,), math.copysign(1, log_scale)))
    assert (estimate - log_scale).abs().median() < 0.006


def test_still_pictures_do_not_move(rooms: Tensor) -> None:
    assert horizontal_shift(rooms, rooms).abs().max() < 0.01
    assert zoom(rooms, rooms).abs().max() < 0.005


def test_brightness_is_no_motion(rooms: Tensor) -> None:
    darker = rooms * 0.7 + 0.1
    assert horizontal_shift(rooms, darker).abs().max() < 0.1
    assert zoom(rooms, darker).abs().max() < 0.005


def test_plain_pictures_do_not_move() -> None:
    plain = torch.full((2, 120, 160), 0.5)
    assert horizontal_shift(plain, plain).tolist() == [0, 0]
    assert zoom(plain, plain).tolist() == [0, 0]


def test_a_vertical_bob_is_no_turn(rooms: Tensor) -> None:
    assert horizontal_shift(rooms, rooms.roll(3, dims=1)).abs().max() < 0.3


def test_size_of_the_picture_does_not_matter(rooms: Tensor) -> None:
    large = functional.interpolate(rooms[:, None], scale_factor=2, mode="bilinear")[:, 0]
    estimate = horizontal_shift(large, moved(large, shift=12.0))
    assert (estimate - 12).abs().median() < 0.3
    assert (zoom(large, moved(large, log_scale=0.06)) - 0.06).abs().median() < 0.006
