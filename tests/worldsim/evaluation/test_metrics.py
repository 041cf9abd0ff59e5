from __future__ import annotations

import numpy as np
import pytest
import torch

from worldsim.evaluation.metrics import (
    PSNR_CAP_DB,
    brightness,
    contrast,
    psnr,
    sharpness,
    ssim,
)


def grey(value: int, count: int = 2) -> torch.Tensor:
    return torch.full((count, 24, 32, 3), value, dtype=torch.uint8)


def test_psnr_of_a_known_error() -> None:
    expected = 20 * np.log10(255 / 10)
    torch.testing.assert_close(psnr(grey(110), grey(100)), torch.full((2,), expected, dtype=torch.float32))


def test_psnr_of_known_noise_is_that_of_its_deviation() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.full((3, 120, 160, 3), 128, dtype=torch.uint8)
    noise = torch.randn(target.shape, generator=generator) * 8
    noisy = (target.float() + noise).round().clamp(0, 255).to(torch.uint8)
    assert psnr(noisy, target).tolist() == pytest.approx([20 * np.log10(255 / 8)] * 3, abs=0.05)


def test_psnr_is_per_frame_and_capped_where_frames_are_equal() -> None:
    frames = torch.cat([grey(100, 1), grey(110, 1)])
    values = psnr(frames, grey(100))
    assert values[0] == PSNR_CAP_DB
    assert values[1] < 30


def test_ssim_is_one_for_equal_frames_and_per_frame() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (2, 24, 32, 3), dtype=torch.uint8, generator=generator)
    values = ssim(torch.stack([frames[0], frames[0]]), frames)
    assert values.shape == (2,)
    assert values[0] == pytest.approx(1)
    assert values[1] < 0.3


def test_floating_point_frames_are_refused() -> None:
    with pytest.raises(TypeError, match="uint8"):
        psnr(grey(1).float(), grey(1).float())


def test_statistics_of_stripes() -> None:
    """Columns of 0 and 255 in turn: half bright, deviation a half, every horizontal step a whole one."""
    frames = grey(0)
    frames[:, :, ::2] = 255
    assert brightness(frames).tolist() == pytest.approx([0.5, 0.5])
    assert contrast(frames).tolist() == pytest.approx([0.5, 0.5])
    assert sharpness(frames).tolist() == pytest.approx([1.0, 1.0])
    assert contrast(grey(80)).tolist() == pytest.approx([0, 0])
    assert sharpness(grey(80)).tolist() == pytest.approx([0, 0])
