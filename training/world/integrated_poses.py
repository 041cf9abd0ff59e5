"""Poses that odometry integrates of recorded episodes, errors and all, as a world's path has them in play.

They are those that frames show. In play a frame is drawn where its action lets expect it, and the path goes
on from where the frame shows to be.
"""

# E episodes, F frames of the longest, T frames of all of them end to end

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from training.data.latents import LatentVideo
from worldsim.errors import WorldError
from worldsim.model.memory.odometry import (
    SHAPE_FILE,
    WEIGHTS_FILE,
    Odometry,
    integrate,
    load_odometry,
)
from worldsim.storage.tensors import sha256_of
from worldsim.world import World
from worldsim.world.config import check_odometry
from worldsim.world.rewrite import encoder_digest

NETWORK = "odometry"
"""Of a run of `training.odometry`, the folder of the network."""
CHUNK = 256
"""Frames that are compared with those before them at once."""


def network_folder(folder: Path) -> Path:
    """Return the folder of an odometry network: the one given, or that of the run which it is of."""
    is_run = not (folder / SHAPE_FILE).is_file() and (folder / NETWORK / SHAPE_FILE).is_file()
    return folder / NETWORK if is_run else folder


def load_fitting(folder: Path, world: World) -> tuple[Odometry, str]:
    """Return an odometry network that follows a world's poses, and a digest of its weights.

    Args:
        folder: Of the network, or of the run of `training.odometry` that wrote it.
        world: With keys of poses.

    Raises:
        WorldError: If there is none, or it reads other latents or buttons than the world's.
    """
    folder = network_folder(folder)
    odometry = load_odometry(folder)
    check_odometry(world.config, odometry.config)
    if odometry.config.encoder != encoder_digest(world.codec):
        raise WorldError(
            f"{folder} reads the latents of another encoder than that of world {world.config.name!r}"
        )
    return odometry, sha256_of(folder / WEIGHTS_FILE)


@torch.no_grad()
def with_integrated_poses(video: LatentVideo, odometry: Odometry) -> LatentVideo:
    """Return the same video with the poses that odometry integrates; each episode begins at its true one.

    Args:
        video: With poses.
        odometry: Moved to the video's device.
    """
    assert video.poses is not None
    odometry = odometry.to(video.latents.device)
    pairs = zip(video.latents[:-1].split(CHUNK), video.latents[1:].split(CHUNK), strict=True)
    parts = [odometry.compare(*pair).half() for pair in pairs]
    compared = torch.cat([parts[0][:1], *parts])  # an episode's first frame is not asked for
    rows = (part.split(video.lengths) for part in (video.leading, compared))
    actions, compared = (pad_sequence(list(each), batch_first=True)[:, 1:] for each in rows)  # [E, F - 1, ..]
    first = torch.stack([each[0] for each in video.poses.split(video.lengths)])
    _, shown, _ = odometry.follow(odometry.initial_state(len(actions)), actions, compared, first)
    path = torch.cat([first[:, None].double(), integrate(shown, first)], dim=1)
    poses: Tensor = torch.cat([row[:count] for row, count in zip(path, video.lengths, strict=True)])
    return replace(video, poses=poses.float())
