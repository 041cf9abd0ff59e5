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
FREE_FRAMES = 4
"""At the beginning of a clip, that count less: how fast the player is has yet to be found out."""


class OdometryLearner(nn.Module):
    """Errors of the displacements that are expected and shown, and of the sums of what is shown.

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
        self, actions: Tensor, latents: Tensor, displacements: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the losses of clips.

        Args:
            actions: `[B, F, A]`.
            latents: `[B, F + 1, C, h, w]`; no gradient leaves the network by them.
            displacements: `[B, F, 3]`, the true ones.
            generator: Of the noise, on the device.
        """
        frames = self._disturb(latents.detach().float(), generator)
        expected, shown, _ = self.odometry(self.odometry.initial_state(len(frames)), actions, frames)
        errors = {
            "expected": (expected - displacements.float()) / self.odometry.units,
            "shown": (shown - displacements.float()) / self.odometry.units,
        }
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
        """Return frames with noise, of a deviation of its own in each clip."""
        if not self.noise:
            return frames
        deviations = torch.rand(len(frames), 1, 1, 1, 1, generator=generator, device=frames.device)
        # Uniform: on a CPU it is drawn in a quarter of the time.
        noise = torch.rand(frames.shape, generator=generator, device=frames.device) - 0.5
        return frames + (12**0.5 * self.noise * deviations) * noise
