"""The report as one HTML file: plots, tables and pictures inside of it, nothing to load from elsewhere."""

from __future__ import annotations

from pathlib import Path

from worldsim.evaluation.report.elements import (
    STYLE,
    Report,
    cell,
    embedded,
    number,
    paragraph,
    section,
    table,
    text,
)
from worldsim.evaluation.report.page_memory import interventions, pairs
from worldsim.evaluation.report.page_parts import sections
from worldsim.evaluation.report.page_recall import comparisons, recall
from worldsim.evaluation.report.suite_targets import bound_text
from worldsim.storage.files import write_text

PAGE_FILE, FILMS_FOLDER = "report.html", "films"


def write_page(out: Path, report: Report) -> None:
    """Write `report.html`, completely or not at all, from a report and the pictures beside it.

    Args:
        out: Folder of the report; its pictures are in `films` inside of it.
        report: Of the suite.
    """
    write_text(out / PAGE_FILE, page(report, out / FILMS_FOLDER))


def page(report: Report, films: Path) -> str:
    """Return the report as an HTML document."""
    contents = [
        head(report),
        goals(report),
        recall(report),
        comparisons(report),
        interventions(report),
        pairs(report),
        *sections(report),
        filmstrips(report, films),
        runs(report),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Does it remember? {text(', '.join(report['worlds']))}</title>\n<style>{STYLE}</style>\n"
        f"</head>\n<body>\n{chr(10).join(part for part in contents if part)}\n</body>\n</html>\n"
    )


def head(report: Report) -> str:
    """Say what was measured."""
    rows = [
        [
            text(name),
            text(world["identity"]),
            text(", ".join(f"{count} {kind}" for kind, count in world["layers"].items() if count)),
            f"{world['parameters'] / 1e6:.2f} M",
            text(world["denoising_steps"]),
            memory_text(report, name),
        ]
        for name, world in report["worlds"].items()
    ]
    heading = (
        "world",
        "identity",
        "layers",
        "parameters",
        "denoising steps",
        "memory of a dream at the turn",
    )
    data, skipped = report["data"], report.get("skipped", {})
    return (
        "<h1>Does it remember?</h1>\n"
        + paragraph(
            "Good pictures are no evidence of memory. Here the real game walks away from what was seen and "
            "comes back; the world watches the way out and dreams the way back. What it should draw can only "
            "come from what it remembers. Small numbers are 95 % intervals from resampling episodes, one "
            "dream for each."
        )
        + f"\n<p>Episodes of <code>{text(data['folder'])}</code>. {text(data['source'])}</p>\n"
        + "".join(f"<p>Not measured: {text(part)}; {text(why)}.</p>\n" for part, why in skipped.items())
        + table(heading, rows)
    )


def memory_text(report: Report, name: str) -> str:
    """Return how much a dream of a world remembers at the turn, for the shortest and the longest gap."""
    gaps = report.get("recall", {}).get("worlds", {}).get(name, {})
    found = {gap: scores["memory_bytes"] / 1024 for gap, scores in gaps.items()}
    if not found:
        return "-"
    sizes = [number(found[gap], 0) for gap in (min(found, key=int), max(found, key=int))]
    return f"{' to '.join(dict.fromkeys(sizes))} KiB"


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
            shown = f"{cell(estimate)} {text(row['unit'])}".strip() if row["value"] is not None else "-"
            bounds = [bound_text(row, key) for key in ("must", "aim")]
            cells.append([text(row["name"]), shown, str(row.get("count") or ""), *bounds, verdict])
        head = ("what", "value", "count", "must", "aim", "verdict")
        parts.append(f"<h3>{text(name)}</h3>\n" + table(head, cells))
    return section("Goals", *parts) if parts else ""


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


def runs(report: Report) -> str:
    """Say by which commands each part was measured."""
    entries = []
    for part, by_world in report["runs"].items():
        for run in {world_run["date"]: world_run for world_run in by_world.values()}.values():
            names = [name for name, world_run in by_world.items() if world_run["date"] == run["date"]]
            hardware = run["hardware"]
            where = (
                f"{hardware['device']}, {hardware['processor']}, {hardware['cores']} cores, {run['dtype']}"
            )
            words = f"{', '.join(names)}; commit {run['commit']}, {run['date']}, {where}"
            entries.append(
                f"<dt>{text(part)}</dt><dd>{text(words)}<br><code>{text(run['command'])}</code></dd>"
            )
    return section("How it was measured", "<dl>" + "\n".join(entries) + "</dl>")
