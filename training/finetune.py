"""Go on training a world on any folder of gameplay video: `python -m training.finetune init=WORLD`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training.entry import entry
from training.run import RunFolder
from training.world_model import TrainWorldConfig, add_provenance, train_world
from worldsim.data.dataset_info import DatasetInfo
from worldsim.world import World


@dataclass(kw_only=True, slots=True)
class FinetuneConfig(TrainWorldConfig):
    """Settings of `python -m training.finetune`, beside those of every training.

    Attributes:
        init: The world to start from: a shipped name, a folder, or a hub id.
        name: Name of the new world; empty keeps the old one's.
    """

    init: str
    name: str = ""


@entry("finetune", FinetuneConfig)
def main(config: FinetuneConfig) -> None:
    """Go on training a world."""
    world = World.from_pretrained(config.init)
    for folder in config.data.train:
        info = DatasetInfo.load(Path(folder))
        source, licence = info.source or "source not stated", info.licence or "licence not stated"
        learned = f"finetuned on {info.name} ({source}; {licence})"
        world.config.provenance = add_provenance(world.config.provenance, "data", learned)
    world.config.name = config.name or world.config.name
    train_world(config, world, RunFolder(config.out, config))


if __name__ == "__main__":
    main()
