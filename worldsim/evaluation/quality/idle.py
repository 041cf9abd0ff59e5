"""Drift under no-op actions: brightness, contrast and sharpness of a picture that should stay as it is."""

# N starts, F frames, S segments, H W frame size

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from worldsim.evaluation.inputs.clips import Clip, ClipBatch, Recordings, pick
from worldsim.evaluation.metrics import brightness, contrast, psnr, sharpness, ssim
from worldsim.evaluation.rollout import join, progress, stack, through_codec
from worldsim.evaluation.statistics import Estimate, bootstrap
from worldsim.simulator import Simulator

STATISTICS = {"brightness": brightness, "contrast": contrast, "sharpness": sharpness}
NUM_SEGMENTS = 10
STILL_FRAMES = 8
"""Frames without a button before a start, so that the player has come to rest."""
FLOOR = 1e-6
"""A start without contrast has nothing to lose; it must not divide by zero."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Deviations:
    """How far a statistic of the picture is off the start, `|mean of a segment / start - 1|`.

    `[S]` means over the starts, and the largest of them: a collapse in the middle counts as much as one at
    the end. `of_codec` is the same over what the codec makes of the start.
    """

    ratio: list[float]
    deviation: list[float]
    last_deviation: Estimate
    max_deviation: float
    worst_start_deviation: float
    of_codec: Deviations | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class IdleHold:
    """Pictures of dreams without actions, by segments `[S]`, against the real frame that they begin with."""

    num_starts: int
    num_episodes: int
    num_frames: int
    segment_ends: list[int]
    brightness: Deviations
    contrast: Deviations
    sharpness: Deviations
    psnr_db_to_start: list[float]
    ssim_to_start: list[float]


def idle_hold(
    simulator: Simulator,
    recordings: Recordings,
    *,
    num_starts: int,
    num_frames: int,
    context_frames: int,
    batch_size: int,
    seed: int,
) -> IdleHold:
    """Press nothing for a long time and watch brightness, contrast and sharpness.

    It begins where the recorded player stands still, if there are such places, and less often than
    `num_starts` where there are not so many. Returns `summarize_idle`'s report.
    """
    clips = still_starts(recordings, context_frames, num_starts, seed)
    with progress("idle", len(clips) * num_frames) as bar:
        batches = recordings.batches(clips, context_frames, batch_size)
        parts = [_hold_still(simulator, batch, num_frames, context_frames, seed, bar) for batch in batches]
    curves = {name: values.cpu().numpy() for name, values in join(parts).items()}
    return summarize_idle(curves, [recordings.name(clip) for clip in clips])


def _hold_still(
    simulator: Simulator, batch: ClipBatch, num_frames: int, context_frames: int, seed: int, bar: tqdm
) -> dict[str, Tensor]:
    """Return the curves that `summarize_idle` takes, as tensors, for one batch."""
    state = batch.begin_dreams(simulator, context_frames, seed)
    start = state.frames
    shown = through_codec(simulator.world, start[:, None])[:, 0]
    columns = []
    for _ in range(num_frames):
        frames, state = simulator.step(state, torch.zeros_like(batch.actions[:, 0]))
        columns.append(compare(frames, start))
        bar.update(len(frames))
    of_start = {f"start_{name}": value for name, value in statistics_of(start).items()}
    of_codec = {f"codec_{name}": value for name, value in statistics_of(shown).items()}
    return stack(columns, 1) | of_start | of_codec


def still_starts(recordings: Recordings, context_frames: int, count: int, seed: int) -> list[Clip]:
    """Choose clips at whose end nothing was pressed for a while; any clips if there is none."""
    places = []
    for episode, table in enumerate(recordings.tables()):
        pressed = np.concatenate([[0], np.cumsum(np.any(table.actions != 0, axis=1))])
        for begin in range(len(table.actions) - context_frames):
            last = begin + context_frames - 1  # its own action is replaced by nothing
            if last >= STILL_FRAMES and pressed[last] == pressed[last - STILL_FRAMES]:
                places.append(Clip(episode, begin))
    return pick(places, count, seed) if places else recordings.choose(context_frames, count, seed)


def statistics_of(frames: Tensor) -> dict[str, Tensor]:
    """Return brightness, contrast and sharpness of frames `[N, H, W, 3]` uint8, `[N]` each."""
    return {name: measure(frames) for name, measure in STATISTICS.items()}


def compare(frames: Tensor, start: Tensor) -> dict[str, Tensor]:
    """Return the statistics of frames and their likeness to the start, `[N]` each."""
    return statistics_of(frames) | {"psnr_db": psnr(frames, start), "ssim": ssim(frames, start)}


def summarize_idle(curves: dict[str, np.ndarray], episodes: Sequence[str]) -> IdleHold:
    """Return the deviations of an idle hold.

    Curves are `[N, F]` of each frame, and `[N]` `start_...`, `codec_...` of the statistics.
    """
    edges = segment_edges(curves["ssim"].shape[1])
    segments = {name: segment_means(curves[name], edges) for name in (*STATISTICS, "psnr_db", "ssim")}
    deviations = {}
    for name in STATISTICS:
        of_codec = _deviations(segments[name], curves[f"codec_{name}"], episodes)
        deviations[name] = _deviations(segments[name], curves[f"start_{name}"], episodes, of_codec)
    likeness = {f"{k}_to_start": segments[k].mean(axis=0).round(4).tolist() for k in ("psnr_db", "ssim")}
    return IdleHold(
        num_starts=len(episodes),
        num_episodes=len(set(episodes)),
        num_frames=int(edges[-1]),
        segment_ends=edges[1:].tolist(),
        **deviations,
        **likeness,
    )


def segment_edges(num_frames: int) -> np.ndarray:
    """Return where segments of equal length begin, and where the last one ends, `[S + 1]`."""
    return np.linspace(0, num_frames, min(NUM_SEGMENTS, num_frames) + 1).astype(int)


def segment_means(curve: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the means of `[N, F]` over segments, `[N, S]`."""
    return np.stack([curve[:, a:b].mean(axis=1) for a, b in zip(edges[:-1], edges[1:], strict=True)], axis=1)


def _deviations(
    segments: np.ndarray, start: np.ndarray, episodes: Sequence[str], of_codec: Deviations | None = None
) -> Deviations:
    ratio = segments / np.maximum(start, FLOOR)[:, None]
    deviation = np.abs(ratio - 1)
    means = deviation.mean(axis=0)
    return Deviations(
        ratio=ratio.mean(axis=0).round(4).tolist(),
        deviation=means.round(4).tolist(),
        last_deviation=bootstrap(deviation[:, -1], episodes),
        max_deviation=float(means.max()),
        worst_start_deviation=float(deviation.max()),
        of_codec=of_codec,
    )
