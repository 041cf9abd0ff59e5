"""FID and KID between two sets of frames, of their features, with intervals.

FID of few frames is too large, by about the same for all sets of one size: compare it only between equal
counts, and with what two sets of real frames give. KID has no such bias.
"""

# M and N frames of two sets, D features, E episodes, K frames of an episode

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from worldsim.evaluation.statistics import Estimate, jackknife

FID, KID = "fid", "kid"
Distance = Callable[[Tensor, Tensor], float]


class _Known(nn.Module):
    """Hands on features that were computed before: torchmetrics would compute those of each set again."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _check(features: Tensor, others: Tensor) -> None:
    one, other = tuple(features.shape), tuple(others.shape)
    if not len(one) == len(other) == 2 or one[1] != other[1] or min(one[0], other[0]) < 2:
        raise ValueError(f"distances need features [N, D] of at least 2 frames each, got {one} and {other}")


def fid(features: Tensor, others: Tensor) -> float:
    """Return the Frechet distance of two sets of features, `[M, D]` and `[N, D]`, 0 for equal sets.

    Raises:
        ValueError: If a set has fewer than two frames, or the numbers of features differ.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance  # slow to import

    _check(features, others)
    metric = FrechetInceptionDistance(_Known(features.shape[1]))
    metric.update(features.double(), real=True)
    metric.update(others.double(), real=False)
    return max(0.0, float(metric.compute()))


def kid(features: Tensor, others: Tensor) -> float:
    """Return the kernel distance (squared MMD, cubic kernel) of two sets of features, `[M, D]` and `[N, D]`.

    All frames are one subset, the first `min(M, N)` of each, so small counts are no special case and nothing
    is drawn at random. The estimate has no bias: of equal distributions it is 0 on average, and as often
    below as above.

    Raises:
        ValueError: If a set has fewer than two frames, or the numbers of features differ.
    """
    from torchmetrics.image.kid import KernelInceptionDistance  # slow to import

    _check(features, others)
    count = min(len(features), len(others))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features")
        metric = KernelInceptionDistance(_Known(features.shape[1]), subsets=1, subset_size=count)
    metric.update(features[:count].double(), real=True)
    metric.update(others[:count].double(), real=False)
    # It shuffles, which changes nothing here but the global generator.
    with torch.random.fork_rng(devices=[]):
        return float(metric.compute()[0])


DISTANCES: dict[str, Distance] = {FID: fid, KID: kid}


def crossed(distance: Distance, features: Tensor, real: Tensor) -> float:
    """Return the distance of some frames from real frames of *other* episodes.

    Those of even episodes are compared with the real ones of odd episodes and the other way round; the mean
    counts. So frames that are the real ones themselves get what two sets of real frames differ by, not 0, and
    all comparisons have the same number of frames. Both are `[E, K, D]`, of the same episodes, E even and at
    least 2.
    """
    sides = ((slice(0, None, 2), slice(1, None, 2)), (slice(1, None, 2), slice(0, None, 2)))
    return float(np.mean([distance(features[a].flatten(0, 1), real[b].flatten(0, 1)) for a, b in sides]))


@dataclass(frozen=True, slots=True)
class RealDistance:
    """A distance of frames to real ones, and how much larger it is than of the real frames themselves."""

    value: Estimate
    over_floor: Estimate


def distances_to_real(features: Tensor, real: Tensor) -> dict[str, RealDistance]:
    """Return FID and KID of frames against real ones of other episodes, by `fid` and `kid`.

    Both are `[E, K, D]`, of the same places; of an odd number of episodes the last is left out.

    Raises:
        ValueError: If there are fewer than two episodes, or a side would have fewer than two frames.
    """
    if features.shape != real.shape or features.ndim != 3 or len(features) < 2:
        raise ValueError(
            f"expected features [episodes, frames, D] of at least 2 episodes and as many real ones, "
            f"got {tuple(features.shape)} and {tuple(real.shape)}"
        )
    num_pairs = len(features) // 2
    found = {}
    for name, distance in DISTANCES.items():

        def value(pairs: np.ndarray, distance: Distance = distance) -> float:
            rows = _episodes_of(pairs)
            return crossed(distance, features[rows], real[rows])

        def over(pairs: np.ndarray, distance: Distance = distance) -> float:
            rows = _episodes_of(pairs)
            return value(pairs, distance) - crossed(distance, real[rows], real[rows])

        # Resampling with repetition would make any set look narrower than it is, and FID larger.
        estimates = (replace(jackknife(one, num_pairs), count=2 * num_pairs) for one in (value, over))
        found[name] = RealDistance(*estimates)
    return found


def _episodes_of(pairs: np.ndarray) -> Tensor:
    """Return the even and the odd episode of each pair: both sides of `crossed` are left out together."""
    return torch.from_numpy(np.stack([2 * pairs, 2 * pairs + 1], axis=1).ravel())
