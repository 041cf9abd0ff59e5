"""Motion energies: how little each part of a picture differs from the next, by the way it may have moved."""

# G any leading sizes, C h w latent size

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

REACH = (1, 2)
"""Cells of latents, down and to the right, that a picture is shifted by to find out how far it moved."""
REGIONS = (4, 5)
"""Rows and columns of a picture's parts, each of which may have moved by another way."""
SHIFTS = (2 * REACH[0] + 1, 2 * REACH[1] + 1)
FLOOR = 0.02
"""Of squared differences of latents: less comes from the compression of video, also at rest."""
NUM_ENERGIES = math.prod(SHIFTS) * math.prod(REGIONS)


def motion_energies(before: Tensor, after: Tensor) -> Tensor:
    """Return how little each part of a picture differs from the next one, for each way it may have moved.

    The logarithm of the mean squared difference of latents, as in block matching: the part has moved to where
    it is least.

    Args:
        before: `[G, C, h, w]`, latents of unit variance.
        after: Same shape, one frame later.

    Returns:
        `[G, 3, 5, 4, 5]` fp32, by the shift down and to the right, and by the part's row and column.
    """
    rows, columns = before.shape[-2:]
    down, right = REACH
    first, second = (
        before.float(),
        functional.pad(after.float(), (right, right, down, down), mode="replicate"),
    )
    found = []
    for y in range(SHIFTS[0]):
        for x in range(SHIFTS[1]):
            error = (first - second[..., y : y + rows, x : x + columns]).square().mean(1)
            found.append(functional.adaptive_avg_pool2d(error, REGIONS))
    return (torch.stack(found, dim=1).unflatten(1, SHIFTS) + FLOOR).log()
