"""Which tiles the frames of grid recall show, by their pictures alone."""

# R C rows and columns of tiles, K kinds of tiles, P pixels of a tile's side

from __future__ import annotations

import torch
from torch import Tensor

from worldsim.data.grid_recall import TILE, VIEW, draw_tiles
from worldsim.errors import WorldError


def recognise_tiles(frames: Tensor) -> Tensor:
    """Return the kind that each tile of some frames is nearest to.

    Args:
        frames: `[..., 112, 112, 3]` uint8.

    Returns:
        `[..., 7, 7]` int64, on the device of the frames.
    """
    if frames.shape[-3:] != (VIEW * TILE, VIEW * TILE, 3):
        raise WorldError(
            f"frames of grid recall are [..., {VIEW * TILE}, {VIEW * TILE}, 3], got {list(frames.shape)}"
        )
    cells = frames.reshape(-1, VIEW, TILE, VIEW, TILE, 3).transpose(2, 3)
    known = torch.from_numpy(draw_tiles().astype("float32")).flatten(1).to(frames.device)
    nearest = torch.cdist(cells.flatten(3).flatten(0, 2).float(), known).argmin(dim=1)
    return nearest.reshape(*frames.shape[:-3], VIEW, VIEW)


def tile_accuracy(frames: Tensor, truth: Tensor) -> Tensor:
    """Return the share of tiles that are nearest to the same kind in frames and in the true ones.

    Args:
        frames: `[..., 112, 112, 3]` uint8.
        truth: Shaped the same.

    Returns:
        `[...]` fp32; by chance 1/24.
    """
    return (recognise_tiles(frames) == recognise_tiles(truth)).float().mean(dim=(-2, -1))
