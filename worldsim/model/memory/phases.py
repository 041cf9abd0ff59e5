"""How the path adds up: from the motion expected of each action, or with odometry from what frames show."""

# B batch, F frames, D head width, C latent channels

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor

from worldsim.model.attention.base import at_least_fp32
from worldsim.model.memory.motion import ConstantMotion, PathMotion, wrap
from worldsim.model.memory.state import MemoryState


def has_odometry(motion: ConstantMotion | PathMotion) -> TypeGuard[PathMotion]:
    """Return whether the path goes on from what committed frames show."""
    return isinstance(motion, PathMotion) and motion.odometer is not None


def arrived_phase(
    motion: ConstantMotion | PathMotion, expected: Tensor, latents: Tensor, memory: MemoryState
) -> Tensor:
    """Return the path after one frame, `[B, D / 2]`, at least fp32.

    Args:
        motion: Of the model.
        expected: `[B, D / 2]`, the path at which the frame was looked for.
        latents: `[B, C, h, w]`, the frame as it is committed.
        memory: Before it. Where it is empty, the frame is the path's origin.
    """
    if not has_odometry(motion):
        return expected
    shown = at_least_fp32(motion.measured(memory.latents, latents))
    return wrap(memory.phase + torch.where((memory.num_committed > 0)[:, None], shown, 0.0))


def sequence_phases(
    motion: ConstantMotion | PathMotion, expected: Tensor, before: Tensor, clean: Tensor, memory: MemoryState
) -> tuple[Tensor, Tensor]:
    """Return the path at every frame of a sequence, `[B, F, D / 2]`, and after its last frame, `[B, D / 2]`.

    Both at least fp32, not wrapped. With odometry the path up to a frame is what the frames before it show,
    and only the last displacement is an expectation; without, all of them are.

    Args:
        motion: Of the model.
        expected: `[B, F, D / 2]`, the turns that actions are expected to make.
        before: `[B, F, C, h, w]`, the clean frame before each.
        clean: `[B, F, C, h, w]`, the clean frames.
        memory: Before the first frame. Where it is empty, that frame is the path's origin.
    """
    expected = _from_origin(expected, memory)
    if not has_odometry(motion):
        phases = memory.phase[:, None] + expected.cumsum(1)
        return phases, phases[:, -1]
    shown = _from_origin(motion.measured(before, clean), memory)
    arrived = memory.phase[:, None] + shown.cumsum(1)
    return torch.cat([memory.phase[:, None], arrived[:, :-1]], dim=1) + expected, arrived[:, -1]


def _from_origin(turns: Tensor, memory: MemoryState) -> Tensor:
    """Return turns `[B, F, D / 2]`, at least fp32, without that of a frame that begins the path."""
    turns = at_least_fp32(turns)
    first = torch.where((memory.num_committed > 0)[:, None, None], turns[:, :1], 0.0)
    return torch.cat([first, turns[:, 1:]], dim=1)
