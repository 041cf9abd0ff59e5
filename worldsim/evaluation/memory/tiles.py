"""Tile accuracy, in games whose pictures are tiles under a view that moves by whole tiles.

A tile that comes back into view can only be drawn from memory. How long it was out of view is known from the
poses, tile by tile; this is the curve that a gap between frames only stands for.
"""

# N frames or episodes, T frames of an episode, K frames of the way back, R C rows and columns of tiles,
# P pixels of a tile, I of its inner part, M kinds

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from worldsim.evaluation.statistics import Estimate, bootstrap_known

SAME_LEVELS = 12.0
"""Tiles with a smaller root mean squared difference, of 255, are of one kind: video blurs them."""
ABSENCES = (2, 9, 17, 33, 65, 129, 257, 513)
"""First frame numbers of the classes that absences are sorted into."""
NEVER, DRAWN = -1, 0


@dataclass(frozen=True, slots=True)
class TileReader:
    """Tells kinds of tiles of so many pixels apart by the nearest of pictures `[M, I * I * 3]` fp32."""

    pictures: Tensor
    pixels: int

    def read(self, frames: Tensor) -> Tensor:
        """Return the kinds that frames `[N, H, W, 3]` uint8 show, `[N, R, C]` int64, where the frames are."""
        tiles = cut_tiles(frames, self.pixels)
        nearest = torch.cdist(tiles.flatten(0, 2), self.pictures.to(frames.device)).argmin(dim=1)
        return nearest.reshape(tiles.shape[:3])

    def right(self, frames: Tensor, real: Tensor) -> Tensor:
        """Return which tiles are of the real frames' kinds, `[N, R, C]` bool."""
        return self.read(frames) == self.read(real)


def cut_tiles(frames: Tensor, pixels: int) -> Tensor:
    """Cut the inner parts of tiles out of frames `[N, H, W, 3]` uint8, `[N, R, C, I * I * 3]` fp32 of 255.

    An eighth is left out at each side: video mixes the colours of neighbours there.
    """
    blocks = frames.unflatten(1, (-1, pixels)).unflatten(3, (-1, pixels))  # [N, R, P, C, P, 3]
    inner = slice(pixels // 8, pixels - pixels // 8)
    blocks = blocks[:, :, inner, :, inner]
    return blocks.permute(0, 1, 3, 2, 4, 5).flatten(3).float()


def find_kinds(frames: Tensor, pixels: int) -> TileReader:
    """Find the kinds of tiles that real frames `[N, H, W, 3]` uint8, a whole number of tiles, show."""
    left = cut_tiles(frames, pixels).flatten(0, 2)
    kinds = []
    while len(left):
        kinds.append(left[0])
        apart = (left - left[0]).square().mean(dim=1).sqrt()
        left = left[apart >= SAME_LEVELS]
    return TileReader(torch.stack(kinds), pixels)


def views_of(poses: np.ndarray, shape: tuple[int, int], value: int | bool) -> list[np.ndarray]:
    """Return what poses `[T, 3]` see of one map that holds a value everywhere: views `[R, C]`, not copies."""
    corners = np.rint(poses[:, [1, 0]]).astype(np.int64)
    corners -= corners.min(axis=0)
    whole = np.full(corners.max(axis=0) + shape, value)
    return [whole[row : row + shape[0], column : column + shape[1]] for row, column in corners]


def absences(poses: np.ndarray, turn: int, shape: tuple[int, int]) -> np.ndarray:
    """Return for how many frames each tile of the way back has been out of view since it was really seen.

    Poses `[T, 3]` are x, y in tiles, and an angle that does not matter; the turn is the last frame that is
    watched; the shape is that of the tiles in view, R and C.

    Returns:
        `[T - 1 - turn, R, C]` int64, frames since it was in view; `DRAWN` where it was in view after the
        turn, so that the dream has drawn it before, `NEVER` where it was not in view at all.
    """
    found = []
    for frame, view in enumerate(views_of(poses, shape, NEVER)):
        if frame > turn:
            since = np.where(view > turn, DRAWN, frame - view)
            found.append(np.where(view == NEVER, NEVER, since))
        view[:] = frame
    return np.stack(found)


@dataclass(frozen=True, kw_only=True, slots=True)
class TileShare(Estimate):
    """Share of tiles that are right, 0 to 1, and of how many."""

    num_tiles: int


def summarize_absences(right: np.ndarray, absent: np.ndarray, names: Sequence[str]) -> dict[str, TileShare]:
    """Return the share of returning tiles that are right, by how long they were out of view.

    Both arrays are `[N, K, R, C]`: bool, and the `absences` of each episode. Estimates are by the class,
    `2-8` and so on, without those that no tile is in; the last class is open.
    """
    ends, found = [*(start - 1 for start in ABSENCES[1:]), np.inf], {}
    for start, end in zip(ABSENCES, ends, strict=True):
        is_in = (absent >= start) & (absent <= end)
        # Of each episode its mean: a walk with many returning tiles must not count for several.
        with np.errstate(invalid="ignore"):
            shares = (right & is_in).sum(axis=(1, 2, 3)) / is_in.sum(axis=(1, 2, 3))
        if (estimate := bootstrap_known(shares, names)) is not None:
            name = f"{start}-{'' if end == np.inf else end}"
            found[name] = TileShare(**asdict(estimate), num_tiles=int(is_in.sum()))
    return found
