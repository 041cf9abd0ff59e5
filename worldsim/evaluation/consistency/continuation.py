"""Continuation with a visibility mask: parts that were seen and parts that were not, scored apart.

After a real context the dream goes on where the real player went. Of what comes into view for the first time
nothing can be known, so only the parts that the context shows tell of memory; the others are what chance
makes of them, and are reported beside.
"""

# B batch, N episodes, F frames, T frames of an episode, H W frame size

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from worldsim.evaluation.consistency.episodes import ReturnBatch, ReturnSet
from worldsim.evaluation.consistency.recall import dream_back, through_codec, watch_until
from worldsim.evaluation.metrics import PSNR_CAP_DB, as_images, bootstrap
from worldsim.simulator import Simulator

DREAM, COPY, CODEC = "dream", "copy_last", "codec"
SEEN, UNSEEN = "seen", "unseen"
FindSeen = Callable[[np.ndarray, int], np.ndarray]
"""Takes the poses `[T, 3]` of an episode and how many frames of it were watched; returns for the others which
pixels show what was in view in one of those, `[F, H, W]` bool."""


def seen_tiles(shape: tuple[int, int], pixels: int) -> FindSeen:
    """Return what finds masks where the picture is tiles under a view that moves by whole ones.

    Args:
        shape: Rows and columns of tiles in view.
        pixels: Height and width of a tile.
    """

    def find(poses: np.ndarray, num_watched: int) -> np.ndarray:
        corners = np.rint(poses[:, [1, 0]]).astype(np.int64)
        corners -= corners.min(axis=0)
        known = np.zeros(corners.max(axis=0) + shape, dtype=bool)
        views = [
            known[row : row + shape[0], column : column + shape[1]]
            for row, column in corners  # views of the map, not copies
        ]
        for view in views[:num_watched]:
            view[:] = True
        masks = np.stack(views[num_watched:])
        return masks.repeat(pixels, axis=1).repeat(pixels, axis=2)

    return find


@dataclass(frozen=True, slots=True)
class ContinuationScores:
    """Sums over the pixels of the frames after the context.

    Attributes:
        names: Of the N episodes.
        errors: `[N]` sums of squared errors, of 1, by method and by `SEEN` and `UNSEEN`.
        counts: `[N]` numbers of values that these are sums over, by `SEEN` and `UNSEEN`.
    """

    names: list[str]
    errors: dict[str, dict[str, np.ndarray]]
    counts: dict[str, np.ndarray]


def measure_continuation(
    simulator: Simulator,
    returns: ReturnSet,
    find_seen: FindSeen,
    *,
    batch_size: int,
    seed: int,
    show_progress: bool = False,
) -> ContinuationScores:
    """Watch what lies before the way out of each episode, dream the way out, compare it with the real one.

    Args:
        simulator: Of the world.
        returns: The episodes.
        find_seen: Says what the context shows.
        batch_size: Dreams at a time, about.
        seed: Of the noise.
        show_progress: Show a progress bar.
    """
    num_watched = returns.context_frames + 1
    masks = [find_seen(poses[: returns.turn + 1], num_watched) for poses in returns.poses()]
    parts: list[ContinuationScores] = []
    with tqdm(
        total=returns.turn * len(returns),
        desc="continuation",
        unit="frame",
        unit_scale=True,
        disable=not show_progress,
    ) as bar:
        for batch in returns.batches(batch_size):
            chosen = np.stack(masks[batch.clips.first :][: len(batch.names)])
            parts.append(_measure_batch(simulator, batch, torch.from_numpy(chosen), num_watched, seed, bar))
    return ContinuationScores(
        [name for part in parts for name in part.names],
        {
            method: {kind: np.concatenate([part.errors[method][kind] for part in parts]) for kind in kinds}
            for method, kinds in parts[0].errors.items()
        },
        {kind: np.concatenate([part.counts[kind] for part in parts]) for kind in (SEEN, UNSEEN)},
    )


def _measure_batch(
    simulator: Simulator, batch: ReturnBatch, seen: Tensor, num_watched: int, seed: int, bar: tqdm
) -> ContinuationScores:
    clips = batch.clips
    state = watch_until(simulator, batch, seed, bar, last=num_watched - 1)
    actions = clips.actions[:, num_watched - 1 : batch.turn]
    dream = dream_back(simulator, state, actions, bar)
    real = clips.frames[:, num_watched : batch.turn + 1].to(dream.device)
    last = clips.frames[:, num_watched - 1 : num_watched].to(dream.device).expand_as(real)
    shown = {DREAM: dream, COPY: last, CODEC: through_codec(simulator.world, real)}
    masks = {SEEN: seen.to(dream.device), UNSEEN: ~seen.to(dream.device)}
    counts = {kind: 3 * mask.sum(dim=(1, 2, 3)).cpu().numpy() for kind, mask in masks.items()}
    errors = {
        method: {kind: _errors(frames, real, mask) for kind, mask in masks.items()}
        for method, frames in shown.items()
    }
    return ContinuationScores(batch.names, errors, counts)


def _errors(frames: Tensor, real: Tensor, mask: Tensor) -> np.ndarray:
    """Return sums of squared errors over masked pixels, `[B]` fp64."""
    total = torch.zeros(len(frames), dtype=torch.float64, device=frames.device)
    for index in range(frames.shape[1]):
        square = (as_images(frames[:, index]) - as_images(real[:, index])).square().sum(dim=1)
        total += (square * mask[:, index]).sum(dim=(1, 2)).double()
    return total.cpu().numpy()


def summarize_continuation(scores: ContinuationScores) -> dict[str, Any]:
    """Return PSNR in dB by method and by kind of part, over the episodes that have any of it."""
    report: dict[str, Any] = {}
    for method, kinds in scores.errors.items():
        report[method] = {}
        for kind, errors in kinds.items():
            rows = np.flatnonzero(scores.counts[kind]).tolist()
            report[method][kind] = _psnr(
                errors[rows], scores.counts[kind][rows], [scores.names[r] for r in rows]
            )
    totals = {kind: float(counts.sum()) for kind, counts in scores.counts.items()}
    report["seen_share"] = totals[SEEN] / sum(totals.values())
    return report


def _psnr(errors: np.ndarray, counts: np.ndarray, names: Sequence[str]) -> dict[str, Any] | None:
    if not len(errors):
        return None
    ratio = -10 * np.log10(np.maximum(errors / counts, 10 ** (-PSNR_CAP_DB / 10)))
    return bootstrap(ratio, names).to_json()
