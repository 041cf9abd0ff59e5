"""Weights on disk: safetensors only, checked before they are loaded, written completely or not at all."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from worldsim.errors import WorldError
from worldsim.storage.files import is_inner_path, printable, read_json, read_record, shown, sync, writing
from worldsim.storage.quantization import SCALES, dequantize_weights, quantize_weights

CONFIG_FILE, CODEC_FILE = "config.json", "codec.safetensors"
READ_ERRORS = (SafetensorError, OSError, AttributeError, KeyError, RuntimeError, ValueError)
"""Of safetensors, whose number formats are not all known to this release of it or of torch."""
PICKLES = {".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin"}

FLOATS = {torch.float64, torch.float32, torch.bfloat16, torch.float16}
"""What weights are stored in; others cannot be computed with, or have fewer bits than was trained."""

Module = TypeVar("Module", bound=nn.Module)
Shape = TypeVar("Shape")


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(folder: Path, name: str, expected: str | None) -> Path:
    """Return the path of a file that exists in a folder and has the checksum that `config.json` names.

    Raises:
        WorldError: If it does not, or is a link to a file elsewhere.
    """
    path = folder / name
    if not path.is_file():
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        pickles = [p.name for p in beside if p.suffix in PICKLES]
        hint = f" (it holds {pickles[0]}, a pickle, which is never loaded)" if pickles else ""
        raise WorldError(f"{path.parent} is not a complete world: it has no {path.name}{hint}")
    target = path.resolve()
    if not target.is_relative_to(folder.resolve()) and not _is_hub_blob(folder, target):
        raise WorldError(f"{path} is a link to {target}, which is not in the folder of the world")
    if expected is None:
        raise WorldError(f"the world's {CONFIG_FILE} names no checksum for {path}")
    if sha256_of(path) != expected:
        raise WorldError(f"{path} is damaged or was altered: its SHA-256 is not the one in {CONFIG_FILE}")
    return path


def _is_hub_blob(folder: Path, target: Path) -> bool:
    """Whether a file is where the hub's cache keeps the contents of a download, whose names are links."""
    snapshots = folder.resolve().parent
    return snapshots.name == "snapshots" and target.parent == snapshots.parent / "blobs"


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        WorldError: If it holds anything else.
    """
    data = read_json(path)
    if not isinstance(data, dict):
        raise WorldError(f"{path} is not a JSON object but a {type(data).__name__}")
    return data


def read_checksums(data: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that a description `data`, read from `path`, names under `files`.

    Raises:
        WorldError: If they are not names of files beside it and texts.
    """
    files = data.get("files", {})
    if not isinstance(files, dict) or not all(isinstance(value, str) for value in files.values()):
        raise WorldError(f"{path}: files must be an object of file names and their SHA-256")
    for name in files:
        if not is_inner_path(name):
            raise WorldError(f"{path} lists {name!r}, which is not in its folder")
    return files


def load_weights(
    build: Callable[[], Module], path: Path, min_weights: int, described_in: str = CONFIG_FILE
) -> Module:
    """Build a module and fill it from a safetensors file; every tensor must fit.

    Args:
        build: Makes the module, from a description that may be damaged.
        min_weights: How many numbers the description needs at least: a module that is far larger than the
            file is not built.
        described_in: File that holds the description.

    Raises:
        WorldError: If the module cannot be built, or the file is damaged, of another shape, or holds what
            is no finite number.
    """
    tensors = read_weights(path)
    held = sum(tensor.numel() for tensor in tensors.values())
    if held < min_weights:
        raise WorldError(
            f"{path} does not fit the shapes in {described_in}: it holds {held:,} weights, "
            f"they need at least {min_weights:,}"
        )
    try:
        module = build()
        module.load_state_dict(tensors, strict=True)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = printable(" ".join(str(error).split()))[:500]
        raise WorldError(f"{path} does not fit the shapes in {described_in}: {reason}") from error
    return module


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file of finite floating-point numbers, or of 8 bits with scales, onto the CPU.

    Raises:
        WorldError: If it holds anything else, or is damaged.
    """
    try:
        tensors = load_file(path)
    except READ_ERRORS as error:
        raise WorldError(f"{path} is not a safetensors file of weights: {error}") from error
    try:
        tensors = dequantize_weights(tensors)
    except ValueError as error:
        raise WorldError(f"{path}: {error}") from error
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise WorldError(f"{path}: {shown(name)} holds {kind} numbers, not 16 to 64 bit floating-point")
        total = tensor.sum(dtype=torch.float32)  # several times as fast as looking at each
        if not total.isfinite() and not tensor.float().isfinite().all():
            raise WorldError(f"{path}: {shown(name)} holds NaN or inf")
    return tensors


def save_weights(
    module: nn.Module, path: Path, dtype: torch.dtype, *, bits: int = 16, prefix: str = ""
) -> None:
    """Write a module's tensors in `dtype`, or in 8 bits with what is small in `dtype`.

    Args:
        module: What is written.
        path: File to write.
        dtype: Of its numbers.
        bits: 8 stores all but small tensors as `worldsim.storage.quantization` does; 16 stores none so.
        prefix: Of the names of tensors that may be stored in 8 bits.

    Raises:
        WorldError: If `bits` is neither.
        OSError: If the file cannot be written.
    """
    if bits not in (8, 16):
        raise WorldError(f"weights are stored in 8 or 16 bits, not in {bits}")
    weights = {name: t.detach().cpu() for name, t in module.state_dict().items()}
    stored = quantize_weights(weights, prefix) if bits == 8 else weights
    floats = {
        name: t if t.dtype == torch.int8 or name.endswith(SCALES) else t.to(dtype)
        for name, t in stored.items()
    }
    write_tensors(floats, path)


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, completely or not at all; a file that is there is replaced.

    Args:
        path: File to write; its folder must exist.
        metadata: Texts to keep in the file's header.

    Raises:
        OSError: If the file cannot be written, on a full disk above all; it names `path`.
    """
    with writing(path) as part:
        try:
            save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, part, metadata=metadata)
        except SafetensorError as error:  # neither an OSError nor a ValueError
            found = re.search(r"I/O error: (.+?) \(os error (\d+)\)", str(error))
            if found is None:
                raise OSError(f"{path} cannot be written: {error}") from error
            raise OSError(int(found[2]), found[1], str(path)) from error


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Give a new folder to fill instead of `folder`; it is removed, unless it was moved there.

    Raises:
        OSError: If it cannot be made.
    """
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def swap_folder(new: Path, target: Path) -> None:
    """Put `new` in the place of `target`, keeping the old one until the new one stands.

    Raises:
        OSError: If it cannot be moved; the old one is back in its place then.
    """
    old = target.with_name(target.name + ".old")
    try:
        for path in (*new.rglob("*"), new):  # a rename may reach the disk before the contents
            sync(path)
        if target.exists():  # otherwise an old one, left when a swap was killed, is the only copy
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        new.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def read_shape(path: Path, key: str, shape: type[Shape], name: str) -> tuple[Shape, dict[str, str]]:
    """Read what a JSON file says of a network's shape, and the checksums of the files beside it.

    Args:
        key: Of the object in it that describes the network.
        name: What the network is called in errors.

    Raises:
        WorldError: If there is no such object, or no network has this shape.
    """
    data = read_object(path)
    checksums = read_checksums(data, path)
    if not isinstance(data.get(key), dict):
        raise WorldError(f"{path} describes no {name}: it has no object {key!r}")
    try:
        return read_record(shape, data[key], key), checksums
    except ValueError as error:
        raise WorldError(f"{path}: {error}") from error
