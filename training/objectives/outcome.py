"""Losses of outcome heads: squared error of the reward, cross entropy of the end (docs/decisions/0017)."""

# B batch, F frames, D model width

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from training.data.latents import LatentVideo, OutcomeTargets
from worldsim.model.outcome_heads import OutcomeHeads
from worldsim.outcome import OutcomeConfig
from worldsim.settings import check_settings, setting

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(kw_only=True, slots=True)
class OutcomeLossConfig:
    """How the heads of a world that has them are trained."""

    reward_weight: float = setting(
        0.1,
        "Of the reward's loss beside the picture's. The optimizers do not care for the size of a loss "
        "alone: it decides how much the network under the heads turns to them.",
        minimum=0,
    )
    end_weight: float = setting(0.1, "Of the end's loss.", minimum=0)
    end_share: float = setting(
        0.25, "Share of sequences that hold the end of an episode; ends are rare.", minimum=0, maximum=1
    )
    detach: bool = setting(False, "Let the network under the heads learn nothing from them.")

    def __post_init__(self) -> None:
        check_settings(self, "outcome.")


class OutcomeLoss:
    """The heads' losses.

    Args:
        heads: Of the network that is trained.
        meaning: Units of its rewards.
        config: Weights.
        end_frequency: How much rarer ends are in the video than among the frames that are drawn. The reward
            of an end counts so much, else a step that might be one would be expected to bring too much of it:
            no calibration comes after. That of the end's probability does, so it needs no such weight.
    """

    def __init__(
        self,
        heads: OutcomeHeads,
        meaning: OutcomeConfig,
        config: OutcomeLossConfig,
        end_frequency: float = 1.0,
    ) -> None:
        heads.is_detached = config.detach
        self.meaning = meaning
        self.config = config
        self.end_frequency = end_frequency

    def __call__(
        self, heads: OutcomeHeads, summary: Tensor, targets: OutcomeTargets, counted: Tensor
    ) -> dict[str, Tensor]:
        """Return the weighted sum `loss_outcome`, and for the log its parts `loss_reward` and `loss_end`.

        Args:
            heads: Of the network, or of a copy of it.
            summary: `[B, F, D]`, from `Denoiser.run_sequences`.
            targets: What to say.
            counted: `[B, F]` bool, of which frames; or how much each counts, 0 to 1.
        """
        predicted, logit = heads(summary)
        wanted = self.meaning.standardised(targets.rewards)
        num_counted = counted.sum().clamp(min=1)
        weight = torch.where(targets.ends, self.end_frequency, 1.0) * counted
        reward = ((predicted - wanted).square() * weight).sum() / num_counted
        end = functional.binary_cross_entropy_with_logits(logit, targets.ends.float(), reduction="none")
        end = (end * counted).sum() / num_counted
        loss = self.config.reward_weight * reward + self.config.end_weight * end
        return {"loss_outcome": loss, "loss_reward": reward.detach(), "loss_end": end.detach()}


def reward_units(video: LatentVideo, fabric: Fabric) -> OutcomeConfig:
    """Return mean and standard deviation of the rewards of all devices' video, as an untrained meaning.

    The first frames of episodes are left out: no action led to them. Rewards that are all the same get a
    scale of 1.
    """
    rewards, _ = video.outcomes()
    follows = torch.ones(len(rewards), dtype=torch.bool)
    follows[torch.tensor([0, *video.lengths[:-1]]).cumsum(0)] = False
    given = rewards.cpu().double()[follows]
    own = torch.stack([torch.tensor(float(len(given))).double(), given.sum(), given.square().sum()])
    total = torch.as_tensor(fabric.all_reduce(own.to(fabric.device), reduce_op="sum")).cpu()
    count, mean = max(float(total[0]), 1.0), float(total[1] / total[0].clamp(min=1))
    deviation = max(float(total[2]) / count - mean**2, 0.0) ** 0.5
    is_constant = deviation <= 1e-6 * max(1.0, abs(mean))
    return OutcomeConfig(reward_mean=mean, reward_scale=1.0 if is_constant else deviation)
