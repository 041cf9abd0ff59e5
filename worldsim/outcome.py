"""What a frame brought: the reward, and whether the episode ended with it."""

# B batch

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the frames committed last brought.

    Attributes:
        reward: `[B]` float32 on the CPU, the expected reward on the way to the frame, in the game's
            own units.
        end: `[B]` float32 on the CPU, the calibrated probability, 0 to 1, that the episode ended with the
            frame.
    """

    reward: Tensor
    end: Tensor
