"""A video autoencoder as the codec of gameplay video, whose latent frames show four frames each."""

# T frames, F latent frames, C h w latent size, A action axes

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldsim.wan.autoencoder import StreamingAutoencoder
from worldsim.wan.config import FRAMES_PER_LATENT
from worldsim.world.held_frames import held_actions


@dataclass(frozen=True, slots=True)
class VideoCodecConfig:
    """What decides the latents beside the weights: the size that frames are scaled to, and the network."""

    height: int
    width: int
    autoencoder: dict[str, Any] = field(default_factory=dict)


class VideoCodec:
    """The autoencoder of a video world, asked for latents as a `FrameCodec` is.

    An episode is encoded as one video from its first frame on; frames that make no whole latent frame at its
    end are left out. An action is held for the frames of a latent frame: what was pressed longest of them.
    """

    def __init__(self, autoencoder: StreamingAutoencoder, height: int, width: int) -> None:
        self.autoencoder = autoencoder
        self.config = VideoCodecConfig(height, width, autoencoder.config)
        self.latent_shape = (autoencoder.channels, height // 8, width // 8)

    def to(self, device: torch.device) -> VideoCodec:
        """Move the weights, in fp32."""
        self.autoencoder.to(dtype=torch.float32, device=device)
        return self

    def eval(self) -> VideoCodec:
        """Return itself: its weights never learn."""
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights."""
        return self.autoencoder.autoencoder.state_dict()

    def num_latents(self, num_frames: int) -> int:
        """Return how many latent frames so many frames make."""
        return latent_frames(num_frames)

    def encode_video(self, frames: np.ndarray, device: torch.device) -> Tensor:
        """Return the latents `[F, C, h, w]` fp16 of an episode's frames `[T, H, W, 3]` uint8."""
        return torch.cat([each.half() for each in self.autoencoder.encode_stream(_chunks(frames, device))])

    def leading(self, actions: Tensor) -> Tensor:
        """Return the action held for each latent frame, `[F, A]`, of those that lead to frames, `[T, A]`.

        The first frame of an episode was led to by none, and neither was its latent frame.
        """
        held = actions[1 : displayed_frames(latent_frames(len(actions)))]
        return torch.cat([actions[:1], held_actions(held.unflatten(0, (-1, FRAMES_PER_LATENT)))])


def latent_frames(num_frames: int) -> int:
    """Return how many whole latent frames a video of so many frames makes."""
    return 1 + (num_frames - 1) // FRAMES_PER_LATENT


def displayed_frames(num_latents: int) -> int:
    """Return how many frames so many latent frames show, the first of a video among them."""
    return 1 + FRAMES_PER_LATENT * (num_latents - 1)


def _chunks(frames: np.ndarray, device: torch.device) -> Iterator[Tensor]:
    """Yield pictures as the autoencoder takes them, one and then four at a time, moved one by one."""
    for number in range(latent_frames(len(frames))):
        begin = displayed_frames(number) if number else 0
        chunk = torch.from_numpy(frames[begin : displayed_frames(number + 1)]).to(device)
        yield chunk.movedim(-1, 1).float().unsqueeze(0) / 127.5 - 1
