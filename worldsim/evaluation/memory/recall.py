"""Return recall: the way out is watched, the way back is dreamt and compared with the real one.

The dream is given the actions that were recorded. What it draws was in view before and is no more, the longer
ago the further it is back: frame `k` after the turn was seen about `2 k` frames before.
"""

# B batch, N episodes, K frames of the way back, H W frame size

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from worldsim.evaluation.cost.batch_size import rows_that_fit
from worldsim.evaluation.inputs.out_and_back import ReturnBatch, ReturnSet
from worldsim.evaluation.memory.interventions import Way, can_intervene, intervene
from worldsim.evaluation.memory.tiles import TileReader
from worldsim.evaluation.metrics import psnr, ssim
from worldsim.evaluation.statistics import estimate_of
from worldsim.simulator import Simulator
from worldsim.state import WorldState
from worldsim.world import World

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
        seed: Of the noise.
        tiles: Tells tiles apart; None where there are none.
        num_films: Episodes of which pictures are kept.
        show_progress: Show a progress bar.
    """

    batch_size: int = 16
    seed: int = 0
    tiles: TileReader | None = None
    num_films: int = 2
    show_progress: bool = False


Scores = dict[str, np.ndarray]
"""`[N, K]` fp32 by metric: `psnr_db`, `ssim`, and `tile_accuracy` where there are tiles."""


@dataclass(frozen=True, slots=True)
class GapScores:
    """What was measured on the episodes of one gap.

    Attributes:
        names: Of the N episodes: what the bootstrap resamples.
        seen: `[N, K]` bool, whether what a frame shows was seen before.
        dreams: Scores by world and by way.
        references: Scores by `COPY` and by `CODEC`, the codec of the first world.
        memory_bytes: What a dream of each world remembers at the turn, in bytes.
        right: `[N, K, R, C]` bool by world, which tiles of the way `Way.KEPT` are right; empty without tiles.
        films: Pictures of the first episodes at `film_frames`: `[E, F, H, W, 3]` uint8 by world, of the way
            `Way.KEPT`, and the real ones under the empty name.
    """

    names: list[str]
    seen: np.ndarray
    dreams: dict[str, dict[Way, Scores]]
    references: dict[str, Scores]
    memory_bytes: dict[str, int]
    right: dict[str, np.ndarray] = field(default_factory=dict)
    films: dict[str, Tensor] = field(default_factory=dict)


def film_frames(gap: int) -> list[int]:
    """Return the frames of the way back that a filmstrip shows, counted from 1; the last is one of them."""
    return [*(frame for frame in FILM_FRAMES if frame < gap), gap]


def watch_until(
    simulator: Simulator, batch: ReturnBatch, seed: int, bar: tqdm, last: int | None = None
) -> WorldState:
    """Return the state of a batch that has watched its real frames up to the turn, or up to `last`."""
    clips = batch.clips
    state = clips.begin_dreams(simulator, 1, seed)
    for index in range(1, (batch.turn if last is None else last) + 1):
        state = simulator.commit_frames(state, clips.frames[:, index], clips.actions[:, index - 1])
        bar.update(len(clips.clips))
    return state


def dream_back(simulator: Simulator, state: WorldState, actions: Tensor, bar: tqdm) -> Tensor:
    """Dream under actions `[B, K, A]`; returns frames `[B, K, H, W, 3]` uint8."""
    frames = []
    for index in range(actions.shape[1]):
        frame, state = simulator.step(state, actions[:, index])
        frames.append(frame)
        bar.update(len(frame))
    return torch.stack(frames, dim=1)


def score_frames(frames: Tensor, real: Tensor) -> dict[str, Tensor]:
    """Compare frames with real ones, both `[B, K, H, W, 3]` uint8 on one device.

    Returns:
        `[B, K]` fp32 by metric. SSIM is NaN but at the last frame and every `SSIM_STRIDE` frames before it:
        it takes as long as drawing a frame.
    """
    count = real.shape[1]
    signal = torch.stack([psnr(frames[:, k], real[:, k]) for k in range(count)], dim=1).cpu()
    similarity = torch.full_like(signal, torch.nan)
    for k in range(count - 1, -1, -SSIM_STRIDE):
        similarity[:, k] = ssim(frames[:, k], real[:, k]).cpu()
    return {"psnr_db": signal, "ssim": similarity}


def _score(frames: Tensor, real: Tensor, tiles: TileReader | None) -> tuple[Scores, np.ndarray | None]:
    """Return the scores of frames and, where there are tiles, which are right, `[B, K, R, C]` bool."""
    scores = {name: values.numpy() for name, values in score_frames(frames, real).items()}
    if tiles is None:
        return scores, None
    columns = [tiles.right(frames[:, k], real[:, k]).cpu() for k in range(real.shape[1])]
    right = torch.stack(columns, dim=1)
    return scores | {"tile_accuracy": right.float().mean(dim=(2, 3)).numpy()}, right.numpy()


def through_codec(world: World, frames: Tensor) -> Tensor:
    """Return frames `[B, K, H, W, 3]` as the world's codec shows them, on the same device."""
    columns = [
        world.codec.decode(world.codec.encode(frames[:, k].to(world.device)).float()).to(frames.device)
        for k in range(frames.shape[1])
    ]
    return torch.stack(columns, dim=1)


def measure_returns(
    simulators: Mapping[str, Simulator], returns: ReturnSet, ways: Sequence[Way], settings: RecallSettings
) -> GapScores:
    """Let worlds watch the way out of each episode and dream the way back, in several ways.

    Args:
        simulators: Of the worlds by name; frames are compared where they keep them.
        returns: The episodes of one gap.
        ways: How to go back. Worlds without recurrent states only go back with their own memory.
        settings: How.
    """
    plans = {
        name: [way for way in ways if way == Way.KEPT or can_intervene(simulator)]
        for name, simulator in simulators.items()
    }
    steps = sum(returns.turn + len(plan) * returns.gap for plan in plans.values())
    parts: list[GapScores] = []
    with tqdm(
        total=steps * len(returns),
        desc=f"gap {returns.gap}",
        unit="frame",
        unit_scale=True,
        disable=not settings.show_progress,
    ) as bar:
        rows = rows_that_fit(simulators.values(), returns.turn + returns.gap, settings.batch_size)
        for batch in returns.batches(rows):
            parts.append(_measure_batch(simulators, plans, batch, settings, bar))
    return _join(parts, settings.num_films)


def _measure_batch(
    simulators: Mapping[str, Simulator],
    plans: Mapping[str, Sequence[Way]],
    batch: ReturnBatch,
    settings: RecallSettings,
    bar: tqdm,
) -> GapScores:
    places = torch.tensor(film_frames(batch.actions.shape[1])) - 1
    is_filmed = batch.clips.first < settings.num_films
    films = {"": batch.real[:, places].clone()} if is_filmed else {}
    dreams: dict[str, dict[Way, Scores]] = {}
    memory_bytes: dict[str, int] = {}
    right: dict[str, np.ndarray] = {}
    for name, simulator in simulators.items():
        real = batch.real.to(simulator.frames_device)
        state = watch_until(simulator, batch, settings.seed, bar)
        memory_bytes[name] = state.memory.nbytes // len(batch.names)
        dreams[name] = {}
        for way in plans[name]:
            frames = dream_back(*intervene(simulator, state, way), batch.actions, bar)
            dreams[name][way], is_right = _score(frames, real, settings.tiles)
            if way == Way.KEPT and is_right is not None:
                right[name] = is_right
            if way == Way.KEPT and is_filmed:
                films[name] = frames[:, places.to(frames.device)].cpu()
    # One codec for all: worlds that are compared mostly have the same.
    world, real = (
        next(iter(simulators.values())).world,
        batch.real.to(next(iter(simulators.values())).frames_device),
    )
    still = batch.clips.frames[:, batch.turn : batch.turn + 1].to(real.device).expand_as(real)
    references = {
        method: _score(frames, real, settings.tiles)[0]
        for method, frames in ((COPY, still), (CODEC, through_codec(world, real)))
    }
    return GapScores(batch.names, batch.seen, dreams, references, memory_bytes, right, films)


def _join(parts: Sequence[GapScores], num_films: int) -> GapScores:
    def join(trees: Sequence[Any]) -> Any:
        if isinstance(trees[0], dict):
            return {key: join([tree[key] for tree in trees]) for key in trees[0]}
        return np.concatenate(trees)

    filmed = [part.films for part in parts if part.films]
    films = {name: torch.cat([f[name] for f in filmed])[:num_films] for name in filmed[0]} if filmed else {}
    return GapScores(
        [name for part in parts for name in part.names],
        np.concatenate([part.seen for part in parts]),
        join([part.dreams for part in parts]),
        join([part.references for part in parts]),
        parts[0].memory_bytes,
        join([part.right for part in parts]),
        films,
    )


def per_episode(scores: Scores, seen: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Return one number an episode, `[N]` each, by `AVERAGE` and `FINAL` and by metric.

    Frames that show what was not seen before do not count; the last frame always was.

    Args:
        scores: `[N, K]` by metric.
        seen: `[N, K]` bool.
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

    Args:
        scores: `[N, K]` by metric.
        seen: `[N, K]` bool.
        names: Of the N episodes.
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

    Args:
        changed: `[N, K]` by metric, with it.
        kept: The same without.
        seen: `[N, K]` bool.
        names: Of the N episodes.
    """
    after, before = per_episode(changed, seen), per_episode(kept, seen)
    return {
        part: {name: estimate_of(after[part][name] - before[part][name], names) for name in kept}
        for part in (AVERAGE, FINAL)
    }
