"""Distillation of a softmax teacher into a hybrid student: layer by layer, then end to end."""

# B batch, F frames, C h w latent size, A action axes, S streams (clean, noisy), N tokens per frame, D width

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from training.objectives.flow_matching import FlowMatchingLoss
from training.objectives.noise import NoisyBatch, ObjectiveConfig, add_noise
from worldsim.model.attention.base import Rotary
from worldsim.model.attention.hybrid import HybridAttention
from worldsim.model.block import Block, LayerStateIn, Residual
from worldsim.model.denoiser import Denoiser

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Frozen(Generic[Network]):
    """A teacher that a module asks and does not own: neither saved, averaged nor distributed with it."""

    denoiser: Network

    def __deepcopy__(self, memo: dict[int, object]) -> Frozen[Network]:
        return self


class LayerDistillation(nn.Module):
    """Stage 1: each new layer learns to say what the softmax layer it replaces says, on the teacher's inputs.

    Args:
        teacher: On the device of the training.
        student: From `worldsim.model.conversion.convert`.
        layers: Those that became hybrid.
        config: Noise of training frames; own contexts and weights of cells are not used here.
        compile: Compile teacher and new layers (worth it on a GPU).
    """

    def __init__(
        self,
        teacher: Denoiser,
        student: Denoiser,
        layers: Sequence[int],
        config: ObjectiveConfig,
        *,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.teacher = Frozen(teacher)
        self.denoiser = student
        self.layers = list(layers)
        self.config = config
        self._trace, self._attend = Block.trace, HybridAttention.forward_sequence
        if compile:
            self._trace = torch.compile(self._trace, dynamic=False)
            self._attend = torch.compile(self._attend, dynamic=False)

    def forward(self, latents: Tensor, actions: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the losses of a batch; arguments as in `SequenceFlowMatching`.

        Returns:
            `layer_NN` for each new layer: mean squared error over the teacher's mean square, so that layers
            weigh alike; `loss`, their mean. The first frame has no past and is left out.
        """
        batch = add_noise(latents.float(), self.config, generator)
        pairs = self._ask_teacher(batch, actions)
        student, config = self.denoiser, self.denoiser.config
        empty_memory = student.initial_memory(len(latents))
        before = torch.cat([empty_memory.latents[:, None], batch.clean[:, :-1]], dim=1)
        embedded = student.embed_actions(actions)
        phases, _ = student.path_phases(before, batch.clean, embedded, empty_memory)
        rotary = student.rotary(phases, range(phases.shape[1]))
        width = config.head_width
        empty = phases.new_zeros(len(latents), config.num_heads, width, width)
        losses = {}
        for layer, (entered, target) in pairs.items():
            attention = student.layers()[layer].self_attn
            assert isinstance(attention, HybridAttention)
            out, _ = self._attend(attention, entered, empty, rotary)
            error, size = (out.float() - target.float())[:, 1:].square(), target.float()[:, 1:].square()
            losses[f"layer_{layer:02d}"] = error.mean() / size.mean()
        return {"loss": torch.stack(list(losses.values())).mean()} | {
            k: v.detach() for k, v in losses.items()
        }

    @torch.no_grad()
    def _ask_teacher(self, batch: NoisyBatch, actions: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """Return what the attention of each replaced layer is given and gives, `[B, F, S, N, D]` each."""
        teacher, pairs = self.teacher.denoiser, {}

        def run_block(
            index: int, residual: Residual, conditioning: Tensor, initial_state: LayerStateIn, rotary: Rotary
        ) -> Residual:
            residual, _, entered, attended = self._trace(
                teacher.layers()[index], residual, conditioning, initial_state, rotary
            )
            if index in self.layers:
                pairs[index] = entered, attended
            return residual

        teacher(batch.clean, batch.noisy, batch.levels, actions, run_block)
        return pairs


class VelocityDistillation(FlowMatchingLoss):
    """Stage 2: the student learns the velocity that the frozen teacher predicts of the same frames.

    Args:
        teacher: On the device of the training.
        student: With its low-rank changes attached.
        config: Noise of training frames. With `own_context_share` the student's own predictions are
            the context, and the teacher says what follows from them. Its `change_weight` weighs both parts of
            the loss.
        data_weight: Share of the loss that the video itself gives, as in pretraining.
    """

    def __init__(
        self, teacher: Denoiser, student: Denoiser, config: ObjectiveConfig, data_weight: float
    ) -> None:
        super().__init__(student, config)
        self.teacher = Frozen(teacher)
        self.data_weight = data_weight

    def forward(self, latents: Tensor, actions: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the losses of a batch; arguments as in `SequenceFlowMatching`.

        Returns:
            `loss`, and for the log its parts: `loss_teacher` and `loss_data`, mean squared errors of the
            velocity against the teacher's and against the true one.
        """
        latents = latents.float()
        batch = self.add_noise(latents, actions, generator, None)
        given = (batch.clean, batch.noisy, batch.levels, actions)
        with torch.no_grad():
            expected = self.teacher.denoiser(*given).float()
        velocity = self.denoiser(*given).float()
        # The first frame has nothing to go by, as in pretraining.
        from_teacher, from_data = (
            self.frame_means((velocity - target).square(), latents)[:, 1:].mean()
            for target in (expected, batch.velocity)
        )
        loss = from_teacher + self.data_weight * (from_data - from_teacher)
        return {"loss": loss, "loss_teacher": from_teacher.detach(), "loss_data": from_data.detach()}
