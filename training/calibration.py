"""From what a world's heads say of held-out episodes to what their numbers mean: part of every export."""

# E episodes, B of them at a time, T frames, C h w latent size, A action axes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from training.frames import LatentVideo
from worldsim.evaluation.calibration import fit_end_calibration
from worldsim.evaluation.outcome import JudgedEpisode, choose_threshold, summarize_outcomes
from worldsim.outcome import OutcomeConfig
from worldsim.world import World

EPISODES_AT_A_TIME = 32
NEVER = 1.0
"""Threshold of a world whose held-out episodes all go on."""


@torch.no_grad()
def judge_video(world: World, video: LatentVideo, meaning: OutcomeConfig) -> list[JudgedEpisode]:
    """Show a world whole recorded episodes, step by step, and note what it says of every frame but the first.

    Args:
        world: With outcome heads, on the video's device.
        video: With rewards and ends.
        meaning: Turns what the heads say into rewards and probabilities.
    """
    rewards, ends = (tensor.cpu().numpy() for tensor in video.outcomes())
    first = np.cumsum([0, *video.lengths[:-1]])
    # Like lengths together: a batch runs as long as its longest episode.
    order = [episode for episode in np.argsort(video.lengths, kind="stable") if video.lengths[episode] > 1]
    judged: dict[int, JudgedEpisode] = {}
    for begin in range(0, len(order), EPISODES_AT_A_TIME):
        chunk = [int(episode) for episode in order[begin : begin + EPISODES_AT_A_TIME]]
        said, logits = _judge_batch(world, video, first[chunk], max(video.lengths[e] for e in chunk))
        for row, episode in enumerate(chunk):
            count = video.lengths[episode] - 1
            place = slice(first[episode] + 1, first[episode] + 1 + count)
            logit = logits[row, :count]
            judged[episode] = JudgedEpisode(
                name=str(episode),
                rewards=rewards[place],
                judged_rewards=meaning.rewards(said[row, :count]).numpy(),
                ends=ends[place],
                logits=logit.numpy(),
                probabilities=meaning.end_probability(logit).numpy(),
            )
    return [judged[episode] for episode in sorted(judged)]


def _judge_batch(world: World, video: LatentVideo, starts: np.ndarray, length: int) -> tuple[Tensor, Tensor]:
    """Return what the heads say of the frames after the first, `[B, length - 1]` fp64 on the CPU each."""
    denoiser, heads = world.denoiser, world.denoiser.outcome
    assert heads is not None
    memory = denoiser.initial_memory(len(starts))
    clean = torch.zeros(len(starts), device=video.latents.device)
    columns: list[tuple[Tensor, Tensor]] = []
    for frame in range(length):
        # Where an episode is over its last frame is repeated; nobody looks at what is said of it.
        latents, actions, _ = video.judged_sequences(starts, 1, np.full(len(starts), frame))
        context = denoiser.observe(actions[:, 0], memory)
        memory = denoiser.commit(latents[:, 0].float(), clean, context, memory)
        assert memory.summary is not None
        if frame:
            columns.append(heads(memory.summary))
    said, logits = (torch.stack(column, dim=1).double().cpu() for column in zip(*columns, strict=True))
    return said, logits


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
    episodes = judge_video(world, video, meaning)
    ends = np.concatenate([episode.ends for episode in episodes])
    if ends.any():
        scale, bias = fit_end_calibration(np.concatenate([episode.logits for episode in episodes]), ends)
        meaning = replace(meaning, end_scale=scale, end_bias=bias)
        episodes = _calibrated(episodes, meaning)
    point = choose_threshold(episodes)
    threshold = NEVER if point is None else min(max(point.threshold, 1e-6), 1.0)
    meaning = replace(meaning, end_threshold=threshold)
    report = summarize_outcomes(episodes, threshold)
    numbers = {"reward_error": report["rewards"]["per_step"]["root_mean_square_error"]}
    if point is not None:
        numbers |= {"end_recall": point.recall, "end_precision": point.precision}
        numbers |= {"outcome/end_threshold": threshold, "outcome/end_scale": meaning.end_scale}
        numbers |= {"outcome/end_bias": meaning.end_bias}
        numbers |= {"outcome/calibration_error": report["ends"]["calibration_error"]}
    return meaning, numbers


def _calibrated(episodes: Sequence[JudgedEpisode], meaning: OutcomeConfig) -> list[JudgedEpisode]:
    return [
        replace(episode, probabilities=meaning.end_probability(torch.from_numpy(episode.logits)).numpy())
        for episode in episodes
    ]
