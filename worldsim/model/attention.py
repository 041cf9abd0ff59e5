"""The two kinds of attention layer: hybrid (this frame by softmax, the past by a fixed-size state) and window.

Both share the projections of the softmax model that they come from; names follow Wan 2.1 and the ARL2 release, so that
their weights keep their names. Source of the equations: ARL2 (arXiv 2605.16579), sections 2 and 3 of it; README, "The
path of one frame".
"""

# B batch, F frames, S streams (clean, noisy), N tokens per frame, H heads, D head width, G leading sizes

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

import kernels
from worldsim.model.rotary import frequencies, rotate, split_width

MAX_BETA = 2.0 - 1e-3
"""Just under 2: a key rounded to a norm above 1 must not make the write an expansion."""


def at_least_fp32(x: Tensor) -> Tensor:
    """Return `x` in fp32, or as it is where it is wider: the state's arithmetic is never done in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True, slots=True)
class Rotary:
    """Cosines and sines of the tokens' angles.

    Attributes:
        place: Pair of `[N, D / 2]`: the place in the frame.
        memory: Pair of `[..., N, D / 2]` fp32: the place in the frame plus the path so far.
    """

    place: tuple[Tensor, Tensor]
    memory: tuple[Tensor, Tensor]


class PerHeadLinear(nn.Module):
    """One D x D map per head, identity at the start; the weight has the shape of a grouped 1x1 convolution."""

    def __init__(self, num_heads: int, head_width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(head_width).repeat(num_heads, 1).unsqueeze(-1))  # [H * D, D, 1]

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., H, D]` to the same shape."""
        weight = self.weight.squeeze(-1).unflatten(0, (-1, self.weight.shape[1]))  # [H, D out, D in]
        return torch.einsum("...hd,hed->...he", x, weight)


def _normalise(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """Apply a norm in the dtype of `x`: under autocast its weight is wider, and the fused form wants one dtype."""
    return functional.rms_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.eps).to(x.dtype)


class Attention(nn.Module):
    """The projections every layer has: those of a Wan self-attention."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = nn.RMSNorm(dim, eps=1e-6)
        self.norm_k = nn.RMSNorm(dim, eps=1e-6)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k, v `[G, N, H, D]` of `x` `[G, N, H * D]`; positions not yet applied."""
        v = self.v(x)
        q, k = _normalise(self.norm_q, self.q(x)), _normalise(self.norm_k, self.k(x))
        heads = (self.num_heads, -1)
        return q.unflatten(-1, heads), k.unflatten(-1, heads), v.unflatten(-1, heads)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention over `[..., tokens, H, D]`; `mask` `[..., 1, queries, keys]` is True where a key is seen."""
    lead = q.shape[:-3]
    q, k, v = (t.flatten(0, -4).transpose(1, 2) for t in (q, k, v))
    if mask is not None:
        mask = mask.flatten(0, -4)
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).unflatten(0, lead)


class HybridAttention(Attention):
    """Softmax over the tokens of this frame, plus what the state before this frame says."""

    def __init__(self, dim: int, num_heads: int, tokens_per_frame: int, half_lives: tuple[float, float]) -> None:
        super().__init__(dim, num_heads)
        head_width = dim // num_heads
        self.phi_q = PerHeadLinear(num_heads, head_width)
        self.phi_k = PerHeadLinear(num_heads, head_width)
        self.phi_v = PerHeadLinear(num_heads, head_width)
        self.a_proj = nn.Linear(dim, num_heads, bias=False)
        self.b_proj = nn.Linear(dim, num_heads, bias=True)
        self.gate_proj = nn.Linear(dim, num_heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(num_heads))
        self.dt_bias = nn.Parameter(torch.empty(num_heads))
        self._spread_half_lives(tokens_per_frame, *half_lives)

    @torch.no_grad()
    def _spread_half_lives(self, tokens_per_frame: int, shortest: float, longest: float) -> None:
        """Lay the heads' half-lives out geometrically, in frames, and let long memories write with care.

        With the paper's initial gates a head forgets within a frame: a rate per token must be small by the number of
        tokens in a frame to be a memory of frames.
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

    def decay(self, x: Tensor) -> Tensor:
        """Return the log decay per token, `[G, N, H]` fp32, at most 0."""
        rate, bias = at_least_fp32(self.A_log).exp(), at_least_fp32(self.dt_bias)
        return -rate * functional.softplus(at_least_fp32(self.a_proj(x)) + bias)

    def write_terms(self, x: Tensor, k: Tensor, v: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the keys, values, log decays and strengths that a clean frame writes, fp32."""
        keys = functional.normalize(at_least_fp32(rotate(self.phi_k(k), *rotary.memory)), dim=-1)
        beta = MAX_BETA * torch.sigmoid(at_least_fp32(self.b_proj(x)))
        return keys, at_least_fp32(self.phi_v(v)), self.decay(x), beta

    def recall(self, x: Tensor, q: Tensor, states: Tensor, rotary: Rotary) -> Tensor:
        """Return the gated reading of the state, `[G, N, H, D]`, in the dtype of `x`."""
        queries = functional.normalize(at_least_fp32(rotate(self.phi_q(q), *rotary.memory)), dim=-1).to(q.dtype)
        gate = torch.sigmoid(self.gate_proj(x)).unsqueeze(-1)
        return gate * (q.shape[-1] ** -0.5 * kernels.read(queries, states))

    def local(self, q: Tensor, k: Tensor, v: Tensor, rotary: Rotary) -> Tensor:
        """Return the softmax over the frame's own tokens, `[G, N, H, D]`."""
        return attend(rotate(q, *rotary.place).to(v.dtype), rotate(k, *rotary.place).to(v.dtype), v)

    def forward(self, x: Tensor, state: Tensor, rotary: Rotary) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Attend in one frame and read the state before it.

        Args:
            x: `[B, N, H * D]`.
            state: `[B, H, D, D]`, before this frame.
            rotary: Angles of this frame.

        Returns:
            The layer's output, and `x, k, v` for `commit`.
        """
        q, k, v = self.project(x)
        out = self.local(q, k, v, rotary) + self.recall(x, q, state, rotary)
        return self.o(out.flatten(-2)), (x, k, v)

    def commit(self, written: tuple[Tensor, Tensor, Tensor], state: Tensor, rotary: Rotary) -> Tensor:
        """Return the state after the frame whose clean pass gave `written`."""
        return kernels.commit(*self.write_terms(*written, rotary), state)

    def forward_sequence(self, x: Tensor, state: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """Do the same for all frames at once; both streams of a frame read what the clean frames before it wrote.

        Args:
            x: `[B, F, S, N, H * D]`, stream 0 clean.
            state: `[B, H, D, D]`, before the first frame.
            rotary: Angles with `memory` `[B, F, N, D / 2]`.

        Returns:
            The output, shaped as `x`, and the state after the last frame.
        """
        q, k, v = self.project(x)
        written = (x[:, :, 0], k[:, :, 0], v[:, :, 0])
        with torch.autocast(x.device.type, enabled=False):
            terms = self.write_terms(*(at_least_fp32(t) for t in written), rotary)
            states, final = kernels.scan_frames(*terms, state)
        streams = Rotary(rotary.place, (rotary.memory[0].unsqueeze(2), rotary.memory[1].unsqueeze(2)))
        out = self.local(q, k, v, rotary) + self.recall(x, q, states.unsqueeze(2), streams)
        return self.o(out.flatten(-2)), final


class WindowAttention(Attention):
    """Softmax over this frame, the last W frames, and the first frame of all (the sink). Constant memory.

    Positions in time are counted back from the current frame, the sink's is held at W + 1, so that nothing depends on
    how long the world has been running.
    """

    age_cos: Tensor
    age_sin: Tensor

    def __init__(self, dim: int, num_heads: int, window: int) -> None:
        super().__init__(dim, num_heads)
        self.window = window
        time = split_width(dim // num_heads)[0]
        age = torch.arange(window + 1, 0, -1, dtype=torch.float64)  # sink, then oldest first
        angles = torch.zeros(window + 1, dim // num_heads // 2, dtype=torch.float64)
        angles[:, : time // 2] = -age[:, None] * frequencies(time)
        self.register_buffer("age_cos", angles.cos().float()[:, None], persistent=False)  # [W + 1, 1, D / 2]
        self.register_buffer("age_sin", angles.sin().float()[:, None], persistent=False)

    def _aged(self, keys: Tensor) -> Tensor:
        """Turn cached keys `[..., W + 1, N, H, D]` by their age."""
        return rotate(keys, self.age_cos.to(keys.dtype), self.age_sin.to(keys.dtype))

    def forward(
        self, x: Tensor, cache: tuple[Tensor, Tensor], visible: Tensor, rotary: Rotary
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Attend over one frame and the cached ones.

        Args:
            x: `[B, N, H * D]`.
            cache: Keys (turned by place) and values of sink and window, `[B, W + 1, N, H, D]` each.
            visible: `[B, W + 1]` bool, which cached frames exist.
            rotary: Angles of this frame.

        Returns:
            The layer's output, and the frame's own keys and values for the cache.
        """
        q, k, v = self.project(x)
        q, k = rotate(q, *rotary.place).to(v.dtype), rotate(k, *rotary.place).to(v.dtype)
        keys = torch.cat([self._aged(cache[0]).flatten(1, 2).to(k.dtype), k], dim=1)
        values = torch.cat([cache[1].flatten(1, 2).to(v.dtype), v], dim=1)
        tokens = x.shape[1]
        mask = torch.cat([visible, visible.new_ones(len(visible), 1)], dim=1).repeat_interleave(tokens, dim=1)
        out = attend(q, keys, values, mask[:, None, None, :])
        return self.o(out.flatten(-2)), (k, v)

    def forward_sequence(self, x: Tensor, visible: Tensor, rotary: Rotary) -> Tensor:
        """Do the same for all frames of sequences that begin with an empty window.

        Args:
            x: `[B, F, S, N, H * D]`, stream 0 clean.
            visible: `[F, W + 1]` bool.
            rotary: Angles of the frames.
        """
        q, k, v = self.project(x)
        q, k = rotate(q, *rotary.place).to(v.dtype), rotate(k, *rotary.place).to(v.dtype)
        keys = torch.cat([self._aged(self._windows(k[:, :, 0])).flatten(2, 3), k.flatten(2, 3)], dim=2)
        values = torch.cat([self._windows(v[:, :, 0]).flatten(2, 3), v.flatten(2, 3)], dim=2)
        mask = self._sequence_mask(visible, x.shape[2], x.shape[3])  # [F, 1, S * N, keys]
        out = attend(q.flatten(2, 3), keys, values, mask.expand(x.shape[0], *mask.shape))
        return self.o(out.unflatten(2, x.shape[2:4]).flatten(-2))

    def _windows(self, clean: Tensor) -> Tensor:
        """Gather sink and window of every frame: `[B, F, N, H, D]` -> `[B, F, W + 1, N, H, D]`."""
        padded = functional.pad(clean, (0, 0, 0, 0, 0, 0, self.window, 0))
        recent = padded[:, :-1].unfold(1, self.window, 1).movedim(-1, 2)
        return torch.cat([clean[:, :1].unsqueeze(1).expand_as(recent[:, :, :1]), recent], dim=2)

    def _sequence_mask(self, visible: Tensor, streams: int, tokens: int) -> Tensor:
        """Return which keys each query sees: cached frames that exist, and its own stream of its own frame."""
        own = torch.eye(streams, dtype=torch.bool, device=visible.device)
        seen = torch.cat([visible[:, None].expand(-1, streams, -1), own.expand(len(visible), -1, -1)], dim=-1)
        return seen.repeat_interleave(tokens, dim=1).repeat_interleave(tokens, dim=2).unsqueeze(1)
