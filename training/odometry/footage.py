"""Encoded video with the displacement of each frame."""

# B clips, F frames, T frames of all episodes end to end, C h w latent size, A action axes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.data.latent_cache import LatentCache
from training.data.latents import latent_video, to_device
from worldsim.codec import FrameCodec
from worldsim.data.episodes import read_table
from worldsim.data.sequences import EpisodeReference
from worldsim.errors import WorldError
from worldsim.model.memory.odometry import displacements_between, motion_energies

NOISE_FRAMES = 256
"""Over which noise has the same deviation."""


@dataclass(frozen=True, slots=True)
class TaughtVideo:
    """Episodes end to end: what is seen, what is done, and how the player moves.

    Attributes:
        actions: `[T, A]` int64, which lead to each frame.
        displacements: `[T, 3]` fp64, on the way to each frame; 0 for the first of an episode.
        energies: `[2, T, 3, 5, 4, 5]` fp16, the motion energies of each frame and the one before, of latents
            as they are and with noise; of the first frame of an episode they mean nothing.
        lengths: Frames of each episode.
    """

    actions: Tensor
    displacements: Tensor
    energies: Tensor
    lengths: list[int]

    def clips(self, starts: np.ndarray, num_frames: int) -> tuple[Tensor, Tensor]:
        """Return actions `[B, F, A]` and displacements `[B, F, 3]` of the F frames after frames `starts`."""
        index = self._index(starts, num_frames)
        return self.actions[index], self.displacements[index]

    def seen(self, starts: np.ndarray, num_frames: int, noisy: np.ndarray | bool) -> Tensor:
        """Return motion energies `[B, F, 3, 5, 4, 5]` of the same frames; `noisy` is `[B]` or of all."""
        index = self._index(starts, num_frames)
        chosen = to_device(np.broadcast_to(noisy, starts.shape).astype(np.int64), index.device)
        return self.energies[chosen[:, None], index]

    def _index(self, starts: np.ndarray, num_frames: int) -> Tensor:
        return to_device(starts[:, None] + np.arange(1, 1 + num_frames), self.actions.device)


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
    noise: float,
    *,
    num_workers: int,
    cache: LatentCache | None,
) -> TaughtVideo:
    """Encode episodes on a device, or read what was encoded before, and compare frames.

    Args:
        codec: Its encoder is used.
        references: The episodes.
        displacements: Of each, from `read_displacements`.
        device: Where to.
        noise: Largest standard deviation of the noise of noisy latents; it stays the same over some frames.
        num_workers: Decoding processes.
        cache: Of latents.
    """
    video = latent_video(codec, references, device, num_workers=num_workers, cache=cache)
    return TaughtVideo(
        actions=video.leading,
        displacements=torch.cat(list(displacements)).to(device),
        energies=torch.stack([energies_of(video.latents, level) for level in (0.0, noise)]),
        lengths=video.lengths,
    )


@torch.no_grad()
def energies_of(latents: Tensor, noise: float) -> Tensor:
    """Return the motion energies `[T, 3, 5, 4, 5]` fp16 of latents `[T, C, h, w]` and those before them.

    Args:
        latents: At least one frame; the first is compared with itself.
        noise: Standard deviations are drawn from 0 to this, one for each `NOISE_FRAMES`; the same each time.
    """
    generator, parts = torch.Generator(latents.device).manual_seed(0), []
    before = latents[:1].float()
    for chunk in latents.split(NOISE_FRAMES):
        after = chunk.float()
        if noise:
            drawn = torch.randn(after.shape, generator=generator, device=after.device)
            level = torch.rand((), generator=generator, device=after.device)
            after = after + noise * level * drawn
        parts.append(motion_energies(torch.cat([before, after[:-1]]), after).half())
        before = after[-1:]
    return torch.cat(parts)
