"""Clips of a batch that have a prefix: what follows it can be drawn from what the state kept of it alone.

Two kinds: a clean prefix and a suffix whose context is strongly noised (Po et al., arXiv 2505.20171); and
recall by poses, as generative query networks learn it (Eslami et al., Science 360, 2018): after the prefix,
frames are drawn from the state and a pose alone, without a frame before them and without a window, or where
these are misleading: frames of another place, as a dream that has lost its way has them.
"""

# B batch, F frames, C h w latent size, A action axes

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PREFIX = (0.5, 0.9)
"""Least and greatest share of a clip that its prefix takes."""
SUFFIX_NOISE = (0.3, 1.0)
"""Least and greatest noise level of a noised suffix."""
WATCHED_SHARE = 0.5
"""Share of the frames drawn by their pose that lie in the prefix: what was seen must be found again. The
others are those that follow it, as they are seen by who comes back."""
LEAST_AWAY = 0.25
"""Share of a clip by which a misleading frame is at least before or after the one whose place it takes."""


@dataclass(frozen=True, slots=True)
class Prefixes:
    """Which frames of a batch follow a prefix.

    Attributes:
        prefix: `[B, F]` bool, frames of a prefix.
        noised: `[B, F]` bool, frames whose context is noised.
        alone: `[B, F]` bool, frames that are drawn from the state and their pose alone.
        misled: `[B, F]` bool, frames that are drawn from the state and their pose after frames of another
            place, which alone does not tell them from others.
        elsewhere: `[B, F, 2]` int64, clip and frame of the misleading one in each place.
        frames: `[B, F]` int64, the number of the frame of the clip that stands in each place.
    """

    prefix: Tensor
    noised: Tensor
    alone: Tensor
    misled: Tensor
    elsewhere: Tensor
    frames: Tensor

    @property
    def recalled(self) -> Tensor:
        """`[B, F]` bool, frames that only the state tells of: nothing is written from there on."""
        return self.alone | self.misled

    def take(self, clips: Tensor) -> Tensor:
        """Return what of clips `[B, F, ...]` stands in each place."""
        index = self.frames.reshape(*self.frames.shape, *(1,) * (clips.dim() - 2))
        return clips.gather(1, index.expand_as(clips))

    def mislead(self, taken: Tensor, clips: Tensor) -> Tensor:
        """Return what stands in each place, `taken`, with misleading ones of `clips`; `[B, F, ...]` both."""
        wrong = clips[self.elsewhere[..., 0], self.elsewhere[..., 1]]
        return torch.where(self.misled.reshape(*self.misled.shape, *(1,) * (clips.dim() - 2)), wrong, taken)

    def weigh(self, weights: Tensor) -> Tensor:
        """Return weights `[B, F]` of frames with nothing in prefixes; every clip goes on to count as much."""
        after = self.noised | self.recalled
        has_prefix = after.any(1, keepdim=True)
        scale = after.shape[1] / after.sum(1, keepdim=True).clamp(min=1)
        return torch.where(has_prefix, weights * after * scale, weights)


def draw_prefixes(
    clips: Tensor, num_noised: int, num_alone: int, generator: torch.Generator, num_misled: int = 0
) -> Prefixes:
    """Draw which frames follow a prefix: those of the last clips of a batch.

    Args:
        clips: `[B, F, ...]`, the batch.
        num_noised: Clips with a noised suffix.
        num_alone: Clips whose suffix is drawn from the state alone; these come last.
        generator: On the device of the batch.
        num_misled: Clips whose suffix follows misleading frames, before those. In every other one they are of
            the clip before it in the batch, in the others of its own, another time.
    """
    (batch, frames), device = clips.shape[:2], clips.device

    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator, device=device)

    low, high = PREFIX
    length = ((low + (high - low) * uniform(batch, 1)) * frames).long().clamp(1, frames - 1)
    number = torch.arange(frames, device=device).expand(batch, frames)
    row = torch.arange(batch, device=device)[:, None]
    is_alone = row >= batch - num_alone
    is_recalled = row >= batch - num_alone - num_misled
    is_noised = (row >= batch - num_alone - num_misled - num_noised) & ~is_recalled
    after = number >= length
    watched = torch.minimum((uniform(batch, frames) * length).long(), length - 1)
    is_watched = is_recalled & after & (uniform(batch, frames) < WATCHED_SHARE)
    away = LEAST_AWAY + (1 - 2 * LEAST_AWAY) * uniform(batch, 1)
    time = (number + (away * frames).long().clamp(min=1)) % frames
    clip = (row - row % 2).expand_as(time)
    return Prefixes(
        prefix=(is_recalled | is_noised) & ~after,
        noised=is_noised & after,
        alone=is_alone & after,
        misled=is_recalled & ~is_alone & after,
        elsewhere=torch.stack([clip, time], dim=-1),
        frames=torch.where(is_watched, watched, number),
    )


def jittered(poses: Tensor, sigmas: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Return poses `[B, F, 3]` with normal errors of `sigmas`: in map units, and of headings in degrees."""
    errors = torch.randn(poses.shape, generator=generator, device=poses.device)
    # Each scaled by a number of its own: a tensor of numbers could not be made within a CUDA graph.
    return poses + torch.cat([sigmas[0] * errors[..., :2], sigmas[1] * errors[..., 2:]], dim=-1)
