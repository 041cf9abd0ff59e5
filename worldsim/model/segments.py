"""The memory at the ends of a training segment: split among the layers, and merged from them again."""

# B batch, F frames, S streams, N tokens per frame, D model width, W window frames

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from worldsim.errors import WorldError
from worldsim.model.attention.base import Cached
from worldsim.model.attention.full import FullAttention, sequence_mask
from worldsim.model.attention.window import WindowAttention, WindowBefore
from worldsim.model.block import Block, LayerStateIn, LayerStateOut
from worldsim.model.config import DenoiserConfig
from worldsim.model.memory.motion import wrap
from worldsim.model.memory.state import MemoryState, window_is_visible


class SequencePass(NamedTuple):
    """What the network says of whole sequences.

    Attributes:
        velocity: `[B, F, C, h, w]`, of the noisy frames.
        first_velocity: The same of the first passes of a recycled model; None in others.
        final_states: From each layer; see `Block.forward`.
        phase: `[B, D / 2]`, the path after the last frame.
        summary: `[B, F, D]`, what the outcome heads read of stream 0 where it enters the last layer, which a
            commit does not run to its end; None without such heads.
    """

    velocity: Tensor
    first_velocity: Tensor | None
    final_states: Sequence[LayerStateOut]
    phase: Tensor
    summary: Tensor | None


def check_constant_memory(config: DenoiserConfig) -> None:
    """Raise `WorldError` if a model's memory can't be handed from segment to segment."""
    if config.full_layers:
        raise WorldError(
            f"layers {config.full_layers} see all past frames: such a memory grows and can't be handed from "
            "one training segment to the next"
        )


def split_memory(layers: Sequence[Block], memory: MemoryState, x: Tensor) -> list[LayerStateIn]:
    """Return what each layer is given before a segment; see `Block.forward`.

    An empty memory gives the shapes and types that any other does, so that a compiled layer is compiled once.

    Args:
        layers: In order.
        memory: Before the segment.
        x: `[B, F, S, N, D]`, the segment's tokens.
    """
    batch, frames, streams, tokens, _ = x.shape
    number = memory.num_committed[:, None] + torch.arange(frames, device=x.device)  # [B, F]
    window = memory.window_keys.shape[2] - 1
    visible = window_is_visible(number.flatten(), window).unflatten(0, (batch, frames))
    is_empty = memory.num_committed == 0
    matrices = iter(memory.matrices)
    caches = zip(memory.window_keys, memory.window_values, strict=True)
    initial_states: list[LayerStateIn] = []
    for layer in layers:
        if isinstance(layer.self_attn, FullAttention):
            initial_states.append(sequence_mask(frames, streams, tokens, x.device) if x.is_cuda else None)
        elif isinstance(layer.self_attn, WindowAttention):
            initial_states.append(WindowBefore(*next(caches), visible, is_empty))
        else:
            initial_states.append(next(matrices))
    return initial_states


def merge_memory(memory: MemoryState, passed: SequencePass, clean: Tensor) -> MemoryState:
    """Return the memory after a segment, without gradients.

    Args:
        memory: Before the segment, of a model without full layers.
        passed: What the network said of the segment.
        clean: `[B, F, C, h, w]`, the segment's frames as they were committed.
    """
    states = [part for part in passed.final_states if isinstance(part, Tensor)]
    windows = [part for part in passed.final_states if isinstance(part, Cached)]
    return replace(
        memory,
        matrices=torch.stack(states) if states else memory.matrices,
        window_keys=torch.stack([cached.k for cached in windows]) if windows else memory.window_keys,
        window_values=torch.stack([cached.v for cached in windows]) if windows else memory.window_values,
        phase=wrap(passed.phase).detach(),
        latents=clean[:, -1].detach().to(memory.latents.dtype),
        num_committed=memory.num_committed + clean.shape[1],
        summary=None if passed.summary is None else passed.summary[:, -1].detach(),
    )
