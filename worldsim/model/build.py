"""Which attention each layer of a denoiser has, and what its weights begin as."""

from __future__ import annotations

import torch
from torch import nn

from worldsim.model.attention.full import FullAttention
from worldsim.model.attention.hybrid import HybridAttention
from worldsim.model.attention.window import WindowAttention
from worldsim.model.block import AnyAttention
from worldsim.model.config import DenoiserConfig
from worldsim.model.memory.motion import ConstantMotion, MemoryKeys, MemoryPhase, PathMotion, build_motion


def motion_of(config: DenoiserConfig) -> ConstantMotion | PathMotion:
    """Return the module that says how far a frame turns the memory's keys."""
    channels, height, width = config.latent_shape
    phase, keys = MemoryPhase(config.memory_phase), MemoryKeys(config.memory_keys)
    latent_shape = (channels, height, width)
    return build_motion(
        phase, keys, latent_shape, config.dim, config.head_width, odometry=config.path_odometry
    )


def build_attention(config: DenoiserConfig, layer: int) -> AnyAttention:
    """Return the attention of a layer, by its number."""
    if layer in config.window_layers:
        return WindowAttention(config.dim, config.num_heads, config.window)
    if layer in config.full_layers:
        return FullAttention(config.dim, config.num_heads)
    half_lives = (config.half_lives[0], config.half_lives[1])
    plane = layer if config.memory_keys == MemoryKeys.PLANE else None
    write_biases = (config.write_biases[0], config.write_biases[1])
    tokens = config.tokens_per_frame
    return HybridAttention(
        config.dim, config.num_heads, tokens, half_lives, plane, write_biases, config.finest_key
    )


@torch.no_grad()
def initialise_attention(attention: AnyAttention, config: DenoiserConfig) -> None:
    """Fill the projections of a layer's attention."""
    for linear in (attention.q, attention.k, attention.v, attention.o):
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
    is_by_place = config.memory_keys == MemoryKeys.PLANE and isinstance(attention, HybridAttention)
    if is_by_place or (config.full_path and isinstance(attention, FullAttention)):
        # A key begins as a place, not as what is there, which who looks for it does not know.
        for linear in (attention.q, attention.k):
            nn.init.ones_(linear.bias)
