"""Return recall: the way out is watched, the way back is dreamt and compared with the real one.

The dream is given the actions that were recorded. What it draws was in view before and is no more, the longer
ago the further it is back: frame `k` after the turn was seen about `2 k` frames before.
"""

# B batch, N episodes, K frames of the way back, H W frame size

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from worldsim.evaluation.inputs.out_and_back import ReturnBatch, ReturnSet
from worldsim.evaluation.memory.interventions import Intervention, can_intervene, intervene
from worldsim.evaluation.memory.tiles import TileReader
from worldsim.evaluation.metrics import sequence_psnr, ssim
from worldsim.evaluation.rollout import generate, join, progress, rows_that_fit, through_codec, watch_until
from worldsim.evaluation.statistics import estimate_of
from worldsim.simulator import Simulator

COPY, CODEC = "copy_last", "codec"
"""The last real frame, standing still; the real frames through the codec."""
AVERAGE, FINAL = "average", "final"
SSIM_STRIDE = 8
FILM_FRAMES = (1, 2, 4, 8, 16, 32, 50, 75, 100, 150, 200, 300, 400)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallSettings:
    """How the way back is dreamt.

    Attributes:
        batch_size: Dreams at a time, about.
        tiles: Tells tiles apart; None where there are none.
        num_films: Episodes of which pictures are kept.
    """

    batch_size: int = 16
    seed: int = 0
    tiles: TileReader | None = None
    num_films: int = 2


Scores = dict[str, np.ndarray]
"""`[N, K]` fp32 by metric: `psnr_db`, `ssim`, and `tile_accuracy` where there are tiles."""


@dataclass(frozen=True, slots=True)
class GapScores:
    """What was measured on the N episodes of one gap.

    Attributes:
        seen: `[N, K]` bool, whether what a frame shows was seen before.
        dreams: Scores by world and by intervention.
        references: Scores by `COPY` and by `CODEC`, the codec of the first world.
        memory_bytes: What a dream of each world remembers at the turn, in bytes.
        right: `[N, K, R, C]` bool by world, which tiles are right without intervention; empty without tiles.
        films: Pictures of the first episodes at `film_frames`: `[E, F, H, W, 3]` uint8 by world, without
            intervention, and the real ones under the empty name.
    """

    names: list[str]
    seen: np.ndarray
    dreams: dict[str, dict[Intervention, Scores]]
    references: dict[str, Scores]
    memory_bytes: dict[str, int]
    right: dict[str, np.ndarray] = field(default_factory=dict)
    films: dict[str, Tensor] = field(default_factory=dict)


def film_frames(gap: int) -> list[int]:
    """Return the frames of the way back that a filmstrip shows, counted from 1; the last is one of them."""
    return [*(frame for frame in FILM_FRAMES if frame < gap), gap]


def _score(frames: Tensor, real: Tensor, tiles: TileReader | None) -> tuple[Scores, np.ndarray | None]:
    """Return the scores of frames and, where there are tiles, which are right, `[B, K, R, C]` bool."""
    # SSIM is NaN but at some frames: it takes as long as drawing one.
    signal = sequence_psnr(frames, real).cpu()
    similarity = torch.full_like(signal, torch.nan)
    for k in range(real.shape[1] - 1, -1, -SSIM_STRIDE):
        similarity[:, k] = ssim(frames[:, k], real[:, k]).cpu()
    scores = {"psnr_db": signal.numpy(), "ssim": similarity.numpy()}
    if tiles is None:
        return scores, None
    columns = [tiles.right(frames[:, k], real[:, k]).cpu() for k in range(real.shape[1])]
    right = torch.stack(columns, dim=1)
    return scores | {"tile_accuracy": right.float().mean(dim=(2, 3)).numpy()}, right.numpy()


def measure_returns(
    simulators: Mapping[str, Simulator],
    returns: ReturnSet,
    interventions: Sequence[Intervention],
    settings: RecallSettings,
) -> GapScores:
    """Let worlds watch the way out of each episode and dream the way back, after several interventions.

    Worlds without recurrent states only go back with their own memory. Frames are compared where simulators
    keep them.
    """
    plans = {
        name: [one for one in interventions if one == Intervention.NONE or can_intervene(simulator)]
        for name, simulator in simulators.items()
    }
    steps = sum(returns.turn + len(plan) * returns.gap for plan in plans.values())
    rows = rows_that_fit(simulators.values(), returns.turn + returns.gap, settings.batch_size)
    with progress(f"gap {returns.gap}", steps * len(returns)) as bar:
        batches = returns.batches(rows)
        parts = [_measure_batch(simulators, plans, batch, settings, bar) for batch in batches]
    films = join([part.films for part in parts if part.films] or [{}])
    films = {name: film[: settings.num_films] for name, film in films.items()}
    whole: GapScores = join([replace(part, memory_bytes={}, films={}) for part in parts])
    return replace(whole, memory_bytes=parts[0].memory_bytes, films=films)


def _measure_batch(
    simulators: Mapping[str, Simulator],
    plans: Mapping[str, Sequence[Intervention]],
    batch: ReturnBatch,
    settings: RecallSettings,
    bar: tqdm,
) -> GapScores:
    places = torch.tensor(film_frames(batch.actions.shape[1])) - 1
    is_filmed = batch.clips.first < settings.num_films
    films = {"": batch.real[:, places].clone()} if is_filmed else {}
    dreams: dict[str, dict[Intervention, Scores]] = {}
    memory_bytes: dict[str, int] = {}
    right: dict[str, np.ndarray] = {}
    for name, simulator in simulators.items():
        real = batch.real.to(simulator.frames_device)
        state = watch_until(simulator, batch.clips, batch.turn, settings.seed, bar)
        memory_bytes[name] = state.memory.nbytes // len(batch.names)
        dreams[name] = {}
        for intervention in plans[name]:
            frames = generate(*intervene(simulator, state, intervention), batch.actions, bar)
            dreams[name][intervention], is_right = _score(frames, real, settings.tiles)
            if intervention == Intervention.NONE and is_right is not None:
                right[name] = is_right
            if intervention == Intervention.NONE and is_filmed:
                films[name] = frames[:, places.to(frames.device)].cpu()
    first = next(iter(simulators.values()))  # worlds that are compared mostly have the same codec
    real = batch.real.to(first.frames_device)
    still = batch.clips.frames[:, batch.turn : batch.turn + 1].to(real.device).expand_as(real)
    references = {
        method: _score(frames, real, settings.tiles)[0]
        for method, frames in ((COPY, still), (CODEC, through_codec(first.world, real)))
    }
    return GapScores(batch.names, batch.seen, dreams, references, memory_bytes, right, films)


def per_episode(scores: Scores, seen: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Return one number an episode, `[N]` each, by `AVERAGE` and `FINAL` and by metric.

    Frames that show what was not seen before do not count; the last frame always was. Scores are `[N, K]` by
    metric, `seen` is `[N, K]` bool.
    """
    return {
        AVERAGE: {name: _mean_of_known(values, seen, axis=1) for name, values in scores.items()},
        FINAL: {name: values[:, -1] for name, values in scores.items()},
    }


def _mean_of_known(values: np.ndarray, seen: np.ndarray, axis: int) -> np.ndarray:
    """Return means over the frames that were seen and scored, NaN where there are none."""
    known = seen & ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis=axis) / known.sum(axis=axis)


def summarize(scores: Scores, seen: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Return the means over episodes with their intervals, the curves over the way back, and all episodes.

    Scores are `[N, K]` by metric, `seen` is `[N, K]` bool, the names are those of the episodes.
    """
    singles = per_episode(scores, seen)
    report: dict[str, Any] = {
        part: {name: estimate_of(values, names) for name, values in metrics.items()}
        for part, metrics in singles.items()
    }
    report["curve"] = {
        name: _mean_of_known(values, seen, axis=0).round(4).tolist() for name, values in scores.items()
    }
    report["episodes"] = {
        part: {name: values.round(4).tolist() for name, values in metrics.items()}
        for part, metrics in singles.items()
    }
    return report


def summarize_changes(
    changed: Scores, kept: Scores, seen: np.ndarray, names: Sequence[str]
) -> dict[str, Any]:
    """Return what an intervention changes, episode by episode: the means with their intervals.

    Arguments as for `summarize`: scores with the intervention, and without.
    """
    after, before = per_episode(changed, seen), per_episode(kept, seen)
    return {
        part: {name: estimate_of(after[part][name] - before[part][name], names) for name in kept}
        for part in (AVERAGE, FINAL)
    }
