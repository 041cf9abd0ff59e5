"""Map of a level: learned features on a plane, read along the rays that a frame's tokens look through.

A world that plays on one level, whose recordings tell where on it each frame was seen from, need not find
out from frames where it is, nor keep in its states what the level looks like. As scenes are learned from
posed pictures, features of places are trained with the network; they lie on planes as in TensoRF (Chen et
al., arXiv 2203.09517) and GSN (DeVries et al., arXiv 2104.00670), here on the one that the player walks on.
A column of a frame looks through a vertical plane that leaves the player at an azimuth: what lies on it at a
few distances says what is seen there, also where no frame has shown it yet.
"""

# G any leading sizes, N tokens per frame, R rays, S samples of a ray, C channels, D model width

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldsim.model.config import DenoiserConfig
from worldsim.model.linear import Linear, at_least_fp32, can_pack
from worldsim.model.memory.pose import CIRCUMFERENCE

NEAR = tuple(range(0, 128, 16))
FAR = (128, 160, 192, 224, 256, 304, 352, 416, 480, 560, 656, 768, 896, 1056, 1248, 1472)
DISTANCES = NEAR + FAR
"""Of samples on a ray, in map units: close to each other where a step changes what is seen."""
CHANNELS = 16
"""Features of a cell, on each of two grids."""
COARSER = 4
"""Cells of the fine grid along a side of one of the coarse grid's, for what is far away."""
RAYS = 2
"""For each column of tokens: two columns of latents."""
HEADING_MULTIPLES = (1, 2, 4, 8)
"""Of a ray's azimuth, told beside the features: light and sky lie in a direction, not at a place."""
INITIAL, GAIN = 0.01, 10.0
"""Standard deviation of the cells' weights at first, and what a weight counts: cells are learned ten times as
fast as what reads them, since each is seen in few frames."""


class LevelMap(nn.Module):
    """Say of each token of a frame what the level's map holds along the way it looks.

    Args:
        config: With `level_map` above 0.
    """

    azimuth: Tensor
    distance: Tensor
    multiples: Tensor
    packed: list[Tensor] | None = None

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        cells, (rows, columns) = config.level_map, config.grid
        coarse = max(1, cells // COARSER)
        self.fine = nn.Parameter(torch.randn(1, CHANNELS, cells, cells) * INITIAL)
        self.coarse = nn.Parameter(torch.randn(1, CHANNELS, coarse, coarse) * INITIAL)
        told = RAYS * (2 * CHANNELS * len(DISTANCES) + 2 * len(HEADING_MULTIPLES))
        self.read = Linear(told, config.dim)
        self.row = nn.Parameter(torch.zeros(rows, 1, config.dim))
        self.write = Linear(config.dim, config.dim, bias=False)
        nn.init.zeros_(self.write.weight)  # a network that knew no map keeps working when one is attached
        rays, half_view = RAYS * columns, math.radians(config.field_of_view) / 2
        across = (torch.arange(rays, dtype=torch.float64) + 0.5) / rays * 2 - 1
        self.register_buffer("azimuth", -torch.atan(across * math.tan(half_view)).float(), persistent=False)
        self.register_buffer("distance", torch.tensor(DISTANCES).float(), persistent=False)
        self.register_buffer("multiples", torch.tensor(HEADING_MULTIPLES).float(), persistent=False)

    def forward(self, phase: Tensor) -> Tensor:
        """Return what is added to the tokens of frames, `[G, N, D]` at least fp32.

        Args:
            phase: `[G, head_width / 2]`, the poses on the level's map as `pose_phases` keeps them.
        """
        azimuth, features = self.samples(phase)
        turns = azimuth.unsqueeze(-1) * self.multiples
        told = torch.cat([features.flatten(-2), turns.cos(), turns.sin()], dim=-1)  # [G, rays, ...]
        columns = at_least_fp32(self.read(told.unflatten(-2, (-1, RAYS)).flatten(-2)))
        hidden = functional.silu(columns.unsqueeze(-3) + at_least_fp32(self.row))  # [G, rows, columns, D]
        return at_least_fp32(self.write(hidden)).flatten(-3, -2)

    def pack(self, num_rows: int) -> None:
        """Lay out grids and weights for inference, for so many tokens of a frame (`Linear.pack`)."""
        grids = [around(each.detach()) for each in (self.fine, self.coarse)]
        self.packed = grids if can_pack(self.fine) else None
        self.read.pack(num_rows // len(self.row))
        self.write.pack(num_rows)

    def samples(self, phase: Tensor) -> tuple[Tensor, Tensor]:
        """Return the azimuths of the rays `[G, R]` and the features along them, `[G, R, S, 2 C]`."""
        heading, x, y = (each[..., None] for each in phase[..., :3].unbind(-1))
        azimuth = heading + self.azimuth  # [G, R]
        way = torch.stack([azimuth.cos(), azimuth.sin()], dim=-1)  # [G, R, 2]
        stands = torch.stack([x, y], dim=-1) * (CIRCUMFERENCE / (2 * math.pi))  # [G, 1, 2]
        places = stands.unsqueeze(-2) + way.unsqueeze(-2) * self.distance[:, None]  # [G, R, S, 2]
        grids = [around(each) for each in (self.fine, self.coarse)] if self.packed is None else self.packed
        found = [sample_plane(grid, places) for grid in grids]
        return azimuth, torch.cat(found, dim=-1) * GAIN


def around(grid: Tensor) -> Tensor:
    """Return a grid `[1, C, cells, cells]` in at least fp32, its last cells also before its first ones."""
    return functional.pad(at_least_fp32(grid), (1, 1, 1, 1), mode="circular")


def sample_plane(grid: Tensor, places: Tensor) -> Tensor:
    """Return features between the cells of a map, bilinear, `[..., C]` in the dtype of the grid.

    Args:
        grid: `[1, C, cells + 2, cells + 2]`, from `around`; the cells are `CIRCUMFERENCE` map units wide.
        places: `[..., 2]`, x to the right and y down, in map units; 0 is the middle.
    """
    cells = grid.shape[-1] - 2
    share = places / CIRCUMFERENCE + 0.5
    cell = (share - share.floor()) * cells + 0.5  # the cell before the first is the last
    scaled = ((cell + 0.5) / (cells + 2) * 2 - 1).to(grid.dtype).reshape(1, -1, 1, 2)
    found = functional.grid_sample(
        grid,
        scaled.to(grid.dtype).reshape(1, -1, 1, 2),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    return found[0, :, :, 0].T.unflatten(0, places.shape[:-1])
