"""A decoder that learns by the codec's loss and from a critic, each pass forward and backward once."""

# B batch of pairs, E of them of encoded and O of own latents, C latent channels, H W frame size

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.decoder.critic import PatchCritic, relativistic_loss, slope_penalty
from training.decoder.settings import DecoderConfig
from training.objectives.codec import CodecLossConfig, reconstruction_loss
from worldsim.codec import DOWNSAMPLING, FrameCodec
from worldsim.evaluation.metrics import sharpness
from worldsim.model.pictures import frames_of

HALVES = ("encoded", "own")
COARSE = 4
"""Side of the squares whose means a frame of own latents is held to: a texture may lie elsewhere."""
ENERGY_MEMORY = 0.95
LEAST_WEIGHT = 1e-3
LEVELS = 255


class PairBatch(NamedTuple):
    """Frames in a row, and latents that they are to be decoded from.

    Attributes:
        latents: `[B, 2, C, h, w]`, of unit variance; those of the encoder first, then the world's own.
        frames: `[B, 2, H, W, 3]` uint8, as recorded.
        num_own: O, how many are the world's own.
        place: Row and column, in latents, of the crop that the critic sees.
        step: Updates done.
        generator: On the device.
    """

    latents: Tensor
    frames: Tensor
    num_own: int
    place: tuple[int, int]
    step: int
    generator: torch.Generator


class DecoderLearner(nn.Module):
    """A decoder and its critic, as a module that Fabric can wrap.

    The losses by a pixel are brought together at the decoded frames: the critic's gradient is scaled to the
    mean magnitude of that of the other losses (as VQGAN does at the last layer, arXiv 2012.09841, eq. 7)
    times a weight, of encoded and own latents apart. The weight rises where frames lack gradient energy.

    Args:
        codec: Its decoder learns, its encoder is frozen.
        config: How.
        loss: The codec's loss.
        critic: Learns too; None trains by the codec's loss alone.
    """

    weights: Tensor
    energies: Tensor

    def __init__(
        self, codec: FrameCodec, config: DecoderConfig, loss: CodecLossConfig, critic: PatchCritic | None
    ) -> None:
        super().__init__()
        self.codec, self.critic = codec, critic
        codec.requires_grad_(False)
        codec.decoder.requires_grad_(True)
        self.config, self.loss = config, loss
        self.register_buffer("weights", torch.full((2,), config.weight))
        self.register_buffer("energies", torch.full((2,), config.energy))

    def forward(self, *batch: object) -> dict[str, Tensor]:
        """Return the losses of a `PairBatch`, given field by field."""
        given = PairBatch(*batch)  # pyright: ignore[reportArgumentType]
        images = given.frames.movedim(-1, 2).float() / LEVELS  # [B, 2, 3, H, W]
        decoded = self.codec.decode_images(given.latents.flatten(0, 1)).unflatten(0, (-1, 2))
        if self.critic is None:
            losses = self.pixel_losses(decoded, images, given.num_own)
            return {"loss": torch.stack(list(losses.values())).sum()} | _detached(losses)
        return self._with_critic(self.critic, decoded, images, given)

    def pixel_losses(self, decoded: Tensor, images: Tensor, num_own: int) -> dict[str, Tensor]:
        """Return the losses against the recorded frames, each times its share of the batch.

        Args:
            decoded: `[B, 2, 3, H, W]`.
            images: Same shape.
            num_own: O.
        """
        parts = split_halves(decoded, num_own), split_halves(images, num_own)
        (encoded, own), (seen, target) = ([each.flatten(0, 1) for each in part] for part in parts)
        share = num_own / len(images)
        losses = {"reconstruction": (1 - share) * reconstruction_loss(encoded, seen, self.loss)}
        if num_own:
            made, wanted = (functional.avg_pool2d(each, COARSE) for each in (own, target))
            losses["reconstruction_own"] = share * functional.l1_loss(made, wanted)
        return losses

    def _with_critic(
        self, critic: PatchCritic, decoded: Tensor, images: Tensor, given: PairBatch
    ) -> dict[str, Tensor]:
        leaf = decoded.detach().requires_grad_()
        pixel = self.pixel_losses(leaf, images, given.num_own)
        total = torch.stack(list(pixel.values())).sum()
        (pull,) = torch.autograd.grad(total, leaf)
        real, fake, penalty = self._scores(critic, leaf, images, given)
        (push,) = torch.autograd.grad(relativistic_loss(fake, real), leaf, retain_graph=True)
        critic_loss = relativistic_loss(real, fake)
        told = self._steer(leaf, images, given)
        scaled = [
            a + weight * b * (a.abs().mean() / b.abs().mean().clamp(min=1e-12))
            for a, b, weight in zip(
                split_halves(pull, given.num_own),
                split_halves(push, given.num_own),
                self.weights * (given.step >= self.config.critic.alone_steps),
                strict=True,
            )
            if len(a)
        ]
        towards = (decoded * torch.cat(scaled)).sum()
        # Its value says nothing, only its gradient does; what is shown is what the two networks lose.
        loss = towards - towards.detach() + total.detach() + critic_loss
        gap = torch.stack([(a - b).mean() for a, b in zip(real, fake, strict=True)]).mean()
        losses = {"loss": loss + self.config.critic.penalty * penalty}
        return (
            losses | _detached(pixel | {"critic": critic_loss, "penalty": penalty, "score_gap": gap}) | told
        )

    def _scores(
        self, critic: PatchCritic, leaf: Tensor, images: Tensor, given: PairBatch
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Return the scores of recorded and of decoded frames, and the penalty of their slopes."""
        (top, left), (rows, columns) = given.place, crop_size(self.config.critic.crop, images)
        latents = given.latents[..., top : top + rows, left : left + columns]
        top, left, rows, columns = (DOWNSAMPLING * each for each in (top, left, rows, columns))
        seen = torch.cat([images, leaf])[..., top : top + rows, left : left + columns]
        # Recorded frames have 256 levels, decoded ones any: noise of one level hides it from the critic.
        seen = seen + (self._noise(seen, given.generator, uniform=True) - 0.5) / LEVELS
        slope = self.config.critic.perturbation
        disturbed = seen.detach() + slope * self._noise(seen, given.generator)
        scores = critic(torch.cat([seen, disturbed]), latents.repeat(4, 1, 1, 1, 1))
        real, fake, *others = zip(*(each.chunk(4) for each in scores), strict=True)
        penalties = [slope_penalty(a, b, slope) for a, b in zip((real, fake), others, strict=True)]
        return list(real), list(fake), sum(penalties, torch.zeros((), device=leaf.device))

    def _noise(self, like: Tensor, generator: torch.Generator, *, uniform: bool = False) -> Tensor:
        draw = torch.rand if uniform else torch.randn
        return draw(like.shape, generator=generator, device=like.device)

    @torch.no_grad()
    def _steer(self, decoded: Tensor, images: Tensor, given: PairBatch) -> dict[str, Tensor]:
        """Measure the gradient energy, and change the critic's weight by what is missing."""
        told = {}
        pairs = zip(split_halves(decoded, given.num_own), split_halves(images, given.num_own), strict=True)
        for index, (made, real) in enumerate(pairs):
            if not len(made):
                continue
            with torch.autocast(made.device.type, enabled=False):
                energy = energy_ratio(frames_of(made.flatten(0, 1)), frames_of(real.flatten(0, 1)))
            self.energies[index].lerp_(energy, 1 - ENERGY_MEMORY)
            if given.step >= self.config.critic.alone_steps:
                factor = 1 + self.config.steering * (self.config.energy - self.energies[index])
                limits = min(LEAST_WEIGHT, self.config.weight), self.config.max_weight
                self.weights[index].mul_(factor.clamp(0.5, 2)).clamp_(*limits)
            told |= {
                f"energy_{HALVES[index]}": self.energies[index].clone(),
                f"weight_{HALVES[index]}": self.weights[index].clone(),
            }
        return told


def energy_ratio(made: Tensor, real: Tensor) -> Tensor:
    """Return the gradient energy of frames `[N, H, W, 3]` uint8 over that of others, a scalar."""
    return sharpness(made).mean() / sharpness(real).mean().clamp(min=1e-9)


def split_halves(values: Tensor, num_own: int) -> tuple[Tensor, Tensor]:
    """Return the rows of encoded and those of own latents."""
    return values[: len(values) - num_own], values[len(values) - num_own :]


def crop_size(crop: int, images: Tensor) -> tuple[int, int]:
    """Return height and width, in latents, of crops of frames `[..., H, W]`."""
    height, width = (min(crop, side) // DOWNSAMPLING for side in images.shape[-2:])
    return height, width


def _detached(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in losses.items()}
