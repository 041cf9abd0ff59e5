"""Rollouts of a batch: its size, watching real frames, generating under given actions, joining batches."""

# B batch, K frames generated, A action axes, H W frame size

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from worldsim.evaluation.inputs.clips import ClipBatch
from worldsim.simulator import Simulator
from worldsim.state import WorldState
from worldsim.world import World

MEMORY_BUDGET_BYTES = {"cuda": 2**33, "cpu": 2**31}
"""For the memories of a batch, by kind of device. Growing takes twice as much for a moment."""


def bytes_at(world: World, frame: int) -> int:
    """Return about how many bytes the memory of one dream takes after some frames."""
    config = world.config.denoiser
    item = torch.finfo(world.dtype).bits // 8
    per_frame = 2 * len(config.full_layers) * config.tokens_per_frame * config.dim * item
    return world.initial_memory(1).nbytes + frame * per_frame


def rows_that_fit(simulators: Iterable[Simulator], num_frames: int, batch_size: int) -> int:
    """Return the batch size, or less where so many memories would not fit after `num_frames`; at least 2."""
    rows = batch_size
    for simulator in simulators:
        world = simulator.world
        budget = MEMORY_BUDGET_BYTES["cuda" if world.device.type == "cuda" else "cpu"]
        rows = min(rows, budget // bytes_at(world, num_frames))
    return max(2, rows)


def progress(name: str, num_frames: int) -> tqdm:
    """Return a progress bar of frames."""
    return tqdm(total=num_frames, desc=name, unit="frame", unit_scale=True)


def watch(simulator: Simulator, state: WorldState, clips: ClipBatch, frames: range, bar: tqdm) -> WorldState:
    """Return the state after it has seen some real frames of its clips."""
    for index in frames:
        state = simulator.commit_frames(state, clips.frames[:, index], clips.actions[:, index - 1])
        bar.update(len(clips.clips))
    return state


def watch_until(simulator: Simulator, clips: ClipBatch, last: int, seed: int, bar: tqdm) -> WorldState:
    """Return the state of dreams that have watched the real frames of their clips up to `last`."""
    return watch(simulator, clips.begin_dreams(simulator, 1, seed), clips, range(1, last + 1), bar)


def generate(
    simulator: Simulator, state: WorldState, actions: Tensor, bar: tqdm, poses: Tensor | None = None
) -> Tensor:
    """Generate frames under actions `[B, K, A]`, from poses `[B, K, 3]` if they are known.

    Returns:
        `[B, K, H, W, 3]` uint8.
    """
    frames = []
    for index, action in enumerate(actions.unbind(1)):
        frame, state = simulator.step(state, action, None if poses is None else poses[:, index])
        frames.append(frame)
        bar.update(len(frame))
    return torch.stack(frames, dim=1)


def through_codec(world: World, frames: Tensor) -> Tensor:
    """Return frames `[B, K, H, W, 3]` as the world's codec shows them, on the same device."""
    columns = [
        world.codec.decode(world.codec.encode(column.to(world.device)).float()).to(frames.device)
        for column in frames.unbind(1)
    ]
    return torch.stack(columns, dim=1)


def stack(parts: Sequence[dict[str, Tensor]], dim: int) -> dict[str, Tensor]:
    """Stack the values of dictionaries with the same keys along a new axis."""
    return {name: torch.stack([part[name] for part in parts], dim=dim) for name in parts[0]}


def join(parts: Sequence[Any]) -> Any:
    """Join the results of batches: arrays along their first axis, lists, and dictionaries of them.

    Of dataclasses all fields are joined.
    """
    first = parts[0]
    if isinstance(first, dict):
        return {key: join([part[key] for part in parts]) for key in first}
    if isinstance(first, list):
        return [value for part in parts for value in part]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, np.ndarray):
        return np.concatenate(parts)
    return type(first)(*(join([getattr(part, field.name) for part in parts]) for field in fields(first)))
