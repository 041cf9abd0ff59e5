"""The operators of a layer in PyTorch: the reference of `kernels.layers`.

As it is written in the papers, in any precision: LayerNorm with modulation as in DiT (arXiv 2212.09748),
softmax attention (arXiv 1706.03762, equation 1, with its scale in the queries), and the keys and queries of
the memory as ARL2 (arXiv 2605.16579) maps, turns (RoFormer, arXiv 2104.09864) and reads with them.
"""

# N tokens of one frame, T tokens that read a state, H heads, D width, I = D / 2 pairs; "..." any sizes
# B batch, F frames, S streams, W window

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kernels import reference

EPS = 1e-6
"""Added to the variance that a norm divides by."""


def modulate(x: Tensor, shift: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return LayerNorm of `x` `[..., N, D]`, times `scale` plus `shift`, `[..., 1, D]` each."""
    wide = torch.promote_types(x.dtype, scale.dtype)
    return torch.addcmul(shift, functional.layer_norm(x.to(wide), x.shape[-1:], eps=EPS), scale).to(dtype)


def add_modulate(
    x: Tensor, branch: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return `x + gate * branch` in the dtype of x, and what `modulate` makes of it."""
    total = (x + gate * branch).to(x.dtype)
    return total, modulate(total, shift, scale, dtype)


def turn_pairs(x: Tensor, turn: Tensor) -> Tensor:
    """Turn neighbouring features of `x` `[..., H, D]` by cosines and sines `[..., H or 1, I, 2]`."""
    (even, odd), (cos, sin) = x.unflatten(-1, (-1, 2)).unbind(-1), turn.unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def turned_norm(x: Tensor, weight: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
    """Return RMSNorm of `x` `[..., N, E]`, and with its heads' pairs turned by `turn` `[N, I, 2]`."""
    wide = x.to(torch.promote_types(x.dtype, weight.dtype))
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS) * weight
    by_head = normed.unflatten(-1, (-1, 2 * turn.shape[-2]))  # [..., N, H, D]
    return normed.to(x.dtype), turn_pairs(by_head, turn.unsqueeze(-3)).flatten(-2).to(x.dtype)


def map_heads(x: Tensor, weight: Tensor, turn: Tensor | None) -> Tensor:
    """Map `x` `[..., N, H, D]` by `weight` `[H, D out, D in]`; with `turn`, turned and of unit length."""
    mapped = torch.einsum("...hi,hoi->...ho", x.to(weight.dtype), weight)
    return mapped if turn is None else functional.normalize(turn_pairs(mapped, turn), dim=-1)


def recall(q: Tensor, weight: Tensor, turn: Tensor, state: Tensor, gate: Tensor, local: Tensor) -> Tensor:
    """Return `local` plus the gated reading of the state with mapped queries; see `kernels.layers`."""
    streams = q.unflatten(-3, (-1, turn.shape[-4]))  # [..., S, N, H, D]
    queries = map_heads(streams, weight, turn.unsqueeze(-5)).flatten(-4, -3)
    opening = torch.sigmoid(gate.to(weight.dtype))
    return reference.read(queries, state, opening, local.to(weight.dtype)).to(local.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return what scaled queries `[..., N, H, D]` read of their frame's N tokens; scores in fp32 at least."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = torch.einsum("...qhd,...khd->...hqk", q.to(wide), k.to(wide))
    return torch.einsum("...hqk,...khd->...qhd", scores.softmax(-1), v.to(wide)).to(v.dtype)


def frames_before(clean: Tensor, cached: Tensor, is_empty: Tensor) -> Tensor:
    """Gather sink and window of every frame, `[B, F, W + 1, N, H, D]`; see `kernels.layers.attend_window`.

    Args:
        clean: `[B, F, N, H, D]`.
        cached: `[B, W + 1, N, H, D]`, what is cached before the first frame.
        is_empty: `[B]` bool, whether that is nothing: the sink is then the first frame.
    """
    frames, window = clean.shape[1], cached.shape[1] - 1
    sink = torch.where(is_empty[:, None, None, None, None], clean[:, :1], cached[:, :1])
    joined = torch.cat([cached[:, 1:], clean], dim=1)  # [B, W + F, N, H, D]
    # Slices, not `unfold`: the backward pass of that adds up by atomic writes.
    windows = [joined[:, i : i + frames] for i in range(window)]
    return torch.stack([sink.expand_as(clean), *windows], dim=2)


def window_mask(visible: Tensor, streams: int, tokens: int) -> Tensor:
    """Return which keys each query of a frame sees, `[B, F, 1, S * N, (W + 1 + S) * N]` bool.

    These are those of the frames that `visible` `[B, F, W + 1]` names, and its own stream of its own frame.
    """
    own = torch.eye(streams, dtype=torch.bool, device=visible.device)
    cached = visible.unsqueeze(2).expand(-1, -1, streams, -1)  # [B, F, S, W + 1]
    seen = torch.cat([cached, own.expand(*visible.shape[:2], -1, -1)], dim=-1)
    return seen.repeat_interleave(tokens, dim=2).repeat_interleave(tokens, dim=3).unsqueeze(2)


def gather_window(
    k: Tensor, v: Tensor, cached_k: Tensor, cached_v: Tensor, is_empty: Tensor, turn: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the keys, turned by age, and values of all frames, `[B, F, (W + 1 + S) * N, H, D]` each."""
    past = frames_before(k[:, :, 0], cached_k, is_empty)
    past = turn_pairs(past.to(torch.promote_types(k.dtype, turn.dtype)), turn[:, None, None]).to(k.dtype)
    values = frames_before(v[:, :, 0], cached_v, is_empty)
    joined = ((past, k), (values, v))
    keys, values = (torch.cat([first.flatten(2, 3), own.flatten(2, 3)], dim=2) for first, own in joined)
    return keys, values


def attend_window(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cached_k: Tensor,
    cached_v: Tensor,
    visible: Tensor,
    is_empty: Tensor,
    turn: Tensor,
) -> Tensor:
    """Return what queries `[B, F, S, N, H, D]` read of their frame, the window and the sink."""
    wide = torch.promote_types(q.dtype, torch.float32)
    keys, values = gather_window(
        k.to(wide), v.to(wide), cached_k.to(wide), cached_v.to(wide), is_empty, turn.to(wide)
    )
    scores = torch.einsum("...qhd,...khd->...hqk", q.flatten(2, 3).to(wide), keys)
    scores = scores.masked_fill(~window_mask(visible, q.shape[2], q.shape[3]), -torch.inf)
    out = torch.einsum("...hqk,...khd->...qhd", scores.softmax(-1), values)
    return out.unflatten(2, q.shape[2:4]).to(v.dtype)
