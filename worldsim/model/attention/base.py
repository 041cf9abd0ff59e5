"""Projections and softmax that all kinds of attention layer share, from the softmax model.

Names follow Wan 2.1 and the ARL2 release, so that weights keep their names from one kind to another.
"""

# B batch, F frames, N tokens per frame, H heads, D head width, G leading sizes

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels import layers
from worldsim.model.linear import Linear, Packed, at_least_fp32, can_pack, map_together
from worldsim.model.rotary import rotate

LONG = 2560
"""Keys from which on PyTorch's fused attention is the faster one on a CPU."""


@dataclass(frozen=True, slots=True)
class Rotary:
    """Cosines and sines of the tokens' angles (`worldsim.model.rotary.turns`).

    Attributes:
        place: `[N, D / 2, 2]`: the place in the frame.
        memory: `[..., N, D / 2, 2]`: the place in the frame plus the path so far. With keys of
            `MemoryKeys.PLANE` or `POSE`, which each head turns itself, the angles to do so by, `[..., N,
            D / 2]`.
        written: As `memory`, of the place that keys are written at; None where that is the one that is read
            from.
        time: `[..., N, D / 2, 2]`: the place in the frame plus the frame's number, and with `full_path` plus
            the path so far; None if no layer needs it.
        alone: `[B, F]` bool, which frames of a sequence are drawn from the states alone: they see no window.
            None if no frame is.
        unwritten: `[B, F]` bool, which frames of a sequence neither decay the states nor write to them. None
            if all do.
    """

    place: Tensor
    memory: Tensor
    time: Tensor | None = None
    written: Tensor | None = None
    alone: Tensor | None = None
    unwritten: Tensor | None = None


class Cached(NamedTuple):
    """What a softmax layer keeps of a frame: its turned keys and its values, `[..., N, H, D]`."""

    k: Tensor
    v: Tensor


def _normalise(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the full width, in fp32. Spelt out: PyTorch's is eight times slower in bf16 on a CPU."""
    wide = at_least_fp32(x)
    return wide * (torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight)


class Attention(nn.Module):
    """The projections every layer has: those of a Wan self-attention."""

    packed: Packed | None = None
    packed_norms: Tensor | None = None

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = Linear(dim, dim)
        self.k = Linear(dim, dim)
        self.v = Linear(dim, dim)
        self.o = Linear(dim, dim)
        self.norm_q = nn.RMSNorm(dim, eps=1e-6)
        self.norm_k = nn.RMSNorm(dim, eps=1e-6)

    def inputs(self) -> list[Linear]:
        """Return the layers that read the normalised tokens, q, k and v first."""
        return [self.q, self.k, self.v]

    def pack(self, num_rows: int) -> None:
        """Reorder weights for inference where this machine can; see `worldsim.model.linear`."""
        self.o.pack(num_rows)
        is_packed = can_pack(self.q.weight)
        self.packed = Packed(self.inputs(), num_rows) if is_packed else None
        self.packed_norms = self.norms().detach() if is_packed else None

    def norms(self) -> Tensor:
        """Return the weights of q's and k's norms, `[2, H * D]` fp32; q's holds the softmax's scale too."""
        scale = (self.q.out_features // self.num_heads) ** -0.5
        q, k = at_least_fp32(self.norm_q.weight), at_least_fp32(self.norm_k.weight)
        return torch.stack([q * scale, k])

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Apply `inputs` to the tokens.

        Args:
            x: `[G, N, H * D]`.

        Returns:
            q, scaled for the softmax, and k `[G, N, 2, H, D]`, normalised, at least fp32, positions not yet
            applied; v `[G, N, H, D]`; what the other layers gave, `[G, N, H]` each.
        """
        width = self.q.out_features
        if self.packed is not None:
            out = self.packed(x.to(self.q.weight.dtype)).float()  # once for all that read it in fp32
            qk, v = out[..., : 2 * width], out[..., 2 * width : 3 * width]
            gates = list(out[..., 3 * width :].split(self.num_heads, dim=-1))
        else:
            q, k, v, *gates = (layer(x) for layer in self.inputs())
            qk = torch.cat([q, k], dim=-1)
        return self.normed(qk), v.unflatten(-1, (self.num_heads, -1)), gates

    def normed(self, qk: Tensor) -> Tensor:
        """Return q and k `[..., 2 * H * D]`, side by side, as `project` does: `[..., 2, H, D]`."""
        weight = self.norms() if self.packed_norms is None else self.packed_norms
        qk = _normalise(qk.unflatten(-1, (2, -1)), weight, 1e-6)
        return qk.unflatten(-1, (self.num_heads, -1))


def project_turned(
    attention: Attention, x: Tensor, turn: Tensor, *, keeps: bool = True
) -> tuple[list[Tensor], list[Tensor], Tensor, list[Tensor]]:
    """Do what `Attention.project` does in fewer passes, and turn q and k.

    Args:
        attention: Whose layers.
        x: `[G, N, H * D]`.
        turn: `[N, D / 2, 2]`, of the places in a frame.
        keeps: Whether q and k are also wanted before they are turned.

    Returns:
        q and k, normalised; the same turned; v, `[G, N, H, D]` each in the dtype of the products; and what
        the other layers gave, `[G, N, H]` each.
    """
    wide, narrow = attention.inputs()[:3], attention.inputs()[3:]
    q, k, v = (layer(x) for layer in wide)
    others = map_together(narrow, x) if narrow else []
    pairs = zip((q, k), attention.norms(), strict=True)
    parts = [layers.turned_norm(part, weight, turn, keeps=keeps) for part, weight in pairs]
    heads = (attention.num_heads, -1)
    normed = [part.unflatten(-1, heads) for part, _ in parts] if keeps else []
    return normed, [turned.unflatten(-1, heads) for _, turned in parts], v.unflatten(-1, heads), others


def rotate_both(qk: Tensor, turn: Tensor) -> Tensor:
    """Turn queries and keys `[..., N, 2, H, D]` alike, by one of the turns of `Rotary`."""
    return rotate(qk.flatten(-3, -2), turn).unflatten(-2, (2, -1))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention over `[..., tokens, H, D]`; `mask` `[..., 1, queries, keys]` is True where seen.

    The queries are scaled already.
    """
    lead = q.shape[:-3]
    q, k, v = (t.flatten(0, -4).transpose(1, 2) for t in (q, k, v))
    if mask is None:
        out = attend_in_play(q, k, v)
    else:  # of so many frames at once that the fused form is the faster one on a CPU too
        mask = mask.flatten(0, -4) if mask.dim() > 4 else mask
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
    return out.transpose(1, 2).unflatten(0, lead)


def attend_in_play(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Do what `attend` does for frames of few tokens, heads first: `[B, H, tokens, D]`.

    Spelt out on a CPU: for as few keys as a frame and a window have, PyTorch's fused form takes longer there,
    and its gradient four times as long. The scores stay in fp32, under autocast too: rounding them to bf16
    would be the largest error of the whole step.
    """
    if q.device.type != "cpu" or k.shape[-2] > LONG:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
    if torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return attend_in_play(q, k, v, mask)
    scores = at_least_fp32(q) @ at_least_fp32(k).mT  # [B, H, queries, keys]
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(-1).to(v.dtype) @ v
