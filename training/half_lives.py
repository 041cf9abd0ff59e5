"""How long a world's memory lasts, as numbers for the log."""

from __future__ import annotations

from torch import Tensor

from worldsim.model.denoiser import Denoiser
from worldsim.model.hybrid_attention import HybridAttention

PERCENTILES = (10, 50, 90)


def percentiles(half_lives: Tensor, name: str) -> dict[str, float]:
    """Return 10th percentile, median and 90th percentile of half-lives, as `{name}_p10` and so on."""
    return {f"{name}_p{p}": float(half_lives.quantile(p / 100)) for p in PERCENTILES}


def log_half_lives(denoiser: Denoiser) -> dict[str, float]:
    """Return percentiles of the memory's half-lives in frames, over all heads and over each layer's.

    The names are `half_life_p50`, and `half_life/layer_03_p50` with the layer's number in the network. A
    model without hybrid layers has none.
    """
    layers = [i for i, b in enumerate(denoiser.layers()) if isinstance(b.self_attn, HybridAttention)]
    if not layers:
        return {}
    half_lives = denoiser.half_lives()  # [layers, heads]
    values = percentiles(half_lives.flatten(), "half_life")
    for number, row in zip(layers, half_lives, strict=True):
        values |= percentiles(row, f"half_life/layer_{number:02d}")
    return values
