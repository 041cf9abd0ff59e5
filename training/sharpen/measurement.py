"""Measurements of held-out roll-outs during a sharpening, and the rules by which they end it."""

# B clips, T frames, C h w latent size, H W frame size

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.data.latents import LatentVideo
from training.sharpen.rollouts import roll_out, watch_clips
from training.sharpen.settings import RulesConfig
from worldsim.codec import FrameCodec
from worldsim.errors import WorldError
from worldsim.evaluation.metrics import as_images, psnr, sharpness
from worldsim.evaluation.quality.distances import fid
from worldsim.evaluation.quality.features import FeatureNetwork, load_features
from worldsim.model.config import MemoryKeys
from worldsim.model.denoiser import Denoiser
from worldsim.runtime.noise import COMMIT_FRAME, DRAW_FRAME, WATCH_FRAME, draw_noise
from worldsim.sampler import SamplerConfig
from worldsim.storage.files import read_json, write_json

Numbers = dict[str, float]
FLOOR = 1e-6
"""Of what is divided by: a black screen has no gradients."""


@torch.no_grad()
def measure(
    denoiser: Denoiser,
    codec: FrameCodec,
    video: LatentVideo,
    places: np.ndarray,
    prefix_frames: int,
    horizons: Sequence[int],
    sampler: SamplerConfig,
) -> Numbers:
    """Return how sharp roll-outs are and how much they move, over real frames as the codec decodes them.

    Args:
        denoiser: The world's network, on the video's device.
        codec: The world's.
        video: Held-out episodes.
        places: Where the clips begin.
        prefix_frames: Frames that are watched.
        horizons: Frames of the roll-outs, from 1, whose gradient energy is taken.
        sampler: How frames are drawn.

    Returns:
        `energy_T` for each horizon T; `motion` and `fid`, by the shipped feature network, of all frames up to
        the last horizon; `psnr_1_db`.
    """
    count = max(horizons)
    latents, actions = video.sequences(places, prefix_frames + count)
    latents = latents.float()
    shape, rows, device = denoiser.latent_shape, len(places), latents.device
    watched = fixed_noise(rows, prefix_frames, shape, WATCH_FRAME, device)
    has_poses = denoiser.config.memory_keys == MemoryKeys.POSE
    length, on_map = prefix_frames + count, denoiser.config.level_map > 0
    poses = video.pose_sequences(places, length, on_map=on_map) if has_poses else None
    seen, later = (None, None) if poses is None else (poses[:, :prefix_frames], poses[:, prefix_frames:])
    memory = watch_clips(denoiser, latents[:, :prefix_frames], actions[:, :prefix_frames], watched, seen)
    noise, commit_noise = (
        fixed_noise(rows, count, shape, purpose, device) for purpose in (DRAW_FRAME, COMMIT_FRAME)
    )
    ahead = actions[:, prefix_frames:]
    drawn = roll_out(
        denoiser, memory, ahead, noise, commit_noise, sampler, num_watched=prefix_frames, poses=later
    )
    last, real = latents[:, prefix_frames - 1 : prefix_frames], latents[:, prefix_frames:]
    network = load_features(device=device)
    own, true = (statistics(codec, network, torch.cat([last, frames], dim=1)) for frames in (drawn, real))
    found = {f"energy_{t}": float(own.energy[t] / true.energy[t].clamp_min(FLOOR)) for t in horizons}
    found["motion"] = float(own.motion.mean() / true.motion.mean().clamp_min(FLOOR))
    found["fid"] = fid(own.features, true.features)
    first = psnr(codec.decode(drawn[:, 0]), codec.decode(real[:, 0]))
    return found | {"psnr_1_db": float(first.mean())}


def fixed_noise(
    rows: int, count: int, shape: tuple[int, int, int], purpose: int, device: torch.device
) -> Tensor:
    """Return the noise of play for seeds and frames from 0 on, `[rows, count, C, h, w]`."""
    seeds = torch.arange(rows)
    columns = [draw_noise(seeds, torch.full_like(seeds, index), shape, purpose) for index in range(count)]
    return torch.stack(columns, dim=1).to(device)


class Statistics(NamedTuple):
    """What is said of decoded clips of T + 1 frames.

    Attributes:
        energy: `[T + 1]`, the gradient energy of each frame, a mean over the clips.
        motion: `[T]`, by how much each frame but the first differs from the one before, a mean as well.
        features: `[B T, D]`, of each frame but the first, on the CPU.
    """

    energy: Tensor
    motion: Tensor
    features: Tensor


def statistics(codec: FrameCodec, network: FeatureNetwork, latents: Tensor) -> Statistics:
    """Return what is said of the frames that a codec decodes of latents `[B, T + 1, C, h, w]`."""
    energies, motions, features, before = [], [], [], None
    for column in latents.unbind(1):
        frames = codec.decode(column)
        energies.append(sharpness(frames).mean())
        images = as_images(frames)
        if before is not None:
            motions.append((images - before).abs().mean())
            features.append(network.embed(frames))
        before = images
    return Statistics(torch.stack(energies), torch.stack(motions), torch.cat(features))


@dataclass(frozen=True, slots=True)
class Bound:
    """What a measured number must keep, and what is wrong where it does not."""

    name: str
    minimum: float
    maximum: float
    meaning: str

    def holds(self, numbers: Mapping[str, float]) -> bool:
        """Whether the number was measured and lies within the bounds."""
        return self.name in numbers and self.minimum <= numbers[self.name] <= self.maximum


def bounds_of(config: RulesConfig) -> Iterator[Bound]:
    """Yield the rules."""
    for t in config.horizons:
        meaning = f"the gradient energy of roll-outs at frame {t} over the real one"
        yield Bound(f"energy_{t}", 0.0, config.max_energy, meaning)
    yield Bound("motion", config.min_motion, config.max_motion, "the motion of roll-outs over the real one")
    yield Bound("logit_gap", -np.inf, config.max_gap, "the gap between the critic's logits")
    yield Bound(
        "psnr_drop_db",
        -np.inf,
        config.max_psnr_drop,
        "the loss of PSNR in dB of the first frame since the beginning",
    )


class History:
    """What was measured in a run, in a file beside its checkpoints.

    Args:
        path: The file.
        config: The rules.
    """

    def __init__(self, path: Path, config: RulesConfig) -> None:
        self.path, self.config = path, config
        self.entries: list[Numbers] = []

    def load(self, step: int) -> None:
        """Read what was measured up to an update; what came after it was lost with the checkpoint.

        Raises:
            WorldError: If the file is damaged.
        """
        if not self.path.is_file():
            return
        found = read_json(self.path)
        if not isinstance(found, list) or not all(isinstance(e, dict) and "step" in e for e in found):
            raise WorldError(f"{self.path} holds no measurements of a run; choose another out= folder")
        self.entries = [entry for entry in found if entry["step"] <= step]

    def add(self, step: int, numbers: Numbers) -> Numbers:
        """Keep numbers measured at an update; returns them with the loss of PSNR since the beginning."""
        first = self.entries[0] if self.entries else numbers
        numbers = numbers | {"psnr_drop_db": first["psnr_1_db"] - numbers["psnr_1_db"]}
        self.entries = [entry for entry in self.entries if entry["step"] < step] + [numbers | {"step": step}]
        return numbers

    def save(self) -> None:
        """Write the file."""
        write_json(self.path, self.entries)

    @property
    def last_step(self) -> int:
        """Update of the newest entry; -1 without one."""
        return int(self.entries[-1]["step"]) if self.entries else -1

    def ended(self) -> str:
        """Return what ends the run, in words: `patience` entries in a row, up to the newest, break a rule."""
        newest = [self.broken(number) for number in range(self.config.patience)]
        return newest[0] if all(newest) else ""

    def broken(self, ago: int = 0) -> str:
        """Return what an entry breaks, in words; empty if it keeps all rules, or there is none.

        A rule holds from the first entry that keeps it: a world that moves too little before it is trained
        does not end its training by that.

        Args:
            ago: Which one: so many before the newest.
        """
        entries = self.entries[: len(self.entries) - ago]
        if not entries:
            return ""
        *before, last = entries
        for bound in bounds_of(self.config):
            was_kept = any(bound.holds(entry) for entry in before)
            if was_kept and bound.name in last and not bound.holds(last):
                value = last[bound.name]
                side = "above" if value > bound.maximum else "below"
                limit = bound.maximum if value > bound.maximum else bound.minimum
                return f"{bound.meaning} is {value:.3g}, {side} {limit:g}"
        return ""
