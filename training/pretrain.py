"""Pretraining of a world model: `python -m training.pretrain`."""

from __future__ import annotations

from training.cli.entry import entry
from training.world.settings import PretrainConfig
from training.world.train import pretrain


@entry("pretrain", PretrainConfig)
def main(config: PretrainConfig) -> None:
    """Train a world model from nothing."""
    pretrain(config)


if __name__ == "__main__":
    main()
