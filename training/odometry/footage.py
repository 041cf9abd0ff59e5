"""Encoded video with the displacement of each frame."""

# B clips, F frames, T frames of all episodes end to end, C h w latent size, A action axes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.data.latent_cache import LatentCache
from training.data.latents import LatentVideo, latent_video, to_device
from worldsim.codec import FrameCodec
from worldsim.data.episodes import read_table
from worldsim.data.sequences import EpisodeReference
from worldsim.errors import WorldError
from worldsim.model.memory.odometry import displacements_between


@dataclass(frozen=True, slots=True)
class TaughtVideo:
    """Encoded episodes end to end, and how the player moved.

    Attributes:
        video: Latents and actions.
        displacements: `[T, 3]` fp64, on the way to each frame; 0 for the first of an episode.
    """

    video: LatentVideo
    displacements: Tensor

    def clips(self, starts: np.ndarray, num_frames: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return clips of a frame that is seen before and the frames after it.

        Args:
            starts: `[B]`, where the first frame of each is.
            num_frames: F, without the first.

        Returns:
            Actions `[B, F, A]`, latents `[B, F + 1, C, h, w]` fp16 and displacements `[B, F, 3]` fp64.
        """
        latents, actions = self.video.sequences(starts, 1 + num_frames)
        return actions[:, 1:], latents, self.unseen_clips(starts, num_frames)[1]

    def unseen_clips(self, starts: np.ndarray, num_frames: int) -> tuple[Tensor, Tensor]:
        """Return actions and displacements of clips, as from `clips`, without their latents."""
        index = to_device(starts[:, None] + np.arange(1, 1 + num_frames), self.displacements.device)
        return self.video.leading[index], self.displacements[index]


def read_displacements(references: Sequence[EpisodeReference]) -> list[Tensor]:
    """Return the displacements of each episode, `[frames, 3]` fp64, 0 for its first frame; decodes nothing.

    Raises:
        WorldError: For the first episode that records no poses.
    """
    found = []
    for reference in references:
        poses = read_table(reference.folder, reference.name, reference.info.actions).poses
        if poses is None:
            raise WorldError(
                f"{reference.folder / f'{reference.name}.jsonl'} records no poses ('pose' on every line): "
                "odometry has nothing to be taught by"
            )
        moved = displacements_between(torch.from_numpy(poses))
        found.append(torch.cat([moved.new_zeros(1, len(moved[0])), moved]))
    return found


def load_taught(
    codec: FrameCodec,
    references: Sequence[EpisodeReference],
    displacements: Sequence[Tensor],
    device: torch.device,
    *,
    num_workers: int,
    cache: LatentCache | None,
) -> TaughtVideo:
    """Encode episodes on a device, or read what was encoded before; see `latent_video`."""
    video = latent_video(codec, references, device, num_workers=num_workers, cache=cache)
    return TaughtVideo(video, torch.cat(list(displacements)).to(device))
