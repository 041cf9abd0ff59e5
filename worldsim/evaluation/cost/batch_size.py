"""Maximum batch size within a memory budget."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from worldsim.simulator import Simulator
from worldsim.world import World

MEMORY_BUDGET_BYTES = {"cuda": 2**33, "cpu": 2**31}
"""For the memories of a batch, by kind of device. Growing takes twice as much for a moment."""


def bytes_at(world: World, frame: int) -> int:
    """Return about how many bytes the memory of one dream takes after some frames."""
    config = world.config.denoiser
    item = torch.finfo(world.dtype).bits // 8
    per_frame = 2 * len(config.full_layers) * config.tokens_per_frame * config.dim * item
    return world.denoiser.initial_memory(1).nbytes + frame * per_frame


def rows_that_fit(simulators: Iterable[Simulator], num_frames: int, batch_size: int) -> int:
    """Return the batch size, or less where so many memories would not fit after `num_frames`; at least 2."""
    rows = batch_size
    for simulator in simulators:
        world = simulator.world
        budget = MEMORY_BUDGET_BYTES["cuda" if world.device.type == "cuda" else "cpu"]
        rows = min(rows, budget // bytes_at(world, num_frames))
    return max(2, rows)
