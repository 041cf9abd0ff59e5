"""Rotary positions (RoFormer, arXiv 2104.09864) split over time, height and width as in Wan 2.1."""

# G any leading sizes, N tokens per frame, H heads, D head width

from __future__ import annotations

import torch
from torch import Tensor

THETA = 10_000.0


def split_width(head_width: int) -> tuple[int, int, int]:
    """Return how many of a head's features turn with time, height and width (128 gives 44, 42, 42)."""
    side = 2 * (head_width // 6)
    return head_width - 2 * side, side, side


def frequencies(width: int) -> Tensor:
    """Return the angle per unit of position of each feature pair, `[width / 2]` fp64, from 1 down to about 1 / theta."""
    return THETA ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)


def place_angles(rows: int, columns: int, head_width: int) -> Tensor:
    """Return the angles of each token's place in the frame, `[rows * columns, head_width / 2]` fp64.

    The pairs that belong to time hold zero: inside one frame nothing turns them.
    """
    time, height, width = split_width(head_width)
    row = torch.arange(rows, dtype=torch.float64)[:, None] * frequencies(height)  # [rows, height / 2]
    column = torch.arange(columns, dtype=torch.float64)[:, None] * frequencies(width)  # [columns, width / 2]
    parts = [
        torch.zeros(rows, columns, time // 2, dtype=torch.float64),
        row[:, None].expand(rows, columns, height // 2),
        column[None].expand(rows, columns, width // 2),
    ]
    return torch.cat(parts, dim=-1).flatten(0, 1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the interleaved feature pairs of `x`.

    Args:
        x: `[..., H, D]`.
        cos: `[..., D / 2]`, cosines that broadcast over heads; `sin` alike.
        sin: See `cos`.

    Returns:
        `[..., H, D]` in the wider of the dtypes of `x` and `cos`.
    """
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
