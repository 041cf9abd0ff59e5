"""The share of tiles that are right, in games whose pictures are a grid of tiles of some kinds."""

# N frames, R C rows and columns of tiles, P pixels of a tile, I of its inner part, M kinds

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from worldsim.errors import WorldError

SAME_LEVELS = 16.0
"""Tiles with a smaller root mean squared difference, of 255, are of one kind: video blurs them."""


def cut_tiles(frames: Tensor, pixels: int) -> Tensor:
    """Cut the inner parts of tiles out of frames `[N, H, W, 3]` uint8, `[N, R, C, I * I * 3]` fp32 of 255.

    A quarter is left out at each side: video mixes the colours of neighbours there.
    """
    blocks = frames.unflatten(1, (-1, pixels)).unflatten(3, (-1, pixels))  # [N, R, P, C, P, 3]
    inner = slice(pixels // 4, pixels - pixels // 4)
    blocks = blocks[:, :, inner, :, inner]
    return blocks.permute(0, 1, 3, 2, 4, 5).flatten(3).float()


def find_kinds(frames: Tensor, pixels: int) -> Tensor:
    """Return one picture of each kind of tile in some real frames, `[M, I * I * 3]` fp32.

    Args:
        frames: `[N, H, W, 3]` uint8, real.
        pixels: Height and width of a tile, which those of a frame are multiples of.
    """
    left = cut_tiles(frames, pixels).flatten(0, 2)
    kinds = []
    while len(left):
        kinds.append(left[0])
        left = left[_levels_apart(left, left[:1])[:, 0] >= SAME_LEVELS]
    return torch.stack(kinds)


def _levels_apart(tiles: Tensor, kinds: Tensor) -> Tensor:
    """Return the root mean squared difference of `[N, D]` and `[M, D]`, `[N, M]`."""
    return torch.cdist(tiles, kinds) / tiles.shape[1] ** 0.5


def tile_accuracy_of(kinds: Tensor, pixels: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what measures the share of tiles that are of the real frame's kind, by the nearest one.

    Args:
        kinds: `[M, I * I * 3]`, of `find_kinds`.
        pixels: Height and width of a tile.

    Returns:
        A function of frames and real frames, `[N, H, W, 3]` uint8 on one device, to `[N]` fp32 in [0, 1].
    """

    def measure(frames: Tensor, real: Tensor) -> Tensor:
        known = kinds.to(frames.device)
        drawn, true = (
            torch.cdist(cut_tiles(f, pixels).flatten(0, 2), known).argmin(dim=1) for f in (frames, real)
        )
        return (drawn == true).float().unflatten(0, (len(frames), -1)).mean(dim=1)

    return measure


def check_tiles(pixels: int, size: tuple[int, int]) -> None:
    """Raise `WorldError` if frames of a height and width are no whole number of tiles."""
    if size[0] % pixels or size[1] % pixels:
        raise WorldError(f"tiles of {pixels} pixels do not fill frames of {size[1]} x {size[0]}")
