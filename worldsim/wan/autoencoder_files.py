"""Files of the autoencoder of Wan 2.1, of both layouts, read without running code."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from worldsim.errors import WorldError
from worldsim.storage.files import shown
from worldsim.storage.tensors import CONFIG_FILE, FLOATS, read_object
from worldsim.wan.autoencoder import StreamingAutoencoder, build_autoencoder
from worldsim.wan.sources import open_tensors

ORIGINAL_FILES = ("Wan2.1_VAE.pth", "Wan2.1_VAE.safetensors", "wan_2.1_vae.safetensors")
"""Names of the file beside a transformer in the original layout."""
FOLDER = "vae"
"""Of the autoencoder in the folder of a pipeline of diffusers."""


def find_autoencoder(path: Path) -> Path | None:
    """Return the autoencoder in or beside a checkpoint, a folder or a file; None without one."""
    folder = path if path.is_dir() else path.parent
    places = (folder / FOLDER, *(folder / name for name in ORIGINAL_FILES))
    return next((place for place in places if place.exists()), None)


def load_autoencoder(path: Path, dtype: torch.dtype = torch.float32) -> StreamingAutoencoder:
    """Load the autoencoder from a file or a folder of either layout, or from `vae` in a pipeline's folder.

    Without a `config.json` beside it, its shape is the published one.

    Raises:
        WorldError: If diffusers is not installed, or there is no such autoencoder.
    """
    file = (find_autoencoder(path) or path) if path.is_dir() else path
    folder = file if file.is_dir() else file.parent
    tensors = open_tensors(file)
    named = _diffusers_names(tensors.shapes)
    if "post_quant_conv.weight" not in named:
        first = shown(next(iter(tensors.shapes), "nothing"), 80)
        raise WorldError(f"{path} holds no autoencoder of Wan 2.1 (it has {first})")
    described = read_object(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else {}
    is_ours = described.get("_class_name") == "AutoencoderKLWan"
    config = {name: value for name, value in described.items() if not name.startswith("_")} if is_ours else {}
    module = build_autoencoder(config)
    try:
        streaming = StreamingAutoencoder(module)
    except WorldError as error:
        raise WorldError(f"{path}: {error}") from error
    expected = {name: tuple(each.shape) for name, each in module.state_dict().items()}
    for name, shape in expected.items():
        found = tensors.shapes.get(named.get(name, ""))
        if found != shape:
            told = "lacks" if found is None else f"has the shape {list(found)} of"
            raise WorldError(f"{path} is no autoencoder of Wan 2.1: it {told} {name}, not {list(shape)}")
    if unknown := sorted(named.keys() - expected.keys()):
        raise WorldError(f"{path} is no autoencoder of Wan 2.1: {shown(unknown[0], 80)} is of no use")
    streaming.to(dtype=dtype)
    for name, own in module.state_dict().items():
        tensor = tensors.read(named[name])
        if tensor.dtype not in FLOATS or not tensor.isfinite().all():
            raise WorldError(f"{path}: {name} does not hold finite floating-point numbers")
        own.copy_(tensor)
    return streaming


def _diffusers_names(names: Iterable[str]) -> dict[str, str]:
    """Return the name that diffusers gives each tensor, with its name in the file."""
    given = {name: name for name in names}
    if "decoder.conv1.weight" not in given:
        return given
    try:
        from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
    except ImportError as error:
        raise WorldError('the autoencoder of Wan 2.1 needs diffusers: pip install -e ".[wan]"') from error
    return convert_wan_vae_to_diffusers(given)
