"""Joining of odometry to a world whose keys are poses: a copy of the world that can be played."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from training.odometry.measures import QUANTILES
from training.odometry.settings import MeasureConfig
from training.world.integrated_poses import load_fitting, network_folder
from training.world.train import add_provenance
from worldsim.errors import WorldError
from worldsim.model.config import MemoryKeys
from worldsim.storage.tensors import read_object
from worldsim.world.rewrite import check_described, save_described
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
        network: Of the odometry that is to follow its poses, or of the run that wrote it; what was measured
            lies in the run.
        config: How it was measured, for the world's card.
        out: Folder of the run.

    Raises:
        WorldError: If it reads the latents of another encoder, or other buttons, or what was measured is not
            what `training.odometry` writes.
    """
    network = network_folder(network)
    odometry, _ = load_fitting(network, world)
    told = describe_errors(network.parent / MEASURES_FILE, config)
    provenance = add_provenance(world.config.provenance, "odometry", told)
    described = replace(world.config, odometry=odometry.config, provenance=provenance)
    save_described(world, described, out / JOINED, odometry=odometry)
    return out / JOINED


def describe_errors(path: Path, config: MeasureConfig) -> str:
    """Return a sentence about an odometry, with what was measured of it if the file is there."""
    told = "taught on recorded poses"
    if not path.is_file():
        return told
    label, told_of = next(iter(QUANTILES)), read_object(path)
    try:
        measured = next(each for name, each in told_of.items() if name != "steps")
        degrees, clips = float(measured[f"shown_heading_{label}_degrees"]), float(measured["clips"])
        share = measured.get(f"shown_place_{label}_share")
        place = "" if share is None else f", the place by {100 * float(share):.1f} % of the way"
    except (StopIteration, KeyError, TypeError, ValueError, AttributeError) as error:
        raise WorldError(f"{path} holds no measures of odometry: it has to lie elsewhere") from error
    told += f"; {config.frames} frames on the heading is off by {degrees:.2f} degrees{place}"
    return f"{told} ({label} of {clips:.0f} held-out paths)"
