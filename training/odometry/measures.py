"""Errors of paths that are added up from estimated displacements, on held-out play."""

# K clips, F frames

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from training.data.latents import fixed_starts
from training.odometry.footage import TaughtVideo
from training.odometry.settings import MeasureConfig
from worldsim.model.memory.odometry import Odometry, integrate

QUANTILES = {"median": 0.5, "p90": 0.9}
KINDS = ("shown", "noisy", "expected", "alone")


@torch.no_grad()
def measure_odometry(odometry: Odometry, taught: TaughtVideo, config: MeasureConfig) -> dict[str, float]:
    """Measure where paths end that are added up from estimates, beside where the player was.

    Args:
        odometry: On the video's device.
        taught: Held-out video.
        config: How long paths are, and how many.

    Returns:
        For what was `shown`, for the same with noise in the latents (`noisy`), for what was `expected` (each
        frame by what was seen before it) and for dynamics `alone` (by actions after what is watched), median
        and 90th percentile of the error of heading in degrees, and of the distance between where a path and
        the player ended, as a share of his way.

    Raises:
        WorldError: If no episode is long enough.
    """
    starts = fixed_starts(taught.lengths, config.length, config.num_clips)
    actions, moved = taught.clips(starts, config.length - 1)
    state, begins, estimates = odometry.initial_state(len(starts)), taught.begins(starts), {}
    for name, is_noisy in (("shown", False), ("noisy", True)):
        energies = taught.seen(starts, config.length - 1, is_noisy)
        expected, estimates[name], _ = odometry.follow(state, actions, energies, begins)
        estimates.setdefault("expected", expected)
    estimates["alone"] = go_on_alone(odometry, taught, starts, config)
    moved = moved[:, config.watched_frames :].cpu()
    way = moved[..., :2].norm(dim=-1).sum(-1)
    found = {"clips": float(len(way)), "walked": float((way >= config.min_way).sum())}
    for name in KINDS:
        off = end_of(estimates[name][:, config.watched_frames :].double().cpu()) - end_of(moved)
        shares = (off[:, :2].norm(dim=-1) / way)[way >= config.min_way]
        for label, quantile in QUANTILES.items():
            found[f"{name}_heading_{label}_degrees"] = float(off[:, 2].abs().quantile(quantile))
            if len(shares):
                found[f"{name}_place_{label}_share"] = float(shares.quantile(quantile))
    return found


def go_on_alone(odometry: Odometry, taught: TaughtVideo, starts: np.ndarray, config: MeasureConfig) -> Tensor:
    """Return what is expected of actions alone after the watched frames, `[K, F, 3]`; those come first."""
    watched = config.watched_frames
    actions, moved = taught.clips(starts, config.length - 1)
    state, begins = odometry.initial_state(len(starts)), taught.begins(starts + watched)
    energies = taught.seen(starts, config.length - 1, False)[:, :watched]
    if watched:
        *_, state = odometry.follow(state, actions[:, :watched], energies, taught.begins(starts))
    alone = odometry.dynamics(state, actions[:, watched:], None, begins)
    return torch.cat([moved[:, :watched].float(), alone], dim=1)


def end_of(displacements: Tensor) -> Tensor:
    """Return the pose `[K, 3]` fp64 in which paths `[K, F, 3]` from the origin end, not wrapped."""
    return integrate(displacements, displacements.new_zeros(len(displacements), 3))[:, -1]


def format_measures(found: dict[str, dict[str, float]]) -> str:
    """Return a table of what was measured in each folder: median and 90th percentile."""
    lines = [f"{'held out':<40} {'heading, degrees':>20} {'place, share':>20}"]
    for folder, values in found.items():
        for name in KINDS:
            pairs = [
                " ".join(f"{values.get(f'{name}_{what}', float('nan')):8.3f}" for what in quantities)
                for quantities in (
                    [f"heading_{label}_degrees" for label in QUANTILES],
                    [f"place_{label}_share" for label in QUANTILES],
                )
            ]
            lines.append(f"{f'{folder}, {name}':<40} {pairs[0]:>20} {pairs[1]:>20}")
    return "\n".join(lines)
