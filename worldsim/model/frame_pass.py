"""A pass of the layers over one frame: what it notes, and what the commit makes of that."""

# L layers of the kind, B batch, N tokens per frame, H heads, D model or head width, K V key and value width

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import kernels
from worldsim.model.attention.base import Cached, Rotary
from worldsim.model.attention.full import FullAttention
from worldsim.model.attention.hybrid import HybridAttention
from worldsim.model.attention.writes import (
    StateUpdate,
    WriteWeights,
    held_share,
    side_by_side,
    strengths,
    write_terms,
)
from worldsim.model.block import AnyAttention, Block, modulate_all, modulated_norm
from worldsim.model.frame_context import FrameContext, FrameWrites, Update
from worldsim.model.linear import can_pack
from worldsim.model.memory.state import MemoryState


def run_layers(
    layers: Sequence[Block], x: Tensor, conditioning: Tensor, context: FrameContext, memory: MemoryState
) -> tuple[Tensor, FrameWrites]:
    """Run the first layers of a network over one frame; reads the memory, never changes it.

    Args:
        layers: In order.
        x: `[B, N, D]`, the frame's tokens.
        conditioning: `[B, 6, D]`, what modulates them.
        context: Of the frame.
        memory: State after the last committed frame.

    Returns:
        The tokens after these layers, and what the layers would write.
    """
    updates: list[Update] = []
    tokens, matrices, full = x, iter(memory.matrices), iter(range(len(layers)))
    caches = zip(context.window_keys, context.window_values, strict=True)
    for block, modulation in zip(layers, modulate_all(layers, conditioning), strict=True):
        tokens = x
        entered = modulated_norm(x, modulation[0], modulation[1])
        attention = block.self_attn
        if isinstance(attention, HybridAttention):
            attended, update = attention(entered, next(matrices), context.rotary)
        elif isinstance(attention, FullAttention):
            assert memory.past is not None
            attended, update = attention(entered, memory.past, next(full), context.past_mask, context.rotary)
        else:
            attended, update = attention(entered, next(caches), context.mask, context.rotary)
        updates.append(update)
        x = block.finish(x, attended, modulation)
    return x, FrameWrites(tuple(updates), tokens)


def take_in(
    layers: Sequence[Block], x: Tensor, conditioning: Tensor, context: FrameContext, memory: MemoryState
) -> FrameWrites:
    """Run a finished frame through the network, but for what the last layer would say of it.

    Args:
        layers: As of `run_layers`, all of them, and so are `x`, `conditioning`, `context` and `memory`.
    """
    *layers, last = layers
    x, writes = run_layers(layers, x, conditioning, context, memory)
    shift, scale, *_ = last.modulate(conditioning)
    update = last.self_attn.remember(modulated_norm(x, shift, scale), context.rotary)
    return FrameWrites((*writes.updates, update), x)


def cached_of(layers: Sequence[Block], updates: Sequence[Update], kind: type[AnyAttention]) -> Cached | None:
    """Return what the layers of one kind keep of a frame, `[L, B, N, H, D]`; None without such layers."""
    pairs = zip(layers, updates, strict=True)
    kept = [each for block, each in pairs if isinstance(block.self_attn, kind) and isinstance(each, Cached)]
    return Cached(torch.stack([w.k for w in kept]), torch.stack([w.v for w in kept])) if kept else None


def write_weights(layers: Sequence[Block]) -> WriteWeights | None:
    """Return what the hybrid layers write by, their heads side by side; None without such layers."""
    attentions = [block.self_attn for block in layers]
    parts = [each.write_weights() for each in attentions if isinstance(each, HybridAttention)]
    return side_by_side(parts) if parts else None


@torch.no_grad()
def pack_writes(layers: Sequence[Block]) -> WriteWeights | None:
    """Return `write_weights` to be kept, where weights are reordered for inference; None elsewhere."""
    return write_weights(layers) if can_pack(layers[0].self_attn.q.weight) else None


def write_matrices(
    layers: Sequence[Block],
    updates: Sequence[Update],
    packed: WriteWeights | None,
    rotary: Rotary,
    matrices: Tensor,
    novelty: float = 0.0,
) -> Tensor:
    """Return the states of the hybrid layers after one frame, of all layers at once.

    Args:
        layers: All, in order.
        updates: Of each of them.
        packed: From `pack_writes`; without it the weights are put side by side here.
        rotary: Angles of the frame.
        matrices: `[L, B, H, K, V]`, the states before it.
        novelty: c of `SamplerConfig.write_novelty`; decays stay as they are.
    """
    weights = write_weights(layers) if packed is None else packed
    if weights is None:
        return matrices
    kept = [update for update in updates if isinstance(update, StateUpdate)]
    k, v, a, b = zip(*kept, strict=True)
    k, v, g = write_terms(torch.cat(k, -2), torch.cat(v, -2), torch.cat(a, -1), weights, rotary)
    # One by one: PyTorch's sigmoid of the few strengths of a layer has not the bits of that of many.
    beta = torch.cat([strengths(each) for each in b], -1)  # [B, N, L * H]
    # Layers beside rows, [L * B, ...]; in memory heads before tokens, as the products read them.
    k, v = (t.transpose(1, 2).unflatten(1, (len(kept), -1)).transpose(0, 1).flatten(0, 1) for t in (k, v))
    g, beta = (t.unflatten(-1, (len(kept), -1)).movedim(-2, 0).flatten(0, 1) for t in (g, beta))
    if novelty:
        known = held_share(k, v, matrices.flatten(0, 1)).transpose(1, 2)
        beta = beta * (1 - novelty * known).clamp_min(0)
    written = kernels.commit(k.transpose(1, 2), v.transpose(1, 2), g, beta, matrices.flatten(0, 1))
    return written.unflatten(0, matrices.shape[:2])
