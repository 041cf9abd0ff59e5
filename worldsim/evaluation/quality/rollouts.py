"""Prediction error against the real game: of the next frame, and of rollouts."""

# N clips, F frames predicted, H W frame size, A action axes

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from worldsim.evaluation.inputs.clips import Clip, ClipBatch, Recordings
from worldsim.evaluation.metrics import sequence_psnr, ssim
from worldsim.evaluation.quality.small_changes import energies, errors
from worldsim.evaluation.rollout import generate, join, progress, through_codec, watch
from worldsim.evaluation.statistics import Estimate, bootstrap
from worldsim.simulator import Simulator
from worldsim.world import World

HORIZONS = (1, 8, 32, 128)
AROUND = 4
"""Small changes come and go: they are summed over the frames up to so many, less one, to either side."""
FILM_FRAMES = (1, 2, 4, 8, 16, 32, 64, 128)
DREAM, COPY, MEAN, CODEC = "dream", "copy_last", "mean_frame", "codec"
"""The world; the last context frame forever; the mean context frame; the real frames through the codec."""
TRUE_POSES = "true_poses"
"""The world, told its recorded poses instead of following them."""
REAL = "real"


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutSettings:
    """How roll-outs are made: `batch_size` at a time; pictures of `num_examples` are kept.

    Attributes:
        context_frames: Real frames watched first.
        horizon: Frames dreamt after them.
        seed: Of the noise and of the choice of places.
    """

    context_frames: int = 32
    horizon: int = 128
    batch_size: int = 16
    seed: int = 0
    num_examples: int = 4

    @property
    def length(self) -> int:
        """Frames of a clip."""
        return self.context_frames + self.horizon


@dataclass(frozen=True, slots=True)
class Example:
    """Pictures of one roll-out, each `[F, H, W, 3]` uint8."""

    name: str
    real: Tensor
    dream: Tensor
    codec: Tensor


@dataclass(frozen=True, slots=True)
class FrameScores:
    """Scores of predicted frames.

    Attributes:
        episodes: Of each of the N clips: what the bootstrap resamples.
        psnr: `[N, F]` dB by method.
        ssim: `[N, F]` by method, NaN where it was not computed.
        examples: Pictures of the first clips.
        small_changes: `[N, F]` by method, in the places of a frame that change much more than the rest of it
            (`evaluation.quality.small_changes`): of `roll_out` the squared change of each method's own
            pictures there, `REAL` among them; of `predict_next` the squared error where the real frame
            changes so. Empty if it was not measured.
    """

    episodes: list[str]
    psnr: dict[str, np.ndarray]
    ssim: dict[str, np.ndarray]
    examples: list[Example]
    small_changes: dict[str, np.ndarray] = field(default_factory=dict)


def roll_out(
    simulator: Simulator, recordings: Recordings, clips: Sequence[Clip], settings: RolloutSettings
) -> FrameScores:
    """Dream under the recorded actions, after a real context, and compare every frame with the real one.

    Clips have `context_frames + horizon` frames.
    """
    first, parts = settings.context_frames, []
    mean_frame = recordings.mean_frame(clips, first)
    wanted = _example_places(len(clips), settings.num_examples)
    kinds = {DREAM: False}
    if simulator.world.odometry is not None and recordings.have_poses:
        kinds[TRUE_POSES] = True
    with progress("roll-outs", len(clips) * settings.horizon * len(kinds)) as bar:
        for batch in recordings.batches(clips, settings.length, settings.batch_size):
            dreams = {
                name: _dream(simulator, batch, settings, bar, are_told) for name, are_told in kinds.items()
            }
            dream = dreams[DREAM]
            predictions = dreams | predictions_of(simulator.world, batch.frames, dream, mean_frame, first)
            last, real = batch.frames[:, first - 1 : first], batch.frames[:, first:]
            # A dream begins where the codec's picture of the last real frame leaves off.
            seen = through_codec(simulator.world, last)
            changes = {
                REAL: energies(last, real).numpy(),
                DREAM: energies(seen, dream).numpy(),
                CODEC: energies(seen, predictions[CODEC]).numpy(),
            }
            examples = [
                Example(
                    f"{recordings.name(clip)} frame {clip.begin + first}",
                    *(real[row].clone(), dream[row], predictions[CODEC][row]),
                )
                for row, clip in enumerate(batch.clips)
                if batch.first + row in wanted
            ]
            names = [recordings.name(clip) for clip in batch.clips]
            parts.append(FrameScores(names, *score(predictions, real, HORIZONS), examples, changes))
    return join(parts)


def _dream(
    simulator: Simulator, batch: ClipBatch, settings: RolloutSettings, bar: tqdm, are_told: bool
) -> Tensor:
    """Return what is dreamt under the recorded actions, `[N, F, H, W, 3]` uint8."""
    first = settings.context_frames
    state = batch.begin_dreams(simulator, first, settings.seed, are_told=are_told)
    path = batch.path(simulator.world) if are_told else None
    path = None if path is None else path[:, first:]
    return generate(simulator, state, batch.actions[:, first - 1 : -1], bar, path)


def predict_next(
    simulator: Simulator, recordings: Recordings, clips: Sequence[Clip], settings: RolloutSettings
) -> FrameScores:
    """Predict each next frame after real ones only: what was predicted is never remembered.

    Arguments as for `roll_out`. `COPY` is then the real frame before.
    """
    first, parts = settings.context_frames, []
    with progress("next frame", len(clips) * settings.horizon) as bar:
        for batch in recordings.batches(clips, settings.length, settings.batch_size):
            state = batch.begin_dreams(simulator, first, settings.seed)
            predicted = []
            for index in range(first, settings.length):
                predicted.append(simulator.predict(state, batch.actions[:, index - 1]).frames)
                state = watch(simulator, state, batch, range(index, index + 1), bar)
            before, real = batch.frames[:, first - 1 : -1], batch.frames[:, first:]
            predictions = {
                DREAM: torch.stack(predicted, dim=1),
                COPY: before,
                CODEC: through_codec(simulator.world, real),
            }
            missed = {m: errors(before, real, frames).numpy() for m, frames in predictions.items()}
            names = [recordings.name(clip) for clip in batch.clips]
            parts.append(FrameScores(names, *score(predictions, real, ()), [], missed))
    return join(parts)


def predictions_of(
    world: World, frames: Tensor, dream: Tensor, mean_frame: Tensor, context_frames: int
) -> dict[str, Tensor]:
    """Return the dream and what it is compared with, each `[N, F, H, W, 3]` uint8.

    Frames `[N, context_frames + F, H, W, 3]` uint8 are real; the mean frame is `[H, W, 3]` uint8.
    """
    return {
        DREAM: dream,
        COPY: frames[:, context_frames - 1 : context_frames].expand_as(dream),
        MEAN: mean_frame.expand_as(dream),
        CODEC: through_codec(world, frames[:, context_frames:]),
    }


def score(
    predictions: dict[str, Tensor], real: Tensor, ssim_at: Iterable[int]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return PSNR and similarity, `[N, F]` fp32, by method of predictions of frames `[N, F, H, W, 3]` uint8.

    The slower similarity is computed at the horizons `ssim_at`, 1 to F.
    """
    signal, similarity = {}, {}
    for method, frames in predictions.items():
        signal[method] = sequence_psnr(frames, real).numpy()
        similarity[method] = np.full_like(signal[method], np.nan)
        for horizon in ssim_at:
            if horizon <= real.shape[1]:
                similarity[method][:, horizon - 1] = ssim(frames[:, horizon - 1], real[:, horizon - 1])
    return signal, similarity


def _example_places(count: int, num_examples: int) -> set[int]:
    """Spread the examples over all clips; never by how they look."""
    return {index * count // num_examples for index in range(num_examples)} if num_examples else set()


ByMethod = dict[str, Estimate]


@dataclass(frozen=True, kw_only=True, slots=True)
class HorizonScores:
    """Scores of one frame of roll-outs, and means of all frames up to it.

    `over_copy` is the difference of `DREAM` and `COPY`, clip by clip; `small_changes_share` what a method has
    of the real game's small changes around the frame, None where there are none.
    """

    psnr_db: ByMethod
    psnr_mean_up_to_db: ByMethod
    ssim: ByMethod
    over_copy_db: Estimate
    over_copy_mean_up_to_db: Estimate
    small_changes_share: dict[str, float | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class NextFrameScores:
    """Mean scores of predicted next frames.

    `small_changes_error` is the squared error where small things move, over that of the frame before: 1 is no
    better than copying, 0 is perfect; None where nothing moves.
    """

    num_frames: int
    num_episodes: int
    psnr_db: ByMethod
    under_codec_db: Estimate
    small_changes_error: dict[str, float | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutScores:
    """Scores of roll-outs at those of `HORIZONS` that were reached, and mean PSNR of each frame, `[F]`."""

    num_rollouts: int
    num_episodes: int
    horizons: dict[int, HorizonScores]
    psnr_curve_db: dict[str, list[float]]
    next_frame: NextFrameScores | None = None


def summarize_rollouts(scores: FrameScores) -> RolloutScores:
    """Return the means of `roll_out` with their intervals."""
    horizon = scores.psnr[DREAM].shape[1]
    return RolloutScores(
        num_rollouts=len(scores.episodes),
        num_episodes=len(set(scores.episodes)),
        horizons={place: _at_horizon(scores, place) for place in HORIZONS if place <= horizon},
        psnr_curve_db={m: values.mean(axis=0).round(3).tolist() for m, values in scores.psnr.items()},
    )


def _at_horizon(scores: FrameScores, place: int) -> HorizonScores:
    def estimate(values: np.ndarray) -> Estimate:
        return bootstrap(values, scores.episodes)

    over_copy = scores.psnr[DREAM] - scores.psnr[COPY]
    around = slice(max(0, place - AROUND), place + AROUND - 1)
    psnr = scores.psnr.items()
    return HorizonScores(
        psnr_db={m: estimate(values[:, place - 1]) for m, values in psnr},
        psnr_mean_up_to_db={m: estimate(values[:, :place].mean(axis=1)) for m, values in psnr},
        ssim={m: estimate(values[:, place - 1]) for m, values in scores.ssim.items()},
        over_copy_db=estimate(over_copy[:, place - 1]),
        over_copy_mean_up_to_db=estimate(over_copy[:, :place].mean(axis=1)),
        small_changes_share=_shares(scores, REAL, around),
    )


def _shares(scores: FrameScores, whole: str, frames: slice) -> dict[str, float | None]:
    """Return each method's share of the small changes of `whole`; None where there is nothing to share."""
    # A share of sums: most clips have little, and few of them nearly all.
    sums = {method: float(values[:, frames].sum()) for method, values in scores.small_changes.items()}
    total = sums.pop(whole, 0.0)
    return {method: value / total if total else None for method, value in sums.items()}


def summarize_next(scores: FrameScores) -> NextFrameScores:
    """Return the means of `predict_next` over all frames, with their intervals."""
    per_clip = {method: values.mean(axis=1) for method, values in scores.psnr.items()}
    return NextFrameScores(
        num_frames=int(scores.psnr[DREAM].size),
        num_episodes=len(set(scores.episodes)),
        psnr_db={method: bootstrap(values, scores.episodes) for method, values in per_clip.items()},
        under_codec_db=bootstrap(per_clip[CODEC] - per_clip[DREAM], scores.episodes),
        small_changes_error=_shares(scores, COPY, slice(None)),
    )
