"""Launch of the Triton kernels of `commit` and `read`."""

# B batch, P frames of all sequences, N tokens, H heads, K key width, V value width, C tokens of a step

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from kernels.gpu.chunk_launch import ChunkConfig, commit_chunks, sizes
from kernels.gpu.launch import LaunchConfig, launch
from kernels.gpu.state import commit_forward, read_forward, read_gradient


@dataclass(frozen=True, slots=True)
class MemoryConfig:
    """Launch settings of the kernels of `commit` and `read`; all give the same numbers up to rounding.

    Attributes:
        precision: How operands are multiplied: "tf32x3" (about fp32), "tf32", "ieee" or "fp16".
        merges: The same for the products that invert; "fp16" with a step of refinement.
        max_whole: Maximum tokens of a frame that `commit_forward` writes; more go in chunks.
        block: Tokens of a step of `commit_forward`.
        whole: `commit_forward`, by columns.
        chunks: Of a commit of more tokens.
        read: `read_forward`; its block size is the tokens of a program.
        gradient: `read_gradient`; its block size is the tokens of a step.
    """

    precision: str = "tf32x3"
    merges: str = "tf32x3"
    max_whole: int = 160
    block: int = 16
    whole: LaunchConfig = LaunchConfig(16, 4)
    chunks: ChunkConfig = ChunkConfig(
        16, 0, False, LaunchConfig(16, 4), LaunchConfig(16, 4), LaunchConfig(32, 8), LaunchConfig(16, 8, 2)
    )
    read: LaunchConfig = LaunchConfig(32, 4)
    gradient: LaunchConfig = LaunchConfig(32, 4)


DEFAULT = MemoryConfig()
HALF = MemoryConfig(
    "fp16",
    "fp16",
    whole=LaunchConfig(32, 1, 2),
    chunks=ChunkConfig(32, copies=False, prepare=LaunchConfig(32, 2), build=LaunchConfig(64, 4, 3)),
    read=LaunchConfig(64, 4),
)
"""For operands that come in 16 bits: what rounding them to fp16 costs is below what they had lost before."""
MANY_HEADS = 512
"""Heads of all sequences from which on a card is full with one program for each."""


def default_for(x: Tensor, y: Tensor) -> MemoryConfig:
    """Return the default settings for two `[..., N, H, width]`, keys or queries first."""
    config = DEFAULT if torch.float32 in (x.dtype, y.dtype) else HALF
    is_half = config is HALF
    *lead, tokens, heads, width = x.shape
    heads *= prod(lead)
    if max(width, y.shape[-1]) > 64:  # twice the numbers have to be held
        wide = {"whole": LaunchConfig(32, 2)} if is_half else {"read": LaunchConfig(32, 8)}
        config = replace(config, gradient=LaunchConfig(16, 8), **wide)
    elif is_half and heads >= MANY_HEADS:
        # At width 64 it spills a few bytes on sm_90, and was measured to be faster than what spills none.
        config = replace(config, whole=LaunchConfig(64, 1))
    groups = -(-width // config.chunks.build.block_size)
    # Two programs of fp16 fit a processor of the card's 132, and a short segment is not worth its map.
    max_programs, min_tokens = (220, 288) if is_half else (132, 48)
    segment = split(tokens, config.chunks.chunk_size, max_programs // (heads * groups), min_tokens)
    return replace(config, chunks=replace(config.chunks, segment=segment))


def split(tokens: int, size: int, max_segments: int, min_tokens: int) -> int:
    """Return the chunks of a segment, 0 for a frame left whole.

    Args:
        tokens: Of the frame.
        size: Tokens of a chunk.
        max_segments: Maximum; 0 and 1 leave the frame whole.
        min_tokens: Minimum of a segment; what is left for the last one may be fewer.
    """
    chunks = -(-tokens // size)
    segments = min(max_segments, chunks * size // min_tokens)
    return -(-chunks // segments) if segments > 1 else 0


def commit(
    k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, config: MemoryConfig | None = None
) -> Tensor:
    """Return the state after `k v` `[B, N, H, width]` and `g beta` `[B, N, H]`, `[B, H, K, V]`."""
    config = config or default_for(k, v)
    out = torch.empty_like(state, memory_format=torch.contiguous_format)
    g, beta, state = g.contiguous(), beta.contiguous(), state.contiguous()
    if k.shape[1] > config.max_whole:
        commit_chunks((k, v, g, beta), state, out, config.chunks, config.precision, config.merges)
        return out
    columns = min(config.whole.block_size, v.shape[-1])
    launch(
        commit_forward,
        (k.shape[0] * k.shape[2], v.shape[-1] // columns),
        *(k, v, g, beta, state, out),
        *(*k.stride()[:3], *v.stride()[:3]),
        **sizes(k, v),
        block=config.block,
        levels=config.block.bit_length() - 1,
        columns=columns,
        precision=config.precision,
        merge_precision=config.merges,
        stages=config.whole.num_stages,
        **config.whole.options(),
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
        (num_frames * heads, -(-tokens // config.read.block_size)),
        *(frames, state.contiguous(), gate.contiguous(), near, out),
        *(*frames.stride()[:3], *near.stride()[:3], key_width**-0.5),
        num_tokens=tokens,
        num_heads=heads,
        key_width=key_width,
        value_width=local.shape[-1],
        block=config.read.block_size,
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
    dq, d_gate = q.new_empty(q.shape), gate.new_empty(gate.shape)
    span = _span(num_frames * heads, tokens, config.gradient.block_size)
    d_states = state.new_empty(-(-tokens // span), *state.shape)  # what each span of tokens adds
    launch(
        read_gradient,
        (num_frames * heads, len(d_states)),
        *(frames, state.contiguous(), gate.contiguous(), d_out.contiguous(), dq, d_states, d_gate),
        *frames.stride()[:3],
        key_width**-0.5,
        num_tokens=tokens,
        num_heads=heads,
        key_width=key_width,
        value_width=d_out.shape[-1],
        block=config.gradient.block_size,
        span=span,
        precision=config.precision,
        **config.gradient.options(),
    )
    return dq, d_states[0] if len(d_states) == 1 else d_states.sum(0), d_gate


def _span(programs: int, tokens: int, block: int) -> int:
    """Return how many tokens one program takes, in whole blocks: if programs are few, a frame has several."""
    shares = max(1, min(264 // programs, tokens // 64))
    return -(-tokens // (shares * block)) * block
