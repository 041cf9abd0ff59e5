"""Pictures as networks compute with them: back to frames of bytes, and moved."""

# B batch, C channels, H W picture size in pixels or cells, S pictures that are moved

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def frames_of(images: Tensor) -> Tensor:
    """Return images `[B, 3, H, W]`, nominally in [0, 1], as frames `[B, H, W, 3]` uint8."""
    frames = (images.float() * 255 + 0.5).clamp(0, 255.5).to(torch.uint8)
    return frames.movedim(1, -1).contiguous()


def move_pictures(pictures: Tensor, shifts: Tensor) -> Tensor:
    """Return pictures or latents moved, with bilinear interpolation; what comes into view repeats the border.

    Args:
        pictures: `[B, C, H, W]`, floating point.
        shifts: `[B, 2]`, how far to the right and down, in units of the pictures' own pixels or cells.

    Returns:
        Same shape and dtype, with gradients.
    """
    height, width = pictures.shape[-2:]
    # In fp32, also under autocast: bf16 tells coordinates apart by half a pixel at best from 128 on.
    with torch.autocast(pictures.device.type, enabled=False):
        right, down = shifts.float().unbind(1)
        columns = torch.arange(width, device=pictures.device) + 0.5 - right[:, None]  # [B, W]
        rows = torch.arange(height, device=pictures.device) + 0.5 - down[:, None]  # [B, H]
        x = (columns * 2 / width - 1)[:, None, :].expand(-1, height, -1)
        y = (rows * 2 / height - 1)[:, :, None].expand(-1, -1, width)
        moved = functional.grid_sample(
            pictures.float(), torch.stack([x, y], dim=-1), padding_mode="border", align_corners=False
        )
    return moved.to(pictures.dtype)


def move_first(pictures: Tensor, shifts: Tensor) -> Tensor:
    """Return a batch whose first `len(shifts)` pictures are moved, see `move_pictures`."""
    return torch.cat([move_pictures(pictures[: len(shifts)], shifts), pictures[len(shifts) :]])
