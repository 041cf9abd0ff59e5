"""Dreams whose way is known: what a world draws under recorded actions at recorded poses.

In play odometry reads what its world drew, softer than what an encoder makes of recorded frames, and with
errors of the world's own. Taught on recorded frames alone it is misled by them.
"""

# N clips, F frames of one, C h w latent size

from __future__ import annotations

import numpy as np
import torch

from training.data.latents import LatentVideo, fixed_starts
from training.odometry.footage import TaughtVideo, moved_to, taught_by
from training.odometry.settings import DreamsConfig
from training.world.recall import Clips, roll_out
from worldsim.model.memory.odometry import Odometry
from worldsim.world.world import World

BATCH = 256
"""Clips that are dreamt at once."""


def dream_clips(world: World, video: LatentVideo, config: DreamsConfig) -> LatentVideo:
    """Return clips of video, evenly spread, that a world watches first and then goes on with.

    Args:
        world: With keys of poses, on the video's device; told the recorded poses, it needs no odometry.
        video: With poses.
        config: How many clips, and how long.

    Returns:
        The clips as episodes of their own, `[N * F, C, h, w]` end to end: frames that were watched as they
        were, the others as drawn.

    Raises:
        WorldError: If no episode is long enough, or poses were not recorded.
    """
    starts, drawn = fixed_starts(video.lengths, config.length, config.num_clips), []
    parts = np.array_split(starts, -(-len(starts) // BATCH))
    for part in parts:
        latents, actions = video.sequences(part, config.length)
        poses = video.pose_sequences(part, config.length, on_map=world.on_level_map)
        clips = Clips(latents.float(), actions, poses, torch.from_numpy(part.astype(np.int64)))
        drawn.append(_go_on(world, clips, config))
    _, actions = video.sequences(starts, config.length)
    poses = video.pose_sequences(starts, config.length, on_map=world.on_level_map)
    return LatentVideo(
        torch.cat(drawn).flatten(0, 1),
        actions.flatten(0, 1),
        [config.length] * len(starts),
        poses=poses.flatten(0, 1),
    )


@torch.no_grad()
def _go_on(world: World, clips: Clips, config: DreamsConfig) -> torch.Tensor:
    """Return the latents `[B, F, C, h, w]` fp16 of clips, dreamt after `watched_frames`."""
    watched = config.watched_frames
    frames = np.arange(watched, config.length)
    dreamt = roll_out(world, clips, clips.watched(world, watched), frames, world.config.sampler)
    return torch.cat([clips.latents[:, :watched], dreamt], dim=1).half()


def taught_by_dreams(
    world: World, video: LatentVideo, odometry: Odometry, config: DreamsConfig, noise: float
) -> TaughtVideo:
    """Return `dream_clips` with the displacement of each frame; see `taught_by` for the noise."""
    dreamt = dream_clips(world, video, config)
    assert dreamt.poses is not None
    moved = [moved_to(poses) for poses in dreamt.poses.split(dreamt.lengths)]
    return taught_by(dreamt, moved, odometry, noise)
