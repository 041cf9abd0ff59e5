"""Half-lives of a world's memory, as numbers for the log and as words for the card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from worldsim.model.attention.hybrid import HybridAttention
from worldsim.model.denoiser import Denoiser
from worldsim.model.inspection import half_lives

PERCENTILES = (10, 50, 90)


def percentiles(values: Tensor) -> list[float]:
    """Return 10th percentile, median and 90th percentile of half-lives."""
    return [float(values.quantile(p / 100)) for p in PERCENTILES]


Remembering = Denoiser | Mapping[int, Tensor]
"""A network of frames, or the half-lives of any network's hybrid layers, `[heads]`, by their numbers."""


def by_layer(network: Remembering) -> Mapping[int, Tensor]:
    """Return the half-lives of each hybrid layer's heads in frames, `[heads]`, by the layer's number."""
    if not isinstance(network, Denoiser):
        return network
    layers = [i for i, b in enumerate(network.layers()) if isinstance(b.self_attn, HybridAttention)]
    return dict(zip(layers, half_lives(network), strict=True))


def log_half_lives(network: Remembering) -> dict[str, float]:
    """Return percentiles of the memory's half-lives in frames, over all heads and over each layer's.

    The names are `half_life_p50`, and `half_life/layer_03_p50` with the layer's number in the network. A
    model without hybrid layers has none.
    """
    layers = by_layer(network)
    if not layers:
        return {}
    named = {"half_life": percentiles(torch.cat(list(layers.values())))}
    named |= {f"half_life/layer_{layer:02d}": percentiles(row) for layer, row in layers.items()}
    return {
        f"{name}_p{p}": value
        for name, values in named.items()
        for p, value in zip(PERCENTILES, values, strict=True)
    }


def tell_half_lives(provenance: Mapping[str, Any], network: Remembering) -> dict[str, Any]:
    """Return a world's provenance with the half-lives its layers have now, in the place of older ones."""
    told = {
        f"half-lives of layer {layer}": f"median {median:.3g} frames, p10 {low:.3g}, p90 {high:.3g}"
        for layer, row in by_layer(network).items()
        for low, median, high in [percentiles(row)]
    }
    others = {name: value for name, value in provenance.items() if name != "memory"}
    return others | {"memory": told} if told else others
