"""Weights on disk: safetensors only, checked before they are loaded, written completely or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from worldsim.codec import CodecConfig, FrameCodec
from worldsim.errors import WorldError

CONFIG_FILE, CODEC_FILE, CODEC_CONFIG_FILE = "config.json", "codec.safetensors", "codec.json"
PICKLES = {".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin"}

Module = TypeVar("Module", bound=nn.Module)


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(path: Path, expected: str | None) -> None:
    """Raise `WorldError` unless the file exists and has the checksum that `config.json` names."""
    if not path.is_file():
        pickles = [p.name for p in path.parent.iterdir() if p.suffix in PICKLES]
        hint = f" (it holds {pickles[0]}, a pickle, which is never loaded)" if pickles else ""
        raise WorldError(f"{path.parent} is not a complete world: it has no {path.name}{hint}")
    if expected is None:
        raise WorldError(f"the world's {CONFIG_FILE} names no checksum for {path}")
    if sha256_of(path) != expected:
        raise WorldError(f"{path} is damaged or was altered: its SHA-256 is not the one in {CONFIG_FILE}")


def load_weights(build: Callable[[], Module], path: Path) -> Module:
    """Build a module and fill it from a safetensors file; every tensor must fit."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WorldError(f"{path} is not a safetensors file: {error}") from error
    module = build()
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise WorldError(f"{path} does not fit the shapes in {CONFIG_FILE}: {reason}") from error
    return module


def save_weights(module: nn.Module, path: Path, dtype: torch.dtype) -> None:
    """Write a module's tensors in `dtype`."""
    tensors = {name: t.detach().to("cpu", dtype).contiguous() for name, t in module.state_dict().items()}
    save_file(tensors, path)


def swap_folder(new: Path, target: Path) -> None:
    """Put `new` in the place of `target`, keeping the old one until the new one stands."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
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


def load_codec(folder: Path) -> FrameCodec:
    """Read a codec that `save_codec` or a world's `save_pretrained` wrote.

    Raises:
        WorldError: If the folder holds none, or it is damaged.
    """
    found = [folder / name for name in (CODEC_CONFIG_FILE, CONFIG_FILE) if (folder / name).is_file()]
    if not found:
        raise WorldError(f"{folder} holds no codec: it has neither {CODEC_CONFIG_FILE} nor {CONFIG_FILE}")
    data = json.loads(found[0].read_text())
    check_file(folder / CODEC_FILE, data.get("files", {}).get(CODEC_FILE))
    config = CodecConfig(**data["codec"])
    return load_weights(lambda: FrameCodec(config), folder / CODEC_FILE)
