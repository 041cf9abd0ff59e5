"""The page's sections about return recall, and about worlds beside each other."""

from __future__ import annotations

from typing import Any

from worldsim.evaluation.report.charts import Line, line_of, plot_lines
from worldsim.evaluation.report.elements import (
    METRICS,
    PART_NAMES,
    REFERENCES,
    Report,
    cell,
    digits_of,
    paragraph,
    plots,
    section,
    table,
    text,
)


def recall(report: Report) -> str:
    """Plot and tabulate return recall against the gap."""
    part = report.get("recall")
    if not part:
        return ""
    metrics = [metric for metric in METRICS if any(metric in e["metrics"] for e in part["episodes"].values())]
    figures = [
        recall_plot(part, where, metric)
        for metric, where in [(metrics[0], "final"), (metrics[0], "average"), (metrics[-1], "final")]
    ]
    words = "; ".join(
        f"n = {gap}: {e['count']} episodes ({e['told']}), {e['context_frames']} frames before the way out"
        for gap, e in part["episodes"].items()
    )
    rest = [recall_table(part, where, metric) for metric in metrics for where in PART_NAMES]
    curves = [curve_plot(part, gap, metrics[0]) for gap in part["episodes"]]
    return section(
        "Return recall",
        paragraph(
            "n frames out, n frames back. Frame n + k is compared with the real one, which shows what frame "
            "n - k showed. PSNR is capped at 60 dB."
        ),
        plots(*figures),
        *rest,
        absent_tiles(part),
        "<h3>Along the way back</h3>",
        plots(*curves),
        f"<p><small>{text(words)}.</small></p>",
    )


def recall_plot(part: Report, where: str, metric: str) -> str:
    """Plot one metric over the gap, one line for each world."""

    def estimates(tree: Report) -> dict[str, Any]:
        return {gap: tree[gap][where][metric] for gap in tree if metric in tree[gap][where]}

    lines = [line_of(name, estimates(world)) for name, world in part["worlds"].items()]
    for method, words in REFERENCES.items():
        lines.append(line_of(words, estimates(part["references"][method]), is_reference=True))
    labels = ("frames out, and frames back", f"{METRICS[metric]}, {PART_NAMES[where]}")
    return plot_lines(lines, labels, is_log=True)


def curve_plot(part: Report, gap: str, metric: str) -> str:
    """Plot one metric over the way back of one gap."""
    lines = [
        Line(name=name, x=range(1, len(curve) + 1), y=curve)
        for name, world in part["worlds"].items()
        if (curve := world.get(gap, {}).get("curve", {}).get(metric))
    ]
    if not lines:
        return ""
    for method, words in REFERENCES.items():
        curve = part["references"][method][gap]["curve"][metric]
        lines.append(Line(name=words, x=range(1, len(curve) + 1), y=curve, is_reference=True))
    return plot_lines(lines, (f"frames after the turn, n = {gap}", METRICS[metric]))


def absent_tiles(part: Report) -> str:
    """Plot and tabulate which tiles that come back into view are right, by how long they were gone."""
    figures, rows, classes = [], [], {}
    for gap in part["episodes"]:
        found = {
            name: world[gap]["absent_tiles"]
            for name, world in part["worlds"].items()
            if "absent_tiles" in world.get(gap, {})
        }
        lines = [line_of(name, _by_first_frame(estimates)) for name, estimates in found.items()]
        if lines:
            figures.append(
                plot_lines(lines, (f"frames out of view, at least; n = {gap}", "tiles right"), is_log=True)
            )
        rows += [(f"{name}, n = {gap}", estimates) for name, estimates in found.items()]
        classes |= {key: None for estimates in found.values() for key in estimates}
    if not rows:
        return ""
    named = sorted(classes, key=lambda key: int(key.split("-")[0]))
    cells = [[text(name), *(cell(estimates.get(key), 3) for key in named)] for name, estimates in rows]
    return (
        "<h3>Tiles that come back into view</h3>\n"
        + paragraph(
            "Most tiles of a frame were in the frame before, and the dream only moves them. Here only those "
            "count that were out of view since they were really seen, by how many frames that is ago."
        )
        + plots(*figures)
        + table(("tiles right", *(f"{key} frames" for key in named)), cells)
    )


def _by_first_frame(estimates: Report) -> dict[str, Any]:
    return {key.split("-")[0]: estimate for key, estimate in estimates.items()}


def recall_table(part: Report, where: str, metric: str) -> str:
    """Tabulate one metric by gap."""
    gaps = list(part["episodes"])
    named = [*part["worlds"].items(), *((REFERENCES[m], part["references"][m]) for m in REFERENCES)]
    rows = [
        [text(name), *(cell(tree.get(gap, {}).get(where, {}).get(metric), digits_of(metric)) for gap in gaps)]
        for name, tree in named
    ]
    return table((f"{METRICS[metric]}, {PART_NAMES[where]}", *(f"n = {gap}" for gap in gaps)), rows)


def comparisons(report: Report) -> str:
    """Tabulate differences between worlds and recovery ratios."""
    part = report.get("comparisons", {})
    gaps = list(report.get("recall", {}).get("episodes", {}))
    rows = [
        [text(f"{name} over {other}"), *(difference_cell(tree.get(gap)) for gap in gaps)]
        for name, compared in part.items()
        for other, tree in compared["over"].items()
        if tree
    ]
    ratios = [
        [text(name), *(cell(tree.get(gap, {}).get("final", {}).get("psnr_db")) for gap in gaps)]
        for name, compared in part.items()
        if (tree := compared.get("recovery_ratio"))
    ]
    contents = []
    heading = [f"n = {gap}" for gap in gaps]
    if rows:
        contents += [table(("last frame, dB", *heading), rows)]
    if ratios:
        contents += [
            paragraph("Recovery ratio: (model - window) / (full - window), last frame, PSNR."),
            table(("recovery ratio", *heading), ratios),
        ]
    return section("Compared, episode by episode", *contents) if contents else ""


def difference_cell(tree: Report | None) -> str:
    """Return a difference of the last frame's PSNR, bold where the two intervals are apart."""
    found = None if tree is None else tree.get("final", {}).get("psnr_db")
    shown = cell(found)
    return f"<b>{shown}</b>" if found and found["intervals_are_apart"] else shown
