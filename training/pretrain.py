"""Train a world model from nothing: `python -m training.pretrain`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from training.cli.entry import entry
from training.engine.run_folder import RunFolder
from training.engine.train_world import TrainWorldConfig, train_world
from worldsim.data.dataset_info import DatasetInfo
from worldsim.errors import WorldError
from worldsim.model.config import DenoiserConfig
from worldsim.model.denoiser import Denoiser
from worldsim.outcome import OutcomeConfig
from worldsim.sampler import SamplerConfig
from worldsim.settings import REQUIRED, setting
from worldsim.world.world import World, WorldConfig, find_codec


@dataclass(kw_only=True, slots=True)
class PretrainConfig(TrainWorldConfig):
    """Settings of `python -m training.pretrain`, beside those of every training."""

    name: str = setting("world", "Name of the world.")
    codec: str = setting(
        REQUIRED, "Folder of a trained codec, or folder or shipped name of a world whose codec to use."
    )
    model: DenoiserConfig = setting(
        DenoiserConfig,
        "Shape of the network; latent shape and buttons are filled in from the codec and the data.",
    )
    sampler: SamplerConfig = setting(
        SamplerConfig,
        "How frames are drawn in play: denoising passes, and how many of them lie near pure noise "
        "(docs/decisions/0026).",
    )


def build_world(config: PretrainConfig, info: DatasetInfo) -> World:
    """Return an untrained world for a data set."""
    codec = find_codec(config.codec)
    model = replace(
        config.model, latent_shape=list(codec.latent_shape), num_values=list(info.actions.num_values)
    )
    torch.manual_seed(config.loop.seed)
    description = WorldConfig(
        name=config.name,
        licence=info.licence,
        frame_rate=info.frame_rate,
        actions=info.actions,
        denoiser=model,
        codec=codec.config,
        sampler=config.sampler,
        outcome=OutcomeConfig() if model.outcome_heads else None,
        provenance={"data": info.source},
    )
    return World(description, Denoiser(model), codec)


def pretrain(config: PretrainConfig) -> None:
    """Train a world model from nothing, into the folder `config.out`."""
    if not config.data.train:
        raise WorldError("data.train names no folder of gameplay video")
    info = DatasetInfo.load(Path(config.data.train[0]))
    world = build_world(config, info)
    run = RunFolder(config.out, config)
    train_world(config, world, run, has_new_heads=config.model.outcome_heads)


@entry("pretrain", PretrainConfig)
def main(config: PretrainConfig) -> None:
    """Train a world model from nothing."""
    pretrain(config)


if __name__ == "__main__":
    main()
