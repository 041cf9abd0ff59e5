"""Calibration of the outcome heads on held-out episodes, part of every export."""

# E episodes, B of them at a time, T frames, C h w latent size, A action axes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from training.data.latents import LatentVideo
from worldsim.evaluation.quality.outcome import OperatingPoint, choose_threshold, summarize_outcomes
from worldsim.evaluation.quality.outcome_predictions import EpisodePredictions
from worldsim.model.config import MemoryKeys
from worldsim.outcome import OutcomeConfig
from worldsim.sampler import watch
from worldsim.world import World

EPISODES_AT_A_TIME = 32
NEVER = 1.0
"""Threshold of a world whose held-out episodes all go on, or whose head can't tell which frame ends one."""


@torch.no_grad()
def predict_outcomes(world: World, video: LatentVideo) -> list[EpisodePredictions]:
    """Show a world whole recorded episodes, step by step, and note what its heads predict.

    Args:
        world: With outcome heads, on the video's device.
        video: With rewards and ends.
    """
    first = np.cumsum([0, *video.lengths[:-1]])
    # Like lengths together: a batch runs as long as its longest episode.
    order = [episode for episode in np.argsort(video.lengths, kind="stable") if video.lengths[episode] > 1]
    predictions: dict[int, EpisodePredictions] = {}
    given_rewards, ends = (tensor.cpu().numpy() for tensor in video.outcomes())
    for begin in range(0, len(order), EPISODES_AT_A_TIME):
        chunk = [int(episode) for episode in order[begin : begin + EPISODES_AT_A_TIME]]
        rewards, logits = _predict_batch(world, video, first[chunk], max(video.lengths[e] for e in chunk))
        for row, episode in enumerate(chunk):
            count, begun = video.lengths[episode] - 1, int(first[episode]) + 1
            place = slice(begun, begun + count)
            predictions[episode] = EpisodePredictions(
                str(episode), given_rewards[place], ends[place], rewards[row, :count], logits[row, :count]
            )
    return [predictions[episode] for episode in sorted(predictions)]


def _predict_batch(
    world: World, video: LatentVideo, starts: np.ndarray, length: int
) -> tuple[Tensor, Tensor]:
    """Return what the heads predict for frames after the first, `[B, length - 1]` fp64 on the CPU each."""
    denoiser, heads = world.denoiser, world.denoiser.outcome
    assert heads is not None
    memory, seeds = world.initial_memory(len(starts)), torch.from_numpy(starts)
    has_poses = world.config.denoiser.memory_keys == MemoryKeys.POSE
    is_told = has_poses and (world.odometry is None or world.on_level_map)
    columns: list[tuple[Tensor, Tensor]] = []
    for frame in range(length):
        # Where an episode is over its last frame is repeated; nobody looks at what is said of it.
        skipped, number = np.full(len(starts), frame), torch.full_like(seeds, frame)
        latents, actions, _ = video.sequences_with_outcomes(starts, 1, skipped)
        on_map = world.on_level_map
        pose = video.pose_sequences(starts, 1, skipped, on_map=on_map)[:, 0] if is_told else None
        given = (latents[:, 0].float(), actions[:, 0], memory, seeds, number, pose, world.odometry)
        memory = watch(denoiser, *given)
        assert memory.summary is not None
        if frame:
            columns.append(heads(memory.summary))
    said, logits = (torch.stack(column, dim=1).double().cpu() for column in zip(*columns, strict=True))
    return said, logits


def fit_end_calibration(logits: np.ndarray, ends: np.ndarray) -> tuple[float, float]:
    """Fit the scale and the bias of end logits `[T]` to what happened, `[T]` bool (Platt, 1999).

    Logistic regression of one variable by Newton's method. The targets are Platt's, a little inside of 0 and
    1, so that ends that are told apart without a mistake give no infinite scale. Logits that say the opposite
    of what happens get a scale of 0: the probability is then the share of ends.
    """
    positives, negatives = int(ends.sum()), int((~ends).sum())
    target = np.where(ends, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    inputs = np.stack([logits.astype(np.float64), np.ones(len(logits))], axis=1)
    constant = np.array([0.0, np.log(target.mean() / (1 - target.mean()))])
    weights = constant

    def loss(at: np.ndarray) -> float:
        z = inputs @ at
        return float((np.logaddexp(0, z) - target * z).sum())

    for _ in range(100):
        probability = 1 / (1 + np.exp(-np.clip(inputs @ weights, -60, 60)))
        gradient = inputs.T @ (probability - target)
        curvature = (inputs * (probability * (1 - probability))[:, None]).T @ inputs
        step = np.linalg.solve(curvature + 1e-9 * np.eye(2), gradient)
        size = 1.0
        while size > 1e-6 and loss(weights - size * step) > loss(weights):
            size /= 2
        weights = weights - size * step
        if np.abs(size * step).max() < 1e-8:
            break
    scale, bias = weights if weights[0] > 0 else constant
    return float(scale), float(bias)


def calibrate(
    world: World, video: LatentVideo, meaning: OutcomeConfig
) -> tuple[OutcomeConfig, dict[str, float]]:
    """Fit scale and bias of the end's logit, and choose the threshold, on held-out episodes.

    Args:
        world: With outcome heads, on the video's device.
        video: Held-out episodes with rewards and ends.
        meaning: Gives the rewards' units; the rest of it is replaced.

    Returns:
        What the heads' numbers mean, and numbers for the log.
    """
    predictions = predict_outcomes(world, video)
    meaning, point = fit_ends(predictions, meaning)
    report = summarize_outcomes(
        [episode.calibrated(meaning) for episode in predictions], meaning.end_threshold
    )
    numbers = {"reward_error": report.rewards.per_step.root_mean_square_error}
    if point is not None:
        numbers |= {"end_recall": point.recall, "end_precision": point.precision}
        numbers |= {"outcome/end_threshold": meaning.end_threshold, "outcome/end_scale": meaning.end_scale}
        numbers |= {"outcome/end_bias": meaning.end_bias}
        numbers |= {"outcome/calibration_error": report.ends.calibration_error}
    return meaning, numbers


def fit_ends(
    predictions: Sequence[EpisodePredictions], meaning: OutcomeConfig
) -> tuple[OutcomeConfig, OperatingPoint | None]:
    """Fit scale and bias of the end's logit, and choose the threshold.

    Args:
        predictions: Episodes, at least one.
        meaning: Gives the rewards' units; the rest of it is replaced.

    Returns:
        What the heads' numbers mean, and what the threshold comes to; without one, for lack of ends or of a
        head that tells them apart, the world never ends.
    """
    ends = np.concatenate([episode.ends for episode in predictions])
    if ends.any():
        logits = torch.cat([episode.logits for episode in predictions]).numpy()
        scale, bias = fit_end_calibration(logits, ends)
        meaning = replace(meaning, end_scale=scale, end_bias=bias)
    episodes = [episode.calibrated(meaning) for episode in predictions]
    point = choose_threshold(episodes) if meaning.end_scale > 0 else None
    threshold = NEVER if point is None else min(max(point.threshold, 1e-6), 1.0)
    return replace(meaning, end_threshold=threshold), point
