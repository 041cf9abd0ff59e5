"""Statements about a conversion on the converted world's card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from worldsim.model.config import DenoiserConfig

ADDED = ("conversion", "memory", "measured", "limits")
"""Sections in which a converted world's card may differ from that after stage 1; people add the last two."""


def follows_from(provenance: object, before: object) -> bool:
    """Whether a world's provenance is that of a world after stage 1, with stage 2 told and nothing else.

    Args:
        provenance: Of a world that stands where a conversion would write its own.
        before: Of what stage 1 of that conversion wrote.
    """
    if not isinstance(provenance, Mapping) or not isinstance(before, Mapping):
        return False
    told, expected = provenance.get("conversion"), before.get("conversion")
    if not isinstance(told, Mapping) or not isinstance(expected, Mapping) or "stage 2" not in told:
        return False
    others, same = (
        {name: entry for name, entry in each.items() if name not in ADDED} for each in (provenance, before)
    )
    return others == same and all(told.get(name) == entry for name, entry in expected.items())


def describe_share(trained: Mapping[str, nn.Parameter], num_total: int) -> str:
    """Return how many parameters are trained and what part of the network that is."""
    count = sum(parameter.numel() for parameter in trained.values())
    return f"{count:,} of {num_total:,} parameters trained ({100 * count / num_total:.1f} %)"


def describe_layers(layers: Sequence[int], shape: DenoiserConfig) -> dict[str, str]:
    """Return which layers became hybrid, and what the others are."""
    kinds = []
    if shape.window_layers:
        window = f"see {shape.window} frames before their own, and the first"
        kinds.append(f"{', '.join(map(str, shape.window_layers))} {window}")
    if shape.full_layers:
        full = "see all past frames, in a cache that grows"
        kinds.append(f"{', '.join(map(str, shape.full_layers))} {full}")
    return {"hybrid layers": ", ".join(map(str, layers)), "other layers": "; ".join(kinds) or "none"}


def describe_rollouts(scores: Mapping[str, float]) -> str:
    """Return the PSNR of roll-outs by horizon."""
    return "PSNR " + ", ".join(f"{value:.2f} dB at frame {horizon}" for horizon, value in scores.items())
