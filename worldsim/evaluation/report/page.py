"""HTML page of a consistency report: one file with tables, plots and pictures inside, nothing to load."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worldsim.evaluation.report.charts import Line, curve_of, line_of, plot_lines
from worldsim.evaluation.report.report import Report
from worldsim.evaluation.report.targets import find
from worldsim.evaluation.report.text import bound_text, render
from worldsim.storage.files import write_text

TEMPLATE, PAGE_FILE, FILMS_FOLDER = "page.html.j2", "report.html", "films"
METRICS = {"psnr_db": "PSNR, dB", "ssim": "SSIM", "tile_accuracy": "tiles right"}
PART_NAMES = {"final": "last frame", "average": "mean over the way back"}
REFERENCES = {"codec": "real frames through the codec", "copy_last": "last real frame, standing still"}
EXCHANGES = ("history", "state", "none", "empty")
SOURCES = {
    "state": "the state",
    "state_of_another": "the state of another episode",
    "present_frame": "the present frame alone",
    "oracle": "oracle",
}
MIB = 2**20

Data = Mapping[str, Any]


def write_page(report: Report) -> None:
    """Write `report.html` beside a report of the suite, completely or not at all."""
    out = report.path.parent
    write_text(out / PAGE_FILE, page(report.data, out / FILMS_FOLDER))


def page(data: Data, films: Path) -> str:
    """Return the page of a report of the suite as text; its pictures are in the folder `films`."""
    functions = (bound_text, embedded, fidelity_rows, find, memory_text, number)
    values = {
        **{function.__name__: function for function in functions},
        "report": data,
        "films": films,
        "plots": plots_of(data),
        "part_names": PART_NAMES,
        "exchanges": EXCHANGES,
        "sources": SOURCES,
        "mib": MIB,
        **_rows_and_columns(data),
    }
    return render(TEMPLATE, values)


def _rows_and_columns(data: Data) -> dict[str, Any]:
    """Return which rows and columns the tables have that are not those of a single part of the report."""
    recall, compared = data.get("recall", {}), data.get("comparisons", {}).items()
    probed, costs = (data.get(part, {}).get("worlds", {}).values() for part in ("probe", "cost"))
    scores = [gap for world in recall.get("worlds", {}).values() for gap in world.values()]
    return {
        "metrics": _metrics(recall),
        "recall_rows": _with_references(recall),
        "absent_ages": sorted(
            {age for gap in scores for age in gap.get("absent_tiles", {})},
            key=lambda age: int(age.split("-")[0]),
        ),
        "differences": {
            f"{name} over {other}": tree for name, c in compared for other, tree in c["over"].items() if tree
        },
        "ratios": {name: tree for name, c in compared if (tree := c.get("recovery_ratio"))},
        "probe_targets": list(dict.fromkeys(target for found in probed for target in found["targets"])),
        "cost_frames": sorted({int(frame) for found in costs for frame in found["frames"]}),
    }


def _metrics(recall: Data) -> dict[str, str]:
    found = {metric for episodes in recall.get("episodes", {}).values() for metric in episodes["metrics"]}
    return {metric: words for metric, words in METRICS.items() if metric in found}


def _with_references(recall: Data) -> dict[str, Data]:
    references = recall.get("references", {})
    return recall.get("worlds", {}) | {words: references.get(key, {}) for key, words in REFERENCES.items()}


def number(value: float | None, digits: int = 2) -> str:
    """Return a number as text, a dash for None."""
    return "-" if value is None else f"{value:,.{digits}f}"


def embedded(path: Path) -> str:
    """Return a file in base64; nothing where it is not there any more."""
    return base64.b64encode(path.read_bytes()).decode() if path.is_file() else ""


def memory_text(data: Data, name: str) -> str:
    """Return how much a dream of a world remembers at the turn, for the shortest and the longest gap."""
    gaps = data.get("recall", {}).get("worlds", {}).get(name, {})
    found = {gap: scores["memory_bytes"] / 1024 for gap, scores in gaps.items()}
    if not found:
        return "-"
    sizes = [number(found[gap], 0) for gap in (min(found, key=int), max(found, key=int))]
    return f"{' to '.join(dict.fromkeys(sizes))} KiB"


def fidelity_rows(part: Data) -> dict[str, Data]:
    """Return segments by the name of whose frames they are: real ones, and dreams and codec of each world."""
    rows = {"real frames of other episodes": part["real"]}
    for name, found in part["worlds"].items():
        rows |= {f"{name}: dream": found["dream"], f"{name}: codec": found["codec"]}
    return rows


def plots_of(data: Data) -> dict[str, list[str]]:
    """Return the plots of each part that was measured, as SVG elements."""
    makers = {
        "recall": _recall_plots,
        "way_back": _way_back_plots,
        "absent_tiles": _absent_tile_plots,
        "pairs": _pair_plots,
        "controllability": _controllability_plots,
        "drift": _drift_plots,
        "fidelity": _fidelity_plots,
        "cost": _cost_plots,
    }
    parts = {name: data.get(name, {}) for name in makers}
    parts |= dict.fromkeys(("way_back", "absent_tiles"), parts["recall"])
    return {name: make(parts[name]) if parts[name].get("worlds") else [] for name, make in makers.items()}


def _recall_plots(part: Data) -> list[str]:
    """Plot recall over the gap, one line for each world."""
    metrics, figures = list(_metrics(part)), []
    for metric, where in [(metrics[0], "final"), (metrics[0], "average"), (metrics[-1], "final")]:
        lines = []
        for name, gaps in _with_references(part).items():
            found = {gap: tree[where][metric] for gap, tree in gaps.items() if metric in tree[where]}
            lines.append(line_of(name, found, is_reference=name not in part["worlds"]))
        labels = ("frames out, and frames back", f"{METRICS[metric]}, {PART_NAMES[where]}")
        figures.append(plot_lines(lines, labels, is_log=True))
    return figures


def _way_back_plots(part: Data) -> list[str]:
    """Plot recall over the way back, a figure for each gap."""
    metric, figures = next(iter(_metrics(part))), []
    for gap in part["episodes"]:
        curves = {n: find(gaps, (gap, "curve", metric)) for n, gaps in _with_references(part).items()}
        if any(curves[name] for name in part["worlds"]):
            references = curves.keys() - part["worlds"].keys()
            lines = [curve_of(n, curve, is_reference=n in references) for n, curve in curves.items() if curve]
            figures.append(plot_lines(lines, (f"frames after the turn, n = {gap}", METRICS[metric])))
    return figures


def _absent_tile_plots(part: Data) -> list[str]:
    """Plot the share of tiles that come back right over how long they were gone, a figure for each gap."""
    figures = []
    for gap in part["episodes"]:
        found = {name: find(gaps, (gap, "absent_tiles")) for name, gaps in part["worlds"].items()}
        lines = [
            line_of(name, {ages.split("-")[0]: estimate for ages, estimate in shares.items()})
            for name, shares in found.items()
            if shares is not None
        ]
        if lines:
            labels = (f"frames out of view, at least; n = {gap}", "tiles right")
            figures.append(plot_lines(lines, labels, is_log=True))
    return figures


def _pair_plots(part: Data) -> list[str]:
    """Plot the share that follows the other past over the way back."""
    return [
        plot_lines(
            [curve_of(way, scores[way]["curve"]) for way in EXCHANGES if scores.get(way)],
            (f"frames after the turn, n = {gap}", f"{name}: follow the other past"),
        )
        for name, gaps in part["worlds"].items()
        for gap, scores in gaps.items()
    ]


def _controllability_plots(part: Data) -> list[str]:
    lines = []
    for name, found in part["worlds"].items():
        for axis in dict.fromkeys(axis for mark in found["marks"].values() for axis in mark):
            shares = {mark: tests[axis]["both_right"]["mean"] for mark, tests in found["marks"].items()}
            lines.append(Line(name=f"{name}, {axis}", x=[*map(float, shares)], y=[*shares.values()]))
    return [plot_lines(lines, ("frame of the dream", "both buttons right"))] if lines else []


def _drift_plots(part: Data) -> list[str]:
    lines = [
        Line(name=name, x=found["segment_ends"], y=found["motion_energy"]["ratio"])
        for name, found in part["worlds"].items()
    ]
    return [plot_lines(lines, ("frame of the dream", "motion over the real game's"))]


def _fidelity_plots(part: Data) -> list[str]:
    figures = []
    for distance in ("fid", "kid"):
        lines = []
        for name, segments in fidelity_rows(part).items():
            values = {segment.split("-")[1]: found[distance]["value"] for segment, found in segments.items()}
            lines.append(line_of(name, values, is_reference=segments is part["real"]))
        figures.append(plot_lines(lines, ("last frame of the segment", distance.upper()), is_log=True))
    return figures


def _cost_plots(part: Data) -> list[str]:
    times, sizes = [], []
    for name, found in part["worlds"].items():
        marks = found["frames"]
        x = [*map(float, marks)]
        times.append(Line(name=name, x=x, y=[mark["step_ms"]["p50"] for mark in marks.values()]))
        sizes.append(Line(name=name, x=x, y=[mark["state_bytes"] / MIB for mark in marks.values()]))
    return [
        plot_lines(times, ("frame", "milliseconds a step"), is_log=True),
        plot_lines(sizes, ("frame", "MiB remembered"), is_log=True),
    ]
