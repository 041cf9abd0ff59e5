"""Sharpening of a world for one denoising step: `python -m training.sharpen init=WORLD`.

The world draws roll-outs of its own, one pass a frame, and learns against a critic of whole clips, or by the
energy score of two draws. It is measured on held-out video meanwhile, and the run ends at the last weights
that kept all rules.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from training.cli.entry import entry
from training.engine.run_folder import FREE_SETTINGS, RunFolder
from training.sharpen.settings import RulesConfig, SharpenConfig
from training.sharpen.train import sharpen
from training.world.train import add_provenance
from worldsim.data.dataset_info import DatasetInfo
from worldsim.world import World

FREE = (*FREE_SETTINGS, *(f"rules.{rule.name}" for rule in fields(RulesConfig)))
"""Settings that a resumed run may change: the rules decide when it ends, not what it computes."""


@entry("sharpen", SharpenConfig)
def main(config: SharpenConfig) -> None:
    """Sharpen a world."""
    world = World.from_pretrained(config.init)
    begun_from = world.identity
    for folder in config.data.train:
        info = DatasetInfo.load(Path(folder))
        source, licence = info.source or "source not stated", info.licence or "licence not stated"
        learned = f"sharpened on {info.name} ({source}; {licence})"
        world.config.provenance = add_provenance(world.config.provenance, "data", learned)
    world.config.name = config.name or world.config.name
    sharpen(config, world, RunFolder(config.out, config, FREE), begun_from)
