"""Where the velocity's error counts more: in the cells of a frame that change more than the rest of it."""

# B batch, F frames, C h w latent size

from __future__ import annotations

import torch
from torch import Tensor

STILL = 1e-3
"""Mean squared change of latents of unit variance below which a frame stands still: what the video's
compression leaves is not to be taken for motion."""


def change_weights(latents: Tensor, weight: float, cap: float) -> Tensor:
    """Return how much each cell of each frame counts, by how much it changes from the frame before.

    A cell whose squared change is r times the mean of its frame counts `1 + weight * min(r, cap)`, over the
    mean of that in the frame: every frame as a whole counts as much as without weights. But for the cap, the
    share `weight / (1 + weight)` of a frame's weight is laid out by change, the rest evenly. If the whole
    picture moves, r is about 1 nearly everywhere; what is small and moves on its own has a large r.

    Args:
        latents: `[B, F, C, h, w]`, clean, unit variance.
        weight: At least 0; 0 weighs all cells alike.
        cap: Largest r, above 0.

    Returns:
        `[B, F, 1, h, w]`, mean 1 in each frame; all 1 in the first, which has none before it.
    """
    change = latents.diff(dim=1).square().mean(dim=2, keepdim=True)
    ratio = change / (change.mean(dim=(3, 4), keepdim=True) + STILL)
    weights = 1 + weight * ratio.clamp(max=cap)
    weights = weights / weights.mean(dim=(3, 4), keepdim=True)
    return torch.cat([torch.ones_like(latents[:, :1, :1]), weights], dim=1)
