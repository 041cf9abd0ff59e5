"""Losses of the feature network, learned from gameplay video alone, as pure functions of images.

Two things. Frames of one episode that are near in time show the same place: each must find its neighbour
among the others of the batch (InfoNCE). And how much a frame was blurred, overlaid with noise, or mixed with
another one, which is what bad dreams look like, must be readable from its features by a linear map.
"""

# B batch, H W size, D features

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldsim.evaluation.quality.features import FeatureNetwork
from worldsim.settings import check_settings, setting

DEGRADATIONS = ("blur", "noise", "ghost")
KERNEL_SIZE = 13
CROP = 7 / 8
"""Share of height and width that a crop keeps: where in the picture something is says little about it."""


@dataclass(kw_only=True, slots=True)
class FeatureLossConfig:
    """Weights and strengths of the goals."""

    temperature: float = setting(0.1, "Of InfoNCE.", above=0)
    degradation_weight: float = setting(
        10.0, "Of the squared error of the strengths, which lie in [0, 1]; 0 leaves them out.", minimum=0
    )
    max_blur: float = setting(3.0, "Deviation in pixels of the strongest blur.", minimum=0)
    max_noise: float = setting(0.2, "Deviation of the strongest noise, of values in [0, 1].", minimum=0)
    max_ghost: float = setting(0.5, "Greatest share of another frame.", minimum=0, maximum=1)

    def __post_init__(self) -> None:
        check_settings(self, "loss.")


def blur(images: Tensor, sigmas: Tensor) -> Tensor:
    """Blur each image `[B, 3, H, W]` by its own deviation in pixels, `[B]`; 0 leaves it as it is."""
    offsets = torch.arange(KERNEL_SIZE, device=images.device) - KERNEL_SIZE // 2
    weights = torch.exp(-(offsets**2) / (2 * sigmas.clamp(min=1e-2)[:, None] ** 2))
    weights = (weights / weights.sum(dim=1, keepdim=True)).repeat_interleave(3, dim=0)  # [3 B, kernel]
    half, channels = KERNEL_SIZE // 2, len(weights)
    flat = functional.pad(images.flatten(0, 1)[None], (half, half, half, half), mode="replicate")
    flat = functional.conv2d(flat, weights[:, None, None, :], groups=channels)
    return functional.conv2d(flat, weights[:, None, :, None], groups=channels)[0].unflatten(0, (-1, 3))


def degrade(
    images: Tensor, others: Tensor, config: FeatureLossConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return degraded images and how much of each degradation they have.

    Args:
        images: `[B, 3, H, W]` in [0, 1].
        others: Same shape, what ghosts are made of.
        config: Greatest strengths.
        generator: Decides the strengths and the noise.

    Returns:
        Images of the same shape, in [0, 1]; strengths `[B, 3]` in [0, 1], half of them 0, in the order of
        `DEGRADATIONS`.
    """
    shape, device = (len(images), len(DEGRADATIONS)), images.device
    strengths = torch.rand(shape, generator=generator, device=device)
    strengths *= torch.rand(shape, generator=generator, device=device) < 0.5
    blurred, noisy, ghostly = strengths.unbind(dim=1)
    share = (config.max_ghost * ghostly).view(-1, 1, 1, 1)
    degraded = blur((1 - share) * images + share * others, config.max_blur * blurred)
    noise = torch.randn(images.shape, generator=generator, device=device)
    degraded = degraded + (config.max_noise * noisy).view(-1, 1, 1, 1) * noise
    return degraded.clamp(0, 1), strengths


def crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return all images cropped at one random place, `CROP` of their height and width."""
    height, width = (int(CROP * size) for size in images.shape[2:])
    room = torch.tensor([images.shape[2] - height, images.shape[3] - width], device=generator.device) + 1
    top, left = (torch.rand(2, generator=generator, device=generator.device) * room).long().tolist()
    return images[:, :, top : top + height, left : left + width]


def info_nce(anchors: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """Return the mean cross-entropy of finding each positive `[B, D]` by its anchor, and the other way."""
    similarity = functional.normalize(anchors, dim=1) @ functional.normalize(positives, dim=1).T / temperature
    target = torch.arange(len(anchors), device=anchors.device)
    return (functional.cross_entropy(similarity, target) + functional.cross_entropy(similarity.T, target)) / 2


class FeatureLearner(nn.Module):
    """The feature network and the two heads that it learns with, as a module that Fabric can wrap.

    Args:
        network: Learns.
        config: Goals.
    """

    def __init__(self, network: FeatureNetwork, config: FeatureLossConfig) -> None:
        super().__init__()
        self.network, self.config = network, config
        width = network.num_features
        self.projection = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.strengths = nn.Linear(width, len(DEGRADATIONS))

    def forward(self, frames: Tensor, neighbours: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the losses of frames and their neighbours in time, both `[B, H, W, 3]` uint8."""
        images, near = (each.movedim(-1, 1).float() / 255 for each in (frames, neighbours))
        anchors, positives = crop(images, generator), crop(near, generator)
        # Half as many degraded ones: they cost as much as the others.
        half = max(2, len(frames) // 2)
        clean = crop(images[:half], generator)
        degraded, strengths = degrade(clean, clean.roll(1, dims=0), self.config, generator)
        features = self.network.raw_features(torch.cat([anchors, positives, degraded]))
        seen, later, bad = features.split([len(frames), len(frames), half])
        contrast = info_nce(self.projection(seen), self.projection(later), self.config.temperature)
        told = self.strengths(torch.cat([bad, seen[:half]]))
        degradation = functional.mse_loss(told, torch.cat([strengths, torch.zeros_like(strengths)]))
        loss = contrast + self.config.degradation_weight * degradation
        return {"loss": loss, "contrast": contrast.detach(), "degradation": degradation.detach()}
