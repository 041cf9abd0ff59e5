"""Energy score: a one-step world learns to draw as differently as futures are different, without a critic.

A proper scoring rule (Gneiting and Raftery 2007, eq. 20): no other distribution has a smaller expectation
than that of the data. A squared error draws the mean of all futures; this does not.
"""

# B clips, T frames, C h w latent size, A action axes

from __future__ import annotations

import torch
from torch import Tensor

from training.sharpen.adversarial import pooled
from training.sharpen.rollouts import OwnFrames, reach_all
from training.sharpen.settings import RolloutConfig
from worldsim.model.config import PATCH
from worldsim.model.denoiser import Denoiser
from worldsim.sampler import SamplerConfig

POOLS = (2, 4)
SMOOTHING = 1e-6
"""Below the root of a distance, whose slope would otherwise have no end at 0."""


def distance(first: Tensor, second: Tensor) -> Tensor:
    """Return the Euclidean distance of vectors `[..., D]`, slightly rounded at 0."""
    return ((first - second).square().sum(-1) + SMOOTHING).sqrt()


def energy_score(first: Tensor, second: Tensor, target: Tensor) -> Tensor:
    """Return `(|x1 - y| + |x2 - y|) / 2 - |x1 - x2| / 2` of vectors `[..., D]`, two draws and what came."""
    return (distance(first, target) + distance(second, target) - distance(first, second)) / 2


def vectors(latents: Tensor) -> list[Tensor]:
    """Return what distances are taken of: each token's patch, and each cell of coarser latents.

    Args:
        latents: `[..., C, h, w]`.

    Returns:
        One tensor `[..., places, numbers]` for each scale, over the root of its numbers.
    """
    patches = latents.unflatten(-1, (-1, PATCH)).unflatten(-3, (-1, PATCH))  # [..., C, rows, P, columns, P]
    patches = patches.movedim((-4, -2), (-5, -4)).flatten(-3).flatten(-3, -2)
    cells = [pooled(latents, side).flatten(-2).transpose(-2, -1) for side in POOLS]
    return [scale * scale.shape[-1] ** -0.5 for scale in (patches, *cells)]


class SelfRolloutEnergy(OwnFrames):
    """The energy score of two roll-outs of each clip, which differ in their noise alone.

    Args:
        denoiser: The world's network.
        config: The clips.
        sampler: The world's.
        reaches_all: Whether each parameter needs a gradient; see `reach_all`.
    """

    def __init__(
        self, denoiser: Denoiser, config: RolloutConfig, sampler: SamplerConfig, *, reaches_all: bool = False
    ) -> None:
        super().__init__(denoiser, config, sampler)
        self.reaches_all = reaches_all

    def forward(self, latents: Tensor, actions: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the loss of a batch; arguments as in `SelfRolloutCritic`.

        Returns:
            `loss`, and for the log `spread`, the mean distance of two draws over that of a draw to the truth.
        """
        clips = self.watched(latents, actions, generator)
        first, second = self.draw(clips.repeat(2), generator).float().chunk(2)
        scales = list(zip(*(vectors(x) for x in (first, second, clips.real)), strict=True))
        loss = torch.stack([energy_score(*scale).mean() for scale in scales]).sum()
        apart, off = (distance(scales[0][0], other).mean().detach() for other in scales[0][1:])
        if self.reaches_all:
            loss = loss + reach_all(self)
        return {"loss": loss, "spread": apart / off}
