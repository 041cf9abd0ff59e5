"""Filmstrips, videos and plots of a report, as PNG and MP4 files."""

# E episodes, F frames, H W frame size

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from worldsim.data.video import VideoWriter
from worldsim.evaluation.cost.step_time import AROUND, step_ms_around
from worldsim.evaluation.quality.rollouts import CODEC, COPY, FILM_FRAMES, MEAN, Example
from worldsim.evaluation.report.charts import Line, curve_of, line_of, write_plot
from worldsim.evaluation.report.report import Report
from worldsim.storage.files import writing
from worldsim.storage.images import write_png

FILM_FILE, VIDEO_FILE, CURVE_FILE = "filmstrip.png", "real-and-dream.mp4", "psnr.png"
PSNR_FILE, MEMORY_FILE = "conversion-psnr.png", "conversion-memory.png"
TIME_FILE, BYTES_FILE = "conversion-step-time.png", "conversion-bytes.png"
SHAPE_FILE = "conversion-paper-shape.png"
GAP = 2
"""Pixels between pictures."""
MIB = 2**20
PSNR_LABELS = ("frames after the last real one", "PSNR against the real game, dB")
REFERENCES = {
    CODEC: "the real frames through the codec",
    COPY: "the last real frame, standing still",
    MEAN: "the mean of all frames watched, a picture of nothing",
}


def write_filmstrip(path: Path, examples: Sequence[Example]) -> None:
    """Draw for each example three rows: real, dream, real through the codec, at `FILM_FRAMES`."""
    strips = []
    for example in examples:
        places = [frame - 1 for frame in FILM_FRAMES if frame <= len(example.real)]
        kinds = (example.real, example.dream, example.codec)
        strips.append(_lay_out([_lay_out(frames[places].numpy(), 1) for frames in kinds], 0))
    write_png(_lay_out(strips, 0, gap=4 * GAP), path)


def _lay_out(pictures: Sequence[np.ndarray] | np.ndarray, axis: int, gap: int = GAP) -> np.ndarray:
    """Lay pictures `[H, W, 3]` uint8 along an axis, with white between them."""
    shape = list(pictures[0].shape)
    shape[axis] = gap
    white = np.full(shape, 255, np.uint8)
    laid = [part for picture in pictures for part in (picture, white)]
    return np.concatenate(laid[:-1], axis=axis)


def write_strips(folder: Path, gap: int, films: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Write the frames of each world and episode side by side, the real ones under the empty name.

    Films are `[E, F, H, W, 3]` uint8 by world, of the episodes of one gap; the folder is created. Returns the
    names of the PNG files by world, one for each episode.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names: dict[str, list[str]] = {}
    for world, episodes in films.items():
        for index, frames in enumerate(episodes):
            name = f"recall-{gap:03d}-{index}-{_file_name(world) if world else 'real'}.png"
            write_png(_lay_out(frames.numpy(), 1), folder / name)
            names.setdefault(world, []).append(name)
    return names


def _file_name(world: str) -> str:
    return "world-" + "".join(c if c.isalnum() or c in "-_." else "-" for c in world)


def write_video(path: Path, examples: Sequence[Example], frame_rate: float) -> None:
    """Write the examples one after the other, the real game on the left and the dream on the right."""
    height, width = examples[0].real.shape[1:3]
    even_height, even_width = height + height % 2, 2 * (width + GAP // 2)
    with (
        writing(path) as part,
        VideoWriter(part, height=even_height, width=even_width, frame_rate=frame_rate) as video,
    ):
        for example in examples:
            for real, dream in zip(example.real, example.dream, strict=True):
                picture = np.full((even_height, even_width, 3), 255, dtype=np.uint8)
                picture[:height, :width] = real.numpy()
                picture[:height, -width:] = dream.numpy()
                video.write(picture)


def write_curve(path: Path, curves: Mapping[str, Sequence[float]]) -> None:
    """Plot PSNR in dB over the horizon in frames, by method, on an axis of factors."""
    lines = [curve_of(method.replace("_", " "), values) for method, values in curves.items()]
    write_plot(path, lines, PSNR_LABELS, is_log=True)


def write_conversion_plots(report: Report) -> None:
    """Plot PSNR, changes by forgetting, step time and bytes of the worlds that they were measured of."""
    out, data = report.path.parent, report.data
    if quality := parts_of(data, "quality"):
        lines = [curve_of(name, part["psnr_curve_db"]) for name, part in quality.items()]
        for name, part in data["references"].items():
            lines.append(curve_of(REFERENCES[name], part["psnr_curve_db"], is_reference=True))
        write_plot(out / PSNR_FILE, lines, PSNR_LABELS, is_log=True)
    if memory := parts_of(data, "memory"):
        write_memory_plot(out, memory)
    if cost := parts_of(data, "cost"):
        label = f"step time, median of {2 * AROUND + 1} steps, ms"
        write_plot(out / TIME_FILE, _step_times(cost), ("frames", label))
        held = [curve_of(n, [b / MIB for b in part["state_bytes_curve"]]) for n, part in cost.items()]
        write_plot(out / BYTES_FILE, held, ("frames", "state, MiB"))
    if shape := data.get("paper_shape"):
        labels = ("frames of latents", "time of a frame, ms")
        write_plot(out / SHAPE_FILE, _step_times(shape["models"]), labels)


def parts_of(report: Mapping[str, Any], part: str) -> dict[str, Mapping[str, Any]]:
    """Return what was measured in a part of a conversion report, by world."""
    return {name: world[part] for name, world in report["worlds"].items() if part in world}


def write_memory_plot(out: Path, parts: Mapping[str, Mapping[str, Any]]) -> None:
    """Plot what forgetting changes over the frames that are not forgotten, of each world."""
    lines = []
    for name, part in parts.items():
        changes = {span: value for span, value in part["change_db"].items() if int(span) > 0}
        lines.append(line_of(name, changes))
    labels = ("frames in the states, emptied before", "change of the next frame's PSNR, dB")
    write_plot(out / MEMORY_FILE, lines, labels, is_log=True)


def _step_times(parts: Mapping[str, Mapping[str, Any]]) -> list[Line]:
    times = {name: np.array(part["step_ms_curve"]) for name, part in parts.items()}
    return [curve_of(n, [step_ms_around(ms, i + 1) for i in range(len(ms))]) for n, ms in times.items()]
