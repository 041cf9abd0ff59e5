"""Sequences of an update, drawn from its number alone."""

# B batch, F frames, C h w latent size, A action axes

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from training.data.latents import LatentVideo, OutcomeTargets, to_device
from training.data.sampling import EndDraws, places_at
from training.engine.fabric import Passes
from training.engine.loop import seed_of
from training.world.integrated_poses import with_integrated_poses
from training.world.settings import TrainWorldConfig
from worldsim.data.sequences import SequenceIndex
from worldsim.model.memory.odometry import Odometry

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Batch = tuple[Tensor | torch.Generator | OutcomeTargets | None, ...]
"""What a training's module is given at a step."""


def end_draws(video: LatentVideo, config: TrainWorldConfig) -> EndDraws:
    """Return what sees to it that a training's sequences hold ends."""
    index = SequenceIndex(video.lengths, config.segments * config.sequence_length)
    return EndDraws(video, index, config.outcome.end_share)


def end_frequency(parts: Sequence[LatentVideo], config: TrainWorldConfig, fabric: Fabric) -> float:
    """Return how much rarer ends are than they are drawn, as `EndDraws` has it, averaged over all passes."""
    own = torch.tensor([end_draws(video, config).frequency for video in parts], dtype=torch.float64).mean()
    return float(torch.as_tensor(fabric.all_reduce(own.to(fabric.device), reduce_op="mean")))


def make_passes(
    parts: Sequence[LatentVideo],
    config: TrainWorldConfig,
    passes: Passes,
    *,
    with_outcomes: bool = False,
    with_poses: bool = False,
    on_map: bool = False,
    odometry: Odometry | None = None,
) -> Callable[[int, int], Batch]:
    """Return the function that draws the batch of a step and a pass; see `make_batches`.

    Args:
        parts: What each of this device's passes draws from.
        config: Settings.
        passes: Which are this device's.
        with_outcomes: Whether there are outcome heads.
        with_poses: Whether keys are turned by poses.
        odometry: Whose poses some clips get.
    """
    told: dict[str, Any] = {"with_outcomes": with_outcomes, "with_poses": with_poses, "on_map": on_map}
    numbered = zip(passes.own, parts, strict=True)
    draws = {
        number: make_batches(video, config, number, odometry=odometry, **told) for number, video in numbered
    }
    return lambda step, number: draws[number](step)


def make_batches(
    video: LatentVideo,
    config: TrainWorldConfig,
    number: int,
    *,
    with_outcomes: bool = False,
    with_poses: bool = False,
    on_map: bool = False,
    odometry: Odometry | None = None,
) -> Callable[[int], Batch]:
    """Return the function that draws a step's sequences, or segments of longer ones, from its number alone.

    It gives latents `[B, F, C, h, w]`, actions `[B, F, A]` and a generator; where a sequence has several
    segments also which rows begin a sequence, `[B]` bool; what the outcome heads are to say, and the poses
    `[B, F, 3]`, if they are asked for.

    Args:
        video: To draw from.
        config: Settings.
        number: Of the pass: each draws its own.
        with_outcomes: Whether there are outcome heads. Some sequences then hold the end of an episode.
        with_poses: Whether keys are turned by poses. Every sequence lies on a map turned by chance.
        on_map: Whether it lies on the level's own map instead.
        odometry: Whose poses a share of the sequences get; None gives all the recorded ones.
    """
    batch_size, length, segments = config.batch_size, config.sequence_length, config.segments
    index = SequenceIndex(video.lengths, segments * length)
    device = video.latents.device
    ends = end_draws(video, config) if with_outcomes else None
    integrated = with_integrated_poses(video, odometry) if odometry else None

    def sequences_of(block: int) -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng(seed_of(config.loop.seed, block, number))
        starts = index.sample(rng, batch_size)
        starts = starts if ends is None else ends.replace(starts, rng)
        return starts, rng.uniform(0, 360, batch_size), rng.random(batch_size) < config.integrated_share

    def poses_at(starts: np.ndarray, skipped: np.ndarray, turns: np.ndarray, chosen: np.ndarray) -> Tensor:
        true = video.pose_sequences(starts, length, skipped, turns, on_map=on_map)
        if integrated is None:
            return true
        believed = integrated.pose_sequences(starts, length, skipped, turns, on_map=on_map)
        return torch.where(to_device(chosen, device)[:, None, None], believed, true)

    def batch_at(step: int) -> Batch:
        block, segment = places_at(step, segments, batch_size)
        drawn = {each: sequences_of(each) for each in set(block.tolist())}
        places = [[of[row] for of in drawn[each]] for row, each in enumerate(block.tolist())]
        starts, turns, is_integrated = (np.array(each) for each in zip(*places, strict=True))
        generator = torch.Generator(device).manual_seed(seed_of(config.loop.seed, step, number))
        is_new = () if segments == 1 else (to_device(segment == 0, device),)
        skipped = segment * length
        poses = (poses_at(starts, skipped, turns, is_integrated),) if with_poses else ()
        if not with_outcomes:
            given = (generator, *is_new, None) if with_poses else (generator, *is_new)
            return *video.sequences(starts + skipped, length), *given, *poses
        latents, actions, targets = video.sequences_with_outcomes(starts, length, skipped)
        return latents, actions, generator, *is_new, targets, *poses

    return batch_at
