"""Comparison of a softmax world with its conversions: same places, same noise, same measurements."""

# N clips, F frames

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from worldsim.errors import WorldError
from worldsim.evaluation.quality.rollouts import CODEC, COPY, DREAM, MEAN, FrameScores
from worldsim.evaluation.statistics import Estimate, estimate_of
from worldsim.sampler import SamplerConfig
from worldsim.world import World

HORIZONS = (1, 8, 32, 64, 128)


def chosen_sampler(world: World, num_steps: int | None, commit_level: float | None) -> SamplerConfig:
    """Return a world's sampler with what is not None in the place of its own."""
    sampler = world.config.sampler
    if num_steps is not None:
        sampler = replace(sampler, num_steps=num_steps)
    return sampler if commit_level is None else replace(sampler, commit_level=commit_level)


def check_comparable(teacher: World, name: str, world: World) -> None:
    """Raise `WorldError` if a world draws other pictures or has other buttons than the teacher."""
    ours, theirs = world.config.actions.buttons, teacher.config.actions.buttons
    if ours != theirs:
        raise WorldError(
            f"{name} has the buttons {', '.join(ours)}, the teacher has {', '.join(theirs)}: "
            "they are not comparable"
        )
    weights, own = world.codec.state_dict(), teacher.codec.state_dict()
    if world.config.codec != teacher.config.codec or not all(  # in bf16, which worlds are stored in
        torch.equal(tensor.bfloat16(), own[key].bfloat16()) for key, tensor in weights.items()
    ):
        raise WorldError(f"{name} has another codec than the teacher: their pictures are not comparable")


@dataclass(frozen=True, slots=True)
class WorldDescription:
    """A world, the number of its layers by kind, and how it is sampled; `commit_level` is 0 to 1."""

    identity: str
    layers: dict[str, int]
    parameters: int
    denoising_steps: int
    commit_level: float
    folder: str | None = None


def describe(world: World, sampler: SamplerConfig, folder: str | None = None) -> WorldDescription:
    """Return what a world is."""
    layers, steps = world.config.denoiser.layer_counts, sampler.num_steps
    return WorldDescription(world.identity, layers, world.num_parameters, steps, sampler.commit_level, folder)


@dataclass(frozen=True, slots=True)
class HorizonPsnr:
    """PSNR of roll-outs at each of `HORIZONS`, and the mean of each frame, `[F]`."""

    psnr_db: dict[int, Estimate]
    psnr_curve_db: list[float]


@dataclass(frozen=True, kw_only=True, slots=True)
class ConversionQuality(HorizonPsnr):
    """The same of a world, and the difference to others at the same places."""

    num_rollouts: int
    num_episodes: int
    over_teacher_db: dict[int, Estimate]
    over_original_db: dict[int, Estimate] | None = None


def summarize_quality(
    scores: FrameScores, teacher: FrameScores, original: FrameScores | None
) -> ConversionQuality:
    """Compare roll-outs of the same clips; `original` is of the same world with its states, if zeroed."""
    psnr, episodes = scores.psnr[DREAM], scores.episodes
    over = None if original is None else _at_horizons(psnr - original.psnr[DREAM], episodes)
    return ConversionQuality(
        psnr_db=_at_horizons(psnr, episodes),
        psnr_curve_db=psnr.mean(axis=0).round(3).tolist(),
        num_rollouts=len(psnr),
        num_episodes=len(set(episodes)),
        over_teacher_db=_at_horizons(psnr - teacher.psnr[DREAM], episodes),
        over_original_db=over,
    )


def summarize_references(scores: FrameScores) -> dict[str, HorizonPsnr]:
    """Return what a world is measured against: the codec's ceiling, and two standing pictures.

    These are the last real frame and the mean one. Where a dream is no better than the mean, its PSNR says
    how flat its pictures are, not what they show.
    """
    return {
        method: HorizonPsnr(
            _at_horizons(scores.psnr[method], scores.episodes),
            scores.psnr[method].mean(axis=0).round(3).tolist(),
        )
        for method in (CODEC, COPY, MEAN)
    }


def _at_horizons(values: np.ndarray, episodes: Sequence[str]) -> dict[int, Estimate]:
    """Return the mean over clips with its interval, of `[N, F]` values at each horizon."""
    places = [place for place in HORIZONS if place <= values.shape[1]]
    return {place: estimate_of(values[:, place - 1], episodes) for place in places}
