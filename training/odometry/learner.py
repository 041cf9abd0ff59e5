"""The loss of odometry, as a module that Fabric can wrap."""

# B clips, F frames, C h w latent size, A action axes

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldsim.model.memory.odometry import Odometry

BETA = 0.1
"""Errors below so many units count by their square, larger ones by their size: most frames are exactly
predictable, and one that hits a wall is not to outweigh them."""


class OdometryLearner(nn.Module):
    """Errors of the displacements that are expected and shown, of sums of what is shown, and of the dynamics.

    The dynamics learn from the true movement so far, which no picture is needed for: so clips of theirs cost
    next to nothing, and there are many.

    Args:
        odometry: Learns in place.
        noise: Largest standard deviation of noise in a clip's latents.
        summed_frames: Over how many frames errors are added up.
    """

    def __init__(self, odometry: Odometry, noise: float, summed_frames: int) -> None:
        super().__init__()
        self.odometry = odometry
        self.noise = noise
        self.summed_frames = summed_frames

    def forward(
        self,
        actions: Tensor,
        latents: Tensor,
        displacements: Tensor,
        unseen_actions: Tensor,
        unseen_displacements: Tensor,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Return the losses of clips.

        Args:
            actions: `[B, F, A]`.
            latents: `[B, F + 1, C, h, w]`; no gradient leaves the network by them.
            displacements: `[B, F, 3]`, the true ones.
            unseen_actions: `[U, F, A]`, of clips for the dynamics alone.
            unseen_displacements: `[U, F, 3]`, of the same.
            generator: Of the noise, on the device.
        """
        frames = self._disturb(latents.detach().float(), generator)
        expected, shown, _ = self.odometry(self.odometry.initial_state(len(frames)), actions, frames)
        start = self.odometry.initial_state(len(unseen_actions))
        free = self.odometry.dynamics(start, unseen_actions, unseen_displacements)
        pairs = {
            "dynamics": (free, unseen_displacements),
            "expected": (expected, displacements),
            "shown": (shown, displacements),
        }
        errors = {name: (found - true.float()) / self.odometry.units for name, (found, true) in pairs.items()}
        sums = errors["shown"].cumsum(1)
        sums = functional.pad(sums, (0, 0, 1, 0))
        errors["summed"] = (sums[:, self.summed_frames :] - sums[:, : -self.summed_frames]) / (
            self.summed_frames**0.5
        )
        losses = {
            name: functional.smooth_l1_loss(error, torch.zeros_like(error), beta=BETA)
            for name, error in errors.items()
        }
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def _disturb(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Return frames with noise in every fourth clip, of a deviation of its own."""
        chosen = frames[::4]
        deviations = torch.rand(len(chosen), 1, 1, 1, 1, generator=generator, device=frames.device)
        noise = torch.randn(chosen.shape, generator=generator, device=frames.device)
        disturbed = frames.clone()
        disturbed[::4] += self.noise * deviations * noise
        return disturbed
