"""From noise to a frame: a few Euler steps of rectified flow (arXiv 2209.03003)."""

# B batch

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from worldsim.errors import WorldError

MAX_STEPS, MAX_SHIFT, MAX_NOISE_SCALE = 64, 1000.0, 100.0


@dataclass(kw_only=True, slots=True)
class SamplerConfig:
    """How a frame is drawn.

    Attributes:
        num_steps: Denoising passes per frame.
        shift: Warps the schedule; above 1 spends more of it near pure noise (Wan 2.1 uses 5 for video).
        noise_scale: Standard deviation of the starting noise; 1 is what the model was trained with.
        commit_level: Noise level at which a finished frame is committed: so much noise is mixed in, as in
            training, and the network is told. It then draws anew what it would otherwise copy, its own errors
            included (docs/decisions/0012).
    """

    num_steps: int = 2
    shift: float = 1.0
    noise_scale: float = 1.0
    commit_level: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.num_steps <= MAX_STEPS:
            raise WorldError(f"denoising steps must be 1 to {MAX_STEPS}, got {self.num_steps}")
        if not 0 < self.shift <= MAX_SHIFT:
            raise WorldError(f"sampler shift must be positive and at most {MAX_SHIFT:g}, got {self.shift}")
        if not 0 <= self.noise_scale <= MAX_NOISE_SCALE:
            raise WorldError(
                f"sampler noise_scale must not be negative, nor above {MAX_NOISE_SCALE:g}, "
                f"got {self.noise_scale}"
            )
        if not 0 <= self.commit_level < 1:
            raise WorldError(f"sampler commit_level must lie in [0, 1), got {self.commit_level}")


Level = TypeVar("Level", float, Tensor)


def shift_level(level: Level, shift: float) -> Level:
    """Return `t' = s t / (1 + (s - 1) t)` for noise levels t in [0, 1] (arXiv 2403.03206, eq. 23)."""
    return shift * level / (1 + (shift - 1) * level)


def noise_schedule(num_steps: int, shift: float) -> list[float]:
    """Return `num_steps + 1` levels from 1 to 0, warped by `shift_level`."""
    return [shift_level(1 - step / num_steps, shift) for step in range(num_steps + 1)]


def sample(
    predict_velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, config: SamplerConfig
) -> Tensor:
    """Integrate the flow from noise to data.

    Args:
        predict_velocity: Function of noisy latents `[B, ...]` and noise levels `[B]` to the velocity `noise
            - data`.
        noise: `[B, ...]`, fp32, standard normal.
        config: Steps and schedule.

    Returns:
        `[B, ...]`, fp32.
    """
    levels = noise_schedule(config.num_steps, config.shift)
    latents = noise * config.noise_scale
    for level, following in zip(levels[:-1], levels[1:], strict=True):
        velocity = predict_velocity(latents, torch.full((len(noise),), level, device=noise.device))
        latents = latents + (following - level) * velocity.float()
    return latents
