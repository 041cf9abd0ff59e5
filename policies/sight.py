"""The view of a learned player: the last frames, small; the same in dreams and in the real game."""

# B batch, H W frame size, F frames seen, h w size they are seen in

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

CHANNELS = 3
MAX_SIDE, MAX_FRAMES = 256, 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Sight:
    """How frames become what a network sees: each is scaled by area mean, the last ones are stacked.

    Attributes:
        height: Of what is seen, h.
        width: Of what is seen, w.
        num_frames: How many frames are seen, F: the latest, and those before it.

    Raises:
        ValueError: If one of them is not a whole number of at least 1, or larger than anyone needs.
    """

    height: int = 60
    width: int = 80
    num_frames: int = 3

    def __post_init__(self) -> None:
        for name in ("height", "width", "num_frames"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} of what a player sees must be at least 1, got {value!r}")
            if value > (most := MAX_FRAMES if name == "num_frames" else MAX_SIDE):
                raise ValueError(f"{name} of what a player sees must be at most {most}, got {value}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of what is seen, without the batch: `(F * 3, h, w)`, the oldest frame first."""
        return (CHANNELS * self.num_frames, self.height, self.width)

    def shrink(self, frames: Tensor) -> Tensor:
        """Scale frames `[B, H, W, 3]` uint8 to `[B, 3, h, w]` uint8, on their device."""
        pictures = frames.movedim(-1, 1).float()
        # Of frames twice as large, a mean is of four whole numbers: exact, and so the same on every device.
        small = functional.adaptive_avg_pool2d(pictures, (self.height, self.width))
        return small.round().to(torch.uint8)

    def begin(self, frames: Tensor) -> Tensor:
        """Return what is seen at the first frames of episodes, `[B, F * 3, h, w]`: they stand still."""
        return self.shrink(frames).repeat(1, self.num_frames, 1, 1)

    def follow(self, seen: Tensor, frames: Tensor) -> Tensor:
        """Return what is seen once `frames` `[B, H, W, 3]` have come after what was `seen`."""
        return torch.cat([seen[:, CHANNELS:], self.shrink(frames)], dim=1)

    @classmethod
    def from_json(cls, data: Mapping[str, int]) -> Sight:
        """Build from a JSON object with its fields.

        Raises:
            ValueError: If it is not of that form.
        """
        try:
            return cls(**data)
        except TypeError as error:
            raise ValueError(f"what a player sees is not described as expected: {error}") from error
