"""Check of a feature network on altered frames: FID and KID must grow with what was done to them.

Blur, noise and ghosts are what the network was taught to see; the others it has never met.
"""

# N frames, H W frame size

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from training.objectives.features import blur
from worldsim.evaluation.quality.distances import DISTANCES
from worldsim.evaluation.quality.features import FeatureNetwork
from worldsim.evaluation.report.text import align

Alteration = Callable[[Tensor, float], Tensor]
"""Takes images `[N, 3, H, W]` in [0, 1] and a strength; returns altered ones."""
CHECK_FRAMES = 256
"""Frames of each of the two sides, of each game."""
BLOCK = 16


def add_blur(images: Tensor, strength: float) -> Tensor:
    """Blur by a deviation of `strength` pixels."""
    return blur(images, torch.full((len(images),), strength))


def add_noise(images: Tensor, strength: float) -> Tensor:
    """Add Gaussian noise of a deviation of `strength`."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + strength * noise).clamp(0, 1)


def mix(images: Tensor, strength: float) -> Tensor:
    """Mix with another frame, of which `strength` shows."""
    return (1 - strength) * images + strength * images.roll(1, dims=0)


def pixelate(images: Tensor, strength: float) -> Tensor:
    """Show blocks of `strength` pixels in one colour."""
    size = tuple(round(side / strength) for side in images.shape[2:])
    return F.interpolate(F.interpolate(images, size, mode="area"), images.shape[2:], mode="nearest")


def darken(images: Tensor, strength: float) -> Tensor:
    """Take a share of `strength` of the light away."""
    return images * (1 - strength)


def swap_blocks(images: Tensor, strength: float) -> Tensor:
    """Exchange a share of `strength` of the blocks of 16 x 16 pixels; in small frames blocks are smaller."""
    height, width = images.shape[2:]
    size = min(BLOCK, height // 4, width // 4)
    side = (height // size) * (width // size)
    generator = torch.Generator().manual_seed(0)
    order = torch.arange(side)
    chosen = torch.randperm(side, generator=generator)[: round(strength * side)]
    order[chosen] = chosen.roll(1)
    whole = images[:, :, : height // size * size, : width // size * size]
    blocks = F.unfold(whole, size, stride=size)[:, :, order]
    swapped = images.clone()
    swapped[:, :, : whole.shape[2], : whole.shape[3]] = F.fold(blocks, whole.shape[2:], size, stride=size)
    return swapped


ALTERATIONS: Mapping[str, tuple[Alteration, Sequence[float]]] = {
    "blur": (add_blur, (0.5, 1.0, 2.0)),
    "noise": (add_noise, (0.02, 0.05, 0.1)),
    "ghost": (mix, (0.1, 0.2, 0.4)),
    "pixelated": (pixelate, (2.0, 4.0)),
    "darker": (darken, (0.1, 0.3)),
    "blocks swapped": (swap_blocks, (0.2, 0.5)),
}


def check_features(
    network: FeatureNetwork, games: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Return FID and KID of altered frames against real ones of other episodes, for each game.

    Of each game there are two sets of real frames `[N, H, W, 3]` uint8. Numbers are by distance, by game, by
    what was done to the frames of the first set: `real` is nothing, another game's name its frames instead.
    """
    report: dict[str, dict[str, dict[str, float]]] = {name: {} for name in DISTANCES}
    real = {game: (network.embed(first), network.embed(second)) for game, (first, second) in games.items()}
    for game, (first, _) in games.items():
        own, others = real[game]
        sets = {"real": own}
        images = first.movedim(-1, 1).float() / 255
        for name, (alter, strengths) in ALTERATIONS.items():
            for strength in strengths:
                altered = (alter(images, strength) * 255).round().byte()
                sets[f"{name} {strength:g}"] = network.embed(altered.movedim(1, -1))
        sets |= {other: features for other, (features, _) in real.items() if other != game}
        for distance, measure in DISTANCES.items():
            report[distance][game] = {name: measure(features, others) for name, features in sets.items()}
    return report


def format_check(found: Mapping[str, Mapping[str, float]]) -> str:
    """Return one distance by game as a table."""
    names = dict.fromkeys(name for values in found.values() for name in values)
    cells = {n: [f"{values[n]:.2f}" if n in values else "-" for values in found.values()] for n in names}
    return align([("frames", *found), *((name, *row) for name, row in cells.items())])
