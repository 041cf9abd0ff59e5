"""Paired comparison of worlds: differences, and the share of a full memory's advantage that is recovered.

Everything here is computed from a report's numbers of single episodes, so that worlds measured by several
commands can be compared afterwards.
"""

# N episodes

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
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


def values_of(world: Recall, gap: str, part: str, metric: str) -> np.ndarray | None:
    """Return one number for each episode of a gap, `[N]`; None where it was not measured."""
    found = find(world, (gap, "episodes", part, metric))
    return None if found is None else np.array(found, dtype=np.float64)


def compare_worlds(recall: Recall, *, window: str | None, full: str | None) -> dict[str, Comparison]:
    """Return each world's differences to all others, and its recovery ratios.

    `window` is the name of the world with a short window, `full` of the one that sees all past frames.
    """
    worlds, report = recall["worlds"], {}
    has_ends = window in worlds and full in worlds
    for name in worlds:
        others = [other for other in worlds if other != name]
        over = {other: _by_gap(recall, partial(_difference, recall, name, other)) for other in others}
        ratio = None
        if has_ends and name not in (window, full):
            ratio = _by_gap(recall, partial(_recovery, recall, (name, full, window)))
        report[name] = Comparison(over, ratio)
    return report


def _by_gap(recall: Recall, measure: Callable[[str, str, str], Estimate | None]) -> Found:
    found: Found = {}
    for gap, episodes in recall["episodes"].items():
        for part in PARTS:
            for metric in episodes["metrics"]:
                value = measure(gap, part, metric)
                if value is not None:
                    found.setdefault(gap, {}).setdefault(part, {})[metric] = value
    return found


def _difference(recall: Recall, name: str, other: str, gap: str, part: str, metric: str) -> Difference | None:
    ours, theirs = (values_of(recall["worlds"][n], gap, part, metric) for n in (name, other))
    if ours is None or theirs is None:
        return None
    better, worse = (recall["worlds"][n][gap][part][metric] for n in (name, other))
    apart = better["low"] is not None and worse["high"] is not None and better["low"] > worse["high"]
    difference = bootstrap(ours - theirs, recall["episodes"][gap]["names"])
    return Difference(**asdict(difference), intervals_are_apart=apart)


def _recovery(
    recall: Recall, names: Sequence[str | None], gap: str, part: str, metric: str
) -> Estimate | None:
    ours, most, least = (values_of(recall["worlds"][name], gap, part, metric) for name in names)
    if ours is None or least is None or most is None:
        return None
    return ratio_of_means(ours, most, least)
