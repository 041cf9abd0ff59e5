"""The pose that is believed in: odometry expects it before a frame is drawn, and corrects it afterwards.

Keys that are poses turn by the path that the memory keeps (`MemoryState.phase`), so the pose that is believed
in is part of the state. It is relative, and a dream begins at x, y and heading 0, but in a world that draws a
level by its map. Without odometry these are the network's own `observe` and `commit`.
"""

# B batch, A action axes, C h w latent size

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from worldsim.model.denoiser import Denoiser
from worldsim.model.frame_context import FrameContext
from worldsim.model.memory.odometry import Odometry, displacements_between, integrate
from worldsim.model.memory.pose import kept_poses, pose_phases
from worldsim.model.memory.state import MemoryState


def observe(
    denoiser: Denoiser,
    odometry: Odometry | None,
    actions: Tensor,
    memory: MemoryState,
    window_is_full: bool | None = None,
    pose: Tensor | None = None,
) -> FrameContext:
    """Prepare a frame as `Denoiser.observe` does, seen from where the action is expected to lead.

    Args:
        denoiser: The network.
        odometry: What follows its poses.
        actions: `[B, A]` int64, what leads to the frame.
        memory: State before it; only read.
        window_is_full: See `Denoiser.observe`.
        pose: `[B, 3]`, where the frame is seen from, if that is known: x and y in map units and the heading
            in degrees, of a map on which the dream began at 0, or of the world's level.
    """
    if odometry is None:
        return denoiser.observe(actions, memory, window_is_full, pose)
    assert memory.odometry is not None, "the memory is one of a world with odometry (`World.initial_memory`)"
    seen_from = pose
    if seen_from is None:
        seen_from = _advance(memory, odometry.expected(memory.odometry, actions, kept_poses(memory.phase)))
    context = denoiser.observe(actions, memory, window_is_full, seen_from)
    return replace(context, actions=actions, pose=pose)


def commit(
    denoiser: Denoiser,
    odometry: Odometry | None,
    latents: Tensor,
    noise_level: Tensor,
    context: FrameContext,
    memory: MemoryState,
    novelty: float = 0.0,
) -> MemoryState:
    """Write a frame into the memory as `Denoiser.commit` does; the path goes on from where it shows to be.

    Args:
        denoiser: The network.
        odometry: What follows its poses.
        latents: `[B, C, h, w]`, the frame.
        noise_level: `[B]`, see `Denoiser.commit`.
        context: From `observe` with the same memory; in a recycled model after its first pass.
        memory: State before the frame; left as it was.
        novelty: See `Denoiser.commit`.
    """
    after = denoiser.commit(latents, noise_level, context, memory, novelty)
    if odometry is None:
        return after
    assert memory.odometry is not None and context.actions is not None
    pose = context.pose
    if pose is None:
        seen = memory.latents, after.latents, kept_poses(memory.phase)
        displacement, state = odometry.shown(memory.odometry, context.actions, *seen)
        pose = _advance(memory, displacement)
    else:
        way = torch.stack([kept_poses(memory.phase), pose.double()], dim=-2)
        displacement = displacements_between(way)[..., 0, :]
        state = odometry.told(memory.odometry, context.actions, displacement)
    # Nothing is known of how the first frame was come by.
    begun = (memory.num_committed > 0)[:, None]
    state = torch.where(begun, state, memory.odometry)
    phase = pose_phases(pose, denoiser.config.head_width).to(memory.phase.dtype)
    return replace(after, phase=phase, odometry=state)


def _advance(memory: MemoryState, displacement: Tensor) -> Tensor:
    """Return the pose `[B, 3]` fp64 after a displacement `[B, 3]`; a path begins with its first frame."""
    pose = kept_poses(memory.phase)
    moved = integrate(displacement.unsqueeze(-2), pose)[..., 0, :]
    return torch.where((memory.num_committed > 0)[:, None], moved, pose)
