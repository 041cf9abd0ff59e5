"""Poses that odometry integrates of recorded episodes: what a world believes in play, errors and all."""

# E episodes, F frames of the longest, T frames of all of them end to end

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from training.data.latents import LatentVideo
from worldsim.errors import WorldError
from worldsim.model.memory.odometry import Odometry, integrate, load_odometry, motion_energies
from worldsim.world import World
from worldsim.world.rewrite import encoder_digest

CHUNK = 256
"""Frames that are compared with those before them at once."""


def load_fitting(folder: Path, world: World) -> Odometry:
    """Return the odometry network of a folder.

    Raises:
        WorldError: If there is none, or it reads other latents or buttons than the world's.
    """
    odometry = load_odometry(folder)
    config, model = odometry.config, world.config.denoiser
    for what, own, needed in (
        ("latents of shape", config.latent_shape, model.latent_shape),
        ("axes of", config.num_values, model.num_values),
        ("latents of the encoder", config.encoder, encoder_digest(world.codec)),
    ):
        if own and own != needed:
            raise WorldError(f"odometry={folder} reads {what} {own}, but the world's are {needed}")
    return odometry


@torch.no_grad()
def with_integrated_poses(video: LatentVideo, odometry: Odometry) -> LatentVideo:
    """Return the same video with the poses that odometry integrates; each episode begins at its true one.

    Args:
        video: With poses.
        odometry: Moved to the video's device.
    """
    assert video.poses is not None
    odometry = odometry.to(video.latents.device)
    before = torch.cat([video.latents[:1], video.latents[:-1]])  # an episode's first frame is not asked for
    chunks = zip(before.split(CHUNK), video.latents.split(CHUNK), strict=True)
    energies = torch.cat([motion_energies(*chunk).half() for chunk in chunks])
    rows = (part.split(video.lengths) for part in (video.leading, energies))
    actions, energies = (pad_sequence(list(each), batch_first=True)[:, 1:] for each in rows)  # [E, F - 1, ..]
    _, shown, _ = odometry.follow(odometry.initial_state(len(actions)), actions, energies)
    first = torch.stack([each[0] for each in video.poses.split(video.lengths)])
    path = torch.cat([first[:, None].double(), integrate(shown, first)], dim=1)
    poses: Tensor = torch.cat([row[:count] for row, count in zip(path, video.lengths, strict=True)])
    return replace(video, poses=poses.float())
