"""Context of one frame, shared by its denoising passes and its commit, and what a pass leaves for it."""

# B batch, L layers of the kind, H heads, D model or head width, W window frames, T past frames, N tokens per
# frame

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from worldsim.model.attention.base import Cached, Rotary
from worldsim.model.attention.writes import StateUpdate

Update = StateUpdate | Cached
"""What one layer keeps of a frame."""


class FrameWrites(NamedTuple):
    """What a pass over a frame would write into the memory.

    Attributes:
        updates: From each layer, in order.
        tokens: `[B, N, D]`, what entered the last of them: the outcome heads pool it.
    """

    updates: tuple[Update, ...]
    tokens: Tensor


@dataclass(frozen=True, slots=True)
class FrameContext:
    """What all passes over one frame share.

    Attributes:
        action: `[B, D]`, embedding of the action that leads to the frame.
        phase: `[B, head_width / 2]`, the path up to and including this frame.
        rotary: Angles of the frame's tokens.
        mask: `[B, 1, 1, (W + 2) * N]` bool, which tokens a window layer sees: cached ones, then its own. None
            if it sees all, which is so once the window is full.
        window_keys: `[L, B, H, (W + 1) * N, D]`, the cached keys turned by their age, heads first.
        window_values: The values beside them.
        past_mask: `[B, 1, 1, (T + 1) * N]` bool, which tokens a full layer sees; None if it sees all.
        previous: `[B, N, D]`, what the frame before and the level's map add to each token; 0 where the model
            is given neither.
        writes: In a recycled model, what the first pass over the frame noted of the frame before, for
            `commit`; None before that pass.
        actions: `[B, A]` int64, the action itself, where odometry follows the frame.
        pose: `[B, 3]`, where the frame is seen from, if odometry need not find it out.
    """

    action: Tensor
    phase: Tensor
    rotary: Rotary
    mask: Tensor | None
    window_keys: Tensor
    window_values: Tensor
    past_mask: Tensor | None
    previous: Tensor | float
    writes: FrameWrites | None = None
    actions: Tensor | None = None
    pose: Tensor | None = None
