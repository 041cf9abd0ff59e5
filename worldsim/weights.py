"""Weights on disk: safetensors only, checked before they are loaded, written completely or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from worldsim.codec import CodecConfig, FrameCodec
from worldsim.errors import WorldError

CONFIG_FILE, CODEC_FILE, CODEC_CONFIG_FILE = "config.json", "codec.safetensors", "codec.json"
PICKLES = {".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin"}

Module = TypeVar("Module", bound=nn.Module)
Shape = TypeVar("Shape")


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(path: Path, expected: str | None) -> None:
    """Raise `WorldError` unless the file exists and has the checksum that `config.json` names."""
    if not path.is_file():
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        pickles = [p.name for p in beside if p.suffix in PICKLES]
        hint = f" (it holds {pickles[0]}, a pickle, which is never loaded)" if pickles else ""
        raise WorldError(f"{path.parent} is not a complete world: it has no {path.name}{hint}")
    if expected is None:
        raise WorldError(f"the world's {CONFIG_FILE} names no checksum for {path}")
    if sha256_of(path) != expected:
        raise WorldError(f"{path} is damaged or was altered: its SHA-256 is not the one in {CONFIG_FILE}")


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        WorldError: If it holds anything else.
    """
    try:
        data = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WorldError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise WorldError(f"{path} is not a JSON object but a {type(data).__name__}")
    return data


def read_checksums(data: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that a description `data`, read from `path`, names under `files`.

    Raises:
        WorldError: If they are not names and texts.
    """
    files = data.get("files", {})
    if not isinstance(files, dict) or not all(isinstance(value, str) for value in files.values()):
        raise WorldError(f"{path}: files must be an object of file names and their SHA-256")
    return files


def load_weights(build: Callable[[], Module], path: Path, described_in: str = CONFIG_FILE) -> Module:
    """Build a module and fill it from a safetensors file; every tensor must fit.

    Args:
        build: Makes the module, from a description that may be damaged.
        path: The safetensors file.
        described_in: File that holds the description.

    Raises:
        WorldError: If the module cannot be built, or the file is damaged or of another shape.
    """
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WorldError(f"{path} is not a safetensors file: {error}") from error
    try:
        module = build()
        module.load_state_dict(tensors, strict=True)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise WorldError(f"{path} does not fit the shapes in {described_in}: {reason}") from error
    return module


def save_weights(module: nn.Module, path: Path, dtype: torch.dtype) -> None:
    """Write a module's tensors in `dtype`.

    Raises:
        OSError: If the file cannot be written.
    """
    write_tensors({name: t.detach().to("cpu", dtype) for name, t in module.state_dict().items()}, path)


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, completely or not at all; a file that is there is replaced.

    Args:
        tensors: Tensors by name, on any device.
        path: File to write; its folder must exist.
        metadata: Texts to keep in the file's header.

    Raises:
        OSError: If the file cannot be written, on a full disk above all; it names `path`.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # two processes may write the same file
    try:
        save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, part, metadata=metadata)
        part.replace(path)
    except SafetensorError as error:  # neither an OSError nor a ValueError
        found = re.search(r"I/O error: (.+?) \(os error (\d+)\)", str(error))
        if found is None:
            raise OSError(f"{path} cannot be written: {error}") from error
        raise OSError(int(found[2]), found[1], str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def swap_folder(new: Path, target: Path) -> None:
    """Put `new` in the place of `target`, keeping the old one until the new one stands.

    Raises:
        OSError: If it cannot be moved; the old one is back in its place then.
    """
    old = target.with_name(target.name + ".old")
    try:
        if target.exists():  # otherwise an old one, left when a swap was killed, is the only copy
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        new.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def save_codec(codec: FrameCodec, folder: Path) -> None:
    """Write a codec on its own, as a folder; worlds carry a copy of it."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        save_weights(codec, part / CODEC_FILE, torch.float32)
        data = {"codec": asdict(codec.config), "files": {CODEC_FILE: sha256_of(part / CODEC_FILE)}}
        (part / CODEC_CONFIG_FILE).write_text(json.dumps(data, indent=2) + "\n")
        swap_folder(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def read_shape(path: Path, key: str, shape: type[Shape], name: str) -> tuple[Shape, dict[str, str]]:
    """Read what a JSON file says of a network's shape, and the checksums of the files beside it.

    Args:
        path: The file.
        key: Of the object in it that describes the network.
        shape: What that object is made into.
        name: What the network is called in errors.

    Raises:
        WorldError: If there is no such object, or no network has this shape.
    """
    data = read_object(path)
    checksums = read_checksums(data, path)
    if not isinstance(data.get(key), dict):
        raise WorldError(f"{path} describes no {name}: it has no object {key!r}")
    try:
        return shape(**data[key]), checksums
    except (TypeError, ValueError) as error:
        raise WorldError(f"{path}: {error}") from error


def load_codec(folder: Path) -> FrameCodec:
    """Read a codec that `save_codec` or a world's `save_pretrained` wrote.

    Raises:
        WorldError: If the folder holds none, or it is damaged.
    """
    found = [folder / name for name in (CODEC_CONFIG_FILE, CONFIG_FILE) if (folder / name).is_file()]
    if not found:
        raise WorldError(f"{folder} holds no codec: it has neither {CODEC_CONFIG_FILE} nor {CONFIG_FILE}")
    config, checksums = read_shape(found[0], "codec", CodecConfig, "codec")
    check_file(folder / CODEC_FILE, checksums.get(CODEC_FILE))
    return load_weights(lambda: FrameCodec(config), folder / CODEC_FILE, found[0].name)
