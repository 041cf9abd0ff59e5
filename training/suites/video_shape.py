"""Suite of a video transformer's cost, `benchmark=video`: OUT/video.json holds it by model and length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from training.suites.settings import EvaluateConfig
from training.suites.training_profile import profile_update
from worldsim.evaluation.cost.paper_shape import fastest_attention, measure_attention
from worldsim.evaluation.cost.step_time import now
from worldsim.evaluation.cost.video_decoding import DecodingCost
from worldsim.evaluation.cost.video_shape import (
    FRAMES_PER_LATENT,
    PARTS,
    Drawing,
    MarkCost,
    VideoShapeConfig,
    choose_layout,
    free,
    late_over_early,
    measure_video,
)
from worldsim.evaluation.report.report import Report, describe_run
from worldsim.evaluation.report.text import align
from worldsim.runtime.cuda_graphs import choose_compile
from worldsim.runtime.device import choose_device

VIDEO_REPORT_FILE = "video.json"
MIN_MS = 0.05
"""Below which a kind of work is not listed."""


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What the backends of attention are timed on; see `measure_attention`."""

    num_heads: int
    head_width: int
    tokens_per_frame: int
    num_layers: int


def benchmark_video(config: EvaluateConfig, out: Path) -> None:
    """Measure each model, print tables, write OUT/video.json anew after each."""
    choice, asked = choose_device(config.device, config.dtype), config.video
    choose_compile(asked.compile, choice.device, grows=False)  # what it lacks is said before hours of work
    print(f"random weights on {choice}", flush=True)
    head = describe_run(choice.device, choice.dtype) | {"weights": "random"}
    models: dict[str, Any] = {}
    if asked.decoder_width:
        asked, decoding = choose_layout(asked, choice.device, choice.dtype)
        head |= {"decoding": {name: asdict(cost) for name, cost in decoding.items()}}
        print(f"\n{format_decoding(decoding)}", flush=True)
    head |= {"settings": asdict(asked)}
    with fast_attention(asked, choice.device, choice.dtype) as backends:
        for name in asked.models:
            marks, drawing = measure_video(asked, name, choice.device, choice.dtype)
            ratio = late_over_early(asked, marks)
            models[name] = {"marks": [asdict(mark) for mark in marks], "late_over_early": ratio}
            if drawing is not None:
                models[name]["block"] = profile_block(drawing, choice.device)
            del drawing
            free(choice.device)
            timed = {"attention_ms": backends, "models": models}
            report = Report(out / VIDEO_REPORT_FILE, head | timed)
            report.write()
            print(f"\n{format_marks(name, marks)}", flush=True)
            if ratio is not None:
                print(
                    f"a block at {asked.late:,} frames over one of a window just full: {ratio:.3f}",
                    flush=True,
                )
    print(f"\n{format_kinds(asked, models)}\n\nwritten to {out / VIDEO_REPORT_FILE}")


@contextmanager
def fast_attention(
    config: VideoShapeConfig, device: torch.device, dtype: torch.dtype
) -> Iterator[Mapping[str, float | None]]:
    """Let PyTorch attend by the fastest backend at half of the longest video; gives their milliseconds."""
    shape, block = config.shape, config.causal.block
    tokens = config.tokens_per_frame * block
    asked = AttentionShape(shape.num_heads, shape.head_width, tokens, shape.num_layers)
    speed = measure_attention(asked, config.num_blocks // 2, len(config.causal.steps) + 1, device, dtype)
    with fastest_attention(speed):
        yield speed.milliseconds


@torch.inference_mode()
def profile_block(drawing: Drawing, device: torch.device) -> dict[str, Any]:
    """Return kernels and milliseconds by kind of each of `PARTS` of one block more."""

    def waited_for(run: Callable[[], None]) -> float:
        begun = now(device)
        run()
        return now(device) - begun

    return {part: profile_update(partial(waited_for, run), device) for part, run in drawing.parts()}


def format_decoding(costs: dict[str, DecodingCost]) -> str:
    """Return what decoding costs in each layout, as a table."""
    rows = [("decoding, ms a latent frame", "whole", "streamed", "streamed over whole", "relative error")]
    for name, cost in costs.items():
        ratio = f"{cost.streamed_ms / cost.whole_ms:.3f}"
        rows.append(
            (name, f"{cost.whole_ms:.2f}", f"{cost.streamed_ms:.2f}", ratio, f"{cost.relative_error:.1e}")
        )
    return align(rows)


def format_marks(name: str, marks: list[MarkCost]) -> str:
    """Return what a model cost at each length, as a table."""
    parts = [f"{part}, ms" for part in PARTS]
    rows = [[name, "seconds", "peak, GiB", "kept, GiB", "frames/s", *parts, "launched"]]
    for mark in marks:
        taken = [mark.block_ms.get(part) for part in PARTS]
        sizes = [None if each is None else each / 2**30 for each in (mark.peak_bytes, mark.cache_bytes)]
        values = [mark.seconds, *sizes, mark.frames_per_second, *taken]
        told = ["-" if value is None else f"{value:,.2f}" for value in values]
        rows.append([f"{mark.frames} frames", *told, mark.launched])
    return align(rows)


def format_kinds(config: VideoShapeConfig, models: dict[str, Any]) -> str:
    """Return the milliseconds of one block behind the longest video, by kind of work and model."""
    measured = {
        f"{name}: {part}": profiled["milliseconds"]
        for name, each in models.items()
        for part, profiled in each.get("block", {}).items()
    }
    shown = FRAMES_PER_LATENT * config.causal.block
    rows = [(f"ms of a block of {shown} frames, by kind", *measured)]
    for kind in sorted({kind for each in measured.values() for kind in each}):
        values = [each[kind] for each in measured.values()]
        if max(values) >= MIN_MS:
            rows.append((kind, *(f"{value:,.1f}" for value in values)))
    rows.append(("sum", *(f"{sum(each.values()):,.1f}" for each in measured.values())))
    return align(rows)
