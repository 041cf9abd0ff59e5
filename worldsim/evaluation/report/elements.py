"""Elements of the page: text, numbers, tables, pictures as HTML."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

METRICS = {"psnr_db": "PSNR, dB", "ssim": "SSIM", "tile_accuracy": "tiles right"}
PART_NAMES = {"final": "last frame", "average": "mean over the way back"}
REFERENCES = {
    "codec": "real frames through the codec",
    "copy_last": "last real frame, standing still",
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2em auto; }
h1 { font-size: 1.7em; } h3 { font-size: 1em; }
h2 { font-size: 1.25em; margin-top: 2em; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: 3px 9px; text-align: right; border-bottom: 1px solid #e5e5e5; } th { background: #f6f6f6; }
th:first-child, td:first-child { text-align: left; } small { color: #777; }
.plots { display: flex; flex-wrap: wrap; gap: 8px; } .plots svg { width: 520px; height: auto; }
.pass, .aim { color: #1c7a3a; } .short { color: #b3261e; } .none { color: #888; }
.film { overflow-x: auto; white-space: nowrap; margin: 0 0 1.2em; }
.film img { display: block; margin: 2px 0 6px; height: 84px; }
.film p { margin: 0; font-size: 12px; color: #555; }
code { font-size: 12px; background: #f6f6f6; padding: 1px 4px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 1em; font-size: 13px; } dd { margin: 0; }
"""

Report = Mapping[str, Any]
Rows = Sequence[Sequence[str]]


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


def digits_of(metric: str) -> int:
    """Return how many digits of a metric are shown."""
    return 2 if metric == "psnr_db" else 3


def embedded(path: Path) -> str:
    """Return a PNG file as an element that holds it; nothing where it is not there any more."""
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="" src="data:image/png;base64,{data}">'
