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
    """Return each feature pair's angle per unit of place, `[width / 2]` fp64, 1 down to about 1 / theta."""
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


def turns(angles: Tensor) -> Tensor:
    """Return cosine and sine side by side, `[..., D / 2, 2]`, of angles `[..., D / 2]`."""
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the interleaved feature pairs of `x`.

    Args:
        x: `[..., H, D]`.
        turn: `[..., D / 2, 2]` from `turns`, at least fp32; the same for all heads.

    Returns:
        `[..., H, D]` in the dtype of `turn`.
    """
    return rotate_heads(x, turn.unsqueeze(-3))


def rotate_heads(x: Tensor, turn: Tensor) -> Tensor:
    """Do the same with turns of each head's own, `[..., H, D / 2, 2]`."""
    pairs = x.to(turn.dtype).unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # the compiler fuses real arithmetic, not complex
        (even, odd), (cos, sin) = pairs.unbind(-1), turn.unbind(-1)
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
    # One complex product instead of six passes: ten times faster on a CPU.
    return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turn)).flatten(-2)
