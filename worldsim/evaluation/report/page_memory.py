"""The page's sections about interventions and paired histories."""

from __future__ import annotations

from worldsim.evaluation.report.charts import Line, plot_lines
from worldsim.evaluation.report.elements import Report, cell, paragraph, plots, section, table, text


def interventions(report: Report) -> str:
    """Tabulate what interventions change."""
    part = report.get("interventions")
    if not part:
        return ""
    rows = []
    for name, gaps in part["worlds"].items():
        for gap, ways in gaps.items():
            for way, scores in ways.items():
                rows.append(
                    [
                        text(f"{name}, n = {gap}: {way}"),
                        cell(scores["final"]["psnr_db"]),
                        cell(scores.get("change", {}).get("final", {}).get("psnr_db")),
                        cell(scores["average"]["psnr_db"]),
                        cell(scores.get("change", {}).get("average", {}).get("psnr_db")),
                    ]
                )
    heading = ("what is done at the turn", "last frame, dB", "change", "mean over the way back, dB", "change")
    skipped = [f"{name}: {why}" for name, why in part.get("skipped", {}).items()]
    return section(
        "Interventions",
        paragraph(
            "The recurrent states are emptied (zero), no longer written (freeze) or exchanged for those of "
            "another episode (swap) at the turn; all else stays. A world that draws from them then draws "
            "otherwise."
        ),
        table(heading, rows),
        paragraph("; ".join(skipped)) if skipped else "",
    )


def pairs(report: Report) -> str:
    """Tabulate and plot whose past is drawn."""
    part = report.get("pairs")
    if not part:
        return ""
    rows, figures = [], []
    for name, gaps in part["worlds"].items():
        for gap, scores in gaps.items():
            for exchange in ("history", "state", "none", "empty"):
                if exchange in scores:
                    found = scores[exchange]
                    rows.append(
                        [
                            text(f"{name}, n = {gap}: {exchange}"),
                            cell(found["final"]),
                            cell(found["average"]),
                            cell(found["margin_db"]),
                            text(scores["num_pairs"]),
                        ]
                    )
            figures.append(pairs_plot(name, gap, scores))
    heading = (
        "what is exchanged",
        "follow the other past, last frame",
        "all frames",
        "nearer to it by, dB",
        "pairs",
    )
    return section(
        "Paired histories",
        paragraph(
            "Two episodes with the same actions and another past exchange at the turn all that is remembered "
            "before the present frame (history), or the recurrent states alone (state). Share of dreams that "
            "are nearer to the past whose memory they were given. Controls: nothing is exchanged (none), or "
            "the states are emptied (empty): nothing then leads to the other past."
        ),
        table(heading, rows),
        plots(*figures),
    )


def pairs_plot(name: str, gap: str, scores: Report) -> str:
    """Plot the share that follows the other past over the way back."""
    lines = [
        Line(name=exchange, x=range(1, len(found["curve"]) + 1), y=found["curve"])
        for exchange in ("history", "state", "none", "empty")
        if (found := scores.get(exchange))
    ]
    return plot_lines(lines, (f"frames after the turn, n = {gap}", f"{name}: follow the other past"))
