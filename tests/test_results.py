"""The numbers of the documentation held to what was measured: JSON files, experiments, cards of worlds.

`python -m tests.test_results` writes what docs/results.md takes from JSON files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tests.test_docs import README, ROOT, links, read, sections, table_rows

RESULTS = ROOT / "docs/results.md"
BLOCK = re.compile(r"<!-- begin (.+?) -->\n(.*?)<!-- end -->", re.DOTALL)


def number(value: Any, key: str) -> str:
    """Return a cell: an estimate as `mean / median (low to high)`, bytes in GiB, others by their size."""
    if isinstance(value, Mapping) and "mean" in value:
        mean = f"{value['mean']:.2f}" + (f" / {value['median']:.2f}" if "median" in value else "")
        return f"{mean} ({value['low']:.2f} to {value['high']:.2f})"
    if isinstance(value, Mapping):
        return ", ".join(f"{count} {kind}" for kind, count in value.items() if count)
    if key.endswith("_bytes"):
        return f"{value / 2**30:.2f} GiB"
    if key == "parameters":
        return f"{value / 1e6:.1f} M"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def at(value: Any, path: str) -> Any:
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def as_table(rows: Mapping[str, Any], where: str) -> str:
    """Return a table of the values at `where` (one path, or several with commas), a row for each name."""
    if "," in where:
        cells = {name: {path: at(row, path) for path in where.split(",")} for name, row in rows.items()}
    else:
        cells = {name: at(row, where) for name, row in rows.items() if at(row, where) is not None}
        cells = {name: {where: row} if "mean" in row else row for name, row in cells.items()}
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    columns.sort(key=lambda column: int(column) if column.isdigit() else 0)
    titles = [title.rpartition(".")[2].replace("_", " ") for title in columns]
    lines = ["| | " + " | ".join(titles) + " |", "|---|" + "---|" * len(columns)]
    for name, row in cells.items():
        shown = [number(row[column], column) if column in row else "-" for column in columns]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def as_runs(runs: Mapping[str, Any]) -> str:
    """Return commands, commits and hardware of a report."""
    parts: dict[str, list[str]] = {}
    for part, run in runs.items():
        hardware = run["hardware"]
        device = hardware["processor"] if hardware["device"] == "cpu" else hardware["device"]
        versions = f"{run['dtype']}, PyTorch {run['versions']['torch']}"
        where = f"commit {run['commit']}, {device}, threads: {hardware['threads']}, {versions}"
        parts.setdefault(f"{where}:\n\n```\n{run['command']}\n```", []).append(part)
    return "\n\n".join(f"Part {' and '.join(names)}: {text}" for text, names in parts.items())


def generated(directive: str) -> str:
    kind, file, *arguments = directive.split()
    report = json.loads((ROOT / file).read_text(encoding="utf-8"))
    match kind, arguments:
        case "runs", []:
            return as_runs(report["runs"])
        case "list", [path]:
            return "\n".join(f"- {entry}" for entry in at(report, path))
        case "table", [path, where]:
            return as_table(at(report, path), where)
    raise ValueError(f"the results ask for {directive}")


def with_numbers(text: str) -> str:
    """Return the results with all that is between markers written anew from the JSON files."""
    return BLOCK.sub(lambda m: f"<!-- begin {m[1]} -->\n\n{generated(m[1])}\n\n<!-- end -->", text)


def numbers(text: str) -> set[str]:
    """Return the numbers of a text, without those of one digit."""
    return {found for found in re.findall(r"\d[\d,]*\.?\d*", text) if len(found.strip(",.")) > 1}


def test_results_from_json_are_those_of_the_files() -> None:
    text = read(RESULTS)
    assert len(BLOCK.findall(text)) >= 17
    assert with_numbers(text) == text, "python -m tests.test_results writes the results anew"


def test_other_results_are_those_of_their_experiments() -> None:
    for anchor, section in sections(BLOCK.sub("", read(RESULTS))).items():
        entries = [target.split("#") for target in links(section) if target.startswith("experiments/")]
        measured = numbers("".join(sections(read(ROOT / "docs" / file))[entry] for file, entry in entries))
        shown = numbers(" ".join(" ".join(row[1:]) for row in table_rows(section)))
        assert shown <= measured, f"{anchor}: in no entry that is linked: {sorted(shown - measured)}"


def test_numbers_of_the_readme_are_those_of_the_cards() -> None:
    rows = [row for row in table_rows(read(README)) if "worldsim/assets/worlds/" in row[0]]
    assert len(rows) == len(list((ROOT / "worldsim/assets/worlds").iterdir()))
    for world, _, claims in rows:
        (card,) = links(world)
        assert numbers(claims) <= numbers(read(ROOT / card)), world


if __name__ == "__main__":
    RESULTS.write_text(with_numbers(read(RESULTS)), encoding="utf-8")
