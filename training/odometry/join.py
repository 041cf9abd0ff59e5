"""Joining of odometry to a world whose keys are poses: a copy of the world that can be played."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from training.odometry.measures import QUANTILES
from training.odometry.settings import MeasureConfig
from training.world.train import add_provenance
from worldsim.errors import WorldError
from worldsim.model.config import MemoryKeys
from worldsim.model.memory.odometry import load_odometry
from worldsim.storage.files import read_json
from worldsim.world.rewrite import check_described, encoder_digest, save_described
from worldsim.world.world import World

MEASURES_FILE, NETWORK, JOINED = "measures.json", "odometry", "world"
"""Of a run: what was measured, the network, and the world that it was joined to."""


def open_followed(name: str, out: Path) -> World:
    """Load the world that odometry is for, and make sure that `out/world` can be written.

    Raises:
        WorldError: If its keys are no poses; or as `check_described`.
    """
    world = World.from_pretrained(name)
    if (keys := world.config.denoiser.memory_keys) != MemoryKeys.POSE:
        raise WorldError(
            f"world={name}: odometry follows the poses of memory_keys pose, but these are {keys}"
        )
    check_described(world, out / JOINED)
    return world


def join(world: World, network: Path, config: MeasureConfig, out: Path) -> Path:
    """Write `out/world`, a copy of the world with an odometry network, and return it.

    Args:
        world: Loaded from a folder.
        network: Folder of the odometry that is to follow its poses; what was measured of it lies beside it.
        config: How it was measured, for the world's card.
        out: Folder of the run.

    Raises:
        WorldError: If it reads the latents of another encoder, or other buttons.
    """
    odometry, told = load_odometry(network), describe_errors(network.parent / MEASURES_FILE, config)
    if odometry.config.encoder != encoder_digest(world.codec):
        raise WorldError(
            f"the odometry reads the latents of another encoder than that of world {world.config.name!r}"
        )
    provenance = add_provenance(world.config.provenance, "odometry", told)
    described = replace(world.config, odometry=odometry.config, provenance=provenance)
    save_described(world, described, out / JOINED, odometry=odometry)
    return out / JOINED


def describe_errors(path: Path, config: MeasureConfig) -> str:
    """Return a sentence about an odometry, with what was measured of it if the file is there."""
    told = "taught on recorded poses"
    if not path.is_file():
        return told
    label = next(iter(QUANTILES))
    measured = next(each for name, each in read_json(path).items() if name != "steps")
    told += f"; {config.frames} frames on the heading is off by "
    told += f"{measured[f'shown_heading_{label}_degrees']:.2f} degrees"
    if (share := measured.get(f"shown_place_{label}_share")) is not None:
        told += f", the place by {100 * share:.1f} % of the way"
    return f"{told} ({label} of {measured['clips']:.0f} held-out paths)"
