"""Numbers in 8 or 16 bits, in blocks that each have a scale."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 128
"""Numbers with one scale: its four bytes are 3 % of 8 bits each."""
INTEGERS = {8: torch.int8, 16: torch.int16}


def quantize(x: Tensor, bits: int, *, up: bool = False) -> tuple[Tensor, Tensor]:
    """Return a tensor as integers, the largest of a block being the largest there is, and the scales.

    Args:
        x: Any shape, finite.
        bits: 8 or 16.
        up: Round away from 0: what is divided by then never gets smaller, and 0 only if it was.

    Returns:
        `[numel]` int8 or int16, and `[blocks]` float32.
    """
    flat = x.detach().float().flatten()
    blocks = functional.pad(flat, (0, -len(flat) % BLOCK)).unflatten(0, (-1, BLOCK))
    limit = torch.iinfo(INTEGERS[bits]).max
    scales = blocks.abs().amax(1) / limit
    scaled = blocks / scales.where(scales > 0, 1.0)[:, None]
    rounded = scaled.sign() * scaled.abs().ceil() if up else scaled.round()
    return rounded.clamp(-limit, limit).to(INTEGERS[bits]).flatten()[: len(flat)], scales


def dequantize(values: Tensor, scales: Tensor) -> Tensor:
    """Return what `quantize` was given, nearly: `[numel]` float32.

    Raises:
        ValueError: If there are not as many scales as blocks.
    """
    if len(scales) != -(-len(values) // BLOCK):
        raise ValueError(f"{len(values)} numbers have {len(scales)} scales")
    return values.float() * scales.repeat_interleave(BLOCK)[: len(values)]
