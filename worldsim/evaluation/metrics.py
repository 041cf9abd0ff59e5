"""Image metrics: PSNR, SSIM, luminance statistics. Pure functions.

Frames are `[N, H, W, 3]` uint8 on any device; every metric is a number per frame, `[N]` fp32 on that device.
"""

# N frames, H W frame size

from __future__ import annotations

import torch
from torch import Tensor

PSNR_CAP_DB = 60.0
"""Equal frames would have infinite PSNR, and one of them would decide a mean."""


def as_images(frames: Tensor) -> Tensor:
    """Return frames as `[N, 3, H, W]` fp32 in [0, 1]."""
    if frames.dtype != torch.uint8 or frames.ndim != 4:
        raise TypeError(f"expected uint8 frames [N, H, W, 3], got {frames.dtype} {tuple(frames.shape)}")
    return frames.movedim(-1, 1).float() / 255


def psnr(frames: Tensor, target: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each frame in dB, at most `PSNR_CAP_DB`."""
    # Here, not above: it takes as long to import as PyTorch, and every command would wait for it.
    from torchmetrics.functional.image import peak_signal_noise_ratio

    ratio = peak_signal_noise_ratio(
        as_images(frames), as_images(target), data_range=1.0, reduction="none", dim=(1, 2, 3)
    )
    return ratio.clamp(max=PSNR_CAP_DB)


def sequence_psnr(frames: Tensor, target: Tensor) -> Tensor:
    """Return the `psnr` of each frame of sequences `[N, F, H, W, 3]`, `[N, F]`."""
    columns = zip(frames.unbind(1), target.unbind(1), strict=True)
    return torch.stack([psnr(*column) for column in columns], dim=1)


def ssim(frames: Tensor, target: Tensor) -> Tensor:
    """Return the structural similarity of each frame, at most 1 (Gaussian window of 11 pixels)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

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
