"""Latents to tokens and back: squares of P x P latents, in the order of Wan 2.1."""

# N tokens per frame, C h w latent size, P side of a patch, D model width, G leading sizes

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from worldsim.model.attention.base import at_least_fp32
from worldsim.model.config import PATCH


def embed_patches(latents: Tensor, embedding: nn.Conv3d) -> Tensor:
    """Return tokens `[G, N, D]`, at least fp32, of latents `[G, C, h, w]`."""
    patches = latents.unflatten(-1, (-1, PATCH)).unflatten(-3, (-1, PATCH))  # [G, C, rows, P, columns, P]
    patches = patches.movedim((-4, -2), (-5, -4))  # [G, rows, columns, C, P, P]
    weight = embedding.weight.flatten(1)  # [D, C * P * P]
    tokens = functional.linear(patches.flatten(-3).to(weight.dtype), weight, embedding.bias)
    return at_least_fp32(tokens).flatten(-3, -2)


def join_patches(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """Return latents `[G, C, h, w]` of tokens `[G, rows * columns, P * P * C]`."""
    x = tokens.unflatten(-1, (PATCH, PATCH, -1)).unflatten(-4, (rows, columns))  # [G, rows, columns, P, P, C]
    x = x.movedim(-1, -5).transpose(-3, -2)  # [G, C, rows, P, columns, P]
    return x.flatten(-2).flatten(-3, -2)
