"""A world under another description: the same files, with a new `config.json` and a new card."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath

from worldsim.card import world_card
from worldsim.errors import WorldError
from worldsim.weights import CONFIG_FILE, check_file
from worldsim.world import CARD_FILE, World, WorldConfig, read_config, write_config


def check_described(world: World, folder: Path) -> None:
    """Make sure, before an hour of work, that a loaded world can be written anew without touching it.

    Raises:
        WorldError: If the folder exists already or lies in the world's own, or a file of the world is missing
            or altered.
    """
    assert world.folder is not None, "a world that was loaded"
    if folder.exists() or folder.is_symlink():
        raise WorldError(f"{folder} exists already: name a new folder for the world")
    if world.folder.resolve() in folder.resolve().parents:
        raise WorldError(f"{folder} lies in the folder of the world itself, {world.folder}")
    for name, checksum in read_config(world.folder)[1].items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise WorldError(f"{world.folder / CONFIG_FILE} lists {name!r}, which is not in its folder")
        check_file(world.folder / name, checksum)


def save_described(world: World, config: WorldConfig, folder: Path) -> None:
    """Write a loaded world under another description, completely or not at all.

    Weights, start moments and a policy are copied byte for byte, so a saved state of the one belongs to the
    other. Files that the world does not list are left behind.

    Args:
        world: Loaded from a folder, which stays as it is.
        config: The new description, of the same network and codec.
        folder: Where to; there must be nothing.

    Raises:
        WorldError: If there is something already, or a file of the world is missing or altered.
        OSError: If it cannot be written.
    """
    check_described(world, folder)
    assert world.folder is not None, "a world that was loaded"
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        for name in read_config(world.folder)[1]:
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(world.folder / name, part / name)
        (part / CARD_FILE).write_text(world_card(config, world.num_parameters))
        write_config(part, config)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
