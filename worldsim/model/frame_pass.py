"""A pass of the layers over one frame: what it notes, and what the commit makes of that."""

# L layers of the kind, B batch, N tokens per frame, H heads, D model or head width, K V key and value width

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import kernels
from worldsim.model.attention.base import Cached, Rotary
from worldsim.model.attention.full import FullAttention
from worldsim.model.attention.hybrid import HybridAttention, StateUpdate
from worldsim.model.block import AnyAttention, Block, modulated_norm
from worldsim.model.frame_context import FrameContext, FrameWrites, Update
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
    for block in layers:
        tokens, modulation = x, block.modulate(conditioning)
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


def cached_of(layers: Sequence[Block], updates: Sequence[Update], kind: type[AnyAttention]) -> Cached | None:
    """Return what the layers of one kind keep of a frame, `[L, B, N, H, D]`; None without such layers."""
    pairs = zip(layers, updates, strict=True)
    kept = [each for block, each in pairs if isinstance(block.self_attn, kind) and isinstance(each, Cached)]
    return Cached(torch.stack([w.k for w in kept]), torch.stack([w.v for w in kept])) if kept else None


def write_matrices(
    layers: Sequence[Block], updates: Sequence[Update], rotary: Rotary, matrices: Tensor
) -> Tensor:
    """Return the states of the hybrid layers, `[L, B, H, K, V]`, after one frame."""
    terms = [
        block.self_attn.write_terms(update, rotary)
        for block, update in zip(layers, updates, strict=True)
        if isinstance(block.self_attn, HybridAttention) and isinstance(update, StateUpdate)
    ]
    if not terms:
        return matrices
    k, v, g, beta = zip(*terms, strict=True)
    # Layers beside rows, [L * B, ...]; in memory heads before tokens, as the products read them.
    k, v = (torch.cat([t.transpose(1, 2) for t in term]).transpose(1, 2) for term in (k, v))
    g, beta = torch.cat(g), torch.cat(beta)
    return kernels.commit(k, v, g, beta, matrices.flatten(0, 1)).unflatten(0, matrices.shape[:2])
