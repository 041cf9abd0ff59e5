"""Markdown of a comparison of a teacher with converted worlds: `conversion.md`, with its plots beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worldsim.evaluation.cost.paper_shape import VIDEO_FRAMES_PER_LATENT
from worldsim.evaluation.cost.step_time import AROUND
from worldsim.evaluation.memory.span import CODEC, LAST, SEEN
from worldsim.evaluation.report import pictures
from worldsim.evaluation.report.pictures import MIB, REFERENCES, parts_of
from worldsim.evaluation.report.report import Report
from worldsim.evaluation.report.text import render
from worldsim.storage.files import write_text

TEMPLATE, NUMBERS_FILE, TEXT_FILE = "conversion.md.j2", "conversion.json", "conversion.md"
GIB = 2**30
RETURN_REFERENCES = {
    SEEN: "the real frame seen there before",
    CODEC: "the real frame through the codec",
    LAST: "the last real frame, standing still",
}
RUN_NAMES = {
    "rollouts": "Roll-outs",
    "memory": "The use of the state",
    "in_turn": "Steps early and late",
    "cost": "Step times and bytes",
    "paper_shape": "The paper's shape",
}
"""What a report says of the runs that made it, in this order."""

Data = Mapping[str, Any]


def write_conversion(report: Report) -> None:
    """Write the text that shows a report, beside it."""
    write_text(report.path.parent / TEXT_FILE, format_conversion(report.data))


def format_conversion(report: Data) -> str:
    """Return the report as Markdown."""
    functions = (estimate, plural)
    parts = {part: parts_of(report, part) for part in ("quality", "memory", "in_turn", "cost")}
    others = dict(list(parts["quality"].items())[1:])  # the teacher comes first
    known = {REFERENCES[name]: part for name, part in report.get("references", {}).items()}
    samplers = {(world["denoising_steps"], world["commit_level"]) for world in report["worlds"].values()}
    values = {
        **{function.__name__: function for function in functions},
        **parts,
        "report": report,
        "predictions": {**parts["quality"], **known},
        "others": others,
        "zeroed": {name: part for name, part in others.items() if "over_original_db" in part},
        "spans": sorted({int(span) for part in parts["memory"].values() for span in part["change_db"]}),
        "returns": report.get("returns"),
        "return_references": RETURN_REFERENCES,
        "shape": report.get("paper_shape"),
        "files": vars(pictures),
        "run_names": RUN_NAMES,
        "numbers_file": NUMBERS_FILE,
        "median_steps": 2 * AROUND + 1,
        "samplers_differ": len(samplers) > 1,
        "frames_per_latent": VIDEO_FRAMES_PER_LATENT,
        "mib": MIB,
        "gib": GIB,
    }
    return render(TEMPLATE, values).rstrip() + "\n"


def estimate(value: Data | None) -> str:
    """Return a mean with its interval; the median, where it is known, after a slash; a dash for None."""
    if value is None:
        return "-"
    mean = f"{value['mean']:.2f}"
    if value.get("median") is not None:
        mean += f" / {value['median']:.2f}"
    return mean if value["low"] is None else f"{mean} ({value['low']:.2f} to {value['high']:.2f})"


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: 1 step, 4 steps."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
