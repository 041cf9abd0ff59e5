"""One layer of the transformer: attention over frames, attention to the text, MLP, gated by the time."""

# B batch, F latent frames, N tokens per frame, H heads, D head width, L text tokens, C model width

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldsim.model.rotary import rotate
from worldsim.wan.config import WanConfig

Pair = tuple[Tensor, Tensor]
"""Keys and values, `[B, tokens, H, D]` each."""


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

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.self_attn, self.cross_attn = Projections(config), Projections(config)
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
        past: Pair | None = None,
        visible: Tensor | None = None,
    ) -> tuple[Tensor, Pair]:
        """Pass tokens on, and return their keys and values of the attention over frames.

        Args:
            x: `[B, F, N, C]`.
            modulation: `[B, F or 1, 6, C]` from the time, at least fp32: shift, scale and gate of the
                attention over frames, then of the MLP.
            turns: `[B or 1, F * N, D / 2, 2]` of the tokens' places in the video.
            text: Keys and values of the text, from `text_pair`.
            past: Of frames before, which all tokens see.
            visible: `[F * N, past tokens + F * N]` bool, or what is broadcast to it for each video and head;
                None where each token sees all.
        """
        frames = x.shape[1]
        gates = (modulation + self.modulation).unsqueeze(-2).unbind(2)  # six of [B, F or 1, 1, C]
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = gates

        inputs = modulated(x, shift, scale, self.eps).flatten(1, 2)
        new, values = self.self_attn.keys_and_values(inputs)
        queries = rotate(self.self_attn.queries(inputs), turns).to(x.dtype)
        new = rotate(new, turns).to(x.dtype)
        keys, seen = (new, values) if past is None else _behind(past, (new, values))
        out = self.self_attn.o(attend(queries, keys, seen, visible)).unflatten(1, (frames, -1))
        x = torch.addcmul(wide(x), wide(out), gate).to(x.dtype)

        inputs = F.layer_norm(
            wide(x), x.shape[-1:], wide(self.norm3.weight), wide(self.norm3.bias), self.eps
        ).to(x.dtype)
        queries = self.cross_attn.queries(inputs.flatten(1, 2))
        x = x + self.cross_attn.o(attend(queries, *text)).unflatten(1, (frames, -1))

        out = self.ffn(modulated(x, mlp_shift, mlp_scale, self.eps))
        return torch.addcmul(wide(x), wide(out), mlp_gate).to(x.dtype), (new, values)

    def text_pair(self, text: Tensor) -> Pair:
        """Return keys and values, `[B, L, H, D]`, of an embedded text `[B, L, C]`."""
        return self.cross_attn.keys_and_values(text)


def _behind(past: Pair, new: Pair) -> Pair:
    return torch.cat([past[0], new[0]], dim=1), torch.cat([past[1], new[1]], dim=1)
