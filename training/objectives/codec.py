"""Loss of the frame autoencoder, as pure functions of images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from worldsim.codec import DOWNSAMPLING
from worldsim.errors import WorldError
from worldsim.settings import check_settings, setting

MAX_SHIFT = (1.0, 0.5)
"""Cells of latents, to the right and down: turning the view moves pictures sideways."""


@dataclass(kw_only=True, slots=True)
class CodecLossConfig:
    """Weights of the terms of the codec's loss."""

    l1_weight: float = setting(1.0, "Mean absolute error; keeps edges sharp.", minimum=0)
    mse_weight: float = setting(
        10.0, "Mean squared error: what PSNR measures, 20 times smaller than the absolute error.", minimum=0
    )
    gradient_weight: float = setting(
        0.5, "Mean absolute error of the differences between neighbouring pixels.", minimum=0
    )
    latent_noise: float = setting(
        0.1,
        "Largest standard deviation of the noise put on the latents in training, in units of the latents' "
        "own: the size of error that decoding should shrug off.",
        minimum=0,
    )
    shift_share: float = setting(
        0.0,
        "Of the pictures of a batch: their latents are moved by up to a cell before they are decoded, and "
        "what is to be decoded as far, so that latents move as pictures do (EQ-VAE, arXiv 2502.09509).",
        minimum=0,
        maximum=1,
    )

    def __post_init__(self) -> None:
        check_settings(self, "codec loss ")
        if self.l1_weight + self.mse_weight + self.gradient_weight == 0:
            raise WorldError("codec loss needs at least one weight above 0")


def gradient_difference(reconstructed: Tensor, images: Tensor) -> Tensor:
    """Return the mean absolute error of horizontal and vertical pixel differences.

    Args:
        reconstructed: `[B, 3, H, W]`, H and W at least 2.
        images: Same shape.
    """
    error = reconstructed - images
    vertical = (error[:, :, 1:] - error[:, :, :-1]).abs().mean()
    horizontal = (error[:, :, :, 1:] - error[:, :, :, :-1]).abs().mean()
    return (vertical + horizontal) / 2


def reconstruction_terms(reconstructed: Tensor, images: Tensor) -> dict[str, Tensor]:
    """Return the terms of the loss, unweighted scalars in fp32: `l1`, `mse` and `gradient`.

    Args:
        reconstructed: `[B, 3, H, W]`, not clamped, so that values outside [0, 1] are still pulled back.
        images: Same shape, in [0, 1].
    """
    reconstructed, images = reconstructed.float(), images.float()
    return {
        "l1": functional.l1_loss(reconstructed, images),
        "mse": functional.mse_loss(reconstructed, images),
        "gradient": gradient_difference(reconstructed, images),
    }


def reconstruction_loss(reconstructed: Tensor, images: Tensor, config: CodecLossConfig) -> Tensor:
    """Return the weighted sum of `reconstruction_terms`, a scalar."""
    terms = reconstruction_terms(reconstructed, images)
    return (
        config.l1_weight * terms["l1"]
        + config.mse_weight * terms["mse"]
        + config.gradient_weight * terms["gradient"]
    )


def sample_latent_noise(
    batch_size: int, latent_shape: tuple[int, int, int], config: CodecLossConfig, generator: torch.Generator
) -> Tensor:
    """Draw the noise of one batch for `FrameCodec.reconstruct`.

    Each frame gets its own level, uniform from 0 to `latent_noise`: clean latents must stay exact, and the
    errors of play have every size.

    Args:
        batch_size: B.
        latent_shape: (C, h, w).
        config: Gives the largest level.
        generator: Decides the numbers and, by its device, where they live.

    Returns:
        `[B, C, h, w]`, fp32, in units of the latents' standard deviation.
    """
    device = generator.device
    levels = torch.rand(batch_size, 1, 1, 1, generator=generator, device=device) * config.latent_noise
    return torch.randn(batch_size, *latent_shape, generator=generator, device=device) * levels


def num_shifted(batch_size: int, config: CodecLossConfig) -> int:
    """Return how many pictures of a batch are moved: its first ones, which are drawn by chance anyway."""
    return round(config.shift_share * batch_size)


def sample_shifts(batch_size: int, config: CodecLossConfig, generator: torch.Generator) -> Tensor | None:
    """Draw how far the first pictures of one batch are moved, for `FrameCodec.reconstruct`.

    As in EQ-VAE (Kouzelis et al., arXiv 2502.09509), with translations in the place of scales and rotations.

    Args:
        batch_size: B.
        config: Gives the share of them, S.
        generator: Decides the numbers and, by its device, where they live. Not used where S is 0.

    Returns:
        `[S, 2]`, fp32, cells to the right and down, within +-`MAX_SHIFT` and by whole pixels: a picture that
        is interpolated would teach to blur. None where S is 0.
    """
    if not (count := num_shifted(batch_size, config)):
        return None
    uniform = torch.rand(count, 2, generator=generator, device=generator.device) * 2 - 1
    # One number at a time: a tensor of both would be copied to a GPU in each update, which waits for that.
    pixels = [uniform[:, i] * largest * DOWNSAMPLING for i, largest in enumerate(MAX_SHIFT)]
    return torch.stack(pixels, dim=1).round() / DOWNSAMPLING
