"""Noise of training frames: the settings of the objective, and batches with their noise drawn."""

# B batch, F frames, C h w latent size

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.objectives.prefixes import SUFFIX_NOISE, Prefixes
from worldsim.errors import WorldError
from worldsim.sampler import shift_level
from worldsim.settings import check_settings, setting


@dataclass(kw_only=True, slots=True)
class ObjectiveConfig:
    """Noise of training frames, and weights of the loss."""

    pure_noise_probability: float = setting(
        0.3,
        "Share of noisy frames that are pure noise, where every roll-out starts. A recycled model learns "
        "that from the first passes of all frames, whatever this says.",
        minimum=0,
        maximum=1,
    )
    first_pass_weight: float = setting(
        0.5,
        "Weight of the loss of a recycled model's first passes, beside 1 of passes over noisy frames.",
        above=0,
    )
    level_shift: float = setting(
        1.0,
        "Warps the other noise levels as sampler.shift warps the steps of play: above 1 more of them lie "
        "near pure noise, where it is decided whether something rare appears (arXiv 2403.03206, eq. 23).",
        above=0,
    )
    context_noise: float = setting(
        0.3, "Largest noise level of clean frames, so that play survives its own errors.", minimum=0, below=1
    )
    context_noise_probability: float = setting(
        0.8, "Share of clips whose clean frames are noised at all.", minimum=0, maximum=1
    )
    own_context_share: float = setting(
        0.0,
        "Share of the clips of a batch whose clean frames are the model's own one-step predictions "
        "(docs/decisions/0009).",
        minimum=0,
        maximum=1,
    )
    own_context_depth: int = setting(
        1,
        "How many times at most such a clip is predicted, each time after the frames drawn the time before: "
        "the errors of so many frames add up. Equal parts of the clips get 1 to this.",
        minimum=1,
    )
    change_weight: float = setting(
        0.0,
        "How much more the velocity's error counts in cells that change more than the rest of their frame, "
        "so that small things that move are learned (docs/decisions/0021); 0 weighs all alike.",
        minimum=0,
    )
    change_cap: float = setting(
        20.0, "Above how many times the mean change of its frame a cell counts no more for it.", above=0
    )

    suffix_share: float = setting(
        0.0,
        "Share of the clips that are clean up to a place between half and nine tenths of them, and whose "
        "context is noised strongly from there on, which alone counts (arXiv 2505.20171).",
        minimum=0,
        maximum=1,
    )
    recall_share: float = setting(
        0.0,
        "Share of the clips whose frames after such a place are drawn from the recurrent states and their "
        "pose alone, half of them frames from before it; for memory_keys=pose (docs/decisions/0048).",
        minimum=0,
        maximum=1,
    )
    misled_share: float = setting(
        0.0,
        "Share of the clips whose frames after such a place are drawn after frames of another place, of "
        "another clip or another time, so that the states tell against what is at hand; as recall_share.",
        minimum=0,
        maximum=1,
    )
    status_rows: int = setting(
        0,
        "Lowest rows of latents, which show how the player is and not where: health, ammunition. Frames that "
        "are asked for by their pose are not judged there (docs/decisions/0061); 2 for doom-level.",
        minimum=0,
    )
    pose_jitter: list[float] = setting(
        [8.0, 2.0],
        "Standard deviation of errors that poses are given in training, in map units and degrees.",
        minimum=0,
    )

    @property
    def recalls(self) -> bool:
        """Whether the states are asked for frames by their poses."""
        return self.recall_share > 0 or self.misled_share > 0

    def __post_init__(self) -> None:
        check_settings(self, "objective.")
        if self.own_context_share + self.suffix_share + self.recall_share + self.misled_share > 1:
            raise WorldError(
                f"objective.own_context_share {self.own_context_share}, suffix_share {self.suffix_share}, "
                f"recall_share {self.recall_share} and misled_share {self.misled_share} are parts of one "
                "batch: together at most 1"
            )
        if len(self.pose_jitter) != 2:
            raise WorldError(f"objective.pose_jitter is a length and an angle, got {self.pose_jitter}")


@dataclass(frozen=True, slots=True)
class NoisyBatch:
    """A batch with its noise drawn.

    Attributes:
        clean: `[B, F, C, h, w]`, what is committed.
        noisy: `[B, F, C, h, w]`, what is denoised.
        levels: `[B, F, 2]`, the noise levels of the two.
        velocity: `[B, F, C, h, w]`, the target.
        noise: `[B, F, C, h, w]`, what is in the noisy frames, and what first passes begin from.
    """

    clean: Tensor
    noisy: Tensor
    levels: Tensor
    velocity: Tensor
    noise: Tensor


def mix(latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
    """Return `(1 - t) latents + t noise` for levels t `[B, F]`."""
    levels = levels[..., None, None, None]
    return (1 - levels) * latents + levels * noise


def add_noise(
    latents: Tensor,
    config: ObjectiveConfig,
    generator: torch.Generator,
    prefixes: Prefixes | None = None,
    context: Tensor | None = None,
) -> NoisyBatch:
    """Draw noise levels and noise of a batch.

    Args:
        latents: `[B, F, C, h, w]`, what is to be drawn.
        config: Levels and shares.
        generator: Decides them; on the latents' device.
        prefixes: Whose frames are clean as context.
        context: `[B, F, C, h, w]`, what is committed; the same latents if None.
    """
    batch, frames = latents.shape[:2]
    device = latents.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    level = torch.randn(batch, frames, generator=generator, device=device).sigmoid()
    level = shift_level(level, config.level_shift)
    level = torch.where(uniform(batch, frames) < config.pure_noise_probability, 1.0, level)
    context_level = config.context_noise * uniform(batch, frames)
    context_level = torch.where(uniform(batch, 1) < config.context_noise_probability, context_level, 0.0)
    if prefixes is not None:
        low, high = SUFFIX_NOISE
        context_level = context_level.masked_fill(prefixes.prefix, 0.0)
        context_level = torch.where(
            prefixes.noised, low + (high - low) * uniform(batch, frames), context_level
        )
    noise = torch.randn(latents.shape, generator=generator, device=device)
    context_noise = torch.randn(latents.shape, generator=generator, device=device)
    return NoisyBatch(
        clean=mix(latents if context is None else context, context_noise, context_level),
        noisy=mix(latents, noise, level),
        levels=torch.stack([context_level, level], dim=-1),
        velocity=noise - latents,
        noise=noise,
    )
