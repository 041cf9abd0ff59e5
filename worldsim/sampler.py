"""Sampler: a few Euler steps of rectified flow from noise to a frame (arXiv 2209.03003)."""

# B batch

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from worldsim.errors import WorldError
from worldsim.runtime.cores import usable_cores
from worldsim.settings import check_settings, setting

MAX_STEPS, MAX_SHIFT, MAX_NOISE_SCALE = 64, 1000.0, 100.0
MANY_ROWS, MAX_NOISE_THREADS = 64, 8
"""Rows from which on their noise is drawn in threads, and in how many."""
DRAW_FRAME, COMMIT_FRAME = 0, 1
"""What a frame needs noise for: to begin drawing it, and to commit it."""


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
    rows, keys = noise.numpy(), (seeds.tolist(), frame_index.tolist())
    if len(noise) < MANY_ROWS:
        fill_noise(rows, *keys, purpose)
    else:  # a GPU would wait for it
        threads = noise_threads()
        with ThreadPoolExecutor(threads) as pool:
            pieces = (range(first, len(noise), threads) for first in range(threads))
            list(pool.map(lambda piece: fill_noise(rows, *keys, purpose, piece), pieces))
    return noise


def noise_threads() -> int:
    """Return in how many threads the noise of many rows is drawn."""
    return min(usable_cores(), MAX_NOISE_THREADS)


def fill_noise(
    noise: np.ndarray,
    seeds: Sequence[int],
    frames: Sequence[int],
    purpose: int,
    rows: Iterable[int] | None = None,
) -> None:
    """Write the noise of some rows, as `draw_noise` returns it; other threads go on meanwhile.

    Args:
        noise: `[B, ...]` fp32, written to.
        seeds: B of them.
        frames: B of them.
        purpose: `DRAW_FRAME` or `COMMIT_FRAME`.
        rows: Which; all by default.
    """
    # One generator, set anew for each row: making one takes five times as long, and no thread can go on then.
    philox = np.random.Philox(key=0)
    generator, state = np.random.Generator(philox), philox.state
    for row in range(len(noise)) if rows is None else rows:
        state["state"] = {
            "counter": np.array([0, 0, purpose, frames[row]], dtype=np.uint64),
            "key": np.array([seeds[row], 0], dtype=np.uint64),
        }
        philox.state = state  # nothing is left over from the row before
        generator.standard_normal(dtype=np.float32, out=noise[row])


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
