"""Energy score: a one-step world learns to draw as differently as futures are different, without a critic.

A proper scoring rule (Gneiting and Raftery 2007, eq. 20): no other distribution has a smaller expectation
than that of the data. A squared error draws the mean of all futures; this does not.
"""

# B clips, T frames, C h w latent size, A action axes

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from training.objectives.noise import mix
from training.sharpen.critic import Critic
from training.sharpen.rollouts import Clips, OwnFrames, pooled, reach_all
from training.sharpen.settings import EnergyConfig, RolloutConfig
from worldsim.model.config import PATCH
from worldsim.model.denoiser import Denoiser
from worldsim.sampler import SamplerConfig

POOLS = (2, 4)
FEATURE_LEVEL = 0.1
"""Noise under which features are taken, the same for all: the network was trained on no clean frames."""
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


class EnergyScore(nn.Module):
    """The energy score of two roll-outs of each clip, which differ in their noise alone.

    Places of latents are judged each by themselves, so that right ones may be put together wrongly: grain for
    bricks. Tokens of a network see whole frames, and those before them.

    Args:
        denoiser: The world's network, as it is now.
        goals: Weights.
    """

    def __init__(self, denoiser: Denoiser, goals: EnergyConfig) -> None:
        super().__init__()
        self.goals, self.eye = goals, None
        if goals.feature_weight:
            self.eye = Critic(denoiser, is_frozen=True).requires_grad_(False)

    def forward(
        self, clips: Clips, first: Tensor, second: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the score of draws `[B, T, C, h, w]` fp32.

        Returns:
            `loss`, and for the log `spread`, the mean distance of two draws over that of a draw to the truth,
            and with features their part of the loss.
        """
        three = (first, second, clips.real)
        scales = list(zip(*(vectors(x) for x in three), strict=True))
        losses = {"loss": score_of(scales)}
        apart, off = (distance(scales[0][0], other).mean().detach() for other in scales[0][1:])
        losses["spread"] = apart / off
        if self.eye is not None:
            noise = torch.randn(first.shape, generator=generator, device=first.device)
            score = score_of(list(zip(*(self.features(clips, x, noise) for x in three), strict=True)))
            losses["loss"] = losses["loss"] + self.goals.feature_weight * score
            losses["loss_features"] = score.detach()
        return losses

    def features(self, clips: Clips, frames: Tensor, noise: Tensor) -> list[Tensor]:
        """Return the tokens that the world as it was makes of frames, `[B, T, N, D]` for each of two depths.

        They have unit variance, over the root of D.
        """
        assert self.eye is not None
        levels = torch.full((len(frames),), FEATURE_LEVEL, device=frames.device)
        noisy = mix(frames, noise, levels[:, None].expand(-1, frames.shape[1]))
        tokens = self.eye.tokens(frames, noisy, levels, clips.actions, clips.memory, clips.poses)[:-1]
        width = tokens[0].shape[-1]
        return [layer_norm(each.float(), (width,)) * width**-0.5 for each in tokens]


class SelfRolloutEnergy(OwnFrames):
    """The energy score of a world's roll-outs.

    Args:
        denoiser: The world's network.
        config: The clips.
        goals: Weights.
        sampler: The world's.
        reaches_all: Whether each parameter needs a gradient; see `reach_all`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        config: RolloutConfig,
        goals: EnergyConfig,
        sampler: SamplerConfig,
        *,
        reaches_all: bool = False,
    ) -> None:
        super().__init__(denoiser, config, sampler)
        self.score, self.reaches_all = EnergyScore(denoiser, goals), reaches_all

    def forward(
        self, latents: Tensor, actions: Tensor, generator: torch.Generator, poses: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return what `EnergyScore` says of a batch; arguments as in `SelfRolloutCritic`."""
        clips = self.watched(latents, actions, generator, poses)
        losses = self.score(clips, *self.draw_each(clips, 2, generator), generator)
        if self.reaches_all:
            losses["loss"] = losses["loss"] + reach_all(self)
        return losses


def score_of(scales: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """Return the sum of mean energy scores over scales, each two draws and what came."""
    return torch.stack([energy_score(*scale).mean() for scale in scales]).sum()
