"""Inspection of the layers in play: what each remembers, and how much of it is used."""

# B batch, N tokens per frame, H heads, D head width

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldsim.model.attention.base import Rotary
from worldsim.model.attention.hybrid import HybridAttention
from worldsim.model.denoiser import Denoiser
from worldsim.model.frame_context import FrameContext
from worldsim.model.memory.state import MemoryState


@dataclass(frozen=True, slots=True)
class LayerReading:
    """What a hybrid layer does with its state in one pass over one frame.

    Attributes:
        layer: Its number in the network.
        norm: Frobenius norm of its state, over all heads.
        half_life: Frames after which half of the state would be forgotten, were all like this one; the median
            of its heads.
        share: How much of what its attention puts out comes from the state: the root mean square of that part
            over the sum of its own and that of the part from inside the frame; 0 to 1.
    """

    layer: int
    norm: float
    half_life: float
    share: float


def inspect_layers(
    denoiser: Denoiser, latents: Tensor, noise_level: float, context: FrameContext, memory: MemoryState
) -> list[LayerReading]:
    """Run a frame of one game through the network, and look at its hybrid layers on the way.

    Args:
        denoiser: The network.
        latents: `[1, C, h, w]`, what the pass that writes is given: the clean frame, or noise.
        noise_level: Of it, 0 or 1.
        context: From `observe` with the same memory.
        memory: State before the frame; left as it was.

    Returns:
        A reading of each hybrid layer, in order.
    """
    readings: list[LayerReading] = []
    hooks = [
        block.self_attn.register_forward_pre_hook(partial(_look, readings, layer))
        for layer, block in enumerate(denoiser.layers())
        if isinstance(block.self_attn, HybridAttention)
    ]
    try:
        level = torch.full((len(latents),), noise_level, device=latents.device)
        denoiser.denoise(latents, level, context, memory)
    finally:
        for hook in hooks:
            hook.remove()
    return readings


@torch.no_grad()
def half_lives(denoiser: Denoiser) -> Tensor:
    """Return each hybrid layer's half-lives at the gates' resting point, in frames, `[layers, heads]`."""
    rows = []
    for block in denoiser.layers():
        if isinstance(attention := block.self_attn, HybridAttention):
            rows.append(half_lives_of(attention, denoiser.config.tokens_per_frame))
    return torch.stack(rows) if rows else torch.zeros(0, denoiser.config.num_heads)


@torch.no_grad()
def half_lives_of(attention: HybridAttention, tokens_per_frame: int) -> Tensor:
    """Return a layer's half-lives at the gates' resting point, in frames of so many tokens, `[heads]`."""
    rate = attention.A_log.double().exp() * functional.softplus(attention.dt_bias.double())
    return math.log(2) / (rate * tokens_per_frame)


def _look(
    readings: list[LayerReading], layer: int, attention: nn.Module, entered: tuple[Tensor, Tensor, Rotary]
) -> None:
    """Read a layer that is about to run."""
    assert isinstance(attention, HybridAttention)
    tokens, state, rotary = entered
    local, recalled, decay = attention.parts(tokens, state, rotary)
    per_frame = -decay.double().sum(dim=1).median()  # [1, N, H], of one frame: [1, H]
    own, inside = (float(part.double().square().mean().sqrt()) for part in (recalled, local))
    readings.append(
        LayerReading(
            layer,
            norm=float(torch.linalg.vector_norm(state)),
            half_life=math.log(2) / max(float(per_frame), 1e-12),
            share=own / (own + inside) if own + inside else 0.0,
        )
    )
