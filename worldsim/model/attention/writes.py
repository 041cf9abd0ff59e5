"""Keys, values, decays and strengths that a frame writes into the states, for any number of heads.

Heads share nothing here: those of several layers side by side are the heads of one wide layer.
"""

# G any leading sizes, N tokens per frame, H heads, of one layer or of several side by side, D head width

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from kernels import layers
from worldsim.model.attention.base import Rotary
from worldsim.model.config import NUM_POSE_COORDINATES
from worldsim.model.linear import at_least_fp32
from worldsim.model.memory.motion import split_path
from worldsim.model.memory.pose import pose_coordinates
from worldsim.model.rotary import rotate_heads, turns

MAX_BETA = 2.0 - 1e-3
"""Just under 2: a key rounded to a norm above 1 must not make the write an expansion."""


class StateUpdate(NamedTuple):
    """What a hybrid layer keeps of a frame: `k v` `[..., N, H, D]`, decay and strength `[..., N, H]`."""

    k: Tensor
    v: Tensor
    a: Tensor
    b: Tensor


class WriteWeights(NamedTuple):
    """What `write_terms` needs to know of the heads.

    Attributes:
        phi_k: `[H, D out, D in]`, map of the keys.
        phi_v: `[H, D out, D in]`, map of the values.
        rate: `[H]`, at least fp32, the decay's factor.
        bias: `[H]`, at least fp32, the decay's bias.
        multiples: `[H, D / 2, P]` of keys of `MemoryKeys.PLANE` and `POSE`, see `key_turns`; else None.
    """

    phi_k: Tensor
    phi_v: Tensor
    rate: Tensor
    bias: Tensor
    multiples: Tensor | None


def side_by_side(parts: Sequence[WriteWeights]) -> WriteWeights:
    """Return the weights of several layers, in order, as those of one wide layer."""
    phi_k, phi_v, rate, bias, multiples = zip(*parts, strict=True)
    planes = [each for each in multiples if each is not None]
    return WriteWeights(
        torch.cat(phi_k),
        torch.cat(phi_v),
        torch.cat(rate),
        torch.cat(bias),
        torch.cat(planes) if planes else None,
    )


def key_turns(angles: Tensor, multiples: Tensor | None) -> Tensor:
    """Return by what keys or queries turn for where they are, `[..., N, H or 1, D / 2, 2]`.

    Args:
        angles: `Rotary.memory` or `Rotary.written`.
        multiples: `[H, D / 2, P]`, by which multiples of the P coordinates each head turns: 3 on keys of
            `MemoryKeys.PLANE`, 4 on those of `POSE`; None if all turn alike.
    """
    if multiples is None:
        return angles.unsqueeze(-3)
    # Spelt out: a product on tensor cores would round the angles.
    is_pose = multiples.shape[-1] == NUM_POSE_COORDINATES
    coordinates = pose_coordinates(angles) if is_pose else split_path(angles)
    parts = [each * times for each, times in zip(coordinates, multiples.unbind(-1), strict=True)]
    return turns(sum(parts[1:], parts[0]))  # [..., N, H, D / 2, 2]


def map_by_head(x: Tensor, weight: Tensor) -> Tensor:
    """Map `x` `[..., H, D]` by `weight` `[H, D out, D in]`; the result's memory holds heads before tokens."""
    heads_first = x.to(weight.dtype).flatten(0, -3).transpose(0, 1)  # [H, G, D]
    return torch.bmm(heads_first, weight.mT).transpose(0, 1).unflatten(0, x.shape[:-2])


def strengths(b: Tensor) -> Tensor:
    """Return the strengths that a frame writes with, at least fp32 in [0, 2), of `StateUpdate.b`."""
    return MAX_BETA * torch.sigmoid(at_least_fp32(b))


def held_share(k: Tensor, v: Tensor, state: Tensor) -> Tensor:
    """Return how long what a state holds under keys is, over the values that are to be written there.

    Args:
        k: `[..., N, K]`, of unit length.
        v: `[..., N, V]`.
        state: `[..., K, V]`.

    Returns:
        `|S^T k| / |v|`, `[..., N]`: 0 where the state holds nothing under a key.
    """
    held, written = (
        torch.linalg.vector_norm(each, dim=-1) for each in (k.to(state.dtype) @ state, v.to(state.dtype))
    )
    return held / written.clamp_min(torch.finfo(torch.float32).eps)


def write_terms(
    k: Tensor, v: Tensor, a: Tensor, weights: WriteWeights, rotary: Rotary
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the keys, values and log decays that a frame writes, at least fp32, of `StateUpdate`."""
    turn = key_turns(rotary.memory if rotary.written is None else rotary.written, weights.multiples)
    if layers.is_fused("map_heads", k):
        keys, values = layers.map_heads(k, weights.phi_k, turn), layers.map_heads(v, weights.phi_v)
    else:
        turned = rotate_heads(map_by_head(at_least_fp32(k), weights.phi_k), turn)
        keys = functional.normalize(turned, dim=-1)
        values = at_least_fp32(map_by_head(at_least_fp32(v), weights.phi_v))
    return keys, values, -weights.rate * functional.softplus(at_least_fp32(a) + weights.bias)
