"""Rewriting of a world's description and card, keeping its weights.

Its outcome heads, its decoder or its odometry may be others, too: all other weights are then copied as they
are.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from worldsim.codec import FrameCodec, load_codec
from worldsim.errors import WorldError
from worldsim.model.memory.odometry import WEIGHTS_FILE as ODOMETRY_FILE
from worldsim.model.memory.odometry import Odometry
from worldsim.model.outcome_heads import OutcomeHeads
from worldsim.storage.quantization import quantize_weights
from worldsim.storage.tensors import CODEC_FILE, as_stored, check_file, filling, save_weights, write_tensors
from worldsim.world.config import world_card
from worldsim.world.world import CARD_FILE, MODEL_FILE, World, WorldConfig, read_config, write_config

DECODER = "decoder"
"""Begins the names of the decoder's weights and settings."""
HEADS_PREFIX = "outcome."
"""Of the heads' names among the weights of a network."""


def is_same_encoder(codec: FrameCodec, other: FrameCodec) -> bool:
    """Whether two codecs make the same latents, bit for bit; their decoders may differ."""
    first, second = (asdict(each.config) for each in (codec, other))
    if any(first[name] != second[name] for name in first if not name.startswith(DECODER)):
        return False
    others = other.state_dict()
    return all(
        name.startswith(DECODER) or torch.equal(tensor.float().cpu(), others[name].float().cpu())
        for name, tensor in codec.state_dict().items()
    )


def encoder_digest(codec: FrameCodec) -> str:
    """Return a digest of what makes a codec's latents; equal where `is_same_encoder` holds."""
    config = {name: value for name, value in asdict(codec.config).items() if not name.startswith(DECODER)}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(codec.state_dict().items()):
        if not name.startswith(DECODER):
            digest.update(name.encode() + tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


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
    world: World,
    config: WorldConfig,
    folder: Path,
    *,
    heads: OutcomeHeads | None = None,
    codec: FrameCodec | None = None,
    odometry: Odometry | None = None,
) -> None:
    """Write a loaded world under another description, completely or not at all.

    Weights, start moments and a policy are copied byte for byte, so a saved state of the one belongs to the
    other. Files that the world does not list are left behind.

    Args:
        config: The new description, of the same network, and of `codec` where it is given.
        heads: Outcome heads to take the place of the world's own. A saved state holds what they pooled, so it
            belongs to one of the two worlds only.
        codec: Its decoder takes the place of the world's own; its encoder is the world's, bit for bit.
        odometry: Takes the place of the world's own, if it has any; `config` describes it.

    Raises:
        WorldError: If there is something already, a file of the world is missing or altered, or the encoder
            is another.
        OSError: If it cannot be written.
    """
    check_described(world, folder)
    assert world.folder is not None, "a world that was loaded"
    if codec is not None and not is_same_encoder(load_codec(world.folder), codec):
        raise WorldError(
            f"the codec has another encoder than world {world.config.name!r}: train a decoder for it from "
            f"its own codec, init={world.folder}"
        )
    with filling(folder) as part:
        for name in read_config(world.folder)[1]:
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(world.folder / name, part / name)
        if heads is not None:
            _replace_heads(part / MODEL_FILE, heads)
        num_parameters = world.num_parameters
        if codec is not None:
            _replace_decoder(part / CODEC_FILE, codec)
            num_parameters += _num_parameters(codec) - _num_parameters(world.codec)
        if odometry is not None:
            save_weights(odometry, part / ODOMETRY_FILE, torch.float32)
            num_parameters += _num_parameters(odometry)
            num_parameters -= 0 if world.odometry is None else _num_parameters(world.odometry)
        (part / CARD_FILE).write_text(world_card(config, num_parameters), encoding="utf-8")
        write_config(part, config)
        part.rename(folder)


def _replace_heads(path: Path, heads: OutcomeHeads) -> None:
    """Put heads into a file of weights, each rounded to the format of the one whose place it takes."""
    tensors = load_file(path)
    for name, tensor in heads.state_dict().items():
        place, weight = f"{HEADS_PREFIX}{name}", tensor.detach().cpu()
        if tensors[place].dtype == torch.int8:
            tensors |= quantize_weights({place: weight})
        else:
            tensors[place] = weight.to(tensors[place].dtype)
    write_tensors(tensors, path)


def _replace_decoder(path: Path, codec: FrameCodec) -> None:
    """Put a decoder into a file of weights, rounded to the format of the one whose place it takes."""
    before = load_file(path)
    tensors = {name: tensor for name, tensor in before.items() if not name.startswith(DECODER)}
    bits = 8 if any(tensor.dtype == torch.int8 for tensor in before.values()) else 16
    decoder = {name: tensor for name, tensor in codec.state_dict().items() if name.startswith(DECODER)}
    write_tensors(tensors | as_stored(decoder, next(iter(tensors.values())).dtype, bits=bits), path)


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
