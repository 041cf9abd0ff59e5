"""Hybrid attention: softmax inside the frame, a state of constant size for the past.

Source of the equations: ARL2 (arXiv 2605.16579), sections 2 and 3 of it; names follow its release.
"""

# B batch, F frames, S streams (clean, noisy), N tokens per frame, H heads, D head width, G leading sizes

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

import kernels
from kernels import layers
from kernels.layer_checks import holds_frame
from worldsim.model.attention.base import (
    Attention,
    Rotary,
    attend,
    attend_in_play,
    project_turned,
    rotate_both,
)
from worldsim.model.attention.writes import (
    StateUpdate,
    WriteWeights,
    key_turns,
    map_by_head,
    strengths,
    write_terms,
)
from worldsim.model.linear import Linear, at_least_fp32, can_pack
from worldsim.model.rotary import rotate_heads


class PerHeadLinear(nn.Module):
    """One D x D map per head, identity at the start; its weight is shaped as a grouped 1x1 convolution's."""

    packed: Tensor | None = None

    def __init__(self, num_heads: int, head_width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(head_width).repeat(num_heads, 1).unsqueeze(-1))  # [H * D, D, 1]

    def pack(self) -> None:
        """Keep the weight in fp32 where a CPU gains by it: products this small are not faster in bf16."""
        self.packed = self.by_head().detach().float() if can_pack(self.weight) else None

    def by_head(self) -> Tensor:
        """Return the maps, `[H, D out, D in]`."""
        return self.weight.squeeze(-1).unflatten(0, (-1, self.weight.shape[1]))

    def maps(self) -> Tensor:
        """Return the maps as they are computed with: the packed ones, where there are any."""
        return self.by_head() if self.packed is None else self.packed

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., H, D]` to the same shape, whose memory holds heads before tokens."""
        return map_by_head(x, self.maps())


class Prepared(NamedTuple):
    """What the softmax inside a frame and the reading of the state are given.

    Attributes:
        turned: `[B, N, 2, H, D]`, queries and keys of the softmax, turned.
        values: `[B, N, H, D]`, of the softmax.
        queries: `[B, N, H, D]`, of the state.
        gate: `[B, N, H]`, of what is read.
        update: What `write_terms` needs.
    """

    turned: Tensor
    values: Tensor
    queries: Tensor
    gate: Tensor
    update: StateUpdate


class HybridAttention(Attention):
    """Softmax over the tokens of this frame, plus what the state before this frame says."""

    multiples: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        tokens_per_frame: int,
        half_lives: tuple[float, float],
        write_biases: tuple[float, float] = (0.0, -2.0),
        multiples: Tensor | None = None,
    ) -> None:
        super().__init__(dim, num_heads)
        head_width = dim // num_heads
        self.phi_q = PerHeadLinear(num_heads, head_width)
        self.phi_k = PerHeadLinear(num_heads, head_width)
        self.phi_v = PerHeadLinear(num_heads, head_width)
        self.a_proj = Linear(dim, num_heads, bias=False)
        self.b_proj = Linear(dim, num_heads, bias=True)
        self.gate_proj = Linear(dim, num_heads, bias=False)
        # `[H, head_width / 2, P]` for keys that each head turns by multiples of its own; see `key_turns`.
        self.turns_by_head = multiples is not None
        if multiples is not None:
            self.register_buffer("multiples", multiples, persistent=False)
        self.A_log = nn.Parameter(torch.empty(num_heads))
        self.dt_bias = nn.Parameter(torch.empty(num_heads))
        self._spread_half_lives(tokens_per_frame, half_lives, write_biases)

    @torch.no_grad()
    def _spread_half_lives(
        self, tokens_per_frame: int, half_lives: tuple[float, float], write_biases: tuple[float, float]
    ) -> None:
        """Lay the heads' half-lives out geometrically, in frames, and let long memories write with care.

        With the paper's initial gates a head forgets within a frame: a rate per token must be small by the
        number of tokens in a frame to be a memory of frames.
        """
        (shortest, longest), (first, last) = half_lives, write_biases
        heads = self.A_log.numel()
        position = torch.linspace(0, 1, heads)
        half_life = shortest * (longest / shortest) ** position
        rate = math.log(2) / (half_life * tokens_per_frame)  # decay per token
        step = 0.05  # softplus(dt_bias): the gate's resting point, free to move both ways
        self.dt_bias.fill_(math.log(math.expm1(step)))
        self.A_log.copy_((rate / step).log())
        self.b_proj.bias.copy_(first + (last - first) * position)
        for gate in (self.a_proj, self.b_proj, self.gate_proj):
            nn.init.xavier_uniform_(gate.weight, gain=2**-2.5)

    @torch.no_grad()
    def begin_as_published(self) -> None:
        """Draw decays from torch's generator as the release of ARL2 begins with, and write with strength 1.

        Half of the heads then forget half within about 16 tokens.
        """
        step = torch.empty_like(self.dt_bias).uniform_(math.log(1e-3), math.log(0.1)).exp()
        self.dt_bias.copy_(step.expm1().log())  # softplus of it is the step
        self.A_log.uniform_(0, 16).clamp_min_(1e-4).log_()
        self.b_proj.bias.zero_()

    def pack(self, num_rows: int) -> None:
        """Reorder weights for inference where this machine can; see `worldsim.model.linear`."""
        super().pack(num_rows)
        for phi in (self.phi_q, self.phi_k, self.phi_v):
            phi.pack()

    def inputs(self) -> list[Linear]:
        """Return the layers that read the normalised tokens: q, k, v, then gate, decay and write strength."""
        return [*super().inputs(), self.gate_proj, self.a_proj, self.b_proj]

    def turns(self, angles: Tensor) -> Tensor:
        """Return by what keys or queries turn for where they are; see `key_turns`."""
        return key_turns(angles, self.multiples if self.turns_by_head else None)

    def write_weights(self) -> WriteWeights:
        """Return what `write_terms` needs to know of this layer's heads."""
        return WriteWeights(
            self.phi_k.maps(),
            self.phi_v.maps(),
            at_least_fp32(self.A_log).exp(),
            at_least_fp32(self.dt_bias),
            self.multiples if self.turns_by_head else None,
        )

    def write_terms(self, update: StateUpdate, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the keys, values, log decays and strengths that a frame writes, at least fp32."""
        k, v, a, b = update
        return *write_terms(k, v, a, self.write_weights(), rotary), self.strengths(b)

    def strengths(self, b: Tensor) -> Tensor:
        """Return the strengths that a frame writes with, of what `b_proj` gave."""
        return strengths(b)

    def for_memory(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the queries, keys and values of the memory, `[..., H, D]`: those of the softmax as well.

        Args:
            x: `[..., N, H * D]`, the tokens.
            q: Normed queries of the softmax, `[..., N, H, D]`, k and v likewise.
        """
        return q, k, v

    def recall(self, q: Tensor, gate: Tensor, state: Tensor, local: Tensor, rotary: Rotary) -> Tensor:
        """Return `local` plus the gated reading of the state, `[G, N, H, D]`.

        In training q, gate and local are `[B, F, S, N, ...]`, and both streams of a frame read its `state`.
        """
        has_streams = q.dim() > state.dim()
        if layers.is_fused("recall", q):
            # To the state, the streams' tokens are those of one frame.
            terms = (tensor.flatten(2, 3) if has_streams else tensor for tensor in (q, gate, local))
            queries, gate, local = terms
            turn, weight = self.turns(rotary.memory), self.phi_q.by_head()
            out = layers.recall(queries, weight, turn, state, gate, local)
            return out.unflatten(2, q.shape[2:4]) if has_streams else out
        turn = self.turns(rotary.memory.unsqueeze(2) if has_streams else rotary.memory)
        queries = rotate_heads(self.phi_q(q), turn)
        length = torch.linalg.vector_norm(queries, dim=-1).clamp_min(1e-12)
        weight = torch.sigmoid(gate) / length
        if not has_streams:
            return kernels.read(queries, state, weight, local)
        queries, weight, local = (tensor.flatten(2, 3) for tensor in (queries, weight, local))
        return kernels.read(queries, state, weight, local).unflatten(2, q.shape[2:4])

    def local(self, qk: Tensor, v: Tensor, rotary: Rotary) -> Tensor:
        """Return the softmax over the frame's own tokens, `[G, N, H, D]`."""
        q, k = rotate_both(qk, rotary.place).to(v.dtype).unbind(-3)
        return attend(q, k, v)

    def forward(self, x: Tensor, state: Tensor, rotary: Rotary) -> tuple[Tensor, StateUpdate]:
        """Attend in one frame and read the state before it.

        Args:
            x: `[B, N, H * D]`.
            state: `[B, H, D, D]`, before this frame.
            rotary: Angles of this frame.

        Returns:
            The layer's output, and what `write_terms` needs.
        """
        given = self.prepare(x, rotary)
        heads_first = (part.transpose(-3, -2) for part in (*given.turned.unbind(-3), given.values))
        local = attend_in_play(*heads_first).transpose(-3, -2)
        return self.join(given.queries, given.gate, state, local, rotary), given.update

    def prepare(self, x: Tensor, rotary: Rotary) -> Prepared:
        """Return what `forward` does before it attends."""
        qk, v, (gate, a, b) = self.project(x)
        q, k = qk.unbind(-3)
        turned = rotate_both(qk, rotary.place).to(v.dtype)
        queries, keys, values = self.for_memory(x, q, k, v)
        return Prepared(turned, v, queries, gate, StateUpdate(keys, values, a, b))

    def join(self, q: Tensor, gate: Tensor, state: Tensor, local: Tensor, rotary: Rotary) -> Tensor:
        """Return the layer's output, `[B, N, H * D]`; arguments as of `recall`."""
        return self.o(self.recall(q, gate, state, local, rotary).flatten(-2))

    def parts(self, x: Tensor, state: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `forward` adds up, for who wants to look into it.

        Args:
            x: `[B, N, H * D]`.
            state: `[B, H, D, D]`, before this frame.
            rotary: Angles of this frame.

        Returns:
            The part from inside the frame and the part from the state, `[B, N, H, D]` each, and the log
            decays that the frame would write with, `[B, N, H]`.
        """
        qk, v, (gate, a, b) = self.project(x)
        q, k = qk.unbind(-3)
        local = self.local(qk, v, rotary)
        nothing = torch.zeros_like(local, dtype=torch.promote_types(local.dtype, torch.float32))
        q, k, v = self.for_memory(x, q, k, v)
        recalled = self.recall(q, gate, state, nothing, rotary)
        return local, recalled, self.write_terms(StateUpdate(k, v, a, b), rotary)[2]

    def remember(self, x: Tensor, rotary: Rotary) -> StateUpdate:
        """Return what `forward` hands on to be written, without attending."""
        qk, v, (_, a, b) = self.project(x)
        q, k = qk.unbind(-3)
        _, k, v = self.for_memory(x, q, k, v)
        return StateUpdate(k, v, a, b)

    def forward_sequence(self, x: Tensor, state: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """Do the same for all frames at once; both streams read what the clean frames before them wrote.

        Args:
            x: `[B, F, S, N, H * D]`, stream 0 clean.
            state: `[B, H, D, D]`, before the first frame.
            rotary: Angles with `memory` `[B, F, N, D / 2, 2]`.

        Returns:
            The output, shaped as `x`, and the state after the last frame, without gradients.
        """
        if layers.is_fused("turned_norm", x):
            (q, k), (turned_q, turned_k), v, (gate, a, b) = project_turned(self, x, rotary.place)
            is_fused = layers.is_fused("attend", turned_q) and holds_frame(turned_q)
            local = (layers.attend if is_fused else attend)(turned_q, turned_k, v)
        else:
            qk, v, (gate, a, b) = self.project(x)
            qk = qk.to(v.dtype)  # in mixed precision, what is kept for the gradient is then half as large
            q, k = qk.unbind(-3)
            local = self.local(qk, v, rotary)
        q, k, v = self.for_memory(x, q, k, v)
        with torch.autocast(x.device.type, enabled=False):
            update = StateUpdate(k[:, :, 0], v[:, :, 0], a[:, :, 0], b[:, :, 0])
            k, v, g, beta = self.write_terms(update, rotary)
            if rotary.unwritten is not None:
                g, beta = (t.masked_fill(rotary.unwritten[..., None, None], 0.0) for t in (g, beta))
            states, final = kernels.scan_frames(k, v, g, beta, state)
        out = self.recall(q, gate, states, local, rotary)
        return self.o(out.flatten(-2)), final.detach()
