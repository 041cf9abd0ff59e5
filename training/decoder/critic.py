"""A critic of decoded frames that sees their latents and the frame before."""

# B batch, C latent channels, H W frame or crop size, h w of its latents, P places of a scale

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.objectives.adversarial import pair_loss
from worldsim.codec import DOWNSAMPLING

DETAIL_GAIN = 10.0
"""Fine differences of frames are 0.02 beside latents of 1: unscaled, a critic stayed at chance."""
LATENT_GAIN = 0.2
SLOPE = 0.2
"""Of the leaky ReLUs."""


class PatchCritic(nn.Module):
    """Score places of frames at three scales: the higher, the more real given latents and the frame before.

    There is no normalisation, as in R3GAN (arXiv 2501.05441): `slope_penalty` keeps the scores smooth.

    Args:
        latent_channels: C.
        widths: Channels at 1/2, 1/4 and 1/8 of the frame.
    """

    def __init__(self, latent_channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        inputs = [4 * 2 * 2 * 3 + 2 * latent_channels, *widths[:-1]]
        self.scales = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, width, 3, padding=1)
                if index == 0
                else nn.Conv2d(before, width, 4, stride=2, padding=1),
                nn.LeakyReLU(SLOPE),
                nn.Conv2d(width, width, 3, padding=1),
                nn.LeakyReLU(SLOPE),
            )
            for index, (before, width) in enumerate(zip(inputs, widths, strict=True))
        )
        self.scores = nn.ModuleList(nn.Conv2d(width, 1, 1) for width in widths)
        for module in self.scales.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=SLOPE)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        for module in self.scores:
            assert isinstance(module, nn.Conv2d)
            nn.init.normal_(module.weight, std=0.1 * module.in_channels**-0.5)
        # The overloads of `to` leave this form out.
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, images: Tensor, latents: Tensor) -> list[Tensor]:
        """Score pairs of frames in a row.

        Args:
            images: `[B, 2, 3, H, W]` in [0, 1], the frame before first; H and W multiples of 8.
            latents: `[B, 2, C, h, w]`, of unit variance, those of the same places.

        Returns:
            For each scale the scores `[B, P]`, fp32.
        """
        pair = images.flatten(1, 2)  # [B, 6, H, W]
        smooth = functional.avg_pool2d(functional.pad(pair, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
        seen = torch.cat([2 * pair - 1, DETAIL_GAIN * (pair - smooth)], dim=1)
        small = LATENT_GAIN * latents.flatten(1, 2).float()
        cells = functional.interpolate(small, scale_factor=DOWNSAMPLING / 2, mode="nearest")
        x = torch.cat([functional.pixel_unshuffle(seen, 2), cells], dim=1)
        x = x.contiguous(memory_format=torch.channels_last)
        found = []
        for scale, score in zip(self.scales, self.scores, strict=True):
            x = scale(x)
            found.append(score(x).float().flatten(1))
        return found


def relativistic_loss(better: Sequence[Tensor], worse: Sequence[Tensor]) -> Tensor:
    """Return how far one score is from being above another, at the same place of the same frame.

    The mean of `pair_loss` over scales.

    Args:
        better: `[B, P]` of each scale.
        worse: Same shapes.
    """
    return torch.stack([pair_loss(*scores) for scores in zip(better, worse, strict=True)]).mean()


def slope_penalty(scores: Sequence[Tensor], disturbed: Sequence[Tensor], perturbation: float) -> Tensor:
    """Return half the mean squared slope of scores along noise.

    Finite differences in the place of the gradients of R1 and R2, which would need a second derivative
    (the approximated R1 of arXiv 2501.08316).

    Args:
        scores: `[B, P]` of each scale.
        disturbed: Those of the same frames with noise of standard deviation `perturbation`.
    """
    slopes = [((a - b) / perturbation).square().mean() for a, b in zip(scores, disturbed, strict=True)]
    return torch.stack(slopes).mean() / 2
