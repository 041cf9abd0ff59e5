"""What a comparison of teacher and converted worlds leaves behind: `conversion.md`, numbers and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.evaluation.cost.attention_speed import describe_attention
from worldsim.evaluation.cost.paper_shape import VIDEO_FRAMES_PER_LATENT
from worldsim.evaluation.cost.step_time import AROUND
from worldsim.evaluation.memory.conversion import samplers_differ
from worldsim.evaluation.quality.rollouts import CODEC, COPY, MEAN
from worldsim.evaluation.report.markdown import estimate, markdown_table, plural
from worldsim.evaluation.report.memory_markdown import format_memory, write_memory_plot
from worldsim.evaluation.report.report import write_json, write_plot
from worldsim.storage.files import write_text

NUMBERS_FILE, TEXT_FILE = "conversion.json", "conversion.md"
PSNR_FILE, TIME_FILE = "conversion-psnr.png", "conversion-step-time.png"
BYTES_FILE, SHAPE_FILE = "conversion-bytes.png", "conversion-paper-shape.png"
REFERENCES = {
    CODEC: "the real frames through the codec",
    COPY: "the last real frame, standing still",
    MEAN: "the mean of all frames watched, a picture of nothing",
}
MIB, GIB = 2**20, 2**30
PARTS = {
    "rollouts": "Roll-outs",
    "memory": "The use of the state",
    "in_turn": "Steps early and late",
    "cost": "Step times and bytes",
    "paper_shape": "The paper's shape",
}
"""What a report says of the runs that made it, in this order."""

QUALITY = """\
PSNR in dB against the real game of free roll-outs under the recorded actions, over {num_rollouts} places in
{num_episodes} held-out episodes of {folder}, after {context_frames} real frames. Mean / median;
in brackets the 95 % interval of the mean, from resampling episodes. PSNR prefers flat pictures: where a world
is no better than the mean picture, it tells how far the dream has faded, and differences between worlds tell
nothing else."""
ZEROED = """\
The difference to the same world when its recurrent states are emptied before every frame; the window, the
path and the frame before it stay. Far from the last real frame this tells drift, not memory: a dream that
fades to a flat picture gains by it."""
IN_TURN = """\
One dream at two ages, stepped on in turn, so that a busy machine slows both; median of the ratios of {count}
pairs of steps, with its 95 % interval. No picture is drawn in between: a cache that grows is filled with
copies of a frame, which cost what others do; where none grows, frames are committed one by one."""
COST = """\
One dream under random actions; frames are counted from its start. A step time is the median of the {steps}
steps around the frame. Peak memory is that of the GPU's tensors, weights included; on a CPU it is that of the
whole process, which measured the worlds one after the other."""
SHAPE = """\
Random weights, which cost what others do: width {dim}, {num_layers} layers, {num_heads} heads,
{tokens_per_frame} tokens a frame of latents, no text. {video_frames} frames of video are {latent_frames} of
latents, made one at a time in {steps} and a commit; the growing cache has its room
from the start. The paper (arXiv 2605.16579) reports a speed-up of 2.26 and 54 % less memory for 921 frames
with 75 % hybrid layers, the others full, three frames of latents at a time."""

Report = Mapping[str, Any]


def write_conversion(out: Path, report: Report) -> None:
    """Write everything of a report so far: numbers, plots, and the text that shows both."""
    write_json(out / NUMBERS_FILE, report)
    write_plots(out, report)
    write_text(out / TEXT_FILE, format_conversion(report))


def write_plots(out: Path, report: Report) -> None:
    """Plot PSNR, step time and bytes over frames, of those worlds for which they were measured."""
    quality = {name: part["psnr_curve_db"] for name, part in _measured(report, "quality").items()}
    if quality:
        references = {REFERENCES[name]: part["psnr_curve_db"] for name, part in report["references"].items()}
        labels = ("frames after the last real one", "PSNR against the real game, dB")
        write_plot(out / PSNR_FILE, quality | references, labels, is_doubling=True)
    if memory := _measured(report, "memory"):
        write_memory_plot(out, memory)
    cost = _measured(report, "cost")
    if cost:
        times = {name: smooth(part["step_ms_curve"]) for name, part in cost.items()}
        write_plot(out / TIME_FILE, times, ("frames", f"step time, median of {2 * AROUND + 1} steps, ms"))
        held = {name: np.array(part["state_bytes_curve"]) / MIB for name, part in cost.items()}
        write_plot(out / BYTES_FILE, held, ("frames", "state, MiB"))
    if shape := report.get("paper_shape"):
        curves = {name: smooth(part["step_ms_curve"]) for name, part in shape["models"].items()}
        write_plot(out / SHAPE_FILE, curves, ("frames of latents", "time of a frame, ms"))


def smooth(values: Sequence[float]) -> np.ndarray:
    """Return the median of each value and those around it; at the ends there are fewer."""
    array = np.asarray(values)
    return np.array([np.median(array[max(0, i - AROUND) : i + AROUND + 1]) for i in range(len(array))])


def _measured(report: Report, part: str) -> dict[str, Report]:
    return {name: world[part] for name, world in report["worlds"].items() if part in world}


def format_conversion(report: Report) -> str:
    """Return the report as Markdown; its pictures are beside it."""
    parts = [
        "# What converting a softmax world costs, and what it saves",
        *(_made(report["runs"][part], named) for part, named in PARTS.items() if part in report["runs"]),
        f"`{NUMBERS_FILE}` holds every number.",
    ]
    if report["worlds"]:
        parts += [_worlds(report), *_quality(report), *_memory(report), *_in_turn(report), *_cost(report)]
    if "paper_shape" in report:
        parts += _paper_shape(report["paper_shape"])
    return "\n\n".join(parts) + "\n"


def _made(run: Report, part: str) -> str:
    hardware = run["hardware"]
    where = hardware["device"]
    if where == "cpu":
        where = f"{hardware['processor']}, threads: {hardware['threads']}"
    return (
        f"{part} by `{run['command']}`\nat commit {run['commit']} on {run['date']}: {where}, "
        f"{run['dtype']}, PyTorch {run['versions']['torch']}."
    )


def _worlds(report: Report) -> str:
    rows = []
    for name, world in report["worlds"].items():
        layers = ", ".join(f"{count} {kind}" for kind, count in world["layers"].items() if count)
        numbers = (
            f"{world['parameters'] / 1e6:.1f} M",
            str(world["denoising_steps"]),
            str(world["commit_level"]),
        )
        rows.append((name, f"`{world['identity']}`", layers, *numbers))
    text = markdown_table(
        ("world", "weights", "layers", "parameters", "denoising steps", "commit level"), rows
    )
    if samplers_differ(report["worlds"]):
        text += (
            "\n\nThe worlds are not drawn alike: some differences below are those of the steps or the level."
        )
    return text


def _quality(report: Report) -> list[str]:
    measured = _measured(report, "quality")
    if not measured:
        return []
    teacher, *_ = measured.values()
    run = report["runs"]["rollouts"]
    references = {REFERENCES[name]: part for name, part in report["references"].items()}
    others = dict(list(measured.items())[1:])
    parts = [
        "## How well it predicts",
        QUALITY.format(**{**run["settings"], **run["data"], **teacher}),
        _horizon_table(measured | references, "psnr_db"),
    ]
    if others:
        parts.append("The difference to the teacher at the same places with the same noise:")
        parts.append(_horizon_table(others, "over_teacher_db"))
    zeroed = {name: part for name, part in others.items() if "over_original_db" in part}
    if zeroed:
        parts += [ZEROED, _horizon_table(zeroed, "over_original_db")]
    return [*parts, f"![PSNR over frames]({PSNR_FILE})"]


def _horizon_table(parts: Mapping[str, Report], key: str) -> str:
    horizons = list(next(iter(parts.values()))[key])
    rows = [(name, *(estimate(part[key][place]) for place in horizons)) for name, part in parts.items()]
    return markdown_table(("world", *(f"frame {place}" for place in horizons)), rows)


def _memory(report: Report) -> list[str]:
    if "memory" not in report["runs"]:
        return []
    settings = report["runs"]["memory"]["settings"]
    return format_memory(_measured(report, "memory"), report.get("returns"), settings)


def _in_turn(report: Report) -> list[str]:
    measured = _measured(report, "in_turn")
    if not measured:
        return []
    first, *_ = measured.values()
    early, late = (f"{first[key]:,}" for key in ("early_frame", "late_frame"))
    heading = ("world", f"step at frame {early}, ms", f"at {late}, ms", "ratio", "state at both, MiB")
    rows = []
    for name, part in measured.items():
        ms, ratio, held = part["step_ms"], part["late_over_early"], part["state_bytes"]
        rows.append(
            (
                *(name, f"{ms['early']:.1f}", f"{ms['late']:.1f}"),
                f"{ratio['mean']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})",
                f"{held['early'] / MIB:.2f}, {held['late'] / MIB:.2f}",
            )
        )
    return [
        "## Does a step become dearer?",
        IN_TURN.format(count=first["late_over_early"]["count"]),
        markdown_table(heading, rows),
    ]


def _cost(report: Report) -> list[str]:
    measured = _measured(report, "cost")
    if not measured:
        return []
    first, *_ = measured.values()
    early, late, total = (f"{first[key]:,}" for key in ("early_frame", "late_frame", "total_frames"))
    heading = (
        *("world", f"step at frame {early}, ms", f"at {late}, ms", "ratio"),
        *(f"state at {early}, MiB", f"at {late}, MiB", f"{total} frames, s", "peak memory, MiB"),
    )
    return [
        "## What a step costs",
        COST.format(steps=2 * AROUND + 1),
        markdown_table(heading, [_cost_row(name, part) for name, part in measured.items()]),
        f"![Step time over frames]({TIME_FILE})\n![Bytes over frames]({BYTES_FILE})",
    ]


def _cost_row(name: str, part: Report) -> tuple[str, ...]:
    step_ms, state = part["step_ms"], part["state_bytes"]
    return (
        *(name, f"{step_ms['early']:.1f}", f"{step_ms['late']:.1f}", f"{part['late_over_early']:.2f}"),
        *(f"{state['early'] / MIB:.2f}", f"{state['late'] / MIB:.2f}"),
        *(f"{part['seconds']:.1f}", f"{part['peak_bytes'] / MIB:,.0f}"),
    )


def _paper_shape(shape: Report) -> list[str]:
    models = shape["models"]
    heading = (
        *("model", f"{shape['video_frames']} frames, s", "frames/s", "speed-up", "peak memory, GiB", "saved"),
        *("state at the end, GiB", "first frame of latents, ms", "last"),
    )
    teacher = next(iter(models.values()), None)
    rows = [_shape_row(name, part, teacher) for name, part in models.items()]
    return [
        "## At the paper's shape",
        SHAPE.format(**shape, steps=plural(shape["denoising_steps"], "denoising step")),
        *([describe_attention(shape["attention"])] if "attention" in shape else []),
        markdown_table(heading, rows),
        f"![Time of a frame]({SHAPE_FILE})",
    ]


def _shape_row(name: str, part: Report, teacher: Report | None) -> tuple[str, ...]:
    assert teacher is not None
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
