"""One layer of the transformer: attention over frames, attention to the text, MLP, gated by the time."""

# B batch, F latent frames, N tokens per frame, H heads, D head width, L text tokens, C model width;
# of sequences K blocks, S streams (clean, noisy), N tokens per block

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldsim.model.attention.base import Rotary, attend_in_play
from worldsim.model.attention.hybrid import HybridAttention
from worldsim.model.rotary import rotate
from worldsim.runtime.fused import fused
from worldsim.wan.config import CausalConfig, WanConfig
from worldsim.wan.published import PublishedAttention

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


@dataclass(frozen=True, slots=True)
class Reserved:
    """Keys and values of past tokens with room behind them, for a cache of all frames of a video.

    A pass writes its block's behind what is used, where nothing is read: so the cache is never copied. Of two
    futures of one cache only the later one is whole.
    """

    keys: Tensor
    """`[B, room, H, D]`, as `values`."""
    values: Tensor
    used: int

    @property
    def nbytes(self) -> int:
        """Size of what is used."""
        return (self.keys[:, : self.used].nbytes + self.values[:, : self.used].nbytes) if self.used else 0

    def behind(self, new: Pair) -> Pair:
        """Return all keys and values, those of a block written behind the others."""
        end = self.used + new[0].shape[1]
        for room, own in zip((self.keys, self.values), new, strict=True):
            room[:, self.used : end] = own
        return self.keys[:, :end], self.values[:, :end]

    def after(self, new: Pair) -> Reserved:
        """Return the cache behind a block, which a pass has written."""
        return replace(self, used=self.used + new[0].shape[1])


@dataclass(frozen=True, slots=True)
class Places:
    """Keys and values of a layer in the places of a `FrameRing`, into which a pass writes its block's."""

    keys: Tensor
    """`[B, places, N, H, D]`, as `values`."""
    values: Tensor
    own: Tensor
    """`[B, F]` int64, the places of the block's frames."""

    def behind(self, new: Pair) -> Pair:
        """Return all keys and values, those of a block written where they belong."""
        rows = torch.arange(len(self.own), device=self.own.device)[:, None]
        for room, own in zip((self.keys, self.values), new, strict=True):
            room.index_put_((rows, self.own), own.unflatten(1, (self.own.shape[1], -1)))
        return self.keys.flatten(1, 2), self.values.flatten(1, 2)


class Ready(NamedTuple):
    """What a layer's attention over frames is given of its block."""

    queries: Tensor
    """`[B, tokens, H, D]`, turned, as keys are."""
    keys: Tensor
    values: Tensor
    reading: tuple[Tensor, Tensor] | None
    """Of a hybrid layer queries of the state, and the gate before its sigmoid, `[B, tokens, H]`."""
    writes: Writes | None
    """Of a hybrid layer, if they are kept."""


Kept = Pair | Writes
"""What is kept of a block in a layer of either kind."""
Past = Pair | Reserved | Places | Tensor
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


def before_attention(block: WanBlock, x: Tensor, modulation: Tensor, rotary: Rotary, *, keeps: bool) -> Ready:
    """Return what a layer's attention over frames is given; arguments as of `WanBlock.forward`."""
    inputs = modulated(x, *block.gates(modulation)[:2], block.eps).flatten(1, 2)
    attention = block.self_attn
    if not isinstance(attention, HybridAttention):
        keys, values = attention.keys_and_values(inputs)
        queries, keys = (
            rotate(each, rotary.place).to(inputs.dtype) for each in (attention.queries(inputs), keys)
        )
        return Ready(queries, keys, values, None, None)
    given = attention.prepare(inputs, rotary)
    writes = Writes(*attention.write_terms(given.update, rotary)) if keeps else None
    queries, keys = given.turned.unbind(-3)
    return Ready(queries, keys, given.values, (given.queries, given.gate), writes)


def behind_attention(
    block: WanBlock,
    x: Tensor,
    attended: Tensor,
    modulation: Tensor,
    rotary: Rotary,
    text: Pair,
    state: Tensor | None,
    reading: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Return a layer's tokens behind its attention over frames.

    Args:
        attended: `[B, tokens, H * D]`, what `attend` returned.
        state: Of a hybrid layer, which reads it.
        reading: See `Ready`.
        block, x, modulation, rotary, text: As of `WanBlock.forward`.
    """
    attention = block.self_attn
    if isinstance(attention, HybridAttention):
        assert state is not None and reading is not None, "a hybrid layer reads a state"
        local = block.cross_attn.heads(attended)
        out = attention.join(*reading, state, local, rotary).to(x.dtype)
    else:
        out = attention.o(attended)
    return block.pass_on(x, out.unflatten(1, (x.shape[1], -1)), block.gates(modulation), text)


def attend_blocks(queries: Tensor, keys: Tensor, values: Tensor, causal: CausalConfig) -> Tensor:
    """Return softmax attention of whole videos in two streams, `[B, K, S, N, H * D]`.

    Block by block, without masks: each sees all of what it is given, so that PyTorch's fastest forms serve.

    Args:
        queries: `[B, K, S, N, H, D]` of K blocks; stream 0 is clean.
        keys: The same shape, as `values`.
        causal: The blocks, and which clean ones before them they see.
    """
    frames = (causal.block, -1)

    def past(clean: Tensor, end: int) -> Tensor:
        """Return `[B, tokens, H, D]` of the clean frames that a block behind `end` frames sees."""
        begin = 0 if causal.kept is None else max(0, end - causal.kept)
        by_frame = clean[:, : end // causal.block].unflatten(2, frames).flatten(1, 2)
        return torch.cat([by_frame[:, : min(causal.sink, begin)], by_frame[:, begin:]], dim=1).flatten(1, 2)

    found = []
    for block in range(queries.shape[1]):
        before = [past(each[:, :, 0], block * causal.block) for each in (keys, values)]
        streams = [
            attend(queries[:, block, stream], *behind((before[0], before[1]), (own_keys, own_values)))
            for stream in range(queries.shape[2])
            for own_keys, own_values in [(keys[:, block, stream], values[:, block, stream])]
        ]
        found.append(torch.stack(streams, dim=1))
    return torch.stack(found, dim=1)


class Gates(NamedTuple):
    """What the time says to a layer, `[B, F or 1, 1, C]` each, at least fp32."""

    shift: Tensor
    scale: Tensor
    gate: Tensor
    mlp_shift: Tensor
    mlp_scale: Tensor
    mlp_gate: Tensor


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
        self.self_attn = _hybrid_attention(config) if is_hybrid else Projections(config)
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
        rotary: Rotary,
        text: Pair,
        past: Past | None = None,
        visible: Tensor | None = None,
        *,
        keeps: bool = True,
        is_fused: bool = False,
    ) -> tuple[Tensor, Kept | None]:
        """Pass tokens on, and return what is kept of them: keys and values of the attention over frames.

        A hybrid layer attends to its own tokens, reads a state of the blocks before, and returns what it
        writes there.

        Args:
            x: `[B, F, N, C]`.
            modulation: `[B, F or 1, 6, C]` from the time, at least fp32: shift, scale and gate of the
                attention over frames, then of the MLP.
            rotary: Turns `[B or 1, F * N, D / 2, 2]` of the tokens' places in the video, and of keys of the
                state.
            text: Keys and values of the text, from `text_pair`.
            past: Of frames before, which all tokens see; None for none.
            visible: `[F * N, past tokens + F * N]` bool, or what is broadcast to it for each video and head;
                None where each token sees all.
            keeps: Whether what is kept is wanted; without it a hybrid layer returns None.
            is_fused: Compile what comes before the attention over frames and behind it, where possible. That
                itself writes into the window, and stays as it is.
        """
        before, behind = before_attention, behind_attention
        if is_fused:
            before, behind = fused(before), fused(behind)
        ready = before(self, x, modulation, rotary, keeps=keeps)
        if ready.reading is None:
            keys, values = seen(past, (ready.keys, ready.values))
            attended = attend(ready.queries, keys, values, visible)
            return behind(self, x, attended, modulation, rotary, text, None, None), ready[1:3]
        q, k, v = (each.transpose(1, 2) for each in (ready.queries, ready.keys, ready.values))
        attended = attend_in_play(q, k, v).transpose(1, 2).flatten(2)
        state = past if isinstance(past, Tensor) else self._empty_state(x)
        return behind(self, x, attended, modulation, rotary, text, state, ready.reading), ready.writes

    def remember(self, x: Tensor, modulation: Tensor, rotary: Rotary, past: Past | None = None) -> Kept:
        """Return what `forward` keeps, without attending."""
        ready = before_attention(self, x, modulation, rotary, keeps=True)
        if ready.writes is not None:
            return ready.writes
        seen(past, ready[1:3])  # which writes it
        return ready[1:3]

    def forward_sequence(
        self, x: Tensor, modulation: Tensor, text: Tensor, rotary: Rotary, causal: CausalConfig
    ) -> Tensor:
        """Pass whole videos on, each block of frames in two streams: clean, and noisy.

        Both streams see their own block and the clean ones before it, as a block in play does.

        Args:
            x: `[B, K, S, N, C]`, K blocks of N tokens; stream 0 is clean.
            modulation: `[B, K, S, 6, C]`, at least fp32.
            text: `[B, L, C]`, of `WanTransformer.embed_rows`.
            rotary: Of the tokens' places: `place` `[N, D / 2, 2]` in their block, `time` and `memory`
                `[B, K, N, D / 2, 2]` in the video.
            causal: The blocks, and what they see.
        """
        return self.trace_sequence(x, modulation, text, rotary, causal)[0]

    def trace_sequence(
        self, x: Tensor, modulation: Tensor, text: Tensor, rotary: Rotary, causal: CausalConfig
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `forward_sequence` does, and what its attention over frames is given and gives."""
        blocks = x.flatten(1, 2)  # [B, K * S, N, C]
        gates = self.gates(modulation.flatten(1, 2))
        entered = modulated(blocks, gates.shift, gates.scale, self.eps).view_as(x)
        attended = self._attend_blocks(entered, rotary, causal)
        out = self.pass_on(blocks, attended.flatten(1, 2), gates, self.text_pair(text))
        return out.view_as(x), entered, attended

    def attend_sequence(self, inputs: Tensor, rotary: Rotary, causal: CausalConfig) -> Tensor:
        """Return what attention over frames gives, `[B, K, S, N, C]`; arguments as of `forward_sequence`."""
        # A door of its own: where weights are spread over devices, each door gathers and frees them.
        return self._attend_blocks(inputs, rotary, causal)

    def _attend_blocks(self, inputs: Tensor, rotary: Rotary, causal: CausalConfig) -> Tensor:
        attention = self.self_attn
        if isinstance(attention, HybridAttention):
            heads, width = attention.num_heads, self.cross_attn.head_width
            empty = wide(inputs).new_zeros(len(inputs), heads, width, width)
            return attention.forward_sequence(inputs, empty, rotary)[0].to(inputs.dtype)
        assert rotary.time is not None
        keys, values = attention.keys_and_values(inputs)
        turn = rotary.time.unsqueeze(2)
        queries = rotate(attention.queries(inputs), turn).to(values.dtype)
        return attention.o(attend_blocks(queries, rotate(keys, turn).to(values.dtype), values, causal))

    def gates(self, modulation: Tensor) -> Gates:
        """Return shift, scale and gate of attention, then of the MLP, `[B, F or 1, 1, C]` each."""
        return Gates(*(modulation + self.modulation).unsqueeze(-2).unbind(2))

    def pass_on(self, x: Tensor, out: Tensor, gates: Gates, text: Pair) -> Tensor:
        """Return tokens `[B, F, N, C]` with attention's output added, and passed to the text and the MLP."""
        frames = x.shape[1]
        x = torch.addcmul(wide(x), wide(out), gates.gate).to(x.dtype)

        inputs = F.layer_norm(
            wide(x), x.shape[-1:], wide(self.norm3.weight), wide(self.norm3.bias), self.eps
        ).to(x.dtype)
        queries = self.cross_attn.queries(inputs.flatten(1, 2))
        x = x + self.cross_attn.o(attend(queries, *text)).unflatten(1, (frames, -1))

        out = self.ffn(modulated(x, gates.mlp_shift, gates.mlp_scale, self.eps))
        return torch.addcmul(wide(x), wide(out), gates.mlp_gate).to(x.dtype)

    def _empty_state(self, x: Tensor) -> Tensor:
        heads, width = self.cross_attn.heads(x).shape[-2:]
        return wide(x).new_zeros(len(x), heads, width, width)

    def text_pair(self, text: Tensor) -> Pair:
        """Return keys and values, `[B, L, H, D]`, of an embedded text `[B, L, C]`."""
        return self.cross_attn.keys_and_values(text)


def _hybrid_attention(config: WanConfig) -> HybridAttention:
    given = (config.dim, config.num_heads, TOKENS, HALF_LIVES)
    is_published = config.hybrid_form == "published"
    return PublishedAttention(*given, config.memory_rank) if is_published else HybridAttention(*given)


def seen(past: Past | None, new: Pair) -> Pair:
    """Return all keys and values that a softmax layer's block sees, its own `new` ones behind the others."""
    if isinstance(past, Reserved | Places):
        return past.behind(new)
    return behind(past, new) if isinstance(past, tuple) else new


def behind(past: Pair, new: Pair) -> Pair:
    """Return keys and values with others behind them."""
    return torch.cat([past[0], new[0]], dim=1), torch.cat([past[1], new[1]], dim=1)
