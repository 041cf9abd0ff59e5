"""Map of the ground: learned features around where the player stands, which tell where walls stop him."""

# B batch, P points, C channels

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from worldsim.model.memory.level_map import GAIN, INITIAL, around, sample_plane

CHANNELS = 8
"""Features of a cell."""
DIRECTIONS, DISTANCES = 8, (16.0, 32.0, 56.0)
"""Points around the player, from straight ahead on, and how far away in map units: in Doom he is 32 wide, and
moves by up to 30 in a frame."""


class Ground(nn.Module):
    """Say what the level's ground is like around players.

    Args:
        cells: Along a side of the map.
    """

    offsets: Tensor

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.grid = nn.Parameter(torch.randn(1, CHANNELS, cells, cells) * INITIAL)
        angles = torch.arange(DIRECTIONS) * (2 * math.pi / DIRECTIONS)
        ring = torch.stack([angles.cos(), angles.sin()], dim=-1)  # ahead and to the left
        rings = [ring * distance for distance in DISTANCES]
        self.register_buffer("offsets", torch.cat([torch.zeros(1, 2), *rings]), persistent=False)

    @property
    def features(self) -> int:
        """Numbers that are told of a place."""
        return len(self.offsets) * CHANNELS

    def laid_out(self) -> Tensor:
        """Return the grid as `forward` reads it: once for all frames of a sequence."""
        return around(self.grid)

    def forward(self, pose: Tensor, grid: Tensor) -> Tensor:
        """Return features `[B, P C]` fp32 of poses `[B, 3]` on the level's map, nearest points first."""
        heading = torch.deg2rad(pose[..., 2])
        cos, sin = heading.cos()[..., None], heading.sin()[..., None]
        ahead, left = self.offsets.to(pose.dtype).unbind(-1)
        turned = torch.stack([cos * ahead - sin * left, sin * ahead + cos * left], dim=-1)  # [B, P, 2]
        return sample_plane(grid, pose[..., None, :2] + turned).flatten(-2) * GAIN
