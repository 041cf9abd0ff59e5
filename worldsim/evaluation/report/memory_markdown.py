"""What a comparison says of memory: tables and a plot, for `conversion.md`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worldsim.evaluation.memory.span import CODEC, LAST, SEEN
from worldsim.evaluation.report.markdown import estimate, markdown_table
from worldsim.evaluation.report.report import write_plot

MEMORY_FILE = "conversion-memory.png"
REFERENCES = {
    SEEN: "the real frame seen there before",
    CODEC: "the real frame through the codec",
    LAST: "the last real frame, standing still",
}
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

Report = Mapping[str, Any]


def write_memory_plot(out: Path, measured: Mapping[str, Report]) -> None:
    """Plot what forgetting changes over the frames that are not forgotten, of each world."""
    curves, frames = {}, []
    for name, part in measured.items():
        changes = {int(span): value["mean"] for span, value in part["change_db"].items() if int(span) > 0}
        curves[name], frames = list(changes.values()), list(changes)
    labels = ("frames in the states, emptied before", "change of the next frame's PSNR, dB")
    write_plot(out / MEMORY_FILE, curves, labels, is_doubling=True, frames=frames)


def format_memory(measured: Mapping[str, Report], returns: Report | None, settings: Report) -> list[str]:
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


def _span_table(measured: Mapping[str, Report]) -> str:
    spans = sorted({int(span) for part in measured.values() for span in part["change_db"]})
    rows = []
    for name, part in measured.items():
        changes = (part["change_db"].get(str(span)) for span in spans)
        rows.append((name, estimate(part["psnr_db"]), *("-" if c is None else estimate(c) for c in changes)))
    return markdown_table(("world", "nothing emptied", *(f"the last {span}" for span in spans)), rows)


def _return_table(measured: Mapping[str, Report], references: Mapping[str, Report]) -> str:
    rows = []
    for name, part in measured.items():
        if (found := part.get("returns")) is not None:
            change = found.get("change_db")
            rows.append((name, estimate(found["psnr_db"]), "-" if change is None else estimate(change)))
    rows += [(REFERENCES[name], estimate(value), "-") for name, value in references.items()]
    return markdown_table(("world", "PSNR", "change with the states emptied"), rows)
