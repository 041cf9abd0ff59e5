"""Coordinates of the memory's keys, for each of their kinds: of places, of heads, and of given poses."""

# H heads, D head width, N tokens per frame, P coordinates of a key

from __future__ import annotations

from torch import Tensor

from worldsim.errors import WorldError
from worldsim.model.config import DenoiserConfig, MemoryKeys
from worldsim.model.memory.motion import plane_multiples, plane_places
from worldsim.model.memory.pose import pose_multiples, pose_phases, pose_places
from worldsim.model.rotary import place_angles


def key_places(config: DenoiserConfig) -> Tensor:
    """Return the angles of each token's place in the frame, `[N, D / 2]` fp32, as keys are turned by them."""
    match MemoryKeys(config.memory_keys):
        case MemoryKeys.PLANE:
            return plane_places(*config.grid, config.head_width)
        case MemoryKeys.POSE:
            return pose_places(*config.grid, config.head_width, config.field_of_view)
    return place_angles(*config.grid, config.head_width).float()


def key_multiples(config: DenoiserConfig, layer: int) -> Tensor | None:
    """Return by which multiples of a key's coordinates the heads of a layer turn it, `[H, D / 2, P]`.

    None if all turn alike, by the angles themselves.
    """
    shape = (layer, config.num_heads, config.head_width)
    match MemoryKeys(config.memory_keys):
        case MemoryKeys.PLANE:
            return plane_multiples(*shape, config.finest_key)
        case MemoryKeys.POSE:
            return pose_multiples(*shape, config.keyed_places)
    return None


def given_phases(config: DenoiserConfig, poses: Tensor | None) -> Tensor | None:
    """Return the path's angles `[..., D / 2]` of poses that are given, None if none are.

    Args:
        config: Of the network.
        poses: `[..., 3]`, on any map: x and y in map units, heading in degrees (`pose_phases`).

    Raises:
        WorldError: If poses turn no keys of this network, or it has a level's map and is told none.
    """
    if poses is None:
        if config.level_map:
            raise WorldError("a network with level_map needs to be told poses on its level, and is told none")
        return None
    if config.memory_keys != MemoryKeys.POSE:
        raise WorldError(f"poses need memory_keys pose, but this world's are {config.memory_keys}")
    return pose_phases(poses, config.head_width)
