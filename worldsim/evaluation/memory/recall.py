"""Return recall: the way out is watched, the way back is dreamt and compared with the real one.

The dream is given the actions that were recorded. What it draws was in view before and is no more, the longer
ago the further it is back: frame `k` after the turn was seen about `2 k` frames before.
"""

# B batch, N episodes, K frames of the way back, H W frame size

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from worldsim.evaluation.inputs.out_and_back import ReturnBatch, ReturnSet
from worldsim.evaluation.memory.interventions import Intervention, can_intervene, intervene
from worldsim.evaluation.memory.tiles import TileReader, TileShare
from worldsim.evaluation.metrics import sequence_psnr, ssim
from worldsim.evaluation.rollout import generate, join, progress, rows_that_fit, through_codec, watch_until
from worldsim.evaluation.statistics import Estimate, estimate_of
from worldsim.simulator import Simulator

COPY, CODEC = "copy_last", "codec"
"""The last real frame, standing still; the real frames through the codec."""
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


Value = TypeVar("Value")
Other = TypeVar("Other")


@dataclass(frozen=True, slots=True)
class ByPart(Generic[Value]):
    """Values by metric, of the mean over the way back and of its last frame."""

    average: dict[str, Value]
    final: dict[str, Value]

    def map(self, change: Callable[..., Other], *others: ByPart[Value]) -> ByPart[Other]:
        """Return what each value, and those of others under the same metric, are changed into."""
        parts = zip(*((one.average, one.final) for one in (self, *others)), strict=True)
        return ByPart(*({name: change(*(one[name] for one in part)) for name in part[0]} for part in parts))


@dataclass(frozen=True, kw_only=True, slots=True)
class Recall(ByPart[Estimate]):
    """Return recall of one world at one gap: means over episodes, by metric.

    Attributes:
        curve: Of each frame of the way back, `[K]`.
        episodes: `[N]`, of which these are the means.
        change: What an intervention changes, episode by episode.
        memory_bytes: Size of a dream's memory at the turn.
        absent_tiles: As of `summarize_absences`.
    """

    curve: dict[str, list[float]]
    episodes: ByPart[list[float]]
    change: ByPart[Estimate] | None = None
    memory_bytes: int | None = None
    absent_tiles: dict[str, TileShare] | None = None


def per_episode(scores: Scores, seen: np.ndarray) -> ByPart[np.ndarray]:
    """Return one number an episode, `[N]` each.

    Frames that show what was not seen before do not count; the last frame always was. Scores are `[N, K]` by
    metric, `seen` is `[N, K]` bool.
    """
    return ByPart(
        {name: _mean_of_known(values, seen, axis=1) for name, values in scores.items()},
        {name: values[:, -1] for name, values in scores.items()},
    )


def _mean_of_known(values: np.ndarray, seen: np.ndarray, axis: int) -> np.ndarray:
    """Return means over the frames that were seen and scored, NaN where there are none."""
    known = seen & ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis=axis) / known.sum(axis=axis)


def summarize(scores: Scores, seen: np.ndarray, names: Sequence[str], kept: Scores | None = None) -> Recall:
    """Return the means over episodes with their intervals, the curves over the way back, and all episodes.

    Scores are `[N, K]` by metric, `seen` is `[N, K]` bool, the names are those of the episodes. `kept` are
    scores without the intervention after which there are these.
    """
    singles = per_episode(scores, seen)
    estimates, change = singles.map(lambda values: estimate_of(values, names)), None
    if kept is not None:
        before = per_episode(kept, seen)
        change = singles.map(lambda values, old: estimate_of(values - old, names), before)
    return Recall(
        average=estimates.average,
        final=estimates.final,
        curve={name: _mean_of_known(v, seen, axis=0).round(4).tolist() for name, v in scores.items()},
        episodes=singles.map(lambda values: values.round(4).tolist()),
        change=change,
    )
