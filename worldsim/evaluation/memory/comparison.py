"""Paired comparison of worlds: differences, and the share of a full memory's advantage that is recovered.

Everything here is computed from a report's numbers of single episodes, so that worlds measured by several
commands can be compared afterwards.
"""

# N episodes, R resamples

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from worldsim.evaluation.statistics import bootstrap, ratio_of_means

Report = Mapping[str, Any]
PARTS = ("average", "final")
TRAINED_GAP, LONG_GAP = "50", "150"


def values_of(world: Report, gap: str, part: str, metric: str) -> np.ndarray | None:
    """Return one number for each episode of a gap, `[N]`; None where it was not measured."""
    found = world.get(gap, {}).get("episodes", {}).get(part, {}).get(metric)
    return None if found is None else np.array(found, dtype=np.float64)


def compare_worlds(recall: Report, *, window: str | None, full: str | None) -> dict[str, Any]:
    """Return each world's differences to all others, and its recovery ratios, by gap, part and metric.

    `window` is the name of the world with a short window, `full` of the one that sees all past frames.
    """
    worlds = recall["worlds"]
    report: dict[str, Any] = {}
    for name in worlds:
        report[name] = {
            "over": {
                other: _by_gap(recall, partial(_difference, recall, name, other))
                for other in worlds
                if other != name
            }
        }
        if window in worlds and full in worlds and name not in (window, full):
            report[name]["recovery_ratio"] = _by_gap(recall, partial(_recovery, recall, (name, full, window)))
    return report


def _by_gap(recall: Report, measure: Any) -> dict[str, Any]:
    """Return a measurement by gap, part and metric, without what there is not."""
    found: dict[str, Any] = {}
    for gap, episodes in recall["episodes"].items():
        for part in PARTS:
            for metric in episodes["metrics"]:
                value = measure(gap, part, metric)
                if value is not None:
                    found.setdefault(gap, {}).setdefault(part, {})[metric] = value
    return found


def _difference(recall: Report, name: str, other: str, gap: str, part: str, metric: str) -> Any:
    ours, theirs = (values_of(recall["worlds"][n], gap, part, metric) for n in (name, other))
    if ours is None or theirs is None:
        return None
    better, worse = (recall["worlds"][n][gap][part][metric] for n in (name, other))
    apart = better["low"] is not None and worse["high"] is not None and better["low"] > worse["high"]
    difference = bootstrap(ours - theirs, recall["episodes"][gap]["names"])
    return difference.to_json() | {"intervals_are_apart": apart}


def _recovery(recall: Report, names: Sequence[str | None], gap: str, part: str, metric: str) -> Any:
    ours, most, least = (values_of(recall["worlds"][name], gap, part, metric) for name in names)
    if ours is None or least is None or most is None:
        return None
    return ratio_of_means(ours, most, least).to_json()


def zeroed_name(name: str) -> str:
    """Return what a world is called whose recurrent states are emptied before every frame."""
    return f"{name}, state zeroed"
