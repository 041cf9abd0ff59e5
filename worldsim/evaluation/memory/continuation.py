"""Continuation with a visibility mask: parts that were seen and parts that were not, scored apart.

After a real context the dream goes on where the real player went. Of what comes into view for the first time
nothing can be known, so only the parts that the context shows tell of memory; the others are what chance
makes of them, and are reported beside.
"""

# B batch, N episodes, F frames, T frames of an episode, H W frame size

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from worldsim.errors import WorldError
from worldsim.evaluation.inputs.out_and_back import ReturnBatch, ReturnSet
from worldsim.evaluation.memory.tiles import views_of
from worldsim.evaluation.metrics import PSNR_CAP_DB, as_images
from worldsim.evaluation.rollout import generate, join, progress, through_codec, watch_until
from worldsim.evaluation.statistics import Estimate, bootstrap_known
from worldsim.games.doom import HEIGHT, WIDTH, draw_map
from worldsim.games.rooms.view import find_seen
from worldsim.simulator import Simulator

DREAM, COPY, CODEC = "dream", "copy_last", "codec"
SEEN, UNSEEN = "seen", "unseen"
FindSeen = Callable[[np.ndarray, np.ndarray, int | None], np.ndarray]
"""Takes the poses `[C, 3]` of the frames of an episode that were watched, those `[F, 3]` of later frames, and
the seed of the game, where it was recorded; returns which pixels of the later ones show what was in view in
those that were watched, `[F, H, W]` bool."""
FRESH_ROOMS = "doom-fresh-rooms"
"""The game whose maps are known from the seed."""
ROOM_FRAMES = 16
"""Frames of an episode that are scored where masks follow from a map: each takes about 20 ms."""


def seen_tiles(shape: tuple[int, int], pixels: int) -> FindSeen:
    """Return what finds masks where a view of `shape` tiles, rows and columns, moves by whole ones.

    Tiles are so many pixels high and wide.
    """

    def find(context_poses: np.ndarray, poses: np.ndarray, _: int | None) -> np.ndarray:
        views = views_of(np.concatenate([context_poses, poses]), shape, False)
        for view in views[: len(context_poses)]:
            view[:] = True
        masks = np.stack(views[len(context_poses) :])
        return masks.repeat(pixels, axis=1).repeat(pixels, axis=2)

    return find


def seen_rooms(size: tuple[int, int]) -> FindSeen:
    """Return what finds masks in `doom-fresh-rooms`, whose map follows from the seed of the game.

    The size is the height and the width of the worlds' frames.
    """
    rows, columns = (np.arange(n) * whole // n for n, whole in zip(size, (HEIGHT, WIDTH), strict=True))

    def find(context_poses: np.ndarray, poses: np.ndarray, game_seed: int | None) -> np.ndarray:
        if game_seed is None:
            raise WorldError("an episode does not record the seed of its game, so its map is not known")
        try:
            masks = find_seen(draw_map(game_seed), context_poses, poses)
        except ValueError as error:
            raise WorldError(
                f"the map of game {game_seed} does not fit the recorded poses: {error}"
            ) from error
        return masks[:, rows[:, None], columns]

    return find


@dataclass(frozen=True, slots=True)
class SeenMasks:
    """What the context shows `[N, K, H, W]` bool, of K frames of each episode; the same for all worlds.

    Frames are counted from the first one after the context, which is 0.
    """

    frames: list[int]
    seen: np.ndarray


def find_masks(returns: ReturnSet, find: FindSeen, most_frames: int = 0) -> SeenMasks:
    """Find what the context shows, of the frames from there to the turn.

    Of each episode at most `most_frames`, spread evenly, the last one among them; 0 is all.

    Raises:
        WorldError: If it is not known of an episode.
    """
    num_watched = returns.context_frames + 1
    total = returns.turn + 1 - num_watched
    count = min(most_frames or total, total)
    frames = np.linspace(total, 0, count, endpoint=False).round().astype(np.int64)[::-1] - 1
    episodes = zip(returns.poses(), returns.game_seeds(), strict=True)
    bar = tqdm(episodes, desc="masks", total=len(returns), unit="episode")
    seen = [find(poses[:num_watched], poses[num_watched + frames], seed) for poses, seed in bar]
    return SeenMasks(frames.tolist(), np.stack(seen))


@dataclass(frozen=True, slots=True)
class ContinuationScores:
    """Sums over the pixels of the frames after the context of N episodes.

    Attributes:
        errors: `[N]` sums of squared errors, of 1, by method and by `SEEN` and `UNSEEN`.
        counts: `[N]` numbers of values that these are sums over, by `SEEN` and `UNSEEN`.
    """

    names: list[str]
    errors: dict[str, dict[str, np.ndarray]]
    counts: dict[str, np.ndarray]


def measure_continuation(
    simulator: Simulator, returns: ReturnSet, masks: SeenMasks, *, batch_size: int, seed: int
) -> ContinuationScores:
    """Watch what lies before the way out of each episode, dream the way out, compare it with the real one."""
    num_watched = returns.context_frames + 1
    with progress("continuation", returns.turn * len(returns)) as bar:
        batches = returns.batches(batch_size)
        return join([_measure_batch(simulator, batch, masks, num_watched, seed, bar) for batch in batches])


def _measure_batch(
    simulator: Simulator, batch: ReturnBatch, masks: SeenMasks, num_watched: int, seed: int, bar: tqdm
) -> ContinuationScores:
    clips = batch.clips
    state = watch_until(simulator, clips, num_watched - 1, seed, bar)
    actions = clips.actions[:, num_watched - 1 : batch.turn]
    dream = generate(simulator, state, actions, bar)[:, masks.frames]
    real = clips.frames[:, num_watched : batch.turn + 1][:, masks.frames].to(dream.device)
    last = clips.frames[:, num_watched - 1 : num_watched].to(dream.device).expand_as(real)
    shown = {DREAM: dream, COPY: last, CODEC: through_codec(simulator.world, real)}
    seen = torch.from_numpy(masks.seen[clips.first :][: len(batch.names)]).to(dream.device)
    kinds = {SEEN: seen, UNSEEN: ~seen}
    counts = {kind: 3 * mask.sum(dim=(1, 2, 3)).cpu().numpy() for kind, mask in kinds.items()}
    errors = {
        method: {kind: masked_errors(frames, real, mask) for kind, mask in kinds.items()}
        for method, frames in shown.items()
    }
    return ContinuationScores(batch.names, errors, counts)


def masked_errors(frames: Tensor, real: Tensor, mask: Tensor) -> np.ndarray:
    """Return sums of squared errors of frames `[B, F, H, W, 3]` over masked pixels, `[B]` fp64."""
    total = torch.zeros(len(frames), dtype=torch.float64, device=frames.device)
    for index in range(frames.shape[1]):
        square = (as_images(frames[:, index]) - as_images(real[:, index])).square().sum(dim=1)
        total += (square * mask[:, index]).sum(dim=(1, 2)).double()
    return total.cpu().numpy()


@dataclass(frozen=True, slots=True)
class SeenPsnr:
    """PSNR in dB of parts that the context shows and of others; None where no episode has any of them."""

    seen: Estimate | None
    unseen: Estimate | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Continuation:
    """PSNR by method, and the share of pixels that the context shows, 0 to 1."""

    dream: SeenPsnr
    copy_last: SeenPsnr
    codec: SeenPsnr
    seen_share: float
    frames_an_episode: int


def summarize_continuation(scores: ContinuationScores, num_frames: int) -> Continuation:
    """Return the means over the episodes, of each of which so many frames were scored."""
    totals = {kind: float(counts.sum()) for kind, counts in scores.counts.items()}
    methods = {m: psnr_of_parts(kinds, scores.counts, scores.names) for m, kinds in scores.errors.items()}
    seen_share = totals[SEEN] / sum(totals.values())
    return Continuation(**methods, seen_share=seen_share, frames_an_episode=num_frames)


def psnr_of_parts(
    errors: Mapping[str, np.ndarray], counts: Mapping[str, np.ndarray], names: Sequence[str]
) -> SeenPsnr:
    """Return PSNR by `SEEN` and `UNSEEN` of sums of squared errors `[N]` over so many values, `[N]`."""
    return SeenPsnr(**{kind: _psnr(sums, counts[kind], names) for kind, sums in errors.items()})


def _psnr(errors: np.ndarray, counts: np.ndarray, names: Sequence[str]) -> Estimate | None:
    with np.errstate(invalid="ignore"):
        mean_errors = errors / counts
    return bootstrap_known(-10 * np.log10(np.maximum(mean_errors, 10 ** (-PSNR_CAP_DB / 10))), names)
