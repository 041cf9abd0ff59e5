"""From noise to a frame: a few Euler steps of rectified flow (arXiv 2209.03003)."""

# B batch

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worldsim.errors import WorldError

MAX_STEPS = 64
MANY_ROWS, MAX_NOISE_THREADS = 64, 8
"""Rows from which on their noise is drawn in threads, and in how many."""
DRAW_FRAME, COMMIT_FRAME = 0, 1
"""What a frame needs noise for: to begin drawing it, and to commit it."""


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
        if self.shift <= 0:
            raise WorldError(f"sampler shift must be positive, got {self.shift}")
        if self.noise_scale < 0:
            raise WorldError(f"sampler noise_scale must not be negative, got {self.noise_scale}")
        if not 0 <= self.commit_level < 1:
            raise WorldError(f"sampler commit_level must lie in [0, 1), got {self.commit_level}")


def noise_schedule(num_steps: int, shift: float) -> list[float]:
    """Return `num_steps + 1` levels from 1 to 0: `t' = s t / (1 + (s - 1) t)` (arXiv 2403.03206, eq. 23)."""
    levels = [1 - step / num_steps for step in range(num_steps + 1)]
    return [shift * level / (1 + (shift - 1) * level) for level in levels]


def draw_noise(
    seeds: Tensor, frame_index: Tensor, shape: tuple[int, ...], purpose: int = DRAW_FRAME
) -> Tensor:
    """Return standard normal noise `[B, *shape]` fp32 on the CPU, decided by each row's seed and frame alone.

    Philox is counter-based: any frame's noise can be drawn without drawing those before it.

    Args:
        seeds: `[B]` int64, at least 0.
        frame_index: `[B]` int64, at least 0.
        shape: Of one row.
        purpose: `DRAW_FRAME` or `COMMIT_FRAME`: what one frame needs noise for twice must not be the same.
    """
    noise = torch.empty(len(seeds), *shape, dtype=torch.float32)
    rows, keys = noise.numpy(), list(zip(seeds.tolist(), frame_index.tolist(), strict=True))
    if len(keys) < MANY_ROWS:
        _fill(rows, keys, purpose)
        return noise
    num_threads = min(os.cpu_count() or 1, MAX_NOISE_THREADS)
    bounds = [len(keys) * piece // num_threads for piece in range(num_threads + 1)]
    pieces = [slice(*both) for both in zip(bounds, bounds[1:], strict=False)]
    with ThreadPoolExecutor(num_threads) as pool:  # a GPU would wait for it
        list(pool.map(lambda piece: _fill(rows[piece], keys[piece], purpose), pieces))
    return noise


def _fill(rows: np.ndarray, keys: Sequence[tuple[int, int]], purpose: int) -> None:
    """Fill rows `[B, ...]` with the noise of their keys, of a seed and a frame number each."""
    philox = np.random.Philox(key=0)
    # Setting the state of one generator takes 2 us, making one 25 us, during which no other thread can run.
    generator, state = np.random.Generator(philox), philox.state
    state["state"]["counter"][2] = purpose
    for row, (seed, frame) in zip(rows, keys, strict=True):
        state["state"]["key"][0], state["state"]["counter"][3] = seed, frame
        philox.state = state
        generator.standard_normal(dtype=np.float32, out=row)


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
