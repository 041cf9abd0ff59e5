"""Sampler: a few Euler steps of rectified flow from noise to a frame (arXiv 2209.03003)."""

# B batch

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from worldsim.errors import WorldError
from worldsim.model.denoiser import Denoiser
from worldsim.model.frame_context import FrameContext
from worldsim.model.memory.state import MemoryState
from worldsim.settings import check_settings, setting

MAX_STEPS, MAX_SHIFT, MAX_NOISE_SCALE = 64, 1000.0, 100.0


@dataclass(kw_only=True, slots=True)
class SamplerConfig:
    """How a frame is drawn."""

    num_steps: int = setting(2, "Denoising passes per frame.")
    shift: float = setting(
        1.0,
        "Warps the schedule; above 1 spends more of it near pure noise (Wan 2.1 uses 5 for video).",
        above=0,
        maximum=MAX_SHIFT,
    )
    noise_scale: float = setting(
        1.0,
        "Standard deviation of the starting noise; 1 is what the model was trained with.",
        minimum=0,
        maximum=MAX_NOISE_SCALE,
    )
    commit_level: float = setting(
        0.0,
        "Noise level at which a finished frame is committed: so much noise is mixed in, as in training, and "
        "the network is told. It then draws anew what it would otherwise copy, its own errors included "
        "(docs/decisions/0012).",
        minimum=0,
        below=1,
    )

    def __post_init__(self) -> None:
        if not 1 <= self.num_steps <= MAX_STEPS:  # as those say it who ask for steps without a sampler
            raise WorldError(f"denoising steps must be 1 to {MAX_STEPS}, got {self.num_steps}")
        check_settings(self, "sampler ")


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


def draw(
    denoiser: Denoiser, noise: Tensor, context: FrameContext, memory: MemoryState, sampler: SamplerConfig
) -> tuple[Tensor, FrameContext]:
    """Draw a frame from noise `[B, C, h, w]`; reads the memory, never changes it.

    Returns:
        Latents `[B, C, h, w]`, fp32, and the context that their commit needs.
    """
    latents = sample(lambda noisy, level: denoiser.denoise(noisy, level, context, memory), noise, sampler)
    return latents, context
