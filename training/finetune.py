"""Go on training a world on any folder of gameplay video: `python -m training.finetune init=WORLD`."""

from __future__ import annotations

from dataclasses import dataclass

from training.entry import entry
from training.run import RunFolder
from training.world_model import TrainWorldConfig, train_world
from worldsim.world import World


@dataclass(kw_only=True, slots=True)
class FinetuneConfig(TrainWorldConfig):
    """Settings of `python -m training.finetune`, beside those of every training.

    Attributes:
        init: The world to start from: a shipped name, a folder, or a hub id.
    """

    init: str


@entry("finetune", FinetuneConfig)
def main(config: FinetuneConfig) -> None:
    """Go on training a world."""
    world = World.from_pretrained(config.init)
    train_world(config, world, RunFolder(config.out, config))


if __name__ == "__main__":
    main()
