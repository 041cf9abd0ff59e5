"""Rewriting of a world's description and card, keeping its weights.

Its outcome heads may be others, too: all other weights are then copied as they are.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from safetensors.torch import load_file

from worldsim.errors import WorldError
from worldsim.model.outcome_heads import OutcomeHeads
from worldsim.storage.tensors import check_file, filling, write_tensors
from worldsim.world.config import world_card
from worldsim.world.world import CARD_FILE, MODEL_FILE, World, WorldConfig, read_config, write_config

HEADS_PREFIX = "outcome."
"""Of the heads' names among the weights of a network."""


def check_described(world: World, folder: Path) -> None:
    """Make sure, before an hour of work, that a loaded world can be rewritten without touching it.

    Raises:
        WorldError: If the folder exists already, lies in the world's own or where nothing can be written, or
            a file of the world is missing or altered.
    """
    assert world.folder is not None, "a world that was loaded"
    if folder.exists() or folder.is_symlink():
        raise WorldError(f"{folder} exists already: name a new folder for the world")
    if world.folder.resolve() in folder.resolve().parents:
        raise WorldError(f"{folder} lies in the folder of the world itself, {world.folder}")
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise WorldError(f"{folder} cannot be made: {above} is no folder that can be written to")
    for name, checksum in read_config(world.folder)[1].items():
        check_file(world.folder, name, checksum)


def save_described(
    world: World, config: WorldConfig, folder: Path, *, heads: OutcomeHeads | None = None
) -> None:
    """Write a loaded world under another description, completely or not at all.

    Weights, start moments and a policy are copied byte for byte, so a saved state of the one belongs to the
    other. Files that the world does not list are left behind.

    Args:
        config: The new description, of the same network and codec.
        heads: Outcome heads to take the place of the world's own. A saved state holds what they pooled, so it
            belongs to one of the two worlds only.

    Raises:
        WorldError: If there is something already, or a file of the world is missing or altered.
        OSError: If it cannot be written.
    """
    check_described(world, folder)
    assert world.folder is not None, "a world that was loaded"
    with filling(folder) as part:
        for name in read_config(world.folder)[1]:
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(world.folder / name, part / name)
        if heads is not None:
            _replace_heads(part / MODEL_FILE, heads)
        (part / CARD_FILE).write_text(world_card(config, world.num_parameters), encoding="utf-8")
        write_config(part, config)
        part.rename(folder)


def _replace_heads(path: Path, heads: OutcomeHeads) -> None:
    """Put heads into a file of weights, each rounded to the format of the one whose place it takes."""
    tensors = load_file(path)
    for name, tensor in heads.state_dict().items():
        known = tensors[f"{HEADS_PREFIX}{name}"]
        tensors[f"{HEADS_PREFIX}{name}"] = tensor.detach().to("cpu", known.dtype)
    write_tensors(tensors, path)
