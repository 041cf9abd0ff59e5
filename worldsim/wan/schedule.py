"""Times of the steps from noise to a clean frame, with the shift that checkpoints were trained with."""

from __future__ import annotations

import torch
from torch import Tensor

from worldsim.wan.config import TIME_SCALE, CausalConfig

NUM_TIMES = 1000


def shifted(sigma: Tensor, shift: float) -> Tensor:
    """Return shares of noise in [0, 1] moved towards 1, in the dtype given; a shift of 1 leaves them."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def even_steps(count: int) -> list[int]:
    """Return so many evenly spaced times of steps: 1000, 750, 500 and 250 of four."""
    return [NUM_TIMES - NUM_TIMES * step // count for step in range(count)]


def step_sigmas(config: CausalConfig) -> Tensor:
    """Return the share of noise at each step, `[steps]` fp64, from 1 for noise; the last step ends at 0.

    Step 1000 is the first of a thousand evenly spaced shares, which are shifted; step 1 is the last.
    """
    shares = torch.linspace(1, 0, NUM_TIMES + 1, dtype=torch.float64)[:-1]
    return shifted(shares, config.shift)[NUM_TIMES - torch.tensor(config.steps)]


def times(sigma: Tensor) -> Tensor:
    """Return the network's times, 0 to 1000, of shares of noise."""
    return TIME_SCALE * sigma


def clean_from(noisy: Tensor, velocity: Tensor, sigma: Tensor | float) -> Tensor:
    """Return the clean latents that a velocity points to: the velocity is noise minus clean."""
    return noisy - sigma * velocity


def noised(clean: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
    """Return clean latents with a share `sigma` of noise, all shapes as `clean`."""
    return (1 - sigma) * clean + sigma * noise
