"""The report as one HTML file: plots, tables and pictures inside of it, nothing to load from elsewhere."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from worldsim.evaluation.consistency.charts import Line, line_of, plot_lines
from worldsim.evaluation.consistency.goals import bound_text

PAGE_FILE, FILMS_FOLDER = "report.html", "films"
METRICS = {"psnr_db": "PSNR, dB", "ssim": "SSIM", "tile_accuracy": "tiles right"}
PART_NAMES = {"final": "last frame", "average": "mean over the way back"}
REFERENCES = {"codec": "real frames through the codec", "copy_last": "last real frame, standing still"}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.7em; } h2 { font-size: 1.25em; margin-top: 2em; border-bottom: 1px solid #ddd; } h3 { font-size: 1em; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: 3px 9px; text-align: right; border-bottom: 1px solid #e5e5e5; } th { background: #f6f6f6; }
th:first-child, td:first-child { text-align: left; } small { color: #777; }
.plots { display: flex; flex-wrap: wrap; gap: 8px; } .plots svg { width: 520px; height: auto; }
.pass, .aim { color: #1c7a3a; } .short { color: #b3261e; } .none { color: #888; }
.film { overflow-x: auto; white-space: nowrap; margin: 0 0 1.2em; }
.film img { display: block; margin: 2px 0 6px; height: 84px; }
.film p { margin: 0; font-size: 12px; color: #555; } code { font-size: 12px; background: #f6f6f6; padding: 1px 4px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 1em; font-size: 13px; } dd { margin: 0; }
"""

Report = Mapping[str, Any]
Rows = Sequence[Sequence[str]]


def write_page(out: Path, report: Report) -> None:
    """Write `report.html`, completely or not at all, from a report and the pictures beside it.

    Args:
        out: Folder of the report; its pictures are in `films` inside of it.
        report: Of the suite.
    """
    part = out / f"{PAGE_FILE}.part"
    try:
        part.write_text(page(report, out / FILMS_FOLDER), encoding="utf-8")
        part.replace(out / PAGE_FILE)
    finally:
        part.unlink(missing_ok=True)


def page(report: Report, films: Path) -> str:
    """Return the report as an HTML document."""
    from worldsim.evaluation.consistency import page_parts

    sections = [
        head(report),
        goals(report),
        recall(report),
        comparisons(report),
        interventions(report),
        pairs(report),
        *page_parts.sections(report),
        filmstrips(report, films),
        runs(report),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Does it remember? {text(', '.join(report['worlds']))}</title>\n<style>{STYLE}</style>\n"
        f"</head>\n<body>\n{chr(10).join(part for part in sections if part)}\n</body>\n</html>\n"
    )


def text(value: object) -> str:
    """Return a value as text of a page."""
    return html.escape(str(value))


def number(value: float | None, digits: int = 2) -> str:
    """Return a number as text, a dash for None."""
    return "-" if value is None else f"{value:,.{digits}f}"


def cell(estimate: Report | None, digits: int = 2) -> str:
    """Return a mean with its interval as the contents of a table's cell."""
    if estimate is None or estimate.get("mean") is None:
        return "-"
    mean = number(estimate["mean"], digits)
    if estimate.get("low") is None:
        return mean
    return f"{mean} <small>{number(estimate['low'], digits)} to {number(estimate['high'], digits)}</small>"


def table(heading: Sequence[str], rows: Rows) -> str:
    """Return a table; cells are HTML."""
    lines = ["<tr>" + "".join(f"<th>{text(name)}</th>" for name in heading) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def section(title: str, *contents: str) -> str:
    """Return a section of the page."""
    return f"<h2>{text(title)}</h2>\n" + "\n".join(contents)


def paragraph(words: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{text(words)}</p>"


def plots(*figures: str) -> str:
    """Return plots side by side where there is room."""
    return '<div class="plots">\n' + "\n".join(figure for figure in figures if figure) + "\n</div>"


def head(report: Report) -> str:
    """Say what was measured."""
    rows = [
        [
            text(name),
            text(world["identity"]),
            text(", ".join(f"{count} {kind}" for kind, count in world["layers"].items() if count)),
            f"{world['parameters'] / 1e6:.2f} M",
            text(world["denoising_steps"]),
            number(world.get("state_bytes", 0) / 1024, 0) + " KiB",
        ]
        for name, world in report["worlds"].items()
    ]
    heading = ("world", "identity", "layers", "parameters", "denoising steps", "memory after the context")
    data = report["data"]
    return (
        "<h1>Does it remember?</h1>\n"
        + paragraph(
            "Good pictures are no evidence of memory. Here the real game walks away from what was seen and comes "
            "back; the world watches the way out and dreams the way back. What it should draw can only come from "
            "what it remembers. Brackets are 95 % intervals from resampling episodes, one dream an episode."
        )
        + f"\n<p>Episodes of <code>{text(data['folder'])}</code>. {text(data['source'])}</p>\n"
        + table(heading, rows)
    )


def goals(report: Report) -> str:
    """Show where each world stands."""
    parts = []
    for name, rows in report.get("goals", {}).items():
        if all(row["verdict"] == "not measured" for row in rows):
            continue
        cells = []
        for row in rows:
            ends = row["interval"] or (None, None)
            estimate = {"mean": row["value"], "low": ends[0], "high": ends[1]}
            style = row["verdict"] if row["verdict"] in ("pass", "aim", "short") else "none"
            verdict = f'<span class="{style}">{text(row["verdict"])}</span>'
            shown = f"{cell(estimate)} {text(row['unit'])}".strip()
            cells.append([text(row["name"]), shown, *(bound_text(row, k) for k in ("must", "aim")), verdict])
        parts.append(f"<h3>{text(name)}</h3>\n" + table(("what", "value", "must", "aim", "verdict"), cells))
    return section("Goals", *parts) if parts else ""


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
            "n frames out, n frames back. Frame n + k is compared with the real one, which shows what frame n - k "
            "showed. PSNR is capped at 60 dB."
        ),
        plots(*figures),
        *rest,
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


def recall_table(part: Report, where: str, metric: str) -> str:
    """Tabulate one metric by gap."""
    gaps = list(part["episodes"])
    named = [*part["worlds"].items(), *((REFERENCES[m], part["references"][m]) for m in REFERENCES)]
    rows = [
        [text(name), *(cell(tree.get(gap, {}).get(where, {}).get(metric), digits_of(metric)) for gap in gaps)]
        for name, tree in named
    ]
    return table((f"{METRICS[metric]}, {PART_NAMES[where]}", *(f"n = {gap}" for gap in gaps)), rows)


def digits_of(metric: str) -> int:
    """Return how many digits of a metric are shown."""
    return 2 if metric == "psnr_db" else 3


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
            "The recurrent states are emptied (zero), no longer written (freeze) or exchanged for those of another "
            "episode (swap) at the turn; all else stays. A world that draws from them then draws otherwise."
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
    heading = ("what is exchanged", "follow the other past, last frame", "all frames", "nearer to it by, dB", "pairs")
    return section(
        "Paired histories",
        paragraph(
            "Two episodes with the same actions and another past exchange at the turn all that is remembered "
            "before the present frame (history), or the recurrent states alone (state). Share of dreams nearer to "
            "the past whose memory they were given. Controls: nothing is exchanged (none), or the states are "
            "emptied (empty): nothing then leads to the other past."
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


def filmstrips(report: Report, films: Path) -> str:
    """Show real frames above what each world draws."""
    shown = []
    for gap, film in report.get("films", {}).items():
        real = film["strips"].get("", [])
        for index in range(len(real)):
            frames = ", ".join(str(frame) for frame in film["frames"])
            lines = [f"<h3>n = {text(gap)}, episode {index + 1}; frames after the turn: {frames}</h3>"]
            for name, files in film["strips"].items():
                picture = embedded(films / files[index])
                if picture:
                    lines.append(f"<p>{text(name or 'real')}</p>{picture}")
            shown.append('<div class="film">' + "\n".join(lines) + "</div>")
    return section("Real above dream", *shown) if shown else ""


def embedded(path: Path) -> str:
    """Return a PNG file as an element that holds it; nothing where it is not there any more."""
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="" src="data:image/png;base64,{data}">'


def runs(report: Report) -> str:
    """Say by which commands each part was measured."""
    entries = []
    for part, by_world in report["runs"].items():
        for run in {world_run["date"]: world_run for world_run in by_world.values()}.values():
            names = [name for name, world_run in by_world.items() if world_run["date"] == run["date"]]
            hardware = run["hardware"]
            where = f"{hardware['device']}, {hardware['processor']}, {hardware['cores']} cores, {run['dtype']}"
            words = f"{', '.join(names)}; commit {run['commit']}, {run['date']}, {where}"
            entries.append(f"<dt>{text(part)}</dt><dd>{text(words)}<br><code>{text(run['command'])}</code></dd>")
    return section("How it was measured", "<dl>" + "\n".join(entries) + "</dl>")
