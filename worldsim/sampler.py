"""Sampler: a few Euler steps of rectified flow from noise to a frame (arXiv 2209.03003)."""

# B batch, C h w latent size, A action axes

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from worldsim.errors import WorldError
from worldsim.model.belief import commit, observe
from worldsim.model.denoiser import Denoiser
from worldsim.model.frame_context import FrameContext
from worldsim.model.memory.odometry import Odometry
from worldsim.model.memory.state import MemoryState
from worldsim.runtime.noise import WATCH_FRAME, draw_noise
from worldsim.settings import check_settings, setting
from worldsim.storage.files import check_integer, check_number, plain

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

    write_novelty: float = setting(
        0.0,
        "c of the writes of drawn frames: their strength is multiplied by max(0, 1 - c |S^T k| / |v|), so "
        "that a dream that comes back does not write its errors over what the states hold already. 0 writes "
        "them as real frames (docs/decisions/0059).",
        minimum=0,
        maximum=4,
    )

    def __post_init__(self) -> None:
        if not 1 <= self.num_steps <= MAX_STEPS:  # as those say it who ask for steps without a sampler
            raise WorldError(f"denoising steps must be 1 to {MAX_STEPS}, got {self.num_steps}")
        check_settings(self, "sampler ")


def change_sampler(
    sampler: SamplerConfig, num_steps: int | None = None, noise_scale: float | None = None
) -> SamplerConfig:
    """Return a sampler with what is not None in the place of its own.

    Raises:
        WorldError: If one of them is no number, or out of range.
    """
    if num_steps is not None:
        checked = check_integer(plain(num_steps), "denoising steps", 1, MAX_STEPS)
        sampler = replace(sampler, num_steps=checked)
    if noise_scale is not None:
        scale = check_number(plain(noise_scale), "noise_scale", 0, MAX_NOISE_SCALE)
        sampler = replace(sampler, noise_scale=scale)
    return sampler


Level = TypeVar("Level", float, Tensor)


def shift_level(level: Level, shift: float) -> Level:
    """Return `t' = s t / (1 + (s - 1) t)` for noise levels t in [0, 1] (arXiv 2403.03206, eq. 23)."""
    return shift * level / (1 + (shift - 1) * level)


def noise_schedule(num_steps: int, shift: float) -> list[float]:
    """Return `num_steps + 1` levels from 1 to 0, warped by `shift_level`."""
    return [shift_level(1 - step / num_steps, shift) for step in range(num_steps + 1)]


def integrate(
    predict_velocity: Callable[[Tensor, Tensor], Tensor], latents: Tensor, levels: Sequence[float]
) -> Tensor:
    """Integrate the flow from one noise level to another, in steps of Euler's method.

    Args:
        predict_velocity: Function of noisy latents `[B, ...]` and noise levels `[B]` to the velocity `noise
            - data`.
        latents: `[B, ...]`, fp32, of the first of the levels.
        levels: In [0, 1], falling.

    Returns:
        `[B, ...]`, fp32, of the last of the levels.
    """
    for level, following in pairwise(levels):
        velocity = predict_velocity(latents, torch.full((len(latents),), level, device=latents.device))
        latents = latents + (following - level) * velocity.float()
    return latents


def draw(
    denoiser: Denoiser, noise: Tensor, context: FrameContext, memory: MemoryState, config: SamplerConfig
) -> tuple[Tensor, FrameContext]:
    """Draw a frame; reads the memory, never changes it.

    Args:
        denoiser: The network.
        noise: `[B, C, h, w]`, fp32, standard normal.
        context: From `Denoiser.observe`.
        memory: State after the last committed frame.
        config: Steps and schedule.

    Returns:
        Latents `[B, C, h, w]`, fp32, and the context to commit them with: that of a recycled model holds what
        the first step wrote.
    """
    latents, levels = noise * config.noise_scale, noise_schedule(config.num_steps, config.shift)
    if denoiser.config.recycled:
        velocity, context = denoiser.first_pass(latents, context, memory)
        latents = integrate(lambda *_: velocity, latents, levels[:2])
        levels = levels[1:]
    return integrate(lambda x, level: denoiser.denoise(x, level, context, memory), latents, levels), context


def watch(
    denoiser: Denoiser,
    latents: Tensor,
    actions: Tensor,
    memory: MemoryState,
    seeds: Tensor,
    frame_index: Tensor,
    pose: Tensor | None = None,
    odometry: Odometry | None = None,
) -> MemoryState:
    """Return the memory after a real frame.

    Args:
        denoiser: The network.
        latents: `[B, C, h, w]`, fp32, the frame.
        actions: `[B, A]` int64, the actions that led to it.
        memory: State before it; left as it was.
        seeds: `[B]` int64 on the CPU; with `frame_index` they decide the noise that a recycled model's pass
            over the frame begins from.
        frame_index: `[B]` int64 on the CPU.
        pose: `[B, 3]`, where it is seen from; see `Denoiser.observe`.
        odometry: Follows the poses of a network whose keys these are.
    """
    context = observe(denoiser, odometry, actions, memory, pose=pose)
    if denoiser.config.recycled:
        noise = draw_noise(seeds, frame_index, denoiser.latent_shape, WATCH_FRAME).to(latents.device)
        context = denoiser.first_pass(noise, context, memory)[1]
    clean = torch.zeros(len(latents), device=latents.device)
    return commit(denoiser, odometry, latents, clean, context, memory)
