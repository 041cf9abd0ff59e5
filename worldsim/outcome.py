"""Outcomes of frames: reward and end of the episode, and their calibration."""

# B batch, G any leading sizes

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from worldsim.errors import WorldError
from worldsim.storage.files import check_number

MAX_NUMBER = 1e12
"""Of a reward or a fitted number: fp32 must hold what is computed with it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the frames committed last brought.

    Attributes:
        reward: `[B]` float32 on the CPU, the reward to expect on the way to the frame, in the game's units.
        end: `[B]` float32 on the CPU, the calibrated probability, 0 to 1, that the episode ended with the
            frame.
    """

    reward: Tensor
    end: Tensor


@dataclass(kw_only=True, slots=True)
class OutcomeConfig:
    """What turns the heads' numbers into rewards and probabilities, and when an episode ends.

    The first two are the statistics of the rewards that were learned from, the others were fitted on held-out
    episodes (docs/decisions/0017).

    Attributes:
        reward_mean: Reward where the head says 0.
        reward_scale: How much more it is where the head says 1.
        end_scale: What the logit of the end is multiplied by,
        end_bias: and what is then added to it.
        end_threshold: Probability from which on an episode has ended, above 0 and at most 1.
    """

    reward_mean: float = 0.0
    reward_scale: float = 1.0
    end_scale: float = 1.0
    end_bias: float = 0.0
    end_threshold: float = 0.5

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            check_number(getattr(self, name), f"a world's outcome.{name}", -MAX_NUMBER, MAX_NUMBER)
        if self.reward_scale <= 0:
            raise WorldError(f"a world's outcome.reward_scale must be positive, got {self.reward_scale}")
        if self.end_scale < 0:
            raise WorldError(f"a world's outcome.end_scale must not be negative, got {self.end_scale}")
        if not 0 < self.end_threshold <= 1:
            raise WorldError(f"a world's outcome.end_threshold must lie in (0, 1], got {self.end_threshold}")

    def rewards(self, predicted: Tensor) -> Tensor:
        """Return rewards `[G]` of what the reward head says, `[G]`."""
        return self.reward_mean + self.reward_scale * predicted

    def standardised(self, rewards: Tensor) -> Tensor:
        """Return what the reward head should say, `[G]`, where the rewards are `[G]`."""
        return (rewards - self.reward_mean) / self.reward_scale

    def end_probability(self, logit: Tensor) -> Tensor:
        """Return calibrated probabilities `[G]` of what the end head says, `[G]`."""
        return torch.sigmoid(self.end_scale * logit + self.end_bias)

    def decode(self, predicted: Tensor, logit: Tensor) -> Tensor:
        """Return what the heads' numbers, `[B]` each, mean: rewards and probabilities, `[2, B]` float32."""
        return torch.stack(
            [self.rewards(predicted.double()).float(), self.end_probability(logit.double()).float()]
        )

    def outcome(self, predicted: Tensor, logit: Tensor) -> Outcome:
        """Return the outcome that the heads' numbers, `[B]` each, mean."""
        return outcome_of(self.decode(predicted, logit))


def outcome_of(values: Tensor) -> Outcome:
    """Return the outcome that `[2, B]` of `OutcomeConfig.decode` are, brought to the CPU in one copy."""
    reward, end = values.cpu().unbind()
    return Outcome(reward, end)
