"""What is measured on pictures, and how sure a mean is. Pure functions.

Frames are `[N, H, W, 3]` uint8 on any device; every metric is a number per frame, `[N]` fp32 on that device.
"""

# N frames, H W frame size

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

PSNR_CAP_DB = 60.0
"""Equal frames would have infinite PSNR, and one of them would decide a mean."""
NUM_RESAMPLES = 2000


def as_images(frames: Tensor) -> Tensor:
    """Return frames as `[N, 3, H, W]` fp32 in [0, 1]."""
    if frames.dtype != torch.uint8 or frames.ndim != 4:
        raise TypeError(f"expected uint8 frames [N, H, W, 3], got {frames.dtype} {tuple(frames.shape)}")
    return frames.movedim(-1, 1).float() / 255


def psnr(frames: Tensor, target: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each frame in dB, at most `PSNR_CAP_DB`."""
    ratio = peak_signal_noise_ratio(
        as_images(frames), as_images(target), data_range=1.0, reduction="none", dim=(1, 2, 3)
    )
    return ratio.clamp(max=PSNR_CAP_DB)


def ssim(frames: Tensor, target: Tensor) -> Tensor:
    """Return the structural similarity of each frame, at most 1 (Gaussian window of 11 pixels)."""
    score = structural_similarity_index_measure(
        as_images(frames), as_images(target), data_range=1.0, reduction="none"
    )
    assert isinstance(score, Tensor)
    return score.reshape(len(frames))


def luminance(frames: Tensor) -> Tensor:
    """Return the luminance (Rec. 601) of frames, `[N, H, W]` fp32 in [0, 1]."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=frames.device)
    return torch.einsum("nchw,c->nhw", as_images(frames), weights)


def brightness(frames: Tensor) -> Tensor:
    """Return the mean luminance of each frame."""
    return luminance(frames).mean(dim=(1, 2))


def contrast(frames: Tensor) -> Tensor:
    """Return the standard deviation of the luminance of each frame."""
    return luminance(frames).std(dim=(1, 2), correction=0)


def sharpness(frames: Tensor) -> Tensor:
    """Return the mean squared difference between neighbouring pixels of each frame: low when blurred."""
    image = luminance(frames)
    horizontal = image.diff(dim=2).square().mean(dim=(1, 2))
    return horizontal + image.diff(dim=1).square().mean(dim=(1, 2))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its 95 % bootstrap interval.

    Attributes:
        mean: The mean.
        low: Lower end; None where there is nothing to resample.
        high: Upper end.
        count: Number of values.
    """

    mean: float
    low: float | None
    high: float | None
    count: int

    def to_json(self) -> dict[str, float | int | None]:
        """Return a JSON object."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "count": self.count}


def bootstrap(values: Sequence[float] | np.ndarray, groups: Sequence[Hashable], seed: int = 0) -> Estimate:
    """Return the mean of values with an interval from resampling whole groups.

    Values from one episode are not independent, so episodes are resampled, not values.

    Args:
        values: `[N]`, at least one.
        groups: `[N]`, what each value belongs to; fewer than two different ones give no interval.
        seed: Of the resampling.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0 or len(groups) != len(array):
        raise ValueError(f"bootstrap needs values and one group each, got {array.shape} and {len(groups)}")
    mean = float(array.mean())
    names = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    if len(names) < 2:
        return Estimate(mean, None, None, len(array))
    index = np.array([names[group] for group in groups])
    sums = np.bincount(index, weights=array)
    counts = np.bincount(index)
    picks = np.random.default_rng(seed).integers(len(names), size=(NUM_RESAMPLES, len(names)))
    means = sums[picks].sum(axis=1) / counts[picks].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(mean, float(low), float(high), len(array))
