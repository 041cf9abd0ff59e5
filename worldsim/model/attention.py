"""The two kinds of attention layer: hybrid (softmax in the frame, a state for the past) and window.

Both share the projections of the softmax model that they come from; names follow Wan 2.1 and the ARL2
release, so that their weights keep their names. Source of the equations: ARL2 (arXiv 2605.16579), sections 2
and 3 of it; README, "The path of one frame".
"""

# B batch, F frames, S streams (clean, noisy), N tokens per frame, H heads, D head width, G leading sizes

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

import kernels
from worldsim.model.linear import Linear, Packed, can_pack
from worldsim.model.rotary import frequencies, rotate, split_width, turns

MAX_BETA = 2.0 - 1e-3
"""Just under 2: a key rounded to a norm above 1 must not make the write an expansion."""


def at_least_fp32(x: Tensor) -> Tensor:
    """Return `x` in fp32, or wider as it is: the state's arithmetic is never done in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True, slots=True)
class Rotary:
    """Cosines and sines of the tokens' angles (`worldsim.model.rotary.turns`).

    Attributes:
        place: `[N, D / 2, 2]`: the place in the frame.
        memory: `[..., N, D / 2, 2]`: the place in the frame plus the path so far.
    """

    place: Tensor
    memory: Tensor


class Written(NamedTuple):
    """What a hybrid layer saw of a clean frame: `k v` `[..., N, H, D]`, decay and strength `[..., N, H]`."""

    k: Tensor
    v: Tensor
    a: Tensor
    b: Tensor


class Cached(NamedTuple):
    """What a window layer keeps of a frame: keys turned by place, and values, `[..., N, H, D]`."""

    k: Tensor
    v: Tensor


class PerHeadLinear(nn.Module):
    """One D x D map per head, identity at the start; its weight is shaped as a grouped 1x1 convolution's."""

    packed: Tensor | None = None

    def __init__(self, num_heads: int, head_width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(head_width).repeat(num_heads, 1).unsqueeze(-1))  # [H * D, D, 1]

    def pack(self) -> None:
        """Keep the weight in fp32 where a CPU gains by it: products this small are not faster in bf16."""
        self.packed = self._by_head().detach().float() if can_pack(self.weight) else None

    def _by_head(self) -> Tensor:
        return self.weight.squeeze(-1).unflatten(0, (-1, self.weight.shape[1])).mT  # [H, D in, D out]

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., H, D]` to the same shape, whose memory holds heads before tokens."""
        weight = self._by_head() if self.packed is None else self.packed
        heads_first = x.to(weight.dtype).flatten(0, -3).transpose(0, 1)  # [H, G, D]
        return torch.bmm(heads_first, weight).transpose(0, 1).unflatten(0, x.shape[:-2])


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
        self.packed_norms = self._norms().detach() if is_packed else None

    def _norms(self) -> Tensor:
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
        weight = self._norms() if self.packed_norms is None else self.packed_norms
        qk = _normalise(qk.unflatten(-1, (2, width)), weight, 1e-6)
        return qk.unflatten(-1, (self.num_heads, -1)), v.unflatten(-1, (self.num_heads, -1)), gates


def rotate_by_place(qk: Tensor, rotary: Rotary) -> Tensor:
    """Turn queries and keys `[..., N, 2, H, D]` by their place in the frame."""
    return rotate(qk.flatten(-3, -2), rotary.place).unflatten(-2, (2, -1))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention over `[..., tokens, H, D]`; `mask` `[..., 1, queries, keys]` is True where seen.

    The queries are scaled already.
    """
    lead = q.shape[:-3]
    q, k, v = (t.flatten(0, -4).transpose(1, 2) for t in (q, k, v))
    if mask is not None and mask.dim() > 4:
        mask = mask.flatten(0, -4)
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
    return out.transpose(1, 2).unflatten(0, lead)


def attend_in_play(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Do what `attend` does for one frame of few tokens, heads first: `[B, H, tokens, D]`, no gradients.

    Spelt out on a CPU: for as few tokens as a frame has, PyTorch's fused form takes twice as long there. The
    scores stay in fp32: rounding them to bf16 would be the largest error of the whole step.
    """
    if q.device.type != "cpu":
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
    scores = at_least_fp32(q) @ at_least_fp32(k).mT  # [B, H, queries, keys]
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(-1).to(v.dtype) @ v


class HybridAttention(Attention):
    """Softmax over the tokens of this frame, plus what the state before this frame says."""

    def __init__(
        self, dim: int, num_heads: int, tokens_per_frame: int, half_lives: tuple[float, float]
    ) -> None:
        super().__init__(dim, num_heads)
        head_width = dim // num_heads
        self.phi_q = PerHeadLinear(num_heads, head_width)
        self.phi_k = PerHeadLinear(num_heads, head_width)
        self.phi_v = PerHeadLinear(num_heads, head_width)
        self.a_proj = Linear(dim, num_heads, bias=False)
        self.b_proj = Linear(dim, num_heads, bias=True)
        self.gate_proj = Linear(dim, num_heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(num_heads))
        self.dt_bias = nn.Parameter(torch.empty(num_heads))
        self._spread_half_lives(tokens_per_frame, *half_lives)

    @torch.no_grad()
    def _spread_half_lives(self, tokens_per_frame: int, shortest: float, longest: float) -> None:
        """Lay the heads' half-lives out geometrically, in frames, and let long memories write with care.

        With the paper's initial gates a head forgets within a frame: a rate per token must be small by the
        number of tokens in a frame to be a memory of frames.
        """
        heads = self.A_log.numel()
        position = torch.linspace(0, 1, heads)
        half_life = shortest * (longest / shortest) ** position
        rate = math.log(2) / (half_life * tokens_per_frame)  # decay per token
        step = 0.05  # softplus(dt_bias): the gate's resting point, free to move both ways
        self.dt_bias.fill_(math.log(math.expm1(step)))
        self.A_log.copy_((rate / step).log())
        self.b_proj.bias.copy_(-2.0 * position)
        for gate in (self.a_proj, self.b_proj, self.gate_proj):
            nn.init.xavier_uniform_(gate.weight, gain=2**-2.5)

    def pack(self, num_rows: int) -> None:
        """Reorder weights for inference where this machine can; see `worldsim.model.linear`."""
        super().pack(num_rows)
        for phi in (self.phi_q, self.phi_k, self.phi_v):
            phi.pack()

    def inputs(self) -> list[Linear]:
        """Return the layers that read the normalised tokens: q, k, v, then gate, decay and write strength."""
        return [*super().inputs(), self.gate_proj, self.a_proj, self.b_proj]

    def write_terms(self, written: Written, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the keys, values, log decays and strengths that a clean frame writes, at least fp32."""
        k, v, a, b = (at_least_fp32(term) for term in written)
        keys = functional.normalize(rotate(self.phi_k(k), rotary.memory), dim=-1)
        rate, bias = at_least_fp32(self.A_log).exp(), at_least_fp32(self.dt_bias)
        decay = -rate * functional.softplus(a + bias)
        return keys, at_least_fp32(self.phi_v(v)), decay, MAX_BETA * torch.sigmoid(b)

    def recall(self, q: Tensor, gate: Tensor, state: Tensor, local: Tensor, rotary: Rotary) -> Tensor:
        """Return `local` plus the gated reading of the state, `[G, N, H, D]`, at least fp32.

        In training q, gate and local are `[B, F, S, N, ...]`, and both streams of a frame read its `state`.
        """
        queries = rotate(self.phi_q(q), rotary.memory)
        length = torch.linalg.vector_norm(queries, dim=-1).clamp_min(1e-12)
        weight = torch.sigmoid(gate) / length
        if q.dim() == state.dim():
            return kernels.read(queries, state, weight, local)
        # To the state, the streams' tokens are those of one frame.
        queries, weight, local = (tensor.flatten(2, 3) for tensor in (queries, weight, local))
        return kernels.read(queries, state, weight, local).unflatten(2, q.shape[2:4])

    def local(self, qk: Tensor, v: Tensor, rotary: Rotary) -> Tensor:
        """Return the softmax over the frame's own tokens, `[G, N, H, D]`."""
        q, k = rotate_by_place(qk, rotary).to(v.dtype).unbind(-3)
        return attend(q, k, v)

    def forward(self, x: Tensor, state: Tensor, rotary: Rotary) -> tuple[Tensor, Written]:
        """Attend in one frame and read the state before it.

        Args:
            x: `[B, N, H * D]`.
            state: `[B, H, D, D]`, before this frame.
            rotary: Angles of this frame.

        Returns:
            The layer's output, and what `write_terms` needs.
        """
        qk, v, (gate, a, b) = self.project(x)
        q, k = qk.unbind(-3)
        turned = rotate_by_place(qk, rotary).to(v.dtype)
        heads_first = (part.transpose(-3, -2) for part in (*turned.unbind(-3), v))
        local = attend_in_play(*heads_first).transpose(-3, -2)
        out = self.recall(q, gate, state, local, rotary)
        return self.o(out.flatten(-2)), Written(k, v, a, b)

    def remember(self, x: Tensor, rotary: Rotary) -> Written:
        """Return what `forward` hands on to be written, without attending."""
        qk, v, (_, a, b) = self.project(x)
        return Written(qk[..., 1, :, :], v, a, b)

    def forward_sequence(self, x: Tensor, state: Tensor, rotary: Rotary) -> Tensor:
        """Do the same for all frames at once; both streams read what the clean frames before them wrote.

        Args:
            x: `[B, F, S, N, H * D]`, stream 0 clean.
            state: `[B, H, D, D]`, before the first frame.
            rotary: Angles with `memory` `[B, F, N, D / 2, 2]`.

        Returns:
            The output, shaped as `x`.
        """
        qk, v, (gate, a, b) = self.project(x)
        qk = qk.to(v.dtype)  # in mixed precision, what is kept for the gradient is then half as large
        q, k = qk.unbind(-3)
        with torch.autocast(x.device.type, enabled=False):
            written = Written(k[:, :, 0], v[:, :, 0], a[:, :, 0], b[:, :, 0])
            states, _ = kernels.scan_frames(*self.write_terms(written, rotary), state)
        streams = Rotary(rotary.place, rotary.memory.unsqueeze(2))
        out = self.recall(q, gate, states, self.local(qk, v, rotary), streams)
        return self.o(out.flatten(-2))


def age_angles(head_width: int, window: int) -> Tensor:
    """Return the angles of cached frames, `[window + 1, head_width / 2]` fp64: sink, then oldest first."""
    time = split_width(head_width)[0]
    age = torch.arange(window + 1, 0, -1, dtype=torch.float64)
    angles = torch.zeros(window + 1, head_width // 2, dtype=torch.float64)
    angles[:, : time // 2] = -age[:, None] * frequencies(time)
    return angles


class WindowAttention(Attention):
    """Softmax over this frame, the last W frames, and the first frame of all (the sink). Constant memory.

    Positions in time are counted back from the current frame, the sink's is held at W + 1, so that nothing
    depends on how long the world has been running.
    """

    age: Tensor

    def __init__(self, dim: int, num_heads: int, window: int) -> None:
        super().__init__(dim, num_heads)
        self.window = window
        self.register_buffer(
            "age", turns(age_angles(dim // num_heads, window)).float()[:, None], persistent=False
        )

    def forward(
        self, x: Tensor, cache: tuple[Tensor, Tensor], mask: Tensor | None, rotary: Rotary
    ) -> tuple[Tensor, Cached]:
        """Attend over one frame and the cached ones.

        Args:
            x: `[B, N, H * D]`.
            cache: Keys (turned by place and age) and values of sink and window, heads first: `[B, H, (W + 1)
                * N, D]` each.
            mask: `[B, 1, 1, (W + 2) * N]` bool, which cached tokens exist; the frame's own are last. None if
                all do.
            rotary: Angles of this frame.

        Returns:
            The layer's output, and the frame's own keys and values for the cache.
        """
        qk, v, _ = self.project(x)
        q, k = rotate_by_place(qk, rotary).to(cache[0].dtype).unbind(-3)
        v = v.to(cache[1].dtype)
        keys = torch.cat([cache[0], k.transpose(1, 2)], dim=2)
        values = torch.cat([cache[1], v.transpose(1, 2)], dim=2)
        out = attend_in_play(q.transpose(1, 2), keys, values, mask)
        return self.o(out.transpose(1, 2).flatten(-2)), Cached(k, v)

    def remember(self, x: Tensor, rotary: Rotary) -> Cached:
        """Return what `forward` hands on to be cached, without attending."""
        qk, v, _ = self.project(x)
        dtype = self.o.weight.dtype
        return Cached(rotate_by_place(qk, rotary)[..., 1, :, :].to(dtype), v.to(dtype))

    def forward_sequence(self, x: Tensor, visible: Tensor, rotary: Rotary) -> Tensor:
        """Do the same for all frames of sequences that begin with an empty window.

        Args:
            x: `[B, F, S, N, H * D]`, stream 0 clean.
            visible: `[F, W + 1]` bool.
            rotary: Angles of the frames.
        """
        qk, v, _ = self.project(x)
        q, k = rotate_by_place(qk.to(v.dtype), rotary).to(v.dtype).unbind(-3)
        past = rotate(self._windows(k[:, :, 0]), self.age).to(k.dtype)
        keys = torch.cat([past.flatten(2, 3), k.flatten(2, 3)], dim=2)
        values = torch.cat([self._windows(v[:, :, 0]).flatten(2, 3), v.flatten(2, 3)], dim=2)
        mask = self._sequence_mask(visible, x.shape[2], x.shape[3])  # [F, 1, S * N, keys]
        out = attend(q.flatten(2, 3), keys, values, mask.expand(x.shape[0], *mask.shape))
        return self.o(out.unflatten(2, x.shape[2:4]).flatten(-2))

    def _windows(self, clean: Tensor) -> Tensor:
        """Gather sink and window of every frame: `[B, F, N, H, D]` -> `[B, F, W + 1, N, H, D]`."""
        frames = clean.shape[1]
        padded = functional.pad(clean, (0, 0, 0, 0, 0, 0, self.window, 0))
        sink = clean[:, :1].expand_as(clean)
        # Slices, not `unfold`: the backward pass of that adds up by atomic writes.
        return torch.stack([sink, *(padded[:, i : i + frames] for i in range(self.window))], dim=2)

    def _sequence_mask(self, visible: Tensor, streams: int, tokens: int) -> Tensor:
        """Return which keys each query sees: cached frames that exist, its own stream of its own frame."""
        own = torch.eye(streams, dtype=torch.bool, device=visible.device)
        seen = torch.cat([visible[:, None].expand(-1, streams, -1), own.expand(len(visible), -1, -1)], dim=-1)
        return seen.repeat_interleave(tokens, dim=1).repeat_interleave(tokens, dim=2).unsqueeze(1)
