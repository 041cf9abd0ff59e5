"""Layers of a transformer that attends to past frames, replaced by hybrid ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from worldsim.model.attention.hybrid import HybridAttention
from worldsim.model.conversion import new_names
from worldsim.wan.layers import HALF_LIVES, TOKENS
from worldsim.wan.transformer import WanTransformer


def with_hybrid_layers(
    model: WanTransformer,
    layers: Sequence[int],
    *,
    tokens_per_frame: int = TOKENS,
    half_lives: tuple[float, float] = HALF_LIVES,
    memory_phase: str = "time",
    write_biases: tuple[float, float] = (0.0, -2.0),
) -> WanTransformer:
    """Return a transformer of which some layers keep a matrix per head; it shares the weights of `model`.

    What a hybrid layer has beside the projections of attention is new, and has to be trained: the gates are
    random numbers of torch's generator. Until something is written it computes what the layer before did.

    Args:
        layers: Which.
        tokens_per_frame: Of a latent frame, for decays.
        half_lives: Of the first and of the last head in latent frames; the others lie between.
        memory_phase: What turns the states' keys; see `WanConfig`.
        write_biases: How gently the first and the last head write; see `DenoiserConfig`.

    Raises:
        WorldError: If there are no such layers.
    """
    config = replace(model.config, hybrid_layers=sorted(layers), memory_phase=memory_phase)
    weights = model.state_dict()
    for layer in layers:
        new = HybridAttention(config.dim, config.num_heads, tokens_per_frame, half_lives, write_biases)
        named = {f"blocks.{layer}.self_attn.{name}": each for name, each in new.state_dict().items()}
        weights = {name: each.to(model.patch_embedding.weight) for name, each in named.items()} | weights
    with torch.device("meta"):
        hybrid = WanTransformer(config)
    hybrid.load_state_dict(weights, assign=True)
    return hybrid.eval().requires_grad_(False)


def hybrid_attentions(model: WanTransformer) -> dict[int, HybridAttention]:
    """Return the attention of each hybrid layer by its number."""
    found = {layer: model.get_submodule(f"blocks.{layer}.self_attn") for layer in model.config.hybrid_layers}
    return {layer: each for layer, each in found.items() if isinstance(each, HybridAttention)}


def new_parameters(model: WanTransformer) -> dict[str, nn.Parameter]:
    """Return what hybrid layers have and softmax layers have not: gates, maps and decays."""
    return {
        f"blocks.{layer}.self_attn.{name}": attention.get_parameter(name)
        for layer, attention in hybrid_attentions(model).items()
        for name in new_names(attention)
    }
