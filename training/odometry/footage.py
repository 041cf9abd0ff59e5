"""Encoded video with the displacement of each frame."""

# B clips, F frames, T frames of all episodes end to end, C h w latent size, A action axes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from training.data.latents import LatentVideo, to_device
from worldsim.data.episodes import read_table
from worldsim.data.sequences import EpisodeReference
from worldsim.errors import WorldError
from worldsim.model.memory.odometry import UNITS, Odometry, displacements_between, seen_from_before

NOISE_FRAMES = 256
"""Over which noise has the same deviation."""
LEAP = 128.0
"""Map units in one frame from which on the game has put the player elsewhere, as a teleporter does: in Doom
nobody walks, or is thrown, by half as many."""


@dataclass(frozen=True, slots=True)
class TaughtVideo:
    """Episodes end to end: what is seen, what is done, and how the player moves.

    Attributes:
        actions: `[T, A]` int64, which lead to each frame.
        displacements: `[T, 3]` fp64, on the way to each frame; 0 for the first of an episode.
        compared: `[2, T, ...]` fp16, what odometry reads of each frame and the one before, of latents as they
            are and with noise; of the first frame of an episode it means nothing.
        lengths: Frames of each episode, or of each part of one where a leap divides it.
        poses: `[T, 3]` fp32, where each frame was seen from; for a map of the ground.
    """

    actions: Tensor
    displacements: Tensor
    compared: Tensor
    lengths: list[int]
    poses: Tensor | None = None

    def clips(self, starts: np.ndarray, num_frames: int) -> tuple[Tensor, Tensor]:
        """Return actions `[B, F, A]` and displacements `[B, F, 3]` of the F frames after frames `starts`."""
        index = self._index(starts, num_frames)
        return self.actions[index], self.displacements[index]

    def begins(self, starts: np.ndarray) -> Tensor | None:
        """Return the poses `[B, 3]` before those frames, if they are kept."""
        return None if self.poses is None else self.poses[to_device(starts, self.poses.device)]

    def seen(self, starts: np.ndarray, num_frames: int, noisy: np.ndarray | bool) -> Tensor:
        """Return what is read of the same frames, `[B, F, ...]`; `noisy` is `[B]` or of all."""
        index = self._index(starts, num_frames)
        chosen = to_device(np.broadcast_to(noisy, starts.shape).astype(np.int64), index.device)
        return self.compared[chosen[:, None], index]

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
        found.append(moved_to(torch.from_numpy(poses)))
    return found


def moved_to(poses: Tensor) -> Tensor:
    """Return the displacements on the way to each of the poses `[..., T, 3]`, 0 for the first, as fp64."""
    return functional.pad(displacements_between(poses.double()), (0, 0, 1, 0))


def taught_by(
    video: LatentVideo, displacements: Sequence[Tensor], odometry: Odometry, noise: float
) -> TaughtVideo:
    """Compare the frames of encoded video; where the player leaps, an episode ends and another one begins.

    Args:
        video: Of some episodes.
        displacements: Of each, from `read_displacements`.
        odometry: Compares them.
        noise: Largest standard deviation of the noise of noisy latents; it stays the same over some frames.
    """
    parts = [part for each in displacements for part in split_at_leaps(each)]
    return TaughtVideo(
        actions=video.leading,
        displacements=torch.cat(parts).to(video.latents.device),
        compared=torch.stack([compared_of(odometry, video.latents, level) for level in (0.0, noise)]),
        lengths=[len(part) for part in parts],
        poses=video.poses if odometry.ground is not None else None,
    )


def split_at_leaps(displacements: Tensor) -> list[Tensor]:
    """Return the parts of an episode's displacements `[T, 3]` between leaps; each begins with 0.

    No action or picture says where a teleporter leads: a clip that crosses one would teach nothing but error,
    a path that does would be measured by it.
    """
    leaps = displacements[:, :2].norm(dim=-1) > LEAP
    bounds = [0, *leaps.nonzero().flatten().tolist(), len(displacements)]
    kept = torch.where(leaps[:, None], 0.0, displacements)
    return [kept[begin:end] for begin, end in zip(bounds[:-1], bounds[1:], strict=True)]


def steps_to_learn(displacements: Sequence[Tensor], most: int) -> tuple[Tensor, Tensor]:
    """Return frames `[N]` of episodes end to end, and the steps `[N, 3]` fp32 in units on the way to them.

    Evenly spread, without the first of an episode and those after a leap.

    Args:
        displacements: Of each episode, from `read_displacements`.
        most: Frames.
    """
    every = torch.cat([each.clone().index_fill_(0, torch.tensor([0]), torch.inf) for each in displacements])
    frames = (every[:, :2].norm(dim=-1) <= LEAP).nonzero().flatten()
    frames = frames[
        torch.linspace(0, len(frames) - 1, min(most, len(frames)), dtype=torch.float64).round().long()
    ]
    return frames, seen_from_before(every[frames].float() / torch.tensor(UNITS))


@torch.no_grad()
def compared_of(odometry: Odometry, latents: Tensor, noise: float) -> Tensor:
    """Return what odometry reads of latents `[T, C, h, w]` and those before them, `[T, ...]` fp16.

    Args:
        odometry: On the device of the latents.
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
        parts.append(odometry.compare(torch.cat([before, after[:-1]]), after).half())
        before = after[-1:]
    return torch.cat(parts)
