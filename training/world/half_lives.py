"""Half-lives of a world's memory, as numbers for the log and as words for the card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from worldsim.model.attention.hybrid import HybridAttention
from worldsim.model.denoiser import Denoiser
from worldsim.model.inspection import half_lives

PERCENTILES = (10, 50, 90)


def percentiles(values: Tensor) -> list[float]:
    """Return 10th percentile, median and 90th percentile of half-lives."""
    return [float(values.quantile(p / 100)) for p in PERCENTILES]


def layer_half_lives(denoiser: Denoiser) -> dict[int, list[float]]:
    """Return the percentiles of each hybrid layer's half-lives in frames, by the layer's number."""
    layers = [i for i, b in enumerate(denoiser.layers()) if isinstance(b.self_attn, HybridAttention)]
    rows = half_lives(denoiser)  # [layers, heads]
    return {layer: percentiles(row) for layer, row in zip(layers, rows, strict=True)}


def log_half_lives(denoiser: Denoiser) -> dict[str, float]:
    """Return percentiles of the memory's half-lives in frames, over all heads and over each layer's.

    The names are `half_life_p50`, and `half_life/layer_03_p50` with the layer's number in the network. A
    model without hybrid layers has none.
    """
    layers = layer_half_lives(denoiser)
    if not layers:
        return {}
    named = {"half_life": percentiles(half_lives(denoiser).flatten())}
    named |= {f"half_life/layer_{layer:02d}": values for layer, values in layers.items()}
    return {
        f"{name}_p{p}": value
        for name, values in named.items()
        for p, value in zip(PERCENTILES, values, strict=True)
    }


def tell_half_lives(provenance: Mapping[str, Any], denoiser: Denoiser) -> dict[str, Any]:
    """Return a world's provenance with the half-lives its layers have now, in the place of older ones."""
    told = {
        f"half-lives of layer {layer}": f"median {median:.3g} frames, p10 {low:.3g}, p90 {high:.3g}"
        for layer, (low, median, high) in layer_half_lives(denoiser).items()
    }
    others = {name: value for name, value in provenance.items() if name != "memory"}
    return others | {"memory": told} if told else others
