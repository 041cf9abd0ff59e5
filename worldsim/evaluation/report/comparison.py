"""Paired comparison of worlds: differences, and the share of a full memory's advantage that is recovered.

Everything here is computed from a report's numbers of single episodes, so that worlds measured by several
commands can be compared afterwards.
"""

# N episodes

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np

from worldsim.evaluation.report.targets import find
from worldsim.evaluation.statistics import Estimate, bootstrap, ratio_of_means

Recall = Mapping[str, Any]
"""The part `recall` of a report."""
PARTS = ("average", "final")


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference(Estimate):
    """A paired difference; whether the interval of the better world is above that of the other one."""

    intervals_are_apart: bool


Found = dict[str, dict[str, dict[str, Estimate]]]
"""Estimates by gap, by part of the way back and by metric, without what was not measured."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One world against the others, by their names, and its recovery ratio, where both ends are there."""

    over: dict[str, Found]
    recovery_ratio: Found | None = None


def compare_worlds(recall: Recall, *, window: str | None, full: str | None) -> dict[str, Comparison]:
    """Return each world's differences to all others, and its recovery ratios.

    `window` is the name of the world with a short window, `full` of the one that sees all past frames.
    """
    worlds, report = recall["worlds"], {}
    has_ends = window in worlds and full in worlds
    for name in worlds:
        over = {other: _by_gap(recall, (name, other), _difference) for other in worlds if other != name}
        is_between = has_ends and name not in (window, full)
        report[name] = Comparison(
            over, _by_gap(recall, (name, full, window), _recovery) if is_between else None
        )
    return report


def _by_gap(recall: Recall, names: Sequence[str | None], measure: Callable[..., Estimate]) -> Found:
    """Measure the values of worlds, one for each episode `[N]`, where all of them have some."""
    found: Found = {}
    for gap, episodes in recall["episodes"].items():
        worlds = [recall["worlds"][name].get(gap, {}) for name in names]
        for part, metric in product(PARTS, episodes["metrics"]):
            singles = [find(world, ("episodes", part, metric)) for world in worlds]
            if None not in singles:
                means = [world[part][metric] for world in worlds]
                estimate = measure(np.array(singles, dtype=np.float64), means, episodes["names"])
                found.setdefault(gap, {}).setdefault(part, {})[metric] = estimate
    return found


def _difference(values: np.ndarray, means: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Difference:
    low, high = means[0]["low"], means[1]["high"]
    apart = low is not None and high is not None and low > high
    return Difference(**asdict(bootstrap(values[0] - values[1], names)), intervals_are_apart=apart)


def _recovery(values: np.ndarray, *_: object) -> Estimate:
    return ratio_of_means(*values)
