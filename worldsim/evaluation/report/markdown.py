"""Markdown of a comparison of a teacher with converted worlds: `conversion.md`, with its plots beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from worldsim.evaluation.cost.attention_speed import describe_attention
from worldsim.evaluation.cost.paper_shape import VIDEO_FRAMES_PER_LATENT
from worldsim.evaluation.memory.conversion import AROUND, samplers_differ
from worldsim.evaluation.memory.span import CODEC, LAST, SEEN
from worldsim.evaluation.report.pictures import (
    BYTES_FILE,
    MEMORY_FILE,
    MIB,
    PSNR_FILE,
    REFERENCES,
    SHAPE_FILE,
    TIME_FILE,
    parts_of,
)
from worldsim.evaluation.report.report import Report
from worldsim.storage.files import write_text

NUMBERS_FILE, TEXT_FILE = "conversion.json", "conversion.md"
GIB = 2**30
RETURN_REFERENCES = {
    SEEN: "the real frame seen there before",
    CODEC: "the real frame through the codec",
    LAST: "the last real frame, standing still",
}
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

SPANS = """\
PSNR in dB of the next frame after {context_frames} real ones, over {num_places} places in {num_episodes}
held-out episodes, and what it changes to empty the recurrent states once while these frames are watched: the
states then hold only the last so many frames. Windows, path and the frame before stay as they are. Where the
changes end is how far back the states are used. A world without recurrent states begins anew instead, as if
it had watched the last so many frames only. Mean / median; in brackets the 95 % interval of the mean."""
RETURNS = """\
Places that come back: the player stands again within {distance:g} of the game's units and {angle_degrees:g}
degrees of where they stood, and in between no frame for at least {absence} frames showed any of it (the
heading differed by {view_degrees:g} degrees and more). {told}."""
DREAMT = """\
The worlds watch {context_frames} real frames, in one of which the place was seen, up to where it comes into
view again. From there they dream, at {num_places} places of {num_episodes} episodes, and the frame is judged
with which the pose is back: no real frame has shown it again. Emptied are the recurrent states when the place
has gone out of view; they hold what came after it. PSNR in dB, mean / median."""

Data = Mapping[str, Any]


def write_conversion(report: Report) -> None:
    """Write the text that shows a report, beside it."""
    write_text(report.path.parent / TEXT_FILE, format_conversion(report.data))


def format_conversion(report: Data) -> str:
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


def _made(run: Data, part: str) -> str:
    hardware = run["hardware"]
    where = hardware["device"]
    if where == "cpu":
        where = f"{hardware['processor']}, threads: {hardware['threads']}"
    return (
        f"{part} by `{run['command']}`\nat commit {run['commit']} on {run['date']}: {where}, "
        f"{run['dtype']}, PyTorch {run['versions']['torch']}."
    )


def _worlds(report: Data) -> str:
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


def _quality(report: Data) -> list[str]:
    measured = parts_of(report, "quality")
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


def _horizon_table(parts: Mapping[str, Data], key: str) -> str:
    horizons = list(next(iter(parts.values()))[key])
    rows = [(name, *(estimate(part[key][place]) for place in horizons)) for name, part in parts.items()]
    return markdown_table(("world", *(f"frame {place}" for place in horizons)), rows)


def _memory(report: Data) -> list[str]:
    if "memory" not in report["runs"]:
        return []
    settings = report["runs"]["memory"]["settings"]
    return format_memory(parts_of(report, "memory"), report.get("returns"), settings)


def format_memory(measured: Mapping[str, Data], returns: Data | None, settings: Data) -> list[str]:
    """Return the parts of the section on memory.

    Args:
        measured: What was measured of each world, by name.
        returns: What was found of places that come back; None before it was looked for.
        settings: `memory_frames` of the run.
    """
    if not measured:
        return []
    first = next(iter(measured.values()))
    described = SPANS.format(context_frames=settings["memory_frames"], **first)
    parts = ["## Does it use its state?", described, _span_table(measured)]
    if any(int(span) > 0 for span in first["change_db"]):
        parts.append(f"![Change of the next frame over the frames in the states]({MEMORY_FILE})")
    if returns is not None:
        parts.append(RETURNS.format(**returns["settings"], told=returns["told"]))
    if returns is not None and returns["references"]:
        told = DREAMT.format(context_frames=settings["memory_frames"], **returns)
        parts += [told, _return_table(measured, returns["references"])]
    return parts


def _span_table(measured: Mapping[str, Data]) -> str:
    spans = sorted({int(span) for part in measured.values() for span in part["change_db"]})
    rows = []
    for name, part in measured.items():
        changes = (part["change_db"].get(str(span)) for span in spans)
        rows.append((name, estimate(part["psnr_db"]), *("-" if c is None else estimate(c) for c in changes)))
    return markdown_table(("world", "nothing emptied", *(f"the last {span}" for span in spans)), rows)


def _return_table(measured: Mapping[str, Data], references: Mapping[str, Data]) -> str:
    rows = []
    for name, part in measured.items():
        if (found := part.get("returns")) is not None:
            change = found.get("change_db")
            rows.append((name, estimate(found["psnr_db"]), "-" if change is None else estimate(change)))
    rows += [(RETURN_REFERENCES[name], estimate(value), "-") for name, value in references.items()]
    return markdown_table(("world", "PSNR", "change with the states emptied"), rows)


def _in_turn(report: Data) -> list[str]:
    measured = parts_of(report, "in_turn")
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


def _cost(report: Data) -> list[str]:
    measured = parts_of(report, "cost")
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


def _cost_row(name: str, part: Data) -> tuple[str, ...]:
    step_ms, state = part["step_ms"], part["state_bytes"]
    return (
        *(name, f"{step_ms['early']:.1f}", f"{step_ms['late']:.1f}", f"{part['late_over_early']:.2f}"),
        *(f"{state['early'] / MIB:.2f}", f"{state['late'] / MIB:.2f}"),
        *(f"{part['seconds']:.1f}", f"{part['peak_bytes'] / MIB:,.0f}"),
    )


def _paper_shape(shape: Data) -> list[str]:
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


def _shape_row(name: str, part: Data, teacher: Data | None) -> tuple[str, ...]:
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


def estimate(value: Data) -> str:
    """Return a mean with its interval; the median, where it is known, after a slash."""
    mean = f"{value['mean']:.2f}"
    if value.get("median") is not None:
        mean += f" / {value['median']:.2f}"
    if value["low"] is None:
        return mean
    return f"{mean} ({value['low']:.2f} to {value['high']:.2f})"


def markdown_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; the first column is text, the others are numbers."""
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: 1 step, 4 steps."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
