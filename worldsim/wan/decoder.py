"""The decoder of Wan 2.1 for a latent frame behind others: the library's layers with fewer copies.

The library pads each input by a copy, joins it with what is kept by another one, and takes pictures twice as
large by way of fp32. Here a convolution pads by itself. Functions are of tensors alone, so that
`torch.compile` fuses what is between two convolutions into one pass over memory, with the same rounding.
"""

# B batch, C channels, T moments, H W height and width

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from worldsim.runtime.fused import fused

KEPT = 2
"""Moments that a convolution over three keeps."""
Weights = tuple[Tensor | None, ...]
Layer = Callable[[Tensor, tuple[Tensor, ...], Weights], tuple[Tensor, ...]]
"""Of an input, what its convolutions kept, and weights: the output, and what they keep now."""


def decode_next(
    decoder: Any, hidden: Tensor, features: Sequence[Tensor], *, is_fused: bool = False
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return what the library's decoder makes of a latent frame that is not a video's first, as views.

    Args:
        decoder: The library's `WanDecoder3d`.
        hidden: `[B, C, 1, h, w]`.
        features: Of each convolution over time `[B, C, 2, H, W]`, in its order.
        is_fused: Compile the layers, where that is possible.

    Returns:
        Four pictures `[B, 3, 4, 8 h, 8 w]`, and the features behind them.
    """
    given, kept = iter(features), []

    def run(layer: Layer, count: int, x: Tensor, *weights: Tensor | None) -> Tensor:
        before = tuple(_laid_out(next(given), weights) for _ in range(count))
        made = (fused(layer) if is_fused else layer)(x, before, weights)
        kept.extend(made[1:])
        return made[0]

    def resnet(x: Tensor, block: Any) -> Tensor:
        own = (block.norm1.gamma, *_conv(block.conv1), block.norm2.gamma, *_conv(block.conv2))
        return run(residual, 2, x, *own, *_conv(block.conv_shortcut))

    x = run(convolved, 1, hidden, *_conv(decoder.conv_in))
    for number, block in enumerate(decoder.mid_block.resnets):
        x = decoder.mid_block.attentions[number - 1](x) if number else x
        x = resnet(x, block)
    for level in decoder.up_blocks:
        for block in level.resnets:
            x = resnet(x, block)
        for upsampler in level.upsamplers or ():
            own = _conv(upsampler.resample[1])
            is_longer = upsampler.mode == "upsample3d"
            x = run(longer, 1, x, *_conv(upsampler.time_conv), *own) if is_longer else run(larger, 0, x, *own)
    return run(pictured, 1, x, decoder.norm_out.gamma, *_conv(decoder.conv_out)), tuple(kept)


def convolved(x: Tensor, before: tuple[Tensor, ...], weights: Weights) -> tuple[Tensor, ...]:
    """Convolve over time and space; of `weight, bias`."""
    weight, bias = weights
    assert weight is not None
    layout = _layout(weight)
    joined = torch.cat([before[0], x], dim=2).contiguous(memory_format=layout)
    out = F.conv3d(joined, weight, bias, padding=(0, weight.shape[3] // 2, weight.shape[4] // 2))
    return out, joined[:, :, -KEPT:].clone(memory_format=layout)  # a view would keep all


def residual(x: Tensor, before: tuple[Tensor, ...], weights: Weights) -> tuple[Tensor, ...]:
    """Add two convolutions behind norms; of `norm, weight, bias` twice, and `weight, bias` of a shortcut."""
    one, first = convolved(_activated(x, weights[0]), before[:1], weights[1:3])
    two, second = convolved(_activated(one, weights[3]), before[1:], weights[4:6])
    shortcut, bias = weights[6:]
    return two + (x if shortcut is None else F.conv3d(x, shortcut, bias)), first, second


def longer(x: Tensor, before: tuple[Tensor, ...], weights: Weights) -> tuple[Tensor, ...]:
    """Make two moments of each, and twice the height and width; of `weight, bias` of either convolution."""
    x, kept = convolved(x, before, weights[:2])
    # Half of its channels are each moment's second one. Joined like this, channels that lie last stay there.
    pairs = zip(*(half.split(1, dim=2) for half in x.chunk(2, dim=1)), strict=True)
    return *larger(torch.cat([each for pair in pairs for each in pair], dim=2), (), weights[2:]), kept


def larger(x: Tensor, before: tuple[Tensor, ...], weights: Weights) -> tuple[Tensor, ...]:
    """Make twice the height and width; of `weight, bias`."""
    weight, bias = weights
    assert weight is not None and not before, "it keeps nothing"
    pictures = x.transpose(1, 2).flatten(0, 1)
    # Values are copied, which needs no fp32.
    pictures = F.interpolate(pictures, scale_factor=2.0, mode="nearest-exact")
    out = F.conv2d(pictures, weight, bias, padding=1)
    return (out.unflatten(0, (len(x), -1)).transpose(1, 2),)


def pictured(x: Tensor, before: tuple[Tensor, ...], weights: Weights) -> tuple[Tensor, ...]:
    """Make pictures; of `norm, weight, bias`."""
    return convolved(_activated(x, weights[0]), before, weights[1:])


def _activated(x: Tensor, scale: Tensor | None) -> Tensor:
    assert scale is not None
    is_short = x.dtype in (torch.float16, torch.bfloat16)
    normed = F.normalize(x.float() if is_short else x, dim=1).to(x.dtype)
    return F.silu(normed * scale.numel() ** 0.5 * scale)


def _conv(module: Any) -> Iterator[Tensor | None]:
    """Yield weight and bias of a convolution: None of a shortcut without one."""
    yield from (getattr(module, "weight", None), getattr(module, "bias", None))


def _laid_out(feature: Tensor, weights: Weights) -> Tensor:
    """Return a feature as the weights lie: one of a file is contiguous, and would be compiled for anew."""
    kernel = next(each for each in weights if each is not None and each.ndim == 5)
    return feature.contiguous(memory_format=_layout(kernel))


def _layout(kernel: Tensor) -> torch.memory_format:
    is_last = kernel.is_contiguous(memory_format=torch.channels_last_3d) and not kernel.is_contiguous()
    return torch.channels_last_3d if is_last else torch.contiguous_format
