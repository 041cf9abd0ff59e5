"""Angles of the tokens of frames, for all kinds of layers."""

# G any leading sizes, N tokens per frame, D head width

from __future__ import annotations

from torch import Tensor

from worldsim.model.attention.base import Rotary
from worldsim.model.attention.full import time_angles
from worldsim.model.config import DenoiserConfig, MemoryKeys
from worldsim.model.memory.motion import axes_phase
from worldsim.model.rotary import turns


def frame_rotary(
    config: DenoiserConfig,
    place: Tensor,
    key_place: Tensor,
    frames: range,
    phase: Tensor,
    departure: Tensor | None = None,
) -> Rotary:
    """Return the angles of tokens of frames.

    Args:
        config: Of the network.
        place: `[N, D / 2]`, of tokens in the frame, by which softmax layers turn them.
        key_place: `[N, D / 2]`, the same for keys of the memory (`key_places`).
        frames: Their numbers.
        phase: `[G, D / 2]`, the path up to each.
        departure: `[G, D / 2]`, the path before each, at whose end a recycled model writes.
    """
    time, keys = None, MemoryKeys(config.memory_keys)
    if config.full_layers:
        angles = time_angles(frames, config.head_width).to(place)  # [frames, D / 2]
        angles = angles + axes_phase(phase, keys) if config.full_path else angles
        time = turns(place + angles.unsqueeze(-2))

    def after(path: Tensor) -> Tensor:
        angles = key_place + path.unsqueeze(-2)
        return turns(angles) if keys is MemoryKeys.AXES else angles  # others each head turns by itself

    written = after(departure) if departure is not None and config.recycled else None
    return Rotary(turns(place), after(phase), time, written)
