"""One layer of the transformer: attention over frames, attention to the text, MLP, gated by the time."""

# B batch, F latent frames, N tokens per frame, H heads, D head width, L text tokens, C model width

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldsim.model.attention.base import Rotary
from worldsim.model.attention.hybrid import HybridAttention
from worldsim.model.rotary import rotate
from worldsim.wan.config import WanConfig

Pair = tuple[Tensor, Tensor]
"""Keys and values, `[B, tokens, H, D]` each."""
HALF_LIVES, TOKENS = (2.0, 256.0), 1560
"""Latent frames in which heads of a new hybrid layer forget half, and tokens of one of 832 x 480 pixels."""


class Writes(NamedTuple):
    """What a hybrid layer writes of a block, at least fp32; arguments of `kernels.commit`."""

    keys: Tensor
    """`[B, tokens, H, D]`, of unit length."""
    values: Tensor
    decays: Tensor
    """`[B, tokens, H]`, logarithms."""
    strengths: Tensor


Kept = Pair | Writes
"""What is kept of a block in a layer of either kind."""
Past = Pair | Tensor
"""What a layer sees of the blocks before: keys and values, or a matrix per head, `[B, H, D, D]`."""


def wide(x: Tensor) -> Tensor:
    """Return numbers in at least fp32, as norms, gates and residual sums are computed."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def normed(x: Tensor, eps: float) -> Tensor:
    """Return features of mean 0 and variance 1 over the last size, at least fp32."""
    return F.layer_norm(wide(x), x.shape[-1:], eps=eps)


def modulated(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Return normed `[B, F, N, C]` tokens, scaled and shifted per frame by `[B, F, 1, C]`, in their dtype."""
    return torch.addcmul(shift, normed(x, eps), 1 + scale).to(x.dtype)


def attend(queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None = None) -> Tensor:
    """Return softmax attention, `[B, tokens, H * D]`, of queries `[B, tokens, H, D]`.

    Args:
        keys: `[B, seen tokens, H, D]`, as `values`.
        visible: `[tokens, seen tokens]` bool; None where each token sees all.
    """
    heads_first = [x.transpose(1, 2) for x in (queries, keys, values)]
    return F.scaled_dot_product_attention(*heads_first, attn_mask=visible).transpose(1, 2).flatten(2)


class Projections(nn.Module):
    """Queries, keys and values of an attention, its output, and the norms that reach over all heads."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.head_width = config.head_width
        self.q, self.k, self.v, self.o = (nn.Linear(config.dim, config.dim) for _ in range(4))
        self.norm_q = nn.RMSNorm(config.dim, eps=config.eps)
        self.norm_k = nn.RMSNorm(config.dim, eps=config.eps)

    def heads(self, x: Tensor) -> Tensor:
        """Return `[B, tokens, C]` as `[B, tokens, H, D]`."""
        return x.unflatten(-1, (-1, self.head_width))

    def queries(self, x: Tensor) -> Tensor:
        """Return normed queries, `[B, tokens, H, D]`, of `[B, tokens, C]`."""
        return self.heads(self.norm_q(self.q(x)))

    def keys_and_values(self, x: Tensor) -> Pair:
        """Return normed keys, and values, of `[B, tokens, C]`."""
        return self.heads(self.norm_k(self.k(x))), self.heads(self.v(x))


class WanBlock(nn.Module):
    """A layer; its parameters bear the names of the checkpoints that Wan's authors published."""

    def __init__(self, config: WanConfig, *, is_hybrid: bool = False) -> None:
        super().__init__()
        self.eps = config.eps
        self.self_attn = (
            HybridAttention(config.dim, config.num_heads, TOKENS, HALF_LIVES)
            if is_hybrid
            else Projections(config)
        )
        self.cross_attn = Projections(config)
        self.norm3 = nn.LayerNorm(config.dim, eps=config.eps)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim), nn.GELU("tanh"), nn.Linear(config.ffn_dim, config.dim)
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, config.dim) / config.dim**0.5)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        turns: Tensor,
        text: Pair,
        past: Past | None = None,
        visible: Tensor | None = None,
    ) -> tuple[Tensor, Kept]:
        """Pass tokens on, and return what is kept of them: keys and values of the attention over frames.

        A hybrid layer attends to its own tokens, reads a state of the blocks before, and returns what it
        writes there.

        Args:
            x: `[B, F, N, C]`.
            modulation: `[B, F or 1, 6, C]` from the time, at least fp32: shift, scale and gate of the
                attention over frames, then of the MLP.
            turns: `[B or 1, F * N, D / 2, 2]` of the tokens' places in the video.
            text: Keys and values of the text, from `text_pair`.
            past: Of frames before, which all tokens see; None for none.
            visible: `[F * N, past tokens + F * N]` bool, or what is broadcast to it for each video and head;
                None where each token sees all.
        """
        frames = x.shape[1]
        gates = (modulation + self.modulation).unsqueeze(-2).unbind(2)  # six of [B, F or 1, 1, C]
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = gates

        inputs = modulated(x, shift, scale, self.eps).flatten(1, 2)
        out, kept = self._attend_over_frames(inputs, turns, past, visible)
        out = out.unflatten(1, (frames, -1))
        x = torch.addcmul(wide(x), wide(out), gate).to(x.dtype)

        inputs = F.layer_norm(
            wide(x), x.shape[-1:], wide(self.norm3.weight), wide(self.norm3.bias), self.eps
        ).to(x.dtype)
        queries = self.cross_attn.queries(inputs.flatten(1, 2))
        x = x + self.cross_attn.o(attend(queries, *text)).unflatten(1, (frames, -1))

        out = self.ffn(modulated(x, mlp_shift, mlp_scale, self.eps))
        return torch.addcmul(wide(x), wide(out), mlp_gate).to(x.dtype), kept

    def _attend_over_frames(
        self, inputs: Tensor, turns: Tensor, past: Past | None, visible: Tensor | None
    ) -> tuple[Tensor, Kept]:
        """Return the attention's output, `[B, tokens, C]`, and what is kept."""
        if isinstance(self.self_attn, HybridAttention):
            rotary = Rotary(place=turns, memory=turns)
            state = past if isinstance(past, Tensor) else self._empty_state(inputs)
            out, update = self.self_attn(inputs, state, rotary)
            return out.to(inputs.dtype), Writes(*self.self_attn.write_terms(update, rotary))
        new, values = self.self_attn.keys_and_values(inputs)
        queries = rotate(self.self_attn.queries(inputs), turns).to(inputs.dtype)
        new = rotate(new, turns).to(inputs.dtype)
        keys, seen = (new, values) if not isinstance(past, tuple) else _behind(past, (new, values))
        return self.self_attn.o(attend(queries, keys, seen, visible)), (new, values)

    def _empty_state(self, inputs: Tensor) -> Tensor:
        heads, width = self.cross_attn.heads(inputs).shape[2:]
        return wide(inputs).new_zeros(len(inputs), heads, width, width)

    def text_pair(self, text: Tensor) -> Pair:
        """Return keys and values, `[B, L, H, D]`, of an embedded text `[B, L, C]`."""
        return self.cross_attn.keys_and_values(text)


def _behind(past: Pair, new: Pair) -> Pair:
    return torch.cat([past[0], new[0]], dim=1), torch.cat([past[1], new[1]], dim=1)
