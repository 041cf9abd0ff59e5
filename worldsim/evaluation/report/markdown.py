"""Markdown of a comparison of a teacher with converted worlds: `conversion.md`, with its plots beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from worldsim.evaluation.cost.attention_speed import describe_attention
from worldsim.evaluation.cost.paper_shape import VIDEO_FRAMES_PER_LATENT
from worldsim.evaluation.cost.step_time import AROUND
from worldsim.evaluation.memory.conversion import samplers_differ
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
Parts = Mapping[str, Data]


def write_conversion(report: Report) -> None:
    """Write the text that shows a report, beside it."""
    write_text(report.path.parent / TEXT_FILE, format_conversion(report.data))


def format_conversion(report: Data) -> str:
    """Return the report as Markdown."""
    parts = {part: parts_of(report, part) for part in ("quality", "memory", "in_turn", "cost")}
    returns, shape = report.get("returns"), report.get("paper_shape")
    tables = {
        "worlds": _world_table(report["worlds"]),
        **_quality_tables(parts["quality"], report.get("references", {})),
        "spans": _span_table(parts["memory"]),
        "returns": _return_table(parts["memory"], (returns or {}).get("references", {})),
        "in_turn": _in_turn_table(parts["in_turn"]),
        "cost": _cost_table(parts["cost"]),
        "shape": "" if shape is None else _shape_table(shape),
    }
    values = {
        "report": report,
        **parts,
        "returns": returns,
        "shape": shape,
        "tables": tables,
        "files": vars(pictures),
        "run_names": RUN_NAMES,
        "numbers_file": NUMBERS_FILE,
        "median_steps": 2 * AROUND + 1,
        "samplers_differ": samplers_differ(report["worlds"]),
        "plural": plural,
        "describe_attention": describe_attention,
    }
    return render(TEMPLATE, values).rstrip() + "\n"


def _world_table(worlds: Parts) -> str:
    rows = []
    for name, world in worlds.items():
        layers = ", ".join(f"{count} {kind}" for kind, count in world["layers"].items() if count)
        parameters, level = f"{world['parameters'] / 1e6:.1f} M", str(world["commit_level"])
        rows.append(
            (name, f"`{world['identity']}`", layers, parameters, str(world["denoising_steps"]), level)
        )
    heading = ("world", "weights", "layers", "parameters", "denoising steps", "commit level")
    return markdown_table(heading, rows)


def _quality_tables(quality: Parts, references: Parts) -> dict[str, str]:
    others = dict(list(quality.items())[1:])  # the teacher comes first
    zeroed = {name: part for name, part in others.items() if "over_original_db" in part}
    known = {REFERENCES[name]: part for name, part in references.items()}
    return {
        "psnr": _horizon_table({**quality, **known}, "psnr_db"),
        "over_teacher": _horizon_table(others, "over_teacher_db"),
        "over_original": _horizon_table(zeroed, "over_original_db"),
    }


def _horizon_table(parts: Parts, key: str) -> str:
    """Return estimates by world and horizon; nothing if there is no world."""
    if not parts:
        return ""
    horizons = list(next(iter(parts.values()))[key])
    rows = [(name, *(estimate(part[key][place]) for place in horizons)) for name, part in parts.items()]
    return markdown_table(("world", *(f"frame {place}" for place in horizons)), rows)


def _span_table(memory: Parts) -> str:
    spans = sorted({int(span) for part in memory.values() for span in part["change_db"]})
    rows = []
    for name, part in memory.items():
        changes = (part["change_db"].get(str(span)) for span in spans)
        rows.append((name, estimate(part["psnr_db"]), *map(estimate, changes)))
    return markdown_table(("world", "nothing emptied", *(f"the last {span}" for span in spans)), rows)


def _return_table(memory: Parts, references: Parts) -> str:
    rows = [
        (name, estimate(found["psnr_db"]), estimate(found.get("change_db")))
        for name, part in memory.items()
        if (found := part.get("returns")) is not None
    ]
    rows += [(RETURN_REFERENCES[name], estimate(value), "-") for name, value in references.items()]
    return markdown_table(("world", "PSNR", "change with the states emptied"), rows)


def _in_turn_table(in_turn: Parts) -> str:
    rows, early, late = [], "", ""
    for name, part in in_turn.items():
        early, late = f"{part['early_frame']:,}", f"{part['late_frame']:,}"
        ms, ratio, held = part["step_ms"], part["late_over_early"], part["state_bytes"]
        interval = f"{ratio['mean']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"
        sizes = f"{held['early'] / MIB:.2f}, {held['late'] / MIB:.2f}"
        rows.append((name, f"{ms['early']:.1f}", f"{ms['late']:.1f}", interval, sizes))
    heading = ("world", f"step at frame {early}, ms", f"at {late}, ms", "ratio", "state at both, MiB")
    return markdown_table(heading, rows)


def _cost_table(cost: Parts) -> str:
    rows, early, late, total = [], "", "", ""
    for name, part in cost.items():
        early, late, total = (f"{part[key]:,}" for key in ("early_frame", "late_frame", "total_frames"))
        ms, held = part["step_ms"], part["state_bytes"]
        rows.append(
            (
                *(name, f"{ms['early']:.1f}", f"{ms['late']:.1f}", f"{part['late_over_early']:.2f}"),
                *(f"{held['early'] / MIB:.2f}", f"{held['late'] / MIB:.2f}"),
                *(f"{part['seconds']:.1f}", f"{part['peak_bytes'] / MIB:,.0f}"),
            )
        )
    heading = (
        *("world", f"step at frame {early}, ms", f"at {late}, ms", "ratio"),
        *(f"state at {early}, MiB", f"at {late}, MiB", f"{total} frames, s", "peak memory, MiB"),
    )
    return markdown_table(heading, rows)


def _shape_table(shape: Data) -> str:
    models = shape["models"]
    heading = (
        *("model", f"{shape['video_frames']} frames, s", "frames/s", "speed-up", "peak memory, GiB", "saved"),
        *("state at the end, GiB", "first frame of latents, ms", "last"),
    )
    teacher = next(iter(models.values()), {})
    return markdown_table(heading, [_shape_row(name, part, teacher) for name, part in models.items()])


def _shape_row(name: str, part: Data, teacher: Data) -> tuple[str, ...]:
    done, wanted, peak = part["frames_done"], part["num_frames"], part["peak_bytes"]
    both_done = done == wanted and teacher["frames_done"] == wanted
    speed_up = f"{teacher['seconds'] / part['seconds']:.2f}" if both_done else "-"
    saved = f"{1 - peak / teacher['peak_bytes']:.0%}" if both_done and peak else "-"
    return (
        *(name, f"{part['seconds']:.1f}" if done == wanted else f"out of memory at frame {done + 1}"),
        *(f"{done * VIDEO_FRAMES_PER_LATENT / part['seconds']:.2f}", speed_up),
        *(f"{peak / GIB:.2f}" if peak else "-", saved, f"{part['state_bytes'] / GIB:.2f}"),
        *("-" if part[key] is None else f"{part[key]:.0f}" for key in ("first_step_ms", "last_step_ms")),
    )


def estimate(value: Data | None) -> str:
    """Return a mean with its interval; the median, where it is known, after a slash; a dash for None."""
    if value is None:
        return "-"
    mean = f"{value['mean']:.2f}"
    if value.get("median") is not None:
        mean += f" / {value['median']:.2f}"
    return mean if value["low"] is None else f"{mean} ({value['low']:.2f} to {value['high']:.2f})"


def markdown_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; the first column is text, the others are numbers."""
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: 1 step, 4 steps."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
