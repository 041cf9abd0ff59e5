"""Text of a report: tables for the terminal, and the Jinja templates of this folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from worldsim.evaluation.cost.endurance import Endurance
from worldsim.evaluation.cost.step_operators import StepOperators
from worldsim.evaluation.cost.throughput import Throughput
from worldsim.evaluation.quality.outcome import OutcomeAccuracy
from worldsim.evaluation.quality.rollouts import CODEC, DREAM, RolloutScores


def render(template: str, values: dict[str, object]) -> str:
    """Return a template's text with values; in HTML they are escaped, and a missing one is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(values)


def align(cells: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as lines with aligned columns; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "-" * max(len(line) for line in lines), *lines[1:]])


def format_targets(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the results of `targets.check` as a table."""
    cells = [("what", "value", "95 % interval", "count", "must", "aim", "verdict")]
    for row in rows:
        ends = row["interval"]
        cells.append(
            (
                row["name"],
                "-" if row["value"] is None else f"{_number(row['value'])} {row['unit']}".strip(),
                "" if ends is None else f"{_number(ends[0])} to {_number(ends[1])}",
                str(row.get("count") or ""),
                bound_text(row, "must"),
                bound_text(row, "aim"),
                row["verdict"],
            )
        )
    if not any("count" in row for row in rows):
        cells = [(*row[:3], *row[4:]) for row in cells]
    return align(cells)


def _number(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.2f}"


def bound_text(row: Mapping[str, Any], key: str) -> str:
    """Return the bound that a row of `targets.check` holds under a key, as text."""
    if row[key] is None:
        return ""
    return f"{'>=' if row['higher_is_better'] else '<='} {row[key]:g}"


def format_horizons(rollout: RolloutScores) -> str:
    """Return PSNR at each horizon (and the mean up to it) and small changes around it, as a table."""
    horizons = rollout.horizons
    cells = [("PSNR in dB at frame (mean up to it)", *map(str, horizons))]
    for method in rollout.psnr_curve_db:
        pairs = [(at.psnr_db[method].mean, at.psnr_mean_up_to_db[method].mean) for at in horizons.values()]
        cells.append((method.replace("_", " "), *(f"{here:.2f} ({up_to:.2f})" for here, up_to in pairs)))
    for method in (DREAM, CODEC):
        shares = [at.small_changes_share.get(method) for at in horizons.values()]
        shown = ["-" if share is None else f"{share:.2f}" for share in shares]
        cells.append((f"small changes of {method}, share of the game's", *shown))
    return align(cells)


def format_outcomes(found: OutcomeAccuracy) -> str:
    """Return the accuracy of predicted outcomes in a few lines."""
    return render("outcomes.txt.j2", {"found": found})


def format_endurance(endured: Endurance, wanted_steps: int) -> str:
    """Return how an endurance test went so far, in a few lines."""
    values = {"endured": endured, "wanted_steps": wanted_steps, "verdict": endured.verdict(wanted_steps)}
    return render("endurance.txt.j2", values)


def format_throughput(found: Mapping[str, Throughput]) -> str:
    """Return rates by what was stepped as a table."""
    return render("throughput.txt.j2", {"found": found}).rstrip("\n")


def format_operators(found: Sequence[tuple[str, StepOperators]]) -> str:
    """Return operators and milliseconds of a step by kind as tables, of worlds by their names."""
    return render("operators.txt.j2", {"found": found}).rstrip("\n")
