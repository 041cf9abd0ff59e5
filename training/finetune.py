"""Finetuning of a world on any folder of gameplay video: `python -m training.finetune init=WORLD`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from training.cli.entry import entry
from training.engine.run_folder import RunFolder
from training.video.finetune import finetune_video
from training.video.footage import refuse_given
from training.world.settings import TrainWorldConfig
from training.world.train import add_provenance, told_by, train_world
from training.world.transfer import take_over
from worldsim.data.dataset_info import DatasetInfo
from worldsim.model.config import FINEST, MemoryKeys, MemoryPhase
from worldsim.model.denoiser import Denoiser
from worldsim.outcome import OutcomeConfig
from worldsim.settings import REQUIRED, setting
from worldsim.world import World, WorldConfig
from worldsim.world.video import VideoWorld


@dataclass(kw_only=True, slots=True)
class FinetuneConfig(TrainWorldConfig):
    """Settings of `python -m training.finetune`, beside those of every training."""

    init: str = setting(REQUIRED, "The world to start from: a shipped name, a folder, or a Hugging Face id.")
    name: str = setting("", "Name of the new world; '' keeps the old one's.")
    outcome_heads: bool = setting(
        False,
        "Give the world heads for reward and end if it has none; the video must record both "
        "(docs/decisions/0017). Where it has some they go on learning in any case.",
    )
    recycled: bool = setting(
        False,
        "Make the world one that needs no pass to remember a frame (model.recycled, docs/decisions/0043): "
        "its weights fit, but have to learn it. One that is recycled stays so in any case.",
    )
    memory_keys: str | None = setting(
        None,
        "Give the memory keys of another kind (`MemoryKeys`); null keeps those it has. What its states hold "
        "is learned anew, beginning with the half-lives and strengths below.",
        choices=tuple(MemoryKeys),
    )
    half_lives: list[float] = setting(
        [256.0, 8192.0], "Of a memory whose keys are changed; see `model.half_lives`."
    )
    write_biases: list[float] = setting(
        [-2.0, -4.5], "Of a memory whose keys are changed; see `model.write_biases`."
    )


def add_outcome_heads(world: World, seed: int) -> World:
    """Return a world without outcome heads with untrained ones; it draws the same frames."""
    shape = replace(world.config.denoiser, outcome_heads=True)
    torch.manual_seed(seed)
    described = replace(world.config, denoiser=shape, outcome=OutcomeConfig())
    return reshaped(world, described)


def change_keys(world: World, config: FinetuneConfig) -> World:
    """Return a world whose memory has other keys, and has learned nothing under them.

    A path that led to the old ones is left behind. Under keys of poses dreams write what is new alone.
    """
    keys, old = MemoryKeys(config.memory_keys), world.config.denoiser
    is_pose = keys is MemoryKeys.POSE
    shape = replace(
        old,
        memory_keys=keys,
        memory_phase=MemoryPhase.NONE if is_pose else old.memory_phase,
        path_odometry=old.path_odometry and not is_pose,
        full_path=old.full_path and not is_pose,
        finest_key=old.finest_key if keys is MemoryKeys.PLANE else FINEST,
        keyed_places=True,
        level_map=old.level_map if is_pose else 0,
        half_lives=list(config.half_lives),
        write_biases=list(config.write_biases),
    )
    torch.manual_seed(config.loop.seed)
    denoiser = Denoiser(shape)
    take_over(denoiser, world.denoiser)
    odometry = world.odometry if is_pose else None
    sampler = replace(world.config.sampler, write_novelty=1.0 if is_pose else 0.0)
    described = replace(world.config, denoiser=shape, odometry=None, sampler=sampler)
    return World(described, denoiser, world.codec, world.folder, odometry)


def reshaped(world: World, described: WorldConfig) -> World:
    """Return a world of another description with the weights of this one, and fresh ones it has not."""
    denoiser = Denoiser(described.denoiser)
    denoiser.load_state_dict(denoiser.state_dict() | world.denoiser.state_dict())
    return World(described, denoiser, world.codec, world.folder, world.odometry)


def continued(before: dict[str, Any], folders: Sequence[str]) -> dict[str, Any]:
    """Return the provenance of a world that goes on from another one with more video.

    Args:
        before: Of the other one. What was measured of it, and its limits, are not the new one's.
        folders: Of the video.
    """
    provenance = {name: told for name, told in before.items() if name != "measured"}
    for folder in folders:
        info = DatasetInfo.load(Path(folder))
        source, licence = info.source or "source not stated", info.licence or "licence not stated"
        provenance = add_provenance(
            provenance, "data", f"finetuned on {info.name} ({source}; {licence})"
        ) | told_by(info)
    return provenance


def check_kind(config: FinetuneConfig) -> None:
    """Raise `WorldError` if a video world is to get what worlds of single frames have."""
    refuse_given(
        {
            "outcome_heads": (config.outcome_heads, False),
            "recycled": (config.recycled, False),
            "memory_keys": (config.memory_keys, None),
        }
    )


@entry("finetune", FinetuneConfig)
def main(config: FinetuneConfig) -> None:
    """Go on training a world."""
    world = World.from_pretrained(config.init)
    begun_from = world.identity
    world.config.provenance = continued(world.config.provenance, config.data.train)
    if not isinstance(world, VideoWorld):  # whose limits are its kind's, and looked at one by one
        world.config.provenance.pop("limits", None)
    world.config.name = config.name or world.config.name
    if isinstance(world, VideoWorld):
        check_kind(config)
        finetune_video(config, world, RunFolder(config.out, config), begun_from)
        return
    has_new_heads = config.outcome_heads and not world.config.denoiser.outcome_heads
    if has_new_heads:
        world = add_outcome_heads(world, config.loop.seed)
    if config.recycled and not world.config.denoiser.recycled:
        shape = replace(world.config.denoiser, recycled=True)
        world = reshaped(world, replace(world.config, denoiser=shape))
    if config.memory_keys not in (None, world.config.denoiser.memory_keys):
        world = change_keys(world, config)
    run = RunFolder(config.out, config)
    train_world(config, world, run, has_new_heads=has_new_heads, begun_from=begun_from)


if __name__ == "__main__":
    main()
