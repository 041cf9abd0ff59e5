"""Training clips: listing and checks first, decoding and encoding later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from training.data.latent_cache import LatentCache
from training.data.latents import (
    DataConfig,
    EpisodeCodec,
    LatentVideo,
    choose_episodes,
    digest_of,
    latent_video,
    precision_on,
)
from training.engine.fabric import Passes, share_passes
from training.world.validation import ValidationConfig, validation_places
from worldsim.actions import ActionLayout
from worldsim.data.sequences import EpisodeReference
from worldsim.errors import WorldError
from worldsim.model.config import DenoiserConfig, MemoryKeys
from worldsim.runtime.cores import worker_count

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def refuse_poses(model: DenoiserConfig, command: str) -> None:
    """Raise `WorldError` for a model whose keys turn by poses, where a command hands none on."""
    if model.memory_keys == MemoryKeys.POSE:
        raise WorldError(
            f"{command} gives no poses to a world with memory_keys pose, which would remember by places in "
            "the frame alone; training.finetune and training.pretrain train such a world"
        )


@dataclass(frozen=True, slots=True)
class Episodes:
    """Recorded play with a world's buttons; nothing is decoded yet."""

    train: Sequence[EpisodeReference]
    heldout: Sequence[EpisodeReference]

    @classmethod
    def of(cls, data: DataConfig, validation: ValidationConfig, actions: ActionLayout) -> Episodes:
        """List the episodes; raises `WorldError` if they have other buttons."""
        return cls(
            choose_episodes(data.train, data.max_frames, actions),
            choose_episodes(data.heldout, validation.max_frames, actions),
        )

    def check_lengths(self, name: str, length: int, *, heldout_only: bool = False) -> None:
        """Raise `WorldError` if no episode to learn from, or none held out, holds so many frames.

        Args:
            name: The setting that asks for them.
            length: Frames of a sequence.
            heldout_only: For what is only measured.
        """
        sets = {"data.heldout": self.heldout} | ({} if heldout_only else {"data.train": self.train})
        for setting, references in sets.items():
            longest = max(reference.num_frames for reference in references)
            if longest < length:
                raise WorldError(
                    f"{name}: sequences of {length} frames fit into no episode of {setting}; the longest "
                    f"has {longest}"
                )


@dataclass(frozen=True, slots=True)
class Footage:
    """Recorded play as a codec's latents.

    Attributes:
        train: What this device learns from.
        parts: The same, cut into what each of its passes draws from.
        heldout: What is measured on.
        places: Where roll-outs begin in it.
        num_frames: Frames of all episodes to learn from, on all devices.
        digests: Of both sets of episodes under this codec, for `RunFolder.check_inputs`.
    """

    train: LatentVideo
    parts: list[LatentVideo]
    heldout: LatentVideo
    places: np.ndarray
    num_frames: int
    digests: dict[str, str]


def own_shares(references: Sequence[EpisodeReference], passes: Passes) -> list[list[EpisodeReference]]:
    """Return the episodes that each of this device's passes learns from.

    No two passes share one, and a device holds those of its own alone: each is decoded once and held once.
    """
    if len(references) < passes.total:
        raise WorldError(f"{passes.total} passes need an episode each, the data hold {len(references)}")
    return [list(references[number :: passes.total]) for number in passes.own]


def own_workers(data: DataConfig, fabric: Fabric) -> int:
    """Return how many processes decode for this device: all devices have the cores of a machine together."""
    return max(1, worker_count(data.num_workers, "data.num_workers") // fabric.world_size)


def cache_for(codec: EpisodeCodec, data: DataConfig, device: torch.device) -> LatentCache | None:
    """Return where encoded video is kept; None if it is not to be."""
    folder = Path(data.cache_folder) if data.cache_folder else None
    return LatentCache(codec, precision_on(device), folder) if data.cache_latents else None


def load_footage(
    codec: EpisodeCodec,
    episodes: Episodes,
    data: DataConfig,
    validation: ValidationConfig,
    fabric: Fabric,
    passes: Passes | None = None,
) -> Footage:
    """Encode episodes on the device, or read what any command encoded before by the same codec.

    Args:
        codec: Moved to the device.
        episodes: All that there are.
        data: How to decode, and where to keep latents.
        validation: How long held-out sequences are.
        fabric: The devices.
        passes: Of an update; None is one on each device.
    """
    shares = own_shares(episodes.train, passes or share_passes(fabric, 1, 0))
    cache = cache_for(codec, data, fabric.device)
    num_workers = own_workers(data, fabric)

    def encode(references: Sequence[EpisodeReference]) -> LatentVideo:
        return latent_video(codec, references, fabric.device, num_workers=num_workers, cache=cache)

    train, heldout = encode([each for share in shares for each in share]), encode(episodes.heldout)
    return Footage(
        train=train,
        parts=train.split([len(share) for share in shares]),
        heldout=heldout,
        places=validation_places(heldout, validation),
        num_frames=sum(reference.num_frames for reference in episodes.train),
        digests={
            "train": digest_of(codec, episodes.train),
            "heldout": digest_of(codec, episodes.heldout),
        },
    )
