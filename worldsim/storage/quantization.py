"""Numbers in 8 or 16 bits, in blocks that each have a scale, and weights stored so."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 128
"""Numbers with one scale: its four bytes are 3 % of 8 bits each."""
INTEGERS = {8: torch.int8, 16: torch.int16}
SMALL = 4096
"""Numbers of a tensor that is stored as it is: norms, biases, gates."""
SCALES = "#scales"
"""Behind the name of a quantized tensor: that of its scales."""


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


def quantize_weights(weights: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Return weights as they are stored: int8 of their shape with scales beside, if they are large matrices.

    Kernels of convolutions are matrices of another shape. A head's own maps stay: near the identity, their
    few large numbers would leave the others no digits.

    Args:
        weights: By name.
        prefix: Of the names of those that are stored so; the others stay as they are.
    """
    stored: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if weight.numel() < SMALL or weight.dim() not in (2, 4) or not name.startswith(prefix):
            stored[name] = weight
            continue
        values, stored[name + SCALES] = quantize(weight, 8)
        stored[name] = values.view(weight.shape)
    return stored


def dequantize_weights(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what `quantize_weights` was given, nearly, in fp32; what is stored in other formats as it is.

    Raises:
        ValueError: If scales do not fit what they scale, or scale nothing; it names them.
    """
    scales = {name.removesuffix(SCALES): tensor for name, tensor in stored.items() if name.endswith(SCALES)}
    weights = {name: tensor for name, tensor in stored.items() if not name.endswith(SCALES)}
    for name, scale in scales.items():
        if name not in weights or weights[name].dtype != torch.int8 or scale.dim() != 1:
            raise ValueError(f"{name + SCALES} scales no numbers of 8 bits")
        try:
            flat = dequantize(weights[name].flatten(), scale)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        weights[name] = flat.view(weights[name].shape)
    return weights
