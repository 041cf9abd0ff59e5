"""Allocates what the Triton kernels of `commit` and `read` write, and launches them."""

# B batch, P frames of all sequences, F segments, N tokens, H heads, K key width, V value width,
# C tokens of a step

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels import triton_launch
from kernels.triton_commit import chain, commit_forward
from kernels.triton_launch import Cut, Frames, LaunchConfig, launch
from kernels.triton_read import read_forward, read_gradient


@dataclass(frozen=True, slots=True)
class MemoryConfig:
    """How the work is cut; every choice gives the same numbers up to rounding.

    Attributes:
        precision: How operands are multiplied: "tf32x3" (about fp32), "tf32", "ieee" or "fp16".
        whole: `commit_forward`, by columns.
        segment_tokens: About as many tokens are one segment; a frame of at most twice as many is not cut.
        build: `frame_map_forward` for the segments, by rows.
        chain: `chain`, by columns.
        read: `read_forward`; its size is the tokens of a program.
        gradient: `read_gradient`; its size is the tokens of a step.
    """

    precision: str = "tf32x3"
    whole: Cut = Cut(16, 4)
    segment_tokens: int = 156
    build: Cut = Cut(32, 4)
    chain: Cut = Cut(16, 4, 2)
    read: Cut = Cut(32, 4)
    gradient: Cut = Cut(16, 4)


DEFAULT = MemoryConfig()
WIDE = MemoryConfig(build=Cut(32, 8), chain=Cut(16, 8, 2), read=Cut(32, 8), gradient=Cut(16, 8))
"""For heads of 128: twice the warps, because twice the numbers have to be held."""


def default_for(x: Tensor, y: Tensor) -> MemoryConfig:
    """Return how the work is cut unless somebody says otherwise."""
    return WIDE if max(x.shape[-1], y.shape[-1]) > 64 else DEFAULT


BLOCK = 16
"""C, tokens that one step of a commit takes."""

SCALED = {"tf32x3": "tf32x3", "tf32": "tf32", "ieee": "ieee", "fp16": "tf32x3"}
"""How inverses are formed and segments merged: there, rounding to 16 bit costs most."""


def count_segments(tokens: int, segment_tokens: int) -> int:
    """Return in how many equal segments to cut so many tokens: the divisor nearest to the wish, 1 for few."""
    if tokens <= 2 * segment_tokens:
        return 1
    divisors = [count for count in range(1, tokens + 1) if tokens % count == 0]
    return min(divisors, key=lambda count: abs(tokens / count - segment_tokens))


def commit(
    k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, config: MemoryConfig | None = None
) -> Tensor:
    """Return the state after `k v` `[B, N, H, width]` and `g beta` `[B, N, H]`, `[B, H, K, V]`."""
    config = config or default_for(k, v)
    count = count_segments(k.shape[1], config.segment_tokens)
    if count > 1:
        return _commit_segments(k, v, g, beta, state, count, config)
    batch, tokens, heads, key_width = k.shape
    value_width, out = v.shape[-1], torch.empty_like(state, memory_format=torch.contiguous_format)
    columns = min(config.whole.size, value_width)
    launch(
        commit_forward,
        (batch * heads, value_width // columns),
        k,
        v,
        g.contiguous(),
        beta.contiguous(),
        state.contiguous(),
        out,
        *k.stride()[:3],
        *v.stride()[:3],
        num_tokens=tokens,
        num_heads=heads,
        key_width=key_width,
        value_width=value_width,
        block=BLOCK,
        levels=BLOCK.bit_length() - 1,
        columns=columns,
        precision=config.precision,
        merge_precision=SCALED[config.precision],
        **config.whole.options(),
    )
    return out


def _commit_segments(
    k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, count: int, config: MemoryConfig
) -> Tensor:
    """Do the same in three launches: invert blocks, build the segments' maps, chain them."""
    exact = LaunchConfig(block=BLOCK, precision=SCALED[config.precision], build=config.build)
    segment_k, segment_v, segment_g, segment_beta = (x.unflatten(1, (count, -1)) for x in (k, v, g, beta))
    frames = Frames(segment_k, segment_v, segment_g, segment_beta, exact)
    inverse, decay = triton_launch.invert(frames)
    frames.config = replace(exact, precision=config.precision)
    transition, write = triton_launch.build_maps(frames, inverse, decay)
    out = torch.empty_like(state, memory_format=torch.contiguous_format)
    columns = min(config.chain.size, v.shape[-1])
    launch(
        chain,
        (frames.batch * frames.heads, v.shape[-1] // columns),
        transition,
        write,
        state.contiguous(),
        out,
        num_segments=count,
        num_heads=frames.heads,
        key_width=k.shape[-1],
        value_width=v.shape[-1],
        columns=columns,
        precision=exact.precision,
        stages=config.chain.stages,
        **config.chain.options(),
    )
    return out


def _frames_of(x: Tensor) -> Tensor:
    """Return `[..., N, H, width]` as `[P, N, H, width]`, copied only where its layout asks for it."""
    return x.flatten(0, -4) if x.dim() > 3 else x.unsqueeze(0)


def read(q: Tensor, state: Tensor, gate: Tensor, local: Tensor, config: MemoryConfig | None = None) -> Tensor:
    """Return `[..., N, H, V]`; see `kernels.read`."""
    config = config or default_for(q, local)
    frames, near = _frames_of(q), _frames_of(local)
    num_frames, tokens, heads, key_width = frames.shape
    dtype = torch.promote_types(torch.promote_types(q.dtype, local.dtype), gate.dtype)
    out = local.new_empty(local.shape, dtype=dtype)
    launch(
        read_forward,
        (num_frames * heads, -(-tokens // config.read.size)),
        frames,
        state.contiguous(),
        gate.contiguous(),
        near,
        out,
        *frames.stride()[:3],
        *near.stride()[:3],
        key_width**-0.5,
        num_tokens=tokens,
        num_heads=heads,
        key_width=key_width,
        value_width=local.shape[-1],
        block=config.read.size,
        precision=config.precision,
        **config.read.options(),
    )
    return out


def read_backward(
    q: Tensor, state: Tensor, gate: Tensor, d_out: Tensor, config: MemoryConfig | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, the state and the gate."""
    config = config or default_for(q, d_out)
    frames = _frames_of(q)
    num_frames, tokens, heads, key_width = frames.shape
    dq, d_state = q.new_empty(q.shape), state.new_empty(state.shape)
    d_gate = gate.new_empty(gate.shape)
    launch(
        read_gradient,
        (num_frames * heads,),
        frames,
        state.contiguous(),
        gate.contiguous(),
        d_out.contiguous(),
        dq,
        d_state,
        d_gate,
        *frames.stride()[:3],
        key_width**-0.5,
        num_tokens=tokens,
        num_heads=heads,
        key_width=key_width,
        value_width=d_out.shape[-1],
        block=config.gradient.size,
        precision=config.precision,
        **config.gradient.options(),
    )
    return dq, d_state, d_gate
