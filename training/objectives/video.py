"""Objectives of video transformers: distillation of layers, then of the whole, and flow matching."""

# B batch, F latent frames, C h w latent size, A action axes, K blocks of frames, S streams (clean, noisy),
# N tokens per block, D width

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.objectives.distillation import Frozen
from worldsim.model.attention.base import Rotary
from worldsim.model.inspection import half_lives_of
from worldsim.wan.config import CausalConfig
from worldsim.wan.conversion import hybrid_attentions
from worldsim.wan.layers import WanBlock
from worldsim.wan.schedule import noised, shifted, step_sigmas, times
from worldsim.wan.transformer import WanTransformer
from worldsim.world.held_frames import held_actions


@dataclass(frozen=True, slots=True)
class NoisyVideo:
    """A batch with its noise drawn; latents are `[B, C, F, h, w]`.

    Attributes:
        clean: What blocks see of those before them.
        noisy: What is denoised, each block with a level of its own.
        velocity: Noise minus clean, the target.
        times: `[B, K]`, of the blocks' levels, 0 to 1000.
        actions: `[B, K, A]`, what is held during each block; None in a network without buttons.
    """

    clean: Tensor
    noisy: Tensor
    velocity: Tensor
    times: Tensor
    actions: Tensor | None


def kept_for_gradient(function: Callable[..., Tensor], *given: Any) -> Tensor:
    """Call a function of which the inputs alone are kept for the gradient: it is computed again for that."""
    if not torch.is_grad_enabled():
        return function(*given)
    return checkpoint(function, *given, use_reentrant=False, preserve_rng_state=False)


def run_lightly(
    block: WanBlock, x: Tensor, modulation: Tensor, text: Tensor, rotary: Rotary, causal: CausalConfig
) -> Tensor:
    """Call a layer, whose inputs alone are kept for the gradient."""
    return kept_for_gradient(block.forward_sequence, x, modulation, text, rotary, causal)


class VideoObjective(nn.Module):
    """What the objectives share: noise, and passes over whole videos.

    A sequence's first block, which has no past, is left out of all losses, as in worlds of single frames.

    Args:
        denoiser: What learns.
        causal: Its blocks, what they see, and the steps that they are drawn in.
        text: `[tokens, text_dim]`, what the video is of.
    """

    text: Tensor

    def __init__(self, denoiser: WanTransformer, causal: CausalConfig, text: Tensor) -> None:
        super().__init__()
        self.denoiser, self.causal = denoiser, causal
        self.register_buffer("text", text.float(), persistent=False)

    def add_noise(self, latents: Tensor, actions: Tensor, generator: torch.Generator) -> NoisyVideo:
        """Return a batch with its noise.

        Args:
            latents: `[B, F, C, h, w]`, F a multiple of the block.
            actions: `[B, F, A]` int64, what is held during each latent frame.
            generator: Decides the noise; on the latents' device.
        """
        clean, block = latents.float().transpose(1, 2), self.causal.block
        sigmas = self.draw_sigmas((len(clean), clean.shape[2] // block), generator)
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        level = sigmas.float().repeat_interleave(block, dim=1)[:, None, :, None, None]
        has_buttons = bool(self.denoiser.config.num_values)
        pressed = held_actions(actions.unflatten(1, (-1, block))) if has_buttons else None
        return NoisyVideo(clean, noised(clean, noise, level), noise - clean, times(sigmas), pressed)

    def draw_sigmas(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Return the share of noise of each block, `[B, K]` fp64: one of the steps that it is drawn in."""
        steps = step_sigmas(self.causal).to(generator.device)
        return steps[torch.randint(len(steps), shape, generator=generator, device=generator.device)]

    def velocity(self, network: WanTransformer, causal: CausalConfig, video: NoisyVideo) -> Tensor:
        """Return a network's velocity of the noisy blocks, `[B, C, F, h, w]` fp32."""
        text = self.text.expand(len(video.clean), -1, -1)
        given = (video.clean, video.noisy, video.times, text, causal, video.actions)
        return network.forward_sequence(*given, run_block=run_lightly).float()

    def mean_error(self, found: Tensor, expected: Tensor) -> Tensor:
        """Return the mean squared error of velocities `[B, C, F, h, w]`, without the first block."""
        return (found - expected)[:, :, self.causal.block :].square().mean()

    def half_lives(self, tokens_per_frame: int) -> dict[int, Tensor]:
        """Return the half-lives of hybrid layers' heads, `[H]` in latent frames, by the layer's number."""
        found = hybrid_attentions(self.denoiser)
        return {layer: half_lives_of(each, tokens_per_frame) for layer, each in found.items()}


class VideoDistillation(VideoObjective):
    """What both stages have: a frozen teacher beside the student.

    Args:
        teacher: On the device of the training.
        teacher_causal: What its blocks see.
        student: On the same device.
        causal: What the student's blocks see.
        text: As of `VideoObjective`.
    """

    def __init__(
        self,
        teacher: WanTransformer,
        teacher_causal: CausalConfig,
        student: WanTransformer,
        causal: CausalConfig,
        text: Tensor,
    ) -> None:
        super().__init__(student, causal, text)
        self.teacher, self.teacher_causal = Frozen(teacher), teacher_causal


class VideoLayerDistillation(VideoDistillation):
    """Stage 1: each new layer learns to say what the softmax layer it replaces says, on the teacher's inputs.

    The student is from `worldsim.wan.conversion.with_hybrid_layers`; arguments as of `VideoDistillation`.
    """

    def forward(self, latents: Tensor, actions: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the losses of a batch; arguments as of `add_noise`.

        Returns:
            `layer_NN` for each new layer: mean squared error over the teacher's mean square, so that layers
            weigh alike; `loss`, their mean.
        """
        video, teacher = self.add_noise(latents, actions, generator), self.teacher.denoiser
        rotary = self.denoiser.sequence_rotary(video.clean, self.causal)
        losses: dict[str, Tensor] = {}
        run_block = partial(self._compare, {id(block): n for n, block in enumerate(teacher.blocks)}, rotary)
        text = self.text.expand(len(latents), -1, -1)
        given = (video.clean, video.noisy, video.times, text, self.teacher_causal, video.actions)
        with_grad = torch.is_grad_enabled()
        with torch.no_grad():
            teacher.forward_sequence(*given, run_block=partial(run_block, losses, with_grad))
        loss = torch.stack(list(losses.values())).mean()
        return {"loss": loss} | {name: each.detach() for name, each in losses.items()}

    def _compare(
        self,
        numbers: dict[int, int],
        rotary: Rotary,
        losses: dict[str, Tensor],
        with_grad: bool,
        block: WanBlock,
        *given: Any,
    ) -> Tensor:
        """Run a layer of the teacher, and note how far the student's is from what its attention gives."""
        x, entered, attended = block.trace_sequence(*given)
        number = numbers[id(block)]
        if number in self.denoiser.config.hybrid_layers:
            with torch.set_grad_enabled(with_grad):
                new = self.denoiser.get_submodule(f"blocks.{number}")
                assert isinstance(new, WanBlock)
                out = kept_for_gradient(new.attend_sequence, entered, rotary, self.causal)
                target = attended[:, 1:].float()
                error = (out[:, 1:].float() - target).square().mean() / target.square().mean()
            losses[f"layer_{number:02d}"] = error
        return x


class VideoVelocityDistillation(VideoDistillation):
    """Stage 2: the student learns the velocity that the frozen teacher predicts of the same frames.

    Args:
        teacher: On the device of the training.
        teacher_causal: What its blocks see.
        student: With its low-rank changes attached.
        causal: What the student's blocks see.
        text: As of `VideoObjective`.
        data_weight: Share of the loss that the video itself gives.
    """

    def __init__(
        self,
        teacher: WanTransformer,
        teacher_causal: CausalConfig,
        student: WanTransformer,
        causal: CausalConfig,
        text: Tensor,
        data_weight: float,
    ) -> None:
        super().__init__(teacher, teacher_causal, student, causal, text)
        self.data_weight = data_weight

    def forward(self, latents: Tensor, actions: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the losses of a batch; arguments as of `add_noise`.

        Returns:
            `loss`, and for the log its parts: `loss_teacher` and `loss_data`, mean squared errors of the
            velocity against the teacher's and against the true one.
        """
        video = self.add_noise(latents, actions, generator)
        with torch.no_grad():
            expected = self.velocity(self.teacher.denoiser, self.teacher_causal, video)
        found = self.velocity(self.denoiser, self.causal, video)
        from_teacher, from_data = (self.mean_error(found, each) for each in (expected, video.velocity))
        loss = from_teacher + self.data_weight * (from_data - from_teacher)
        return {"loss": loss, "loss_teacher": from_teacher.detach(), "loss_data": from_data.detach()}


class VideoFlowMatching(VideoObjective):
    """The objective that such networks are trained with: the velocity, at shifted shares of noise."""

    def forward(self, latents: Tensor, actions: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return `loss`, the mean squared error of the velocity; arguments as of `add_noise`."""
        video = self.add_noise(latents, actions, generator)
        return {"loss": self.mean_error(self.velocity(self.denoiser, self.causal, video), video.velocity)}

    def draw_sigmas(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Return the share of noise of each block, `[B, K]` fp64: evenly drawn, and shifted as in drawing."""
        drawn = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)
        return shifted(drawn, self.causal.shift)
