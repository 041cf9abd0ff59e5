"""Self-rollout critic: a one-step world learns on roll-outs of its own, against a critic of whole clips.

The closest published form is AAPT (arXiv 2506.09350): a critic that begins as the network itself, paired
logits, penalties by differences, and training on what the student draws. That one logit is of the whole clip
and not causal is from AAD-1 (arXiv 2606.03972).
"""

# B clips, T frames, C h w latent size, A action axes

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from training.objectives.adversarial import pair_loss
from training.objectives.noise import mix
from training.sharpen.critic import Critic, frozen
from training.sharpen.energy import EnergyScore
from training.sharpen.rollouts import Clips, OwnFrames, pooled, reach_all
from training.sharpen.settings import CriticConfig, RolloutConfig
from worldsim.model.denoiser import Denoiser
from worldsim.sampler import SamplerConfig


def penalty(logits: Tensor, near: Tensor) -> Tensor:
    """Return the mean squared change of logits `[B]` of clips that changed by little noise."""
    return (logits - near).square().mean()


def anchor_loss(drawn: Tensor, real: Tensor) -> Tensor:
    """Return the mean squared error of `pooled` frames, `[B, C, h, w]` both."""
    return (pooled(drawn) - pooled(real)).square().mean()


def scale_gradient(gradient: Tensor, norm: Tensor, is_on: Tensor) -> Tensor:
    """Return a gradient scaled to a norm where `is_on` is 1, as it is where that is 0."""
    scale = norm / gradient.norm().clamp_min(1e-20)
    return gradient * (1 + is_on * (scale - 1))


class SelfRolloutCritic(OwnFrames):
    """Both sides' losses of a batch of clips, in one pass.

    The critic is asked twice about drawn clips: for its own loss without gradients for the world, and for the
    world's loss without gradients for the critic. So one sum of both has the gradients of each.

    Args:
        denoiser: The world's network.
        critic: Of its clips.
        config: The clips.
        goals: Weights.
        sampler: The world's.
        score: The energy score that is added with `goals.energy_weight`; each clip is then drawn twice.
        reaches_all: Whether each parameter needs a gradient; see `reach_all`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        critic: Critic,
        config: RolloutConfig,
        goals: CriticConfig,
        sampler: SamplerConfig,
        *,
        score: EnergyScore | None = None,
        reaches_all: bool = False,
    ) -> None:
        super().__init__(denoiser, config, sampler)
        self.critic, self.goals, self.score, self.reaches_all = critic, goals, score, reaches_all

    def forward(
        self,
        latents: Tensor,
        actions: Tensor,
        generator: torch.Generator,
        is_balanced: Tensor,
        poses: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the losses of a batch.

        Args:
            latents: `[B, F + T, C, h, w]`, of which the first F frames are watched.
            actions: `[B, F + T, A]`.
            generator: Decides all noise.
            is_balanced: 1 where the critic's gradient has the norm of the anchor's, 0 otherwise; fp32.
            poses: `[B, F + T, 3]`, where frames are seen from; for keys of poses.

        Returns:
            `loss`, and for the log its parts and `logit_gap`, by how much real clips are found more real.
        """
        clips = self.watched(latents, actions, generator, poses)
        drawn, *others = self.draw_each(clips, 1 if self.score is None else 2, generator)
        noise = torch.randn(drawn.shape, generator=generator, device=drawn.device)
        levels = torch.rand(len(drawn), generator=generator, device=drawn.device)
        losses, real_logits = self._teach_critic(clips, drawn.detach(), noise, levels, generator)
        anchor = self.goals.anchor_weight * anchor_loss(drawn[:, 0], clips.real[:, 0])
        adversarial = self._ask_critic(clips, drawn, noise, levels, real_logits, anchor, is_balanced)
        losses["loss"] = losses["loss_critic"] + losses["penalty"] + adversarial + anchor
        if self.score is not None:
            scored = self.score(clips, drawn, *others, generator)
            losses["loss"] = losses["loss"] + self.goals.energy_weight * scored.pop("loss")
            losses |= scored
        if self.reaches_all:
            losses["loss"] = losses["loss"] + reach_all(self)
        losses |= {"loss_generator": adversarial, "loss_anchor": anchor}
        return losses | {name: value.detach() for name, value in losses.items() if name != "loss"}

    def _teach_critic(
        self, clips: Clips, drawn: Tensor, noise: Tensor, levels: Tensor, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the critic's losses, and its logits of the real clips without gradients."""
        goals, four = self.goals, clips.repeat(4)
        every = levels[:, None].expand(-1, drawn.shape[1])
        clean = torch.cat([clips.real, drawn])
        noisy = torch.cat([mix(clips.real, noise, every), mix(drawn, noise, every)])
        near = torch.randn(noisy.shape, generator=generator, device=noisy.device)
        noisy = torch.cat([noisy, noisy + goals.penalty_noise * near])
        logits = self.critic(
            torch.cat([clean, clean]), noisy, levels.repeat(4), four.actions, four.memory, four.poses
        )
        real, fake, real_near, fake_near = logits.total().chunk(4)
        losses = {
            "loss_critic": pair_loss(real, fake),
            "penalty": goals.penalty * (penalty(real, real_near) + penalty(fake, fake_near)),
            "logit_gap": (real - fake).mean(),
            "loss": real.new_zeros(()),
        }
        return losses, real.detach()

    def _ask_critic(
        self,
        clips: Clips,
        drawn: Tensor,
        noise: Tensor,
        levels: Tensor,
        real_logits: Tensor,
        anchor: Tensor,
        is_balanced: Tensor,
    ) -> Tensor:
        """Return the world's loss by the critic; its gradient at the drawn frames is balanced on the way."""
        judged = drawn.view_as(drawn)  # the anchor's gradient does not pass here
        if judged.requires_grad:
            (slope,) = torch.autograd.grad(anchor, drawn, retain_graph=True)
            judged.register_hook(partial(scale_gradient, norm=slope.norm().detach(), is_on=is_balanced))
        every = levels[:, None].expand(-1, drawn.shape[1])
        with frozen(self.critic):
            noisy = mix(judged, noise, every)
            logits = self.critic(judged, noisy, levels, clips.actions, clips.memory, clips.poses).total()
        return pair_loss(logits, real_logits)
