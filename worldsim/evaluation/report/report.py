"""What an evaluation leaves behind: `report.json`, a filmstrip, a video and a plot of PSNR."""

# F frames, H W frame size

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.image import imsave
from torch import Tensor

from worldsim.data.video import VideoWriter
from worldsim.evaluation.quality.rollouts import CODEC, DREAM, FILM_FRAMES, Example
from worldsim.evaluation.report.targets import align
from worldsim.runtime.cores import usable_cores
from worldsim.storage.files import write_text, writing

REPORT_FILE, FILM_FILE, VIDEO_FILE, CURVE_FILE = (
    "report.json",
    "filmstrip.png",
    "real-and-dream.mp4",
    "psnr.png",
)
GAP = 2
"""Pixels between pictures."""
LEGEND_COLUMNS = 2


def describe_run(command: Sequence[str], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Return when, where and how a report is made."""
    return {
        "command": " ".join(command),
        "commit": git_commit(Path(__file__).parent),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": {
            "processor": processor_name(),
            "cores": usable_cores(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        },
        "dtype": str(dtype).removeprefix("torch."),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def git_commit(folder: Path) -> str | None:
    """Return the commit of a checkout, with `+changes` if files differ from it; None outside of one."""
    try:
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        return f"{commit}+changes" if _git(folder, "status", "--porcelain") else commit
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def processor_name() -> str:
    """Return the name of the processor as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report, completely or not at all; a number that is not finite becomes null."""
    write_text(path, json.dumps(_finite(report), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def write_filmstrip(path: Path, examples: Sequence[Example]) -> None:
    """Draw for each example three rows: real, dream, real through the codec, at `FILM_FRAMES`."""
    strips = []
    for example in examples:
        places = [frame - 1 for frame in FILM_FRAMES if frame <= len(example.real)]
        strips.append(
            _rows([_row(frames[places]) for frames in (example.real, example.dream, example.codec)])
        )
    with writing(path) as part:
        imsave(part, _rows(strips, gap=4 * GAP), format="png")


def _row(frames: Tensor) -> np.ndarray:
    """Lay frames `[F, H, W, 3]` side by side."""
    return np.ascontiguousarray(_rows([frame.swapaxes(0, 1) for frame in frames.numpy()]).swapaxes(0, 1))


def _rows(pictures: Sequence[np.ndarray], gap: int = GAP) -> np.ndarray:
    """Stack pictures of one width with white between them."""
    white = np.full((gap, *pictures[0].shape[1:]), 255, dtype=np.uint8)
    stacked = [part for picture in pictures for part in (picture, white)]
    return np.concatenate(stacked[:-1])


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
    """Plot PSNR in dB over the horizon in frames, by method, on an axis that doubles."""
    named = {method.replace("_", " "): values for method, values in curves.items()}
    labels = ("frames after the last real one", "PSNR against the real game, dB")
    write_plot(path, named, labels, is_doubling=True)


def write_plot(
    path: Path,
    curves: Mapping[str, Sequence[float] | np.ndarray],
    labels: tuple[str, str],
    *,
    is_doubling: bool = False,
    frames: Sequence[int] | None = None,
) -> None:
    """Plot curves over the frames 1, 2, 3 and so on, or over those that are given.

    Args:
        path: PNG file.
        curves: By name.
        labels: Of the two axes, frames first.
        is_doubling: Whether equal distances on the axis of frames are factors instead of differences.
        frames: Those of the values, in order.
    """
    # pyplot would choose a window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = math.ceil(len(curves) / LEGEND_COLUMNS)
    figure = Figure(figsize=(7, 4 + 0.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, values in curves.items():
        axes.plot(range(1, len(values) + 1) if frames is None else frames, values, label=name)
    if is_doubling:
        axes.set_xscale("log", base=2)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.grid(alpha=0.3)
    # Inside it would cover curves.
    figure.legend(loc="outside lower center", ncols=LEGEND_COLUMNS, fontsize="small")
    with writing(path) as part:
        figure.savefig(part, format="png", dpi=120)


def format_horizons(rollout: Mapping[str, Any]) -> str:
    """Return PSNR at each horizon (and the mean up to it) and small changes around it, as a table."""
    horizons = rollout["horizons"]
    methods = list(rollout["psnr_curve_db"])
    cells = [("PSNR in dB at frame (mean up to it)", *horizons)]
    for method in methods:
        row = [method.replace("_", " ")]
        for values in horizons.values():
            here, up_to = (values[key][method]["mean"] for key in ("psnr_db", "psnr_mean_up_to_db"))
            row.append(f"{here:.2f} ({up_to:.2f})")
        cells.append(tuple(row))
    for method in (DREAM, CODEC):
        shares = [values["small_changes_share"].get(method) for values in horizons.values()]
        shown = ["-" if share is None else f"{share:.2f}" for share in shares]
        cells.append((f"small changes of {method}, share of the game's", *shown))
    return align(cells)
